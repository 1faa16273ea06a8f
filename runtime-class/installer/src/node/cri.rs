//! Which runtimes the CRI reports: one call over containerd's socket, with the few fields of its messages that matter here.
//!
//! Field numbers are those of `runtime.v1` in k8s.io/cri-api, `StatusRequest` and `StatusResponse`.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use serde_json::Value;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::config::entry::HANDLER;
use crate::error::{Context, Error, Result, causes};

const METHOD: &str = "/runtime.v1.RuntimeService/Status";
/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
    #[prost(message, repeated, tag = "3")]
    runtime_handlers: Vec<RuntimeHandler>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeHandler {
    #[prost(string, tag = "1")]
    name: String,
}

/// What the CRI reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    /// The names of the runtimes.
    pub(crate) handlers: BTreeSet<String>,
    /// The path of our runtime's shim, where the CRI reports it.
    pub(crate) shim: Option<PathBuf>,
}

impl Reported {
    /// Whether our runtime is reported with this shim.
    pub(crate) fn has(&self, shim: &Path) -> bool {
        self.handlers.contains(HANDLER) && self.shim.as_ref().is_none_or(|reported| reported == shim)
    }

    /// Whether our runtime is reported at all.
    pub(crate) fn has_handler(&self) -> bool {
        self.handlers.contains(HANDLER)
    }

    /// The first runtime other than ours that `later` does not report.
    pub(crate) fn lost_in<'a>(&'a self, later: &'a Self) -> Option<&'a str> {
        self.handlers.difference(&later.handlers).map(String::as_str).find(|name| *name != HANDLER)
    }
}

/// Asks the CRI behind `socket`, a path of this process.
pub(crate) async fn report(socket: &Path) -> Result<Reported> {
    let doing = "containerd's CRI does not respond";
    let response = timeout(LIMIT, status(socket)).await.map_err(|_| Error::host(format!("{doing} in time")))?;
    Ok(read(&response.or_host(doing)?))
}

async fn status(socket: &Path) -> Result<StatusResponse> {
    let channel =
        Endpoint::from_shared(format!("unix://{}", socket.display())).or_host("the socket is not an address")?;
    let channel = channel.connect().await.map_err(|error| Error::host(causes(&error)))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Error::host(causes(&error)))?;
    let codec = ProstCodec::<StatusRequest, StatusResponse>::default();
    let request = tonic::Request::new(StatusRequest { verbose: true });
    let response = client.unary(request, PathAndQuery::from_static(METHOD), codec).await;
    response.map(tonic::Response::into_inner).map_err(|status| Error::host(status.message()))
}

fn read(response: &StatusResponse) -> Reported {
    let config: Value =
        response.info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let runtimes = &config["containerd"]["runtimes"];
    let mut handlers: BTreeSet<_> = response.runtime_handlers.iter().map(|handler| handler.name.clone()).collect();
    // The default runtime is listed a second time, without a name.
    handlers.remove("");
    if handlers.is_empty() {
        // containerd 1.7 does not list handlers, but reports its configuration.
        handlers.extend(runtimes.as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    }
    let shim = runtimes[HANDLER]["runtimeType"].as_str().map(PathBuf::from);
    Reported { handlers, shim }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(handlers: &[&str], config: &str) -> StatusResponse {
        let handler = |name: &&str| RuntimeHandler { name: (*name).into() };
        let info = HashMap::from([("config".to_owned(), config.to_owned())]);
        StatusResponse { info, runtime_handlers: handlers.iter().map(handler).collect() }
    }

    #[test]
    fn handlers_are_read_from_both_places() {
        let config = r#"{"containerd":{"runtimes":{"runc":{},"skiff":{"runtimeType":"/opt/shim"}}}}"#;
        let new = read(&response(&["", "runc", "skiff"], config));
        assert_eq!(new, read(&response(&[], config)));
        assert!(new.has(Path::new("/opt/shim")) && !new.has(Path::new("/opt/other")));
        assert!(read(&response(&["skiff"], "")).has(Path::new("/opt/shim")), "a CRI that does not report paths");
        assert!(!read(&response(&["", "runc"], "{}")).has_handler());
    }

    #[test]
    fn a_lost_runtime_is_named() {
        let before = read(&response(&["runc", "kata", "skiff"], ""));
        assert_eq!(before.lost_in(&read(&response(&["kata"], ""))), Some("runc"));
        assert_eq!(before.lost_in(&read(&response(&["kata", "runc"], ""))), None);
    }
}

//! The CRI of a tree: its `Status` reports what `/fake/reported` contains, in containerd's format.

use std::convert::Infallible;
use std::fs;
use std::future::ready;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

/// Listens on `socket` for as long as the test runs.
pub(crate) fn serve(socket: &Path, reported: PathBuf) {
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(accept(listener, reported));
    });
}

async fn accept(listener: UnixListener, reported: PathBuf) {
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let reported = reported.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                assert_eq!(request.uri().path(), "/runtime.v1.RuntimeService/Status");
                let answer = answer(&reported);
                async move { Ok::<_, Infallible>(answer) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

fn answer(reported: &Path) -> Response<impl Body<Data = Bytes, Error = Infallible> + use<>> {
    let text = fs::read_to_string(reported).unwrap_or_default();
    let mut framed = Vec::new();
    if !text.is_empty() {
        let message = status(&text).encode_to_vec();
        framed.push(0);
        framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend(message);
    }
    // 14 is UNAVAILABLE.
    let status = HeaderValue::from_static(if text.is_empty() { "14" } else { "0" });
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), status)]);
    let body = Full::new(Bytes::from(framed)).with_trailers(ready(Some(Ok(trailers))));
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(map = "string, string", tag = "2")]
    info: std::collections::HashMap<String, String>,
    #[prost(message, repeated, tag = "3")]
    handlers: Vec<Handler>,
}

#[derive(Clone, PartialEq, Message)]
struct Handler {
    #[prost(string, tag = "1")]
    name: String,
}

fn status(text: &str) -> Status {
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let runtimes: serde_json::Map<_, _> =
        lines.iter().map(|(name, path)| ((*name).to_owned(), serde_json::json!({"runtimeType": path}))).collect();
    let config = serde_json::json!({"containerd": {"runtimes": runtimes}}).to_string();
    let handlers = ["", "runc"].into_iter().chain(lines.iter().map(|(name, _)| *name).filter(|name| *name != "runc"));
    let handlers = handlers.map(|name| Handler { name: name.into() }).collect();
    Status { info: [("config".to_owned(), config)].into(), handlers }
}

//! The Kubernetes API, asked with the pod's own service account. Every request has its own connection, a time limit, and a
//! limit for the size of its reply. It ends when its future is dropped.
//!
//! It goes straight to the API server; proxies in the environment are ignored.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::error::{Context, Error, Result, causes};

/// Where Kubernetes mounts a pod's credentials.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long connecting to the API server may take, and then again its complete reply.
const LIMIT: Duration = Duration::from_secs(10);
/// The largest reply that is read.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// A request to the API server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Get(String),
    /// A patch of this type.
    Patch(String, &'static str, Value),
}

/// RFC 7386: null removes a key, a list is replaced.
pub(crate) const MERGE: &str = "application/merge-patch+json";
/// Kubernetes' own type: members of lists are matched by their names.
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// The API server of the cluster that this pod runs in.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    host: String,
    port: u16,
    account: PathBuf,
}

impl Api {
    pub(crate) fn in_cluster(host: String, port: u16) -> Self {
        Self { host, port, account: ACCOUNT.into() }
    }

    /// Sends the request and returns the body of the reply.
    ///
    /// # Errors
    /// When the server cannot be reached or takes too long, or when its reply is too large, broken, or not a success.
    pub(crate) async fn ask(&self, request: &Request) -> Result<String> {
        let token =
            fs::read_to_string(self.account.join("token")).or_host("cannot read the service account's token")?;
        let request = http(request, &self.authority(), token.trim())?;
        let tls = TlsConnector::from(Arc::new(configuration(&self.account.join("ca.crt"))?));
        let host = &self.host;
        let name = ServerName::try_from(host.clone()).or_host(format!("`{host}` is not the name of a server"))?;
        let stream = in_time("cannot reach the API server", self.connect()).await?;
        let answered = async {
            let stream = tls.connect(name, stream).await.or_host("cannot ask the API server")?;
            exchange(stream, request).await
        };
        in_time("the API server does not respond", answered).await
    }

    /// The same for a reply that is JSON.
    pub(crate) async fn ask_json(&self, request: &Request) -> Result<Value> {
        serde_json::from_str(&self.ask(request).await?).or_host("the API server's reply is not JSON")
    }

    async fn connect(&self) -> Result<TcpStream> {
        TcpStream::connect((self.host.as_str(), self.port)).await.or_host("cannot reach the API server")
    }

    fn authority(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            Ok(IpAddr::V4(_)) | Err(_) => format!("{}:{}", self.host, self.port),
        }
    }
}

async fn in_time<T>(fault: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::host(format!("{fault} within {} s", LIMIT.as_secs()));
    timeout(LIMIT, work).await.map_err(late)?
}

fn configuration(authority: &Path) -> Result<ClientConfig> {
    let doing = "cannot read the cluster's certificate authority";
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).or_host(doing)? {
        roots.add(certificate.or_host(doing)?).or_host(doing)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().or_host("cannot set up TLS")?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The request as it is sent.
fn http(request: &Request, authority: &str, token: &str) -> Result<hyper::Request<Full<Bytes>>> {
    let mut bearer =
        HeaderValue::try_from(format!("Bearer {token}")).or_host("cannot read the service account's token")?;
    bearer.set_sensitive(true);
    let builder = hyper::Request::builder().header(HOST, authority).header(AUTHORIZATION, bearer);
    let builder = builder.header(ACCEPT, "application/json, */*");
    let built = match request {
        Request::Get(path) => builder.uri(path).body(Full::default()),
        Request::Patch(path, kind, body) => {
            let builder = builder.method(Method::PATCH).uri(path).header(CONTENT_TYPE, *kind);
            builder.body(Full::from(body.to_string()))
        }
    };
    built.or_host("cannot ask the API server")
}

/// Sends the request over a connection of its own, which is closed afterwards.
async fn exchange<S>(stream: S, request: hyper::Request<Full<Bytes>>) -> Result<String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(unanswered)?;
    // The set ends the connection when this future is dropped.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    read(sender.send_request(request).await.map_err(unanswered)?).await
}

fn unanswered(error: hyper::Error) -> Error {
    let is_broken = error.is_parse() || error.is_incomplete_message();
    let what = if is_broken { "cannot read the API server's reply" } else { "the API server does not respond" };
    Error::host(format!("{what}: {}", causes(&error)))
}

async fn read(response: Response<Incoming>) -> Result<String> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    if head.status == StatusCode::OK {
        return body
            .map_err(|error| Error::host(format!("cannot read the API server's reply: {}", causes(error.as_ref()))));
    }
    let body = body.unwrap_or_default();
    let told = serde_json::from_str::<Value>(&body).ok().and_then(|value| Some(value["message"].as_str()?.to_owned()));
    let (status, message) = (head.status.as_u16(), told.unwrap_or(body));
    Err(Error::host(format!("the API server replies {status}: {message}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Asks over a connection whose other end sends `answer`; returns the result and the request.
    async fn ask(request: &Request, answer: &[u8]) -> (Result<String>, String) {
        let (near, mut far) = duplex(1 << 10);
        let server = async {
            let mut asked = vec![0; 1 << 10];
            let length = far.read(&mut asked).await.unwrap();
            asked.truncate(length);
            // A client that does not want that much closes the connection.
            drop(far.write_all(answer).await);
            drop(far);
            String::from_utf8(asked).unwrap()
        };
        tokio::join!(exchange(near, http(request, "10.0.0.1:443", "secret").unwrap()), server)
    }

    fn get() -> Request {
        Request::Get("/x".into())
    }

    #[tokio::test]
    async fn a_request_is_sent_whole_and_its_body_answered() {
        let patch = Request::Patch("/api/v1/nodes/n?a=b".into(), MERGE, json!({"a": null}));
        let (result, asked) = ask(&patch, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"b\":1}").await;
        assert_eq!(result.unwrap(), "{\"b\":1}");
        assert!(asked.starts_with("PATCH /api/v1/nodes/n?a=b HTTP/1.1\r\nhost: 10.0.0.1:443\r\n"), "{asked}");
        assert!(asked.contains("\r\nauthorization: Bearer secret\r\n"), "{asked}");
        assert!(asked.contains(&format!("\r\ncontent-type: {MERGE}\r\n")), "{asked}");
        assert!(asked.ends_with("content-length: 10\r\n\r\n{\"a\":null}"), "{asked}");
        let (_, asked) = ask(&get(), b"").await;
        assert!(asked.ends_with("*/*\r\n\r\n") && !asked.contains("content"), "{asked}");
    }

    #[tokio::test]
    async fn an_answer_may_come_in_chunks_or_end_with_its_connection() {
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n3\r\n 2]\r\n0\r\n\r\n";
        assert_eq!(ask(&get(), chunks).await.0.unwrap(), "[1, 2]");
        assert_eq!(ask(&get(), b"HTTP/1.0 200 OK\r\n\r\n[1]").await.0.unwrap(), "[1]");
        let (result, _) = ask(&get(), b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"b\"").await;
        assert!(result.unwrap_err().to_string().starts_with("cannot read the API server's reply: "));
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_is_not_read_to_its_end() {
        let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + ANSWER_BYTES_MAX + 1, b'x');
        let error = ask(&get(), &answer).await.0.unwrap_err().to_string();
        assert_eq!(error, "cannot read the API server's reply: length limit exceeded");
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_message() {
        let (result, _) = ask(&get(), b"HTTP/1.0 403 Forbidden\r\n\r\n{\"message\":\"nodes is forbidden\"}").await;
        assert_eq!(result.unwrap_err().to_string(), "the API server replies 403: nodes is forbidden");
        let (result, _) = ask(&get(), b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nwords").await;
        assert_eq!(result.unwrap_err().to_string(), "the API server replies 500: words");
        for answer in ["", "SSH-2.0-OpenSSH_9.9\r\n"] {
            assert!(ask(&get(), answer.as_bytes()).await.0.unwrap_err().to_string().starts_with("cannot read"));
        }
    }

    #[test]
    fn an_address_of_version_6_stands_in_brackets() {
        assert_eq!(Api::in_cluster("fd00::1".into(), 443).authority(), "[fd00::1]:443");
        assert_eq!(Api::in_cluster("10.0.0.1".into(), 6443).authority(), "10.0.0.1:6443");
    }
}

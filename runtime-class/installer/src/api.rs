//! The Kubernetes API, with the pod's own service account: a request is one connection, and its answer ends with it.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::error::{Context, Error, Result};

/// Where Kubernetes puts what a pod is known by.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long the API server may take to be reached, and for each part of its answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The most of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// What the API server is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Get(String),
    /// A patch of this type.
    Patch(String, &'static str, Value),
}

/// RFC 7386: null removes a key, a list is replaced.
pub(crate) const MERGE: &str = "application/merge-patch+json";
/// Kubernetes' own: members of lists are found by their names.
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// The API server, as a pod is told of it.
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

    /// Asks, and answers the body.
    pub(crate) fn ask(&self, request: &Request) -> Result<String> {
        let token =
            fs::read_to_string(self.account.join("token")).or_host("cannot read the service account's token")?;
        let config = configuration(&self.account.join("ca.crt"))?;
        let host = &self.host;
        let name = ServerName::try_from(host.clone()).or_host(format!("`{host}` is no name of a server"))?;
        let tls = ClientConnection::new(Arc::new(config), name).or_host("cannot speak TLS")?;
        let stream = self.connect().or_host("cannot reach the API server")?;
        send(&mut StreamOwned::new(tls, stream), &text(request, &self.authority(), token.trim()))
    }

    /// The same for an answer that is JSON.
    pub(crate) fn ask_json(&self, request: &Request) -> Result<Value> {
        serde_json::from_str(&self.ask(request)?).or_host("the API server's answer is not JSON")
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut addresses = (self.host.as_str(), self.port).to_socket_addrs()?;
        let address = addresses.next().ok_or(std::io::ErrorKind::NotFound)?;
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    fn authority(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            Ok(IpAddr::V4(_)) | Err(_) => format!("{}:{}", self.host, self.port),
        }
    }
}

fn configuration(authority: &Path) -> Result<ClientConfig> {
    let doing = "cannot read the cluster's certificate authority";
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).or_host(doing)? {
        roots.add(certificate.or_host(doing)?).or_host(doing)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.or_host("cannot speak TLS")?.with_root_certificates(roots).with_no_client_auth())
}

/// The request as it is sent. An answer to HTTP 1.0 has no chunks.
fn text(request: &Request, authority: &str, token: &str) -> String {
    let (method, path, kind, body) = match request {
        Request::Get(path) => ("GET", path, "", String::new()),
        Request::Patch(path, kind, body) => ("PATCH", path, *kind, body.to_string()),
    };
    let content = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len())
    };
    format!(
        "{method} {path} HTTP/1.0\r\nHost: {authority}\r\nAuthorization: Bearer {token}\r\nAccept: application/json, */*\r\n\
         {content}\r\n{body}"
    )
}

fn send(stream: &mut (impl Read + Write), request: &str) -> Result<String> {
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).or_host("cannot ask the API server")?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1).and_then(|code| code.parse::<u16>().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    match (status, read) {
        (Some(200), _) => Ok(body.to_owned()),
        (Some(status), _) => {
            let message =
                serde_json::from_str::<Value>(body).ok().and_then(|value| Some(value["message"].as_str()?.to_owned()));
            Err(Error::host(format!("the API server answers {status}: {}", message.as_deref().unwrap_or(body))))
        }
        (None, Err(error)) => Err(Error::host(format!("the API server does not answer: {error}"))),
        (None, Ok(_)) => Err(Error::host("the API server's answer is not understood")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor};

    use serde_json::json;

    use super::*;

    /// A connection that has its answer already.
    struct Answered {
        asked: Vec<u8>,
        answer: Cursor<Vec<u8>>,
    }

    impl Read for Answered {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.answer.read(buffer)
        }
    }

    impl Write for Answered {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asked.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask(request: &Request, answer: &str) -> (Result<String>, String) {
        let mut stream = Answered { asked: Vec::new(), answer: Cursor::new(answer.into()) };
        let result = send(&mut stream, &text(request, "10.0.0.1:443", "secret"));
        (result, String::from_utf8(stream.asked).unwrap())
    }

    #[test]
    fn a_request_is_sent_whole_and_its_body_answered() {
        let patch = Request::Patch("/api/v1/nodes/n".into(), MERGE, json!({"a": null}));
        let (result, asked) = ask(&patch, "HTTP/1.0 200 OK\r\nX: y\r\n\r\n{\"b\":1}");
        assert_eq!(result.unwrap(), "{\"b\":1}");
        assert!(asked.starts_with("PATCH /api/v1/nodes/n HTTP/1.0\r\nHost: 10.0.0.1:443\r\n"), "{asked}");
        assert!(asked.contains("\r\nAuthorization: Bearer secret\r\n"), "{asked}");
        assert!(asked.ends_with("Content-Length: 10\r\n\r\n{\"a\":null}"), "{asked}");
        let (_, asked) = ask(&Request::Get("/x".into()), "");
        assert!(asked.ends_with("*/*\r\n\r\n") && !asked.contains("Content"), "{asked}");
    }

    #[test]
    fn a_refusal_is_told_with_its_message() {
        let get = Request::Get("/x".into());
        let (result, _) = ask(&get, "HTTP/1.0 403 Forbidden\r\n\r\n{\"message\":\"nodes is forbidden\"}");
        assert_eq!(result.unwrap_err().to_string(), "the API server answers 403: nodes is forbidden");
        assert!(ask(&get, "").0.unwrap_err().to_string().contains("not understood"));
    }

    #[test]
    fn an_address_of_version_6_stands_in_brackets() {
        assert_eq!(Api::in_cluster("fd00::1".into(), 443).authority(), "[fd00::1]:443");
        assert_eq!(Api::in_cluster("10.0.0.1".into(), 6443).authority(), "10.0.0.1:6443");
    }
}

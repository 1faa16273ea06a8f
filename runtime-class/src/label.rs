//! The label of the node in Kubernetes, by which wasm pods find it: one request with the pod's own service account.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// The label of a node that has the runtime.
pub(crate) const LABEL: &str = "skiff.dev/installed";
/// Where Kubernetes puts what a pod is known by.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long the API server may take for each part of its answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The most of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Whether the node is to have the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Present,
    Absent,
}

/// Who is asked to label which node.
pub(crate) struct Labels {
    node: String,
    server: (String, u16),
    account: std::path::PathBuf,
}

impl Labels {
    /// The API server that a pod is told of.
    pub(crate) fn in_cluster(node: String, host: String, port: u16) -> Self {
        Self { node, server: (host, port), account: ACCOUNT.into() }
    }

    /// Sets or removes the label.
    pub(crate) fn set(&self, wanted: Wanted) -> Result<()> {
        let (host, port) = &self.server;
        let token =
            fs::read_to_string(self.account.join("token")).or_host("cannot read the service account's token")?;
        let config = configuration(&self.account.join("ca.crt"))?;
        let name = ServerName::try_from(host.clone()).or_host(format!("`{host}` is no name of a server"))?;
        let tls = ClientConnection::new(Arc::new(config), name).or_host("cannot speak TLS")?;
        let doing = "cannot reach the API server";
        let stream = TcpStream::connect((host.as_str(), *port)).or_host(doing)?;
        stream.set_read_timeout(Some(LIMIT)).and_then(|()| stream.set_write_timeout(Some(LIMIT))).or_host(doing)?;
        let request = request(&self.node, &format!("{host}:{port}"), token.trim(), wanted);
        send(&mut StreamOwned::new(tls, stream), &request)
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

/// A merge patch, RFC 7386: null removes the label.
fn request(node: &str, host: &str, token: &str, wanted: Wanted) -> String {
    let value = match wanted {
        Wanted::Present => json!("true"),
        Wanted::Absent => Value::Null,
    };
    let body = json!({"metadata": {"labels": {LABEL: value}}}).to_string();
    format!(
        "PATCH /api/v1/nodes/{node}?fieldManager=skiff-node HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/merge-patch+json\r\nContent-Length: {}\r\nAccept: application/json\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn send(stream: &mut (impl Read + Write), request: &str) -> Result<()> {
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).or_host("cannot ask the API server")?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1).and_then(|code| code.parse::<u16>().ok());
    match (status, read) {
        (Some(200), _) => Ok(()),
        (Some(status), _) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
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

    fn ask(answer: &str) -> (Result<()>, String) {
        let mut stream = Answered { asked: Vec::new(), answer: Cursor::new(answer.into()) };
        let result = send(&mut stream, &request("node-1", "10.0.0.1:443", "secret", Wanted::Present));
        (result, String::from_utf8(stream.asked).unwrap())
    }

    #[test]
    fn the_label_is_set_with_one_request() {
        let (result, asked) = ask("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}");
        result.unwrap();
        assert!(asked.starts_with("PATCH /api/v1/nodes/node-1?fieldManager=skiff-node HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nAuthorization: Bearer secret\r\n"), "{asked}");
        assert!(asked.ends_with("\r\n\r\n{\"metadata\":{\"labels\":{\"skiff.dev/installed\":\"true\"}}}"), "{asked}");
        assert!(request("n", "h", "t", Wanted::Absent).ends_with("{\"skiff.dev/installed\":null}}}"));
    }

    #[test]
    fn a_refusal_is_told_with_its_message() {
        let (result, _) = ask("HTTP/1.1 403 Forbidden\r\n\r\n{\"message\":\"nodes is forbidden\"}");
        assert_eq!(result.unwrap_err().to_string(), "the API server answers 403: nodes is forbidden");
        assert!(ask("").0.unwrap_err().to_string().contains("not understood"));
    }
}

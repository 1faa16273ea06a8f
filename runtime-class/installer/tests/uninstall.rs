//! `uninstall` against an API server that stands in for Kubernetes: it asks with the pod's credentials, and it ends in time,
//! whatever the server does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const SET: &str = "/apis/apps/v1/namespaces/n/daemonsets/d";
const DONE: &str = r#"{"metadata":{"generation":2},"status":{"observedGeneration":2,"desiredNumberScheduled":1,
    "updatedNumberScheduled":1,"numberReady":1}}"#;
/// How long a test waits for something that must happen at once.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Runs the rest of its arguments as a process of a pod, whose credentials are in the directory of the first.
const IN_A_POD: &str = "mount -t tmpfs tmpfs /var/run && mkdir -p /var/run/secrets/kubernetes.io && \
    cp -r $0 /var/run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";

/// What the server does with a request; `None` leaves it without a reply.
type Answer = fn(&str) -> Option<&'static str>;

/// The path of a file of `tests/credentials`.
fn credential(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/credentials").join(name)
}

/// An API server on this machine, for as long as the test runs.
struct Server {
    port: u16,
    /// The pod's credentials.
    account: TempDir,
    /// The method and path of each request, with its body.
    asked: Receiver<(String, String)>,
}

impl Server {
    fn start(answer: Answer) -> Self {
        let account = tempfile::tempdir().unwrap();
        fs::write(account.path().join("token"), "secret\n").unwrap();
        fs::copy(credential("server.crt"), account.path().join("ca.crt")).unwrap();
        let certificate = CertificateDer::from_pem_file(credential("server.crt")).unwrap();
        let key = PrivateKeyDer::from_pem_file(credential("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate], key).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, asked) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, TlsAcceptor::from(Arc::new(config)), answer, sender));
        });
        Self { port, account, asked }
    }

    fn uninstall(&self) -> Child {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", IN_A_POD]).arg(self.account.path());
        command.args([env!("CARGO_BIN_EXE_skiff-node"), "uninstall", "--namespace=n", "--daemon-set=d"]);
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", self.port.to_string());
        // Nothing listens there.
        command.env("HTTPS_PROXY", "http://127.0.0.1:1").env("ALL_PROXY", "http://127.0.0.1:1");
        command.stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The next request; the body of a patch has what the nodes should be.
    fn next(&self) -> (String, String) {
        self.asked.recv_timeout(AT_ONCE).unwrap()
    }

    fn expect_patch(&self, wanted: &str) {
        let (request, body) = self.next();
        assert_eq!(request, format!("PATCH {SET}?fieldManager=skiff-node"));
        assert!(body.contains(&format!(r#"{{"name":"SKIFF_NODE_WANTED","value":"{wanted}"}}"#)), "{body}");
    }

    fn expect_look(&self) {
        assert_eq!(self.next().0, format!("GET {SET}"));
    }
}

async fn serve(listener: std::net::TcpListener, tls: TlsAcceptor, answer: Answer, asked: Sender<(String, String)>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, asked) = (tls.clone(), asked.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(|request| respond(request, answer, asked.clone()));
            // A client may go before it has its reply.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    answer: Answer,
    asked: Sender<(String, String)>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.headers()[AUTHORIZATION], "Bearer secret");
    let method = request.method().to_string();
    let line = format!("{method} {}", request.uri());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    // A test that has seen enough does not listen any more.
    drop(asked.send((line, String::from_utf8_lossy(&body).into_owned())));
    match answer(&method) {
        Some(text) => Ok(Response::new(Full::from(text))),
        None => pending().await,
    }
}

/// The exit code and the last line of a run, which ends within `limit`.
fn end(run: Child, limit: Duration) -> (Option<i32>, String) {
    let start = Instant::now();
    let output = run.wait_with_output().unwrap();
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said.lines().last().unwrap_or_default().to_owned())
}

fn terminate(run: &Child) {
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM).unwrap();
}

#[test]
fn an_uninstall_ends_when_every_node_is_done() {
    let server = Server::start(|_| Some(DONE));
    let run = server.uninstall();
    server.expect_patch("removed");
    server.expect_look();
    assert_eq!(end(run, AT_ONCE), (Some(0), "skiff-node: skiff is removed from every node".into()));
}

#[test]
fn a_signal_ends_an_uninstall_while_the_api_server_hangs() {
    let server = Server::start(|method| (method == "PATCH").then_some("{}"));
    let run = server.uninstall();
    server.expect_patch("removed");
    server.expect_look();
    terminate(&run);
    server.expect_patch("installed");
    let sentence = "skiff-node: interrupted; nothing was uninstalled, and every node gets skiff back";
    assert_eq!(end(run, AT_ONCE), (Some(1), sentence.into()));
}

#[test]
fn an_api_server_that_never_answers_is_given_up() {
    let server = Server::start(|_| None);
    let run = server.uninstall();
    server.expect_patch("removed");
    let sentence = "skiff-node: the API server does not respond within 10 s";
    // Two requests, of 10 s each.
    assert_eq!(end(run, 6 * AT_ONCE), (Some(2), sentence.into()));
    // Whether the request has reached the cluster is not known, so it is taken back.
    server.expect_patch("installed");
}

#[test]
fn an_api_server_with_a_strange_certificate_is_told_nothing() {
    let server = Server::start(|_| None);
    fs::copy(credential("stranger.crt"), server.account.path().join("ca.crt")).unwrap();
    let (code, said) = end(server.uninstall(), AT_ONCE);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("skiff-node: cannot ask the API server: invalid peer certificate: "), "{said}");
    assert!(server.asked.try_recv().is_err());
}

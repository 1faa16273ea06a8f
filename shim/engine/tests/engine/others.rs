//! Other servers, which a guest makes requests to.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// A company's own certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate, in PEM.
    pub(crate) fn certificate(&self) -> String {
        self.0.pem()
    }

    /// What a server for 127.0.0.1 needs that speaks these protocols.
    fn server(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A server with a route for each thing that a test wants of it.
pub(crate) struct Other {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
    open_max: AtomicUsize,
}

/// A connection of the server.
struct Counted(Arc<Counts>);

impl Counted {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.accepted.fetch_add(1, Ordering::SeqCst);
        let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
        counts.open_max.fetch_max(open, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Other {
    /// A server of HTTP/1.1 and HTTP/2 without TLS.
    pub(crate) fn plain() -> Self {
        Self::start(None)
    }

    /// A server with a certificate of `authority` that speaks these protocols.
    pub(crate) fn secure(authority: &Authority, protocols: &[&str]) -> Self {
        Self::start(Some(authority.server(protocols)))
    }

    fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        // On all addresses of this machine, so that it has many names.
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let counts: Arc<Counts> = Arc::default();
        let theirs = Arc::clone(&counts);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let counted = Counted::new(&theirs);
                    let acceptor = tls.clone().map(TlsAcceptor::from);
                    tokio::spawn(async move {
                        match acceptor {
                            None => serve(stream).await,
                            Some(acceptor) => {
                                if let Ok(stream) = acceptor.accept(stream).await {
                                    serve(stream).await;
                                }
                            }
                        }
                        drop(counted);
                    });
                }
            });
        });
        Self { address, counts }
    }

    /// How many connections it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// How many of them are open.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// How many of them were open at once.
    pub(crate) fn open_max(&self) -> usize {
        self.counts.open_max.load(Ordering::SeqCst)
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let builder = auto::Builder::new(TokioExecutor::new());
    drop(builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
}

/// The frames of a response, and whether it has an end.
struct Frames(Vec<Frame<Bytes>>, bool);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.pop() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if self.1 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Frames>, Infallible> {
    let version = format!("{:?}", request.version());
    let path = request.uri().path().to_owned();
    let te = request.headers().get("te").cloned();
    let has_host = request.headers().contains_key("host");
    let collected = request.into_body().collect().await;
    let text = |text: String| Frames(vec![Frame::data(text.into())], true);
    let mut response = Response::new(match path.as_str() {
        "/version" => text(format!("{version} host={has_host}\n")),
        "/later" => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            text("later\n".to_owned())
        }
        "/silent" => std::future::pending().await,
        "/stalls" => Frames(vec![Frame::data("begun".into())], false),
        "/head" => text(String::new()),
        "/grpc" => {
            let collected = collected.unwrap();
            let sent = collected.trailers().and_then(|trailers| trailers.get("x-sent")).cloned();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("x-te", te.unwrap_or_else(|| "none".parse().unwrap()));
            trailers.insert("x-sent", sent.unwrap_or_else(|| "none".parse().unwrap()));
            // The last is sent first.
            Frames(vec![Frame::trailers(trailers), Frame::data(collected.to_bytes())], true)
        }
        _ => text("hello\n".to_owned()),
    });
    if path == "/head" {
        for number in 0..40 {
            let name = hyper::header::HeaderName::try_from(format!("x-{number}")).unwrap();
            response.headers_mut().insert(name, "y".repeat(5000).parse().unwrap());
        }
    }
    Ok(response)
}

/// Reads the head of a request; `None` at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// A server that keeps connections for a second request, and closes them when it has read that one.
pub(crate) fn forgetful() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let heads = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let heads = Arc::clone(&heads);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                for number in 0.. {
                    let Some(head) = read_head(&mut reader) else { return };
                    heads.lock().unwrap().push(head.split(' ').next().unwrap().to_owned());
                    if number == 1 {
                        return;
                    }
                    if head.contains("chunked") {
                        // A short body has the same end.
                        read_head(&mut reader).unwrap();
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n").unwrap();
                }
            });
        }
    });
    (address, seen)
}

/// A server that replies to the first bytes of each connection with these, and closes it.
pub(crate) fn replying(reply: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _read = stream.read(&mut [0; 4096]);
            let _written = stream.write_all(reply);
        }
    });
    address
}

/// A proxy: it tunnels, and replies to other requests itself. What it was asked for.
pub(crate) fn proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let heads = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let heads = Arc::clone(&heads);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let Some(head) = read_head(&mut reader) else { return };
                heads.lock().unwrap().push(head.clone());
                let target = head.split(' ').nth(1).unwrap();
                if !head.starts_with("CONNECT ") {
                    let reply = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8\r\n\r\nproxied\n";
                    stream.write_all(reply.as_bytes()).unwrap();
                    return;
                }
                let Ok(mut server) = TcpStream::connect(target) else { return };
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let (mut back, mut client) = (server.try_clone().unwrap(), stream.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut back, &mut client));
                let _copied = std::io::copy(&mut reader, &mut server);
            });
        }
    });
    (address, seen)
}

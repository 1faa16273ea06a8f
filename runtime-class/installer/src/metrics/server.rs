//! Serves the metrics over HTTP. Whoever reaches the pod's address may ask: a connection is one request, with a time limit, and
//! there are few at once, of one address even fewer.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Metrics;
use super::exposition::MEDIA_TYPE;
use super::places::Places;
use crate::error::{Context, Result};

/// The most connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send its request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// How long one connection may take.
const LIMIT: Duration = Duration::from_secs(15);
/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long to wait if a connection cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port.
pub(crate) struct Server(TcpListener);

impl Server {
    /// Binds the port at all addresses.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub(crate) async fn bind(port: u16) -> Result<Self> {
        let bound = match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
            // A node without IPv6.
            Err(error) if is_without_ipv6(&error) => {
                TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
            }
            bound => bound,
        };
        bound.map(Self).or_host(format!("cannot serve metrics at port {port}"))
    }

    /// Serves `metrics` for ever.
    pub(crate) async fn serve(self, metrics: Metrics) {
        let (metrics, free) = (Arc::new(metrics), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        let places = Places::default();
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
            match self.0.accept().await {
                Ok((stream, peer)) => {
                    // One more than its address may have is closed, so that it keeps nobody else waiting.
                    let Some(place) = places.take(peer.ip()) else { continue };
                    let connection = connection(stream, Arc::clone(&metrics));
                    tokio::spawn(async move {
                        // A client that breaks off or takes too long gets nothing more.
                        drop(timeout(LIMIT, connection).await);
                        drop((place, permit));
                    });
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

async fn connection(stream: TcpStream, metrics: Arc<Metrics>) -> hyper::Result<()> {
    let respond = service_fn(|request| {
        let metrics = Arc::clone(&metrics);
        async move { Ok::<_, Infallible>(respond(&request, &metrics).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).keep_alive(false).max_buf_size(HEAD_BYTES_MAX);
    builder.serve_connection(TokioIo::new(stream), respond).await
}

async fn respond(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return response(StatusCode::NOT_FOUND, "metrics are at `/metrics`\n".into());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = response(StatusCode::METHOD_NOT_ALLOWED, Bytes::new());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match metrics.text().await {
        Ok(text) => response(StatusCode::OK, text),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n").into()),
    }
}

fn response(status: StatusCode, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

//! The client of a container: sends requests on connections that are kept for the next one, whichever instance makes it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::client::legacy::{self, Builder};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::authorities::Authorities;
use super::body::{RequestBody, ResponseBody};
use super::connector::{Connector, PATIENCE};
use super::dial::Dial;
use super::failure::explain_request;
use super::room::{REQUESTS_MAX, Room};
use super::seats::{InUse, Pass, Seats};
use super::settings::Settings;
use crate::files::reader::Reader;
use crate::memory::budget::Budget;
use crate::names::resolver::Resolver;
use crate::report::Reporter;

/// How long a connection is kept that nobody uses.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// The most connections that are kept for one server.
const IDLE_MAX: usize = 128;
/// The most bytes that one connection, or one stream of HTTP/2, buffers in each direction. No head is larger.
const BUFFER_BYTES: u32 = 64 << 10;
/// How long the server of an HTTP/2 connection may say nothing while requests are in progress, and how long it may take
/// to say something when asked.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(20);

/// What resolves once the request is sent, or has failed.
pub(crate) type Sent = Box<dyn Future<Output = Result<(), Error>> + Send>;

type Pool = legacy::Client<Connector, RequestBody>;

/// The client of a container.
pub(crate) struct Client {
    settings: Arc<Settings>,
    room: Room,
    /// For servers of which nothing is known.
    pool: Pool,
    /// For servers that speak HTTP/2 and nothing else.
    http2_pool: Pool,
}

/// How long the steps of a request may take.
struct Patience {
    connect: Duration,
    first_byte: Duration,
    between_bytes: Duration,
}

/// A failed attempt.
struct Failed {
    error: Error,
    /// The server closed a connection that it had kept, before a response began.
    was_stale: bool,
}

impl Client {
    /// A client that connects to nobody yet.
    pub(crate) fn new(
        settings: Settings,
        resolver: &Arc<Resolver>,
        budget: &Arc<Budget>,
        reporter: &Arc<Reporter>,
        reader: Arc<Reader>,
    ) -> Self {
        let settings = Arc::new(settings);
        let dial = Dial::new(Arc::clone(resolver), Arc::clone(budget));
        let authorities = Authorities::new(reader, Arc::clone(&settings), Arc::clone(reporter));
        let connector = Connector::new(Arc::clone(&settings), Seats::new(Arc::clone(budget)), dial, authorities);
        Self {
            settings,
            room: Room::new(Arc::clone(budget)),
            pool: builder().build(connector.clone()),
            http2_pool: builder().http2_only(true).build(connector),
        }
    }

    /// Sends a request. The response's body holds the connection until its end; if it is dropped before that, the
    /// connection (or the stream of HTTP/2) is closed.
    ///
    /// # Errors
    /// Why there is no response.
    pub(super) async fn send(
        &self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Result<(Response<WasiBody>, Sent), Error> {
        let patience = Patience::of(options);
        let (mut head, body) = request.into_parts();
        head.uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        self.settings.authorize(&head.uri, &mut head.headers);
        let reserving = self.room.reserve();
        let reserved = timeout(patience.connect, reserving).await.map_err(|_| Error::ConnectionTimeout)??;
        let (body, mut sent) = RequestBody::new(body);
        let again = is_safe(&head.method).then(|| (head.clone(), body.share()));
        let mut result = self.attempt(Request::from_parts(head, body), &patience).await;
        if let Err(Failed { was_stale: true, .. }) = &result
            && let Some((head, body)) = again
            && let Some(body) = body.again()
        {
            result = self.attempt(Request::from_parts(head, body), &patience).await;
        }
        let (response, in_use) = result.map_err(|failed| match sent.try_recv() {
            // The guest's own mistake is the cause.
            Ok(Err(error)) => error,
            _ => failed.error,
        })?;
        let body = |incoming| ResponseBody::new(incoming, patience.between_bytes, reserved, in_use).boxed_unsync();
        Ok((response.map(body), Box::new(async move { sent.await.unwrap_or(Ok(())) })))
    }

    async fn attempt(
        &self,
        mut request: Request<RequestBody>,
        patience: &Patience,
    ) -> Result<(Response<Incoming>, Option<InUse>), Failed> {
        let mut connection = capture_connection(&mut request);
        let pool = if self.settings.is_http2(request.uri()) { &self.http2_pool } else { &self.pool };
        let mut response = pin!(pool.request(request));
        let connected = async {
            tokio::select! {
                biased;
                response = &mut response => Some(response),
                _ = connection.wait_for_connection_metadata() => None,
            }
        };
        let early = timeout(patience.connect, connected).await.map_err(|_| Error::ConnectionTimeout)?;
        let mut used = None;
        follow(&connection, &mut used);
        let response = match early {
            Some(response) => response,
            None => {
                let responding = poll_fn(|context| {
                    let polled = response.as_mut().poll(context);
                    if polled.is_pending() {
                        follow(&connection, &mut used);
                    }
                    polled
                });
                timeout(patience.first_byte, responding).await.map_err(|_| Error::ConnectionReadTimeout)?
            }
        };
        let response = response.map_err(|error| {
            let error = explain_request(&error);
            let is_gone = matches!(error, Error::ConnectionTerminated);
            Failed { error, was_stale: is_gone && used.as_ref().is_some_and(|used| used.is_reused) }
        })?;
        // The pool may have sent it on another connection since.
        let in_use = match (response.extensions().get::<Pass>(), used) {
            (Some(pass), Some(used)) if used.is_of(pass) => Some(used),
            (Some(pass), _) => pass.begin(),
            (None, used) => used,
        };
        Ok((response, in_use))
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, was_stale: false }
    }
}

impl Patience {
    fn of(options: Option<RequestOptions>) -> Self {
        Self {
            connect: options.and_then(|options| options.connect_timeout).unwrap_or(PATIENCE),
            first_byte: options.and_then(|options| options.first_byte_timeout).unwrap_or(PATIENCE),
            between_bytes: options.and_then(|options| options.between_bytes_timeout).unwrap_or(PATIENCE),
        }
    }
}

/// Notes that a request uses the connection that the pool chose: another one, if the first had closed before anything
/// was sent.
fn follow(connection: &CaptureConnection, used: &mut Option<InUse>) {
    let mut extras = hyper::http::Extensions::new();
    if let Some(metadata) = &*connection.connection_metadata() {
        metadata.get_extras(&mut extras);
    }
    if let Some(pass) = extras.get::<Pass>()
        && !used.as_ref().is_some_and(|used| used.is_of(pass))
    {
        *used = pass.begin();
    }
}

/// Whether a request of this method may be sent again when it is not known whether it arrived.
fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

fn builder() -> Builder {
    let buffer_bytes = BUFFER_BYTES as usize;
    // The budget bounds what all streams of a connection hold together. A stream that is not read must not stop others.
    let connection_window = BUFFER_BYTES.saturating_mul(u32::try_from(REQUESTS_MAX).unwrap_or(u32::MAX));
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIME)
        .pool_max_idle_per_host(IDLE_MAX)
        .http1_max_buf_size(buffer_bytes)
        .http2_initial_stream_window_size(BUFFER_BYTES)
        .http2_initial_connection_window_size(connection_window)
        .http2_max_send_buf_size(buffer_bytes)
        .http2_max_header_list_size(BUFFER_BYTES)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_WAIT);
    builder
}

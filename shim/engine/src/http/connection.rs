//! One connection, from its first byte to its end.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep_until};

use super::activity::{Activity, Patience, STALLED_MIN, Standing};
use super::answer::{Service, answer};
use super::bodies::{Arriving, Departing, Exchange};
use super::buffers::Buffers;
use super::client::Client;
use super::limit::{Timer, poll_until};
use super::places::Place;
use super::stream::Stream;

/// How long a connection that was just accepted may wait for its first byte once the server is ending.
pub(super) const FRESH_GRACE: Duration = Duration::from_millis(100);
/// How much of its bodies a client of HTTP/2 may always send unread: no connection can have less.
const WINDOW_BYTES: u32 = 65_535;
/// No method of HTTP/1.1 begins so.
const HTTP_2_BEGINS: &[u8] = b"PRI ";
/// How soon to look for the rest of that.
const MORE_PAUSE: Duration = Duration::from_millis(20);
/// How often a client of HTTP/2 is asked whether it is still there, and how long it may take to reply. A shorter patience
/// shortens both.
const PING_INTERVAL_MAX: Duration = Duration::from_secs(60);
const PING_TIME_MAX: Duration = Duration::from_secs(20);

/// How connections are served.
pub(super) fn builder(patience: Patience, buffers: &Buffers) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // One plain write costs less than a vectored one, and most responses are small.
    // Whether a client has left is found out by `Client::left`.
    builder.http1().max_buf_size(buffers.user_bytes).writev(false).half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL_MAX.min(patience.idle / 2))
        .keep_alive_timeout(PING_TIME_MAX.min(patience.idle / 2))
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(buffers.window_bytes)
        .max_concurrent_streams(buffers.streams)
        .max_send_buf_size(Buffers::STREAM_PART_BYTES as usize)
        .max_header_list_size(Buffers::STREAM_PART_BYTES);
    builder
}

/// Serves one connection to its end. It keeps its place until the client has taken everything, or had its time for that.
pub(super) async fn serve(
    stream: TcpStream,
    service: Arc<Service>,
    patience: Patience,
    place: Place,
    ending: watch::Receiver<bool>,
) {
    // Only a matter of speed: otherwise guests that write in small pieces would wait for acknowledgements.
    let _set = stream.set_nodelay(true);
    let client = Client::new(stream);
    exchange(&client, service, patience, &place, ending).await;
    let is_stalled = matches!(place.activity().standing(), Standing::Stalled(_));
    place.activity().leave();
    client.part(if is_stalled { Duration::ZERO } else { STALLED_MIN }).await;
}

/// Reads requests and writes responses.
async fn exchange(
    client: &Client,
    service: Arc<Service>,
    patience: Patience,
    place: &Place,
    mut ending: watch::Receiver<bool>,
) {
    let activity = place.activity();
    let mut watch = Watch::new(activity, patience);
    // Invariant: a request that has reached this machine when the server begins to end is served. hyper cancels
    // connections whose HTTP version it does not know yet, so it gets them only with their first bytes.
    let is_http_2 = tokio::select! {
        biased;
        is_http_2 = begins_http_2(client.stream()) => is_http_2,
        () = poll_fn(|context| watch.poll(context)) => return,
        () = ended_for(&mut ending, FRESH_GRACE) => return,
    };
    if is_http_2 {
        tokio::select! {
            biased;
            is_paid = place.pay_for_http_2() => if !is_paid { return },
            () = poll_fn(|context| watch.poll(context)) => return,
        }
    }
    let timer = Timer::default();
    let respond = service_fn(|request: Request<Incoming>| {
        let exchange = Exchange::begin(activity);
        let crowded = Arc::clone(service.crowded());
        let request = request.map(|body| Arriving::new(body, patience.idle, crowded).boxed_unsync());
        let response = answer(Arc::clone(&service), timer.clone(), request);
        async { response.await.map(|response| response.map(|body| Departing::new(body, exchange))) }
    });
    let stream = TokioIo::new(Stream::new(client.clone(), Arc::clone(activity)));
    let mut left = pin!(client.left(service.crowded()));
    let mut connection = pin!(service.builder.serve_connection(stream, respond));
    // A connection that breaks is the client's affair. Dropping it ends what it asked for.
    tokio::select! {
        biased;
        _broken = connection.as_mut() => return,
        () = left.as_mut() => return,
        () = poll_fn(|context| watch.poll(context)) => {
            // A client of HTTP/2 is told. It need not reply.
            connection.as_mut().graceful_shutdown();
            poll_fn(|context| Poll::Ready(connection.as_mut().poll(context).is_ready())).await;
            return;
        }
        () = ended_for(&mut ending, Duration::ZERO) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _broken = connection => {}
        () = left => {}
        () = poll_fn(|context| watch.poll(context)) => {}
    }
}

/// Waits for the first bytes, and returns whether they are those of HTTP/2.
async fn begins_http_2(stream: &TcpStream) -> bool {
    let mut first = [0; HTTP_2_BEGINS.len()];
    loop {
        let length = stream.peek(&mut first).await.unwrap_or(0);
        match first.get(..length) {
            Some(part @ [_, ..]) if length < first.len() && HTTP_2_BEGINS.starts_with(part) => {
                tokio::time::sleep(MORE_PAUSE).await;
            }
            part => return part == Some(HTTP_2_BEGINS),
        }
    }
}

/// Waits until a connection's time is over, or until it is to give way to another.
struct Watch<'a> {
    activity: &'a Activity,
    patience: Patience,
    timer: Pin<Box<Sleep>>,
}

impl<'a> Watch<'a> {
    fn new(activity: &'a Activity, patience: Patience) -> Self {
        Self { activity, patience, timer: Box::pin(sleep_until(tokio::time::Instant::now() + patience.head)) }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.activity.deadline(self.patience, context.waker()) else { return Poll::Ready(()) };
        poll_until(&mut self.timer, context, deadline)
    }
}

/// Waits until the server has been ending for `grace`.
async fn ended_for(ending: &mut watch::Receiver<bool>, grace: Duration) {
    // Without a sender the server has ended.
    drop(ending.wait_for(|ending| *ending).await);
    if !grace.is_zero() {
        tokio::time::sleep(grace).await;
    }
}

//! One connection, from its first byte to its end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::answer::{Service, answer};

/// How long a connection that was just accepted may wait for its first byte once the server is ending.
pub(super) const FRESH_GRACE: Duration = Duration::from_millis(100);
/// The most bytes that one connection buffers of a request's head or of a response.
const BUFFER_BYTES: usize = 64 << 10;

/// How connections are served.
pub(super) fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // One plain write costs less than a vectored one, and most responses are small.
    builder.http1().max_buf_size(BUFFER_BYTES).writev(false);
    builder.http2().max_send_buf_size(BUFFER_BYTES);
    builder
}

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, service: Arc<Service>, mut ending: watch::Receiver<bool>) {
    // Only a matter of speed: otherwise guests that write in small pieces would wait for acknowledgements.
    let _set = stream.set_nodelay(true);
    // Invariant: a request that has reached this machine when the server begins to end is served. hyper cancels
    // connections whose HTTP version it does not know yet, so it gets them only with their first bytes.
    tokio::select! {
        biased;
        _ = stream.readable() => {}
        () = ended_for(&mut ending, FRESH_GRACE) => return,
    }
    let respond = service_fn(|request| answer(Arc::clone(&service), request));
    let mut connection = pin!(service.builder.serve_connection(TokioIo::new(stream), respond));
    // A connection that breaks is the client's affair.
    tokio::select! {
        biased;
        _broken = connection.as_mut() => return,
        () = ended_for(&mut ending, Duration::ZERO) => connection.as_mut().graceful_shutdown(),
    }
    let _broken = connection.await;
}

/// Waits until the server has been ending for `grace`.
async fn ended_for(ending: &mut watch::Receiver<bool>, grace: Duration) {
    // Without a sender the server has ended.
    drop(ending.wait_for(|ending| *ending).await);
    if !grace.is_zero() {
        tokio::time::sleep(grace).await;
    }
}

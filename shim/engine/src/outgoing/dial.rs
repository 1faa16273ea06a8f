//! From a host and a port to a TCP connection.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tower_service::Service;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use super::failure::{explain_name, explain_refused};
use crate::memory::budget::Budget;
use crate::names::resolver::Resolver;

/// What the kernel may keep of one connection in each direction, for a guest that does not read, or a server that does
/// not. It takes twice that for its own records. Its own bounds would be megabytes.
const SOCKET_BYTES: u32 = 32 << 10;
/// The same from a large limit on: a transfer over a long distance is faster.
const LARGE_SOCKET_BYTES: u32 = 256 << 10;
const LARGE_LIMIT_BYTES: u64 = 1 << 30;

/// Makes TCP connections.
#[derive(Clone)]
pub(super) struct Dial {
    resolver: Arc<Resolver>,
    budget: Arc<Budget>,
}

impl Dial {
    /// Looks up names with `resolver`, and follows the memory limit of `budget`.
    pub(super) fn new(resolver: Arc<Resolver>, budget: Arc<Budget>) -> Self {
        Self { resolver, budget }
    }

    /// Connects to the first address of the host of `uri` that accepts the connection.
    pub(super) async fn connect(&self, uri: &Uri) -> Result<TcpStream, ErrorCode> {
        let host = uri.host().ok_or(ErrorCode::HttpRequestUriInvalid)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
        let addresses = self.resolver.look_up(host).await.map_err(explain_name)?;
        let mut refused = ErrorCode::DestinationNotFound;
        for address in addresses {
            match self.connect_to(address, port).await {
                Ok(stream) => {
                    // Only a matter of speed: a request on a kept connection would wait for an acknowledgement.
                    let _set = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => refused = explain_refused(&error),
            }
        }
        Err(refused)
    }

    async fn connect_to(&self, address: IpAddr, port: u16) -> std::io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        let bytes = socket_bytes(self.budget.limit_bytes());
        socket.set_recv_buffer_size(bytes)?;
        socket.set_send_buffer_size(bytes)?;
        socket.connect(SocketAddr::new(address, port)).await
    }
}

/// What the kernel may keep under a memory limit.
fn socket_bytes(limit_bytes: Option<u64>) -> u32 {
    if limit_bytes.is_some_and(|limit| limit < LARGE_LIMIT_BYTES) { SOCKET_BYTES } else { LARGE_SOCKET_BYTES }
}

/// For a tunnel through a proxy.
impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = ErrorCode;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, ErrorCode>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ErrorCode>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.connect(&uri).await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_buffers_are_always_bounded() {
        for (limit_bytes, expected) in
            [(Some(16 << 20), SOCKET_BYTES), (Some(LARGE_LIMIT_BYTES), LARGE_SOCKET_BYTES), (None, LARGE_SOCKET_BYTES)]
        {
            assert_eq!(socket_bytes(limit_bytes), expected, "under {limit_bytes:?}");
        }
    }
}

//! What wasmtime-wasi-http calls for the requests of one store.

use std::sync::Arc;

use hyper::{Request, Response};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::client::{Client, Sent};

/// Sends the requests of one store.
pub(crate) struct Outgoing(pub(crate) Arc<Client>);

/// How much of a body a guest may write at once. Two such pieces wait for a peer that is slow.
const BODY_CHUNK_BYTES: usize = 8 << 10;

impl WasiHttpHooks for Outgoing {
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Sent), Error>> + Send> {
        let client = Arc::clone(&self.0);
        Box::new(async move { client.send(request, options).await })
    }

    /// HTTP/2 has no such header. For HTTP/1.1 the client sets it.
    fn set_host_header(&mut self) -> bool {
        false
    }
}

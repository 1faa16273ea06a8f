//! HTTP servers: components of `wasi:http`, 0.2 and 0.3, behind HTTP/1.1 and HTTP/2 without TLS.
//!
//! A server's life: bind and try one instance, say Ready, accept until SIGTERM, finish what is under way, end with 0.

mod address;
mod instances;
mod pool;
mod ticker;

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use skiff_protocol::{Limits, Refusal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::{InstantiationError, ProxyHandler, ProxyPre};

use crate::http::address::Address;
use crate::http::instances::{Ended, Instances, RequestData};
use crate::limits::{connections_max, instances_max, threads};
use crate::load::{Guest, of_engine};
use crate::store::State;
use crate::wasi::Context;
use crate::{load, report, signals};

/// How long a connection that was just accepted may wait for its first byte once the server is ending.
const FRESH_GRACE: Duration = Duration::from_millis(100);
/// How long an ending server waits for connections that have nothing under way.
const IDLE_GRACE: Duration = Duration::from_secs(2);
/// How long to wait when a connection cannot be accepted, for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// The most bytes that one connection buffers of a request's head or of a response.
const BUFFER_BYTES: usize = 64 << 10;

/// A server that is bound and does not accept yet.
pub(crate) struct Server {
    runtime: Runtime,
    listener: TcpListener,
    /// Readable after the first SIGTERM or SIGINT.
    terminated: Receiver,
    shared: Arc<Shared>,
    /// Closed when the last connection and the last instance are gone.
    gone: mpsc::Receiver<Infallible>,
    ending: watch::Sender<bool>,
    connections_max: usize,
}

/// What all connections have in common.
struct Shared {
    module: String,
    handler: ProxyHandler<Instances>,
    /// Has all its permits while no request is under way.
    requests: Semaphore,
    requests_max: usize,
    request_time: Option<Duration>,
    builder: auto::Builder<TokioExecutor>,
}

/// A component that is linked as a server; nothing of it has run.
pub(crate) struct LinkedServer {
    engine: Engine,
    handler: ProxyPre<State>,
    address: Address,
    /// How many processors this process may use. It stands in files that are out of reach later.
    runnable: usize,
    context: Context,
}

/// The same component in an engine that keeps the memory of its instances for the next ones, where it is possible.
pub(crate) fn pooled(component: &Component, code: &File, context: &Context) -> Option<Component> {
    let instances = instances_max(context.budget.limit_bytes());
    let engine = pool::engine(component, instances, &context.plan.limits)?;
    match load::load(&engine, code) {
        Ok(Guest::Component(component)) => Some(component),
        Ok(Guest::Module(_)) | Err(_) => None,
    }
}

impl LinkedServer {
    /// A server of what `handler` links.
    ///
    /// # Errors
    /// [`Refusal::Guest`] for an address that makes no sense.
    pub(crate) fn new(engine: &Engine, handler: ProxyPre<State>, context: Context) -> Result<Self, Refusal> {
        let address = address::from_environment(|name| context.variable(name)).map_err(Refusal::Guest)?;
        let runnable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // tokio makes two sockets once for all of its runtimes. Later there are none of their kind.
        let first = Builder::new_current_thread().enable_io().build();
        first.map_err(|error| cannot_serve(&context, &error))?;
        Ok(Self { engine: engine.clone(), handler, address, runnable, context })
    }

    /// What its instances will be given.
    pub(crate) fn context_mut(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Tries out one instance and binds the server's address.
    ///
    /// # Errors
    /// [`Refusal::Guest`] when no instance can be made, [`Refusal::Host`] when the address cannot be bound.
    pub(crate) fn prepare(self) -> Result<Server, Refusal> {
        let Self { engine, handler, address, runnable, context } = self;
        report::queue().map_err(|error| cannot_serve(&context, &error))?;
        let runtime = runtime(runnable, &context)?;
        let entered = runtime.enter();
        let (alive, gone) = mpsc::channel(1);
        let (ending, is_ending) = watch::channel(false);
        let module = context.plan.module.clone();
        let Limits { request_time, concurrent_requests, .. } = context.plan.limits;
        let requests_max = concurrent_requests.min(Semaphore::MAX_PERMITS);
        let connections_max = connections_max(context.budget.limit_bytes());
        let instances = Instances::new(&engine, handler, context, alive, is_ending)?;
        runtime.block_on(instances.try_out())?;
        let listener = address::bind(&address)
            .and_then(TcpListener::from_std)
            .map_err(|error| Refusal::Host(format!("cannot listen on {address}: {error}")))?;
        // Before Ready: from then on a signal has to find the server's course.
        let terminated = signals::notify().and_then(Receiver::from_owned_fd);
        let terminated = terminated.map_err(|error| of_engine(&error.into()))?;
        let shared = Arc::new(Shared {
            module,
            handler: ProxyHandler::new(instances),
            requests: Semaphore::new(requests_max),
            requests_max,
            request_time,
            builder: connection_builder(),
        });
        drop(entered);
        Ok(Server { runtime, listener, terminated, shared, gone, ending, connections_max })
    }
}

impl Server {
    /// Serves until SIGTERM or SIGINT; answers the exit code.
    pub(crate) fn run(self) -> i32 {
        let Self { runtime, listener, mut terminated, shared, gone, ending, connections_max } = self;
        runtime.block_on(async move {
            let connections = Arc::new(Semaphore::new(connections_max));
            tokio::select! {
                () = accept(&listener, &shared, &ending, &connections) => {}
                _ = terminated.read_u8() => {}
            }
            take_backlog(listener, &shared, &ending);
            ending.send_replace(true);
            finish(shared, gone).await;
        });
        // The process ends here: waiting for threads that block would only take time.
        std::mem::forget(runtime);
        0
    }
}

fn runtime(runnable: usize, context: &Context) -> Result<Runtime, Refusal> {
    let (workers, blocking) = threads(runnable, context.plan.processors);
    Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(blocking)
        .enable_all()
        .build()
        .map_err(|error| cannot_serve(context, &error))
}

fn cannot_serve(context: &Context, error: &io::Error) -> Refusal {
    Refusal::Host(format!("cannot prepare to serve `{}`: {error}", context.plan.module))
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // One plain write costs less than a vectored one, and most responses are small.
    builder.http1().max_buf_size(BUFFER_BYTES).writev(false);
    builder.http2().max_send_buf_size(BUFFER_BYTES);
    builder
}

/// Accepts connections for ever.
async fn accept(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    ending: &watch::Sender<bool>,
    connections: &Arc<Semaphore>,
) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = serve(stream, Arc::clone(shared), ending.subscribe());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Takes over the connections that the kernel has accepted already, and closes the listener.
fn take_backlog(listener: TcpListener, shared: &Arc<Shared>, ending: &watch::Sender<bool>) {
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            tokio::spawn(serve(stream, Arc::clone(shared), ending.subscribe()));
        }
    }
}

/// Waits until everything under way is done. Connections on which nothing happens do not hold the end up.
async fn finish(shared: Arc<Shared>, mut gone: mpsc::Receiver<Infallible>) {
    let ending_since = tokio::time::Instant::now();
    let watched = Arc::downgrade(&shared);
    drop(shared);
    let nothing_under_way = async {
        let mut interval = tokio::time::interval_at(ending_since + IDLE_GRACE, FRESH_GRACE);
        loop {
            interval.tick().await;
            if watched.upgrade().is_none_or(|shared| shared.is_idle()) {
                return;
            }
        }
    };
    tokio::select! {
        _ = gone.recv() => {}
        () = nothing_under_way => {}
    }
}

/// Serves one connection to its end.
async fn serve(stream: TcpStream, shared: Arc<Shared>, mut ending: watch::Receiver<bool>) {
    // Only a matter of speed: guests that write in small pieces would wait for acknowledgements otherwise.
    let _set = stream.set_nodelay(true);
    // Invariant: a request that has reached this machine when the server begins to end is served. hyper cancels
    // connections of which it knows no version yet, so it gets to see them only with their first bytes.
    tokio::select! {
        biased;
        _ = stream.readable() => {}
        () = ended_for(&mut ending, FRESH_GRACE) => return,
    }
    let service = service_fn(|request| answer(Arc::clone(&shared), request));
    let mut connection = pin!(shared.builder.serve_connection(TokioIo::new(stream), service));
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

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Tracked>, Infallible> {
    let under_way = UnderWay::begin(&shared).await;
    let request = with_host(request).map(|body| body.map_err(Into::into).boxed_unsync());
    let begun = Instant::now();
    let (tell_ended, ended) = oneshot::channel();
    let response = match shared.handler.handle(tell_ended, request).await {
        Ok(response) => response,
        Err(error) => shared.failed(&error, begun, ended),
    };
    Ok(response.map(|body| Tracked { body, _under_way: under_way }))
}

/// Gives a request of HTTP/1.0 the authority that `wasi:http` insists on.
fn with_host(mut request: Request<Incoming>) -> Request<Incoming> {
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    }
    request
}

impl Shared {
    fn is_idle(&self) -> bool {
        self.requests.available_permits() == self.requests_max && self.handler.state().is_idle()
    }

    /// Tells a failed request on stderr, and answers what its client gets.
    fn failed(&self, error: &wasmtime::Error, begun: Instant, ended: oneshot::Receiver<Ended>) -> Response<WasiBody> {
        // What an ended request fails with depends on where its guest was.
        if let Some(limit) = self.request_time.filter(|limit| begun.elapsed() >= *limit) {
            report::line(&format!("{}: a request took longer than its limit `request-time` of {limit:?}", self.module));
            return plain(StatusCode::GATEWAY_TIMEOUT);
        }
        match error.downcast_ref::<InstantiationError<RequestData>>() {
            Some(InstantiationError { error, .. }) if instances::is_shortage(error) => {
                report::line(&format!("{}: no room for a request: {}", self.module, report::sentence(error)));
                return plain(StatusCode::SERVICE_UNAVAILABLE);
            }
            Some(InstantiationError { error, .. }) => {
                report::line(&format!("{}: cannot make an instance: {}", self.module, report::sentence(error)));
            }
            None => {
                let text = format!("{}: a request failed: {}", self.module, report::sentence(error));
                tokio::spawn(async move {
                    // A trap is told where the instance ends, and of several requests only one is at fault.
                    if ended.await.is_err() {
                        report::line(&text);
                    }
                });
            }
        }
        plain(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

fn plain(status: StatusCode) -> Response<WasiBody> {
    let text = Full::new(Bytes::from(format!("{status}\n")));
    let mut response = Response::new(text.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A request from its head to the last byte of its response.
struct UnderWay(Arc<Shared>);

impl UnderWay {
    async fn begin(shared: &Arc<Shared>) -> Self {
        // The semaphore is never closed. Its permit comes back when this is dropped.
        if let Ok(permit) = shared.requests.acquire().await {
            permit.forget();
        }
        Self(Arc::clone(shared))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.add_permits(1);
    }
}

/// A response's body that knows when it is sent.
struct Tracked {
    body: WasiBody,
    _under_way: UnderWay,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! One request, from its head to the last byte of its response.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use skiff_protocol::Account;
use tokio::sync::{Semaphore, oneshot};
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::{InstantiationError, ProxyHandler};

use super::instances::{Ended, Instances, RequestData, is_shortage};
use crate::error::sentence;
use crate::metrics::CountedRequest;
use crate::report::Reporter;
use crate::shared::Shared;

/// What all connections and requests of a server have in common.
pub(super) struct Service {
    module: String,
    account: Account,
    reporter: Arc<Reporter>,
    handler: ProxyHandler<Instances>,
    /// Has all its permits while no request is under way.
    requests: Semaphore,
    requests_max: usize,
    request_time: Option<Duration>,
    /// How its connections are served.
    pub(super) builder: auto::Builder<TokioExecutor>,
}

/// Answers one request.
pub(super) async fn answer(service: Arc<Service>, request: Request<Incoming>) -> Result<Response<Tracked>, Infallible> {
    let mut counted = CountedRequest::begin(service.account);
    let under_way = UnderWay::begin(&service).await;
    let request = with_host(request).map(|body| body.map_err(Into::into).boxed_unsync());
    let begun = Instant::now();
    let (notify, ended) = oneshot::channel();
    let response = match service.handler.handle(notify, request).await {
        Ok(response) => response,
        Err(error) => service.failed(&error, begun, ended),
    };
    counted.responds(response.status());
    Ok(response.map(|body| Tracked { body, _under_way: under_way, _counted: counted }))
}

/// Adds to a request of HTTP/1.0 the authority that `wasi:http` requires.
fn with_host(mut request: Request<Incoming>) -> Request<Incoming> {
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    }
    request
}

impl Service {
    /// A service of these instances for connections that `builder` serves.
    pub(super) fn new(instances: Instances, builder: auto::Builder<TokioExecutor>) -> Self {
        let Shared { account, plan, reporter, .. } = instances.shared();
        let account = *account;
        account.set_serves();
        let (module, reporter, request_time) = (plan.module.clone(), Arc::clone(reporter), plan.limits.request_time);
        let requests_max = plan.limits.concurrent_requests.min(Semaphore::MAX_PERMITS);
        let handler = ProxyHandler::new(instances);
        Self {
            module,
            account,
            reporter,
            handler,
            requests: Semaphore::new(requests_max),
            requests_max,
            request_time,
            builder,
        }
    }

    /// Whether no request is under way and no instance is alive.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.available_permits() == self.requests_max && self.handler.state().is_idle()
    }

    /// Reports a failed request on stderr, and returns what its client gets.
    fn failed(&self, error: &wasmtime::Error, begun: Instant, ended: oneshot::Receiver<Ended>) -> Response<WasiBody> {
        // The error of an ended request depends on where its guest was.
        if let Some(limit) = self.request_time.filter(|limit| begun.elapsed() >= *limit) {
            self.reporter
                .line(&format!("{}: a request took longer than its limit `request-time` of {limit:?}", self.module));
            return plain(StatusCode::GATEWAY_TIMEOUT);
        }
        match error.downcast_ref::<InstantiationError<RequestData>>() {
            Some(InstantiationError { error, .. }) if is_shortage(error) => {
                self.reporter.line(&format!("{}: no room for a request: {}", self.module, sentence(error)));
                return plain(StatusCode::SERVICE_UNAVAILABLE);
            }
            Some(InstantiationError { error, .. }) => {
                self.reporter.line(&format!("{}: cannot make an instance: {}", self.module, sentence(error)));
            }
            None => {
                let text = format!("{}: a request failed: {}", self.module, sentence(error));
                let reporter = Arc::clone(&self.reporter);
                tokio::spawn(async move {
                    // A trap is reported where the instance ends, and of several requests only one is at fault.
                    if ended.await.is_err() {
                        reporter.line(&text);
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
struct UnderWay(Arc<Service>);

impl UnderWay {
    async fn begin(service: &Arc<Service>) -> Self {
        // The semaphore is never closed. Its permit comes back when this is dropped.
        if let Ok(permit) = service.requests.acquire().await {
            permit.forget();
        }
        Self(Arc::clone(service))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.add_permits(1);
    }
}

/// A response's body that knows when it is sent.
pub(super) struct Tracked {
    body: WasiBody,
    _under_way: UnderWay,
    _counted: CountedRequest,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
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

//! One request, from its head to the last byte of its response.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use skiff_protocol::Account;
use tokio::sync::{Semaphore, oneshot};
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::{InstantiationError, ProxyHandler};

use super::host::{Unclear, settle};
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
pub(super) async fn answer(
    service: Arc<Service>,
    mut request: Request<WasiBody>,
) -> Result<Response<Tracked>, Infallible> {
    let mut counted = CountedRequest::begin(service.account);
    let under_way = UnderWay::begin(&service).await;
    let asked = Asked::of(&request);
    if let Err(Unclear) = settle(&mut request) {
        counted.responds(StatusCode::BAD_REQUEST);
        let refused = plain(StatusCode::BAD_REQUEST);
        return Ok(refused.map(|body| Tracked { body, _under_way: under_way, _counted: counted }));
    }
    let begun = Instant::now();
    let (notify, ended) = oneshot::channel();
    let response = match service.handler.handle(notify, request).await {
        Ok(response) => response,
        Err(error) => service.failed(asked, &error, begun, ended),
    };
    counted.responds(response.status());
    Ok(response.map(|body| Tracked { body, _under_way: under_way, _counted: counted }))
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
    fn failed(
        &self,
        asked: Asked,
        error: &wasmtime::Error,
        begun: Instant,
        ended: oneshot::Receiver<Ended>,
    ) -> Response<WasiBody> {
        let module = &self.module;
        // The error of an ended request depends on where its guest was.
        if let Some(limit) = self.request_time.filter(|limit| begun.elapsed() >= *limit) {
            self.reporter.line(&format!("{module}: {asked} took longer than its limit `request-time` of {limit:?}"));
            return plain(StatusCode::GATEWAY_TIMEOUT);
        }
        match error.downcast_ref::<InstantiationError<RequestData>>() {
            Some(InstantiationError { error, .. }) if is_shortage(error) => {
                self.reporter.line(&format!("{module}: no room for {asked}: {}", sentence(error)));
                return plain(StatusCode::SERVICE_UNAVAILABLE);
            }
            Some(InstantiationError { error, .. }) => {
                self.reporter.line(&format!("{module}: cannot make an instance for {asked}: {}", sentence(error)));
            }
            None => {
                let (module, reason) = (module.clone(), sentence(error));
                let reporter = Arc::clone(&self.reporter);
                tokio::spawn(async move {
                    // A trap is reported where the instance ends, and of several requests only one is at fault.
                    let reason = if ended.await.is_ok() { "its instance has ended" } else { &reason };
                    reporter.line(&format!("{module}: {asked} failed: {reason}"));
                });
            }
        }
        plain(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// What a client asked for, as messages name it: method and path without the query, which may hold secrets.
struct Asked(Method, Uri);

impl Asked {
    /// The most characters of a method, and of a path. The rest is left out.
    const METHOD_CHARS_MAX: usize = 16;
    const PATH_CHARS_MAX: usize = 100;

    fn of<B>(request: &Request<B>) -> Self {
        Self(request.method().clone(), request.uri().clone())
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(method, uri) = self;
        let (method, path) = (clean(method.as_str(), Self::METHOD_CHARS_MAX), clean(uri.path(), Self::PATH_CHARS_MAX));
        write!(formatter, "`{method} {path}`")
    }
}

/// At most `chars_max` characters of `text`, and printable ASCII only.
fn clean(text: &str, chars_max: usize) -> String {
    let mut clean = String::new();
    for (count, char) in text.chars().enumerate() {
        match char {
            _ if count == chars_max => {
                clean.push('…');
                break;
            }
            '`' => clean.extend(char.escape_unicode()),
            _ => clean.extend(char.escape_default()),
        }
    }
    clean
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_named_in_a_short_clean_line() {
        let long = format!("/{}", "x".repeat(500));
        let cut = format!("`GET /{}…`", "x".repeat(99));
        for (method, uri, expected) in [
            ("GET", "/", "`GET /`"),
            ("POST", "http://host/a/b?token=secret", "`POST /a/b`"),
            ("OPTIONS", "*", "`OPTIONS *`"),
            ("A-METHOD-OF-A-CLIENT", "/", "`A-METHOD-OF-A-CL… /`"),
            ("GET", &long, &cut),
        ] {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            assert_eq!(Asked::of(&request).to_string(), expected, "{method} {uri}");
        }
        assert_eq!(clean("/a`b\u{202e}c\n\u{1b}[0m", 100), r"/a\u{60}b\u{202e}c\n\u{1b}[0m");
    }
}

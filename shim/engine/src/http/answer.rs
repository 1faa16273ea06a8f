//! One request, from its head to its response.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use skiff_protocol::Account;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::ProxyPre;

use super::alone::{Alone, Failure};
use super::attendance::{Ticket, Waiting};
use super::desk::Ended;
use super::host::{Unclear, settle};
use super::instances::{Caller, Instances, MEMORY_WAIT, is_shortage};
use super::limit::Timer;
use super::reused::{NotMade, Reused};
use super::tracked::{Rest, Tracked};
use super::turns::{Turns, caller};
use crate::error::sentence;
use crate::metrics::CountedRequest;
use crate::report::Reporter;

/// Why a request failed whose instance ended. The reason of that is reported already.
const ENDED: &str = "its instance has ended";

/// What all connections and requests of a server have in common.
pub(super) struct Service {
    module: String,
    account: Account,
    reporter: Arc<Reporter>,
    instances: Arc<Instances>,
    /// Passes requests to instances that serve several. WASI 0.2 has none.
    reused: Option<Arc<Reused>>,
    turns: Turns,
    request_time: Option<Duration>,
    /// How its connections are served.
    pub(super) builder: auto::Builder<TokioExecutor>,
}

/// Answers one request of the connection that `timer` belongs to.
// Invariant: when this or the response's body is dropped, the client is gone, and what its request held is free.
pub(super) async fn answer(
    service: Arc<Service>,
    timer: Timer,
    mut request: Request<WasiBody>,
) -> Result<Response<Tracked>, Infallible> {
    let mut counted = CountedRequest::begin(service.account, &service.instances.shared().glass.ledger, &request);
    let caller = caller(&request);
    let turn = service.turns.take(caller).await;
    let is_head = request.method() == Method::HEAD;
    let (response, rest) = match (settle(&mut request), &service.reused, caller) {
        (Err(Unclear), _, _) => (plain(StatusCode::BAD_REQUEST), Rest::Nothing),
        (Ok(()), Some(reused), Caller::Client) => service.pass_on(reused, request, &timer).await,
        // A probe does not wait for requests of others in an instance.
        (Ok(()), Some(_), Caller::Probe) | (Ok(()), None, _) => service.serve_alone(caller, request, &timer).await,
    };
    counted.responds(response.status());
    Ok(Tracked::new(response, rest, turn, counted, is_head))
}

impl Service {
    /// A service of these instances for connections that `builder` serves.
    pub(super) fn new(instances: Instances, builder: auto::Builder<TokioExecutor>) -> Self {
        let plan = &instances.shared().plan;
        let (module, request_time) = (plan.module.clone(), plan.limits.request_time);
        let turns = Turns::new(plan.limits.concurrent_requests);
        let account = instances.shared().account;
        account.set_serves();
        let reporter = Arc::clone(&instances.shared().reporter);
        let instances = Arc::new(instances);
        let reused = match instances.pre() {
            ProxyPre::P2(_) => None,
            ProxyPre::P3(_) => Some(Reused::new(Arc::clone(&instances), request_time)),
        };
        Self { module, account, reporter, instances, reused, turns, request_time, builder }
    }

    /// Whether no request is under way and no instance is alive.
    pub(super) fn is_idle(&self) -> bool {
        self.turns.are_free() && self.instances.is_idle()
    }

    /// Notified again and again while a request waits for an instance.
    pub(super) fn crowded(&self) -> &Arc<Notify> {
        self.instances.crowded()
    }

    /// Serves a request in an instance of its own.
    async fn serve_alone(
        &self,
        caller: Caller,
        request: Request<WasiBody>,
        timer: &Timer,
    ) -> (Response<WasiBody>, Rest) {
        let asked = Asked::of(&request);
        let instance = match self.instances.make_in_turn(caller, Instant::now() + MEMORY_WAIT).await {
            Ok(instance) => instance,
            Err(error) => return (self.without_instance(&asked, &error), Rest::Nothing),
        };
        let begun = Instant::now();
        let responding = Alone::new(instance, request).respond(self.request_time);
        let response = match timer.within(self.request_time, || Some(begun), begun, responding).await {
            Some(Ok((response, rest))) => return (response, Rest::Alone(rest)),
            Some(Err(failure)) => {
                let reason = match failure {
                    Failure::Ended => ENDED.to_owned(),
                    Failure::Guest(error) => sentence(&error),
                };
                self.reporter.line(&format!("{}: {asked} failed: {reason}", self.module));
                plain(StatusCode::INTERNAL_SERVER_ERROR)
            }
            None => self.timed_out(&asked),
        };
        (response, Rest::Nothing)
    }

    /// Passes a request to an instance that serves others as well.
    async fn pass_on(
        &self,
        reused: &Arc<Reused>,
        request: Request<WasiBody>,
        timer: &Timer,
    ) -> (Response<WasiBody>, Rest) {
        let asked = Asked::of(&request);
        let ticket = Arc::<Ticket>::default();
        let mut waiting = Waiting::new(&ticket);
        let (notify, ended) = oneshot::channel();
        let responding = reused.respond(request, Arc::clone(&ticket), notify);
        let latest = Instant::now() + MEMORY_WAIT;
        let response = match timer.within(self.request_time, || ticket.begun(), latest, responding).await {
            Some(Ok(response)) => return (response, Rest::Shared(waiting)),
            Some(Err(error)) => match error.downcast_ref::<NotMade>() {
                Some(NotMade(error)) => self.without_instance(&asked, error),
                None => {
                    // The guest has done its part.
                    waiting.complete();
                    self.report_failed(asked, ended, sentence(&error));
                    plain(StatusCode::INTERNAL_SERVER_ERROR)
                }
            },
            None => self.timed_out(&asked),
        };
        (response, Rest::Nothing)
    }

    /// Reports a failed request. A trap is reported where the instance ends, and of several requests only one is at fault.
    fn report_failed(&self, asked: Asked, ended: oneshot::Receiver<Ended>, reason: String) {
        let (module, reporter) = (self.module.clone(), Arc::clone(&self.reporter));
        tokio::spawn(async move {
            let reason = if ended.await.is_ok() { ENDED } else { &reason };
            reporter.line(&format!("{module}: {asked} failed: {reason}"));
        });
    }

    fn timed_out(&self, asked: &Asked) -> Response<WasiBody> {
        let (module, limit) = (&self.module, self.request_time.unwrap_or_default());
        self.reporter.line(&format!("{module}: {asked} took longer than its limit `request-time` of {limit:?}"));
        plain(StatusCode::GATEWAY_TIMEOUT)
    }

    /// Reports that there is no instance for a request, and returns what its client gets.
    fn without_instance(&self, asked: &Asked, error: &wasmtime::Error) -> Response<WasiBody> {
        let (module, reason) = (&self.module, sentence(error));
        if is_shortage(error) {
            self.reporter.line(&format!("{module}: no room for {asked}: {reason}"));
            return plain(StatusCode::SERVICE_UNAVAILABLE);
        }
        self.reporter.line(&format!("{module}: cannot make an instance for {asked}: {reason}"));
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

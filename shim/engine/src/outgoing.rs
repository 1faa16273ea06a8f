//! Outgoing requests of `wasi:http`: one connection for each, HTTP/1.1, TLS with Mozilla's roots. Names are looked up by
//! [`Resolver`] only.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, Response, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Interval, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::names::failure::Failure;
use crate::names::resolver::Resolver;

/// How long each step may take unless the guest sets a time.
const PATIENCE: Duration = Duration::from_secs(600);

/// The rest of a connection's life after the response's head.
type Connection = Box<dyn Future<Output = Result<(), Error>> + Send>;

/// Sends the requests of one store.
pub(crate) struct Outgoing(pub(crate) Arc<Resolver>);

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Connection), Error>> + Send> {
        let resolver = Arc::clone(&self.0);
        Box::new(async move { send(&resolver, request, &Patience::of(options)).await })
    }
}

/// How long the steps of a request may take.
struct Patience {
    connect: Duration,
    first_byte: Duration,
    between_bytes: Duration,
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

/// A connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn send(
    resolver: &Resolver,
    mut request: Request<WasiBody>,
    patience: &Patience,
) -> Result<(Response<WasiBody>, Connection), Error> {
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?.clone();
    let is_tls = request.uri().scheme() == Some(&Scheme::HTTPS);
    let connecting = connect(resolver, &authority, is_tls);
    let stream = timeout(patience.connect, connecting).await.map_err(|_| Error::ConnectionTimeout)??;
    let stream: Box<dyn Stream> = if is_tls { Box::new(with_tls(stream, &authority).await?) } else { Box::new(stream) };
    let shaking = http1::Builder::new().handshake(TokioIo::new(stream));
    let (mut sender, connection) = timeout(patience.connect, shaking).await.map_err(|_| Error::ConnectionTimeout)??;
    // Only a proxy gets scheme and authority.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path).map_err(|_| Error::HttpRequestUriInvalid)?;
    let mut connection = Box::pin(connection);
    let response = async {
        let sent = timeout(patience.first_byte, sender.send_request(request)).await;
        sent.map_err(|_| Error::ConnectionReadTimeout)?.map_err(Error::from)
    };
    let mut response = std::pin::pin!(response);
    let mut is_over = false;
    // The connection makes progress only while somebody polls it.
    let response = std::future::poll_fn(|context| {
        if let Poll::Ready(response) = response.as_mut().poll(context) {
            return Poll::Ready(response);
        }
        if is_over {
            return Poll::Pending;
        }
        let ended = ready!(connection.as_mut().poll(context));
        is_over = true;
        match ended {
            Ok(()) => response.as_mut().poll(context),
            Err(error) => Poll::Ready(Err(Error::from(error))),
        }
    });
    let response = response.await?;
    let body = |incoming| ResponseBody::new(incoming, patience.between_bytes).boxed_unsync();
    let rest = async move {
        if is_over {
            return Ok(());
        }
        connection.await.map_err(|error| if error.is_timeout() { Error::HttpResponseTimeout } else { error.into() })
    };
    Ok((response.map(body), Box::new(rest)))
}

/// Connects to the first address that accepts the connection.
async fn connect(resolver: &Resolver, authority: &Authority, is_tls: bool) -> Result<TcpStream, Error> {
    let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let addresses = resolver.look_up(authority.host()).await.map_err(explain_failure)?;
    let mut refused = Error::DestinationNotFound;
    for address in addresses {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = explain_refused(error),
        }
    }
    Err(refused)
}

fn explain_failure(failure: Failure) -> Error {
    let rcode = match failure {
        Failure::Silence => return Error::DnsTimeout,
        Failure::Invalid => "invalid dns name",
        Failure::Unknown => "address not available",
        Failure::Temporary => "server failure",
        Failure::Permanent => "refused",
    };
    Error::DnsError { rcode: Some(rcode.to_owned()), info_code: None }
}

fn explain_refused(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        ErrorKind::TimedOut => Error::ConnectionTimeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
        // All ports of this side are in use.
        ErrorKind::AddrNotAvailable => Error::ConnectionLimitReached,
        _ => Error::Connect(error),
    }
}

async fn with_tls(stream: TcpStream, authority: &Authority) -> Result<impl Stream + use<>, Error> {
    static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let root_store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
        Arc::new(ClientConfig::builder().with_root_certificates(root_store).with_no_client_auth())
    });
    let name = server_name(authority.host())?;
    TlsConnector::from(Arc::clone(&CONFIG)).connect(name, stream).await.map_err(Error::Tls)
}

/// The name that the server's certificate must be for.
fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::from(address)),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| explain_failure(Failure::Invalid)),
    }
}

/// A response's body that fails if nothing of it arrives for too long.
struct ResponseBody {
    incoming: Incoming,
    silence: Interval,
}

impl ResponseBody {
    fn new(incoming: Incoming, between_bytes: Duration) -> Self {
        // An interval must not be zero.
        let mut silence = interval(between_bytes.max(Duration::from_nanos(1)));
        silence.reset();
        Self { incoming, silence }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => {
                self.silence.reset();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) if error.is_timeout() => Poll::Ready(Some(Err(Error::HttpResponseTimeout))),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Pending => {
                ready!(self.silence.poll_tick(context));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_the_name_or_the_address() {
        for (host, expected) in [
            ("example.com", Some("example.com")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("[::1]", Some("::1")),
            ("a b", None),
        ] {
            let name = server_name(host).ok().map(|name| name.to_str().into_owned());
            assert_eq!(name.as_deref(), expected, "{host}");
        }
    }
}

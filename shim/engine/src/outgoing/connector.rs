//! From a URI to a connection that speaks with its server: a seat, TCP, a proxy if there is one, and TLS.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use super::authorities::Authorities;
use super::dial::Dial;
use super::failure::{explain_name, explain_tls, explain_tunnel};
use super::seats::Seats;
use super::settings::Settings;
use super::stream::{Facts, Stream};
use crate::names::failure::Failure;

/// How long a connection may take whose request has found another one meanwhile, or sets no time.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// Makes the connections of the pool.
#[derive(Clone)]
pub(super) struct Connector(Arc<Parts>);

struct Parts {
    settings: Arc<Settings>,
    seats: Arc<Seats>,
    dial: Dial,
    authorities: Arc<Authorities>,
}

impl Connector {
    /// A connector of these parts.
    pub(super) fn new(settings: Arc<Settings>, seats: Arc<Seats>, dial: Dial, authorities: Arc<Authorities>) -> Self {
        Self(Arc::new(Parts { settings, seats, dial, authorities }))
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = ErrorCode;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ErrorCode>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ErrorCode>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let parts = Arc::clone(&self.0);
        Box::pin(
            async move { timeout(PATIENCE, parts.connect(&uri)).await.unwrap_or(Err(ErrorCode::ConnectionTimeout)) },
        )
    }
}

impl Parts {
    async fn connect(&self, uri: &Uri) -> Result<Stream, ErrorCode> {
        let (seat, close) = self.seats.take().await.ok_or(ErrorCode::ConnectionLimitReached)?;
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let proxy = self.settings.proxy(uri);
        let mut facts = Facts { is_proxied: proxy.is_some() && !is_tls, is_http2: self.settings.is_http2(uri) };
        let stream = match proxy {
            // Another kind of proxy.
            Some(proxy) if proxy.uri().scheme() != Some(&Scheme::HTTP) => return Err(ErrorCode::ConfigurationError),
            Some(proxy) if is_tls => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.dial.clone());
                if let Some(secret) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(secret.clone());
                }
                tunnel.call(uri.clone()).await.map_err(|error| explain_tunnel(&error))?.into_inner()
            }
            Some(proxy) => self.dial.connect(proxy.uri()).await?,
            None => self.dial.connect(uri).await?,
        };
        if !is_tls {
            return Ok(Stream::new(Box::new(stream), facts, seat, close));
        }
        let stream = self.with_tls(stream, uri).await?;
        facts.is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Stream::new(Box::new(stream), facts, seat, close))
    }

    async fn with_tls(
        &self,
        stream: TcpStream,
        uri: &Uri,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ErrorCode> {
        let name = server_name(uri.host().unwrap_or_default())?;
        let config = self.authorities.config().await?;
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| explain_tls(&error))
    }
}

/// The name that the server's certificate must be for.
fn server_name(host: &str) -> Result<ServerName<'static>, ErrorCode> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::from(address)),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| explain_name(Failure::Invalid)),
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

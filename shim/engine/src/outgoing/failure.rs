//! Why a request failed, as `wasi:http` has it. Pure: errors in, codes out.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use hyper_util::client::legacy;
use tokio_rustls::rustls;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::bindings::http::types::{DnsErrorPayload, ErrorCode, TlsAlertReceivedPayload};

use crate::names::failure::Failure;

/// Why a name has no addresses.
pub(super) fn explain_name(failure: Failure) -> ErrorCode {
    let rcode = match failure {
        Failure::Silence => return ErrorCode::DnsTimeout,
        Failure::Invalid => "invalid dns name",
        Failure::Unknown => "address not available",
        Failure::Temporary => "server failure",
        Failure::Permanent => "refused",
    };
    ErrorCode::DnsError(DnsErrorPayload { rcode: Some(rcode.to_owned()), info_code: None })
}

/// Why an address cannot be connected to.
pub(super) fn explain_refused(error: &io::Error) -> ErrorCode {
    match error.raw_os_error() {
        // This side's ports or descriptors are all in use.
        Some(libc::EADDRNOTAVAIL | libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            return ErrorCode::ConnectionLimitReached;
        }
        Some(libc::EACCES | libc::EPERM) => return ErrorCode::DestinationIpProhibited,
        _ => {}
    }
    match error.kind() {
        ErrorKind::TimedOut => ErrorCode::ConnectionTimeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => ErrorCode::DestinationIpUnroutable,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => ErrorCode::ConnectionTerminated,
        _ => ErrorCode::ConnectionRefused,
    }
}

/// Why there is no TLS on a connection.
pub(super) fn explain_tls(error: &io::Error) -> ErrorCode {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            ErrorCode::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => ErrorCode::TlsAlertReceived(TlsAlertReceivedPayload {
            alert_id: Some((*alert).into()),
            alert_message: Some(format!("{alert:?}")),
        }),
        Some(_) => ErrorCode::TlsProtocolError,
        None => explain_broken(error),
    }
}

/// Why a proxy leads nowhere. A proxy that refuses is a destination that is not available.
pub(super) fn explain_tunnel(error: &(dyn std::error::Error + 'static)) -> ErrorCode {
    let Some(cause) = error.source() else { return ErrorCode::DestinationUnavailable };
    match (cause.downcast_ref::<ErrorCode>(), cause.downcast_ref::<io::Error>()) {
        (Some(code), _) => code.clone(),
        (None, Some(broken)) => explain_broken(broken),
        (None, None) => ErrorCode::DestinationUnavailable,
    }
}

/// Why a request has no response.
pub(super) fn explain_request(error: &legacy::Error) -> Error {
    let Some(cause) = error.source() else { return Error::HttpProtocolError };
    if let Some(code) = cause.downcast_ref::<ErrorCode>() {
        return code.clone().into();
    }
    match cause.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_incomplete_message() => Error::ConnectionTerminated,
        Some(error) => explain_response(error),
        // The connection that the pool had for it closed meanwhile.
        None => Error::ConnectionTerminated,
    }
}

/// Why a response ends before its end.
pub(super) fn explain_response(error: &hyper::Error) -> Error {
    if error.is_timeout() {
        return Error::HttpResponseTimeout;
    }
    if error.is_parse_too_large() {
        return Error::HttpResponseHeaderSectionSize(None);
    }
    if error.is_incomplete_message() {
        return Error::HttpResponseIncomplete;
    }
    if error.is_closed() || error.is_canceled() {
        return Error::ConnectionTerminated;
    }
    match error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(broken) if broken.kind() == ErrorKind::UnexpectedEof => Error::HttpResponseIncomplete,
        Some(broken) => explain_broken(broken).into(),
        None => Error::HttpProtocolError,
    }
}

/// Why an open connection broke.
fn explain_broken(error: &io::Error) -> ErrorCode {
    match error.kind() {
        ErrorKind::TimedOut => ErrorCode::ConnectionTimeout,
        ErrorKind::InvalidData => ErrorCode::TlsProtocolError,
        _ => ErrorCode::ConnectionTerminated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_connection_has_its_code() {
        for (number, expected) in [
            (libc::ECONNREFUSED, "ConnectionRefused"),
            (libc::EADDRNOTAVAIL, "ConnectionLimitReached"),
            (libc::EMFILE, "ConnectionLimitReached"),
            (libc::ETIMEDOUT, "ConnectionTimeout"),
            (libc::EHOSTUNREACH, "DestinationIpUnroutable"),
            (libc::ENETUNREACH, "DestinationIpUnroutable"),
            (libc::ECONNRESET, "ConnectionTerminated"),
            (libc::EPERM, "DestinationIpProhibited"),
        ] {
            let code = explain_refused(&io::Error::from_raw_os_error(number));
            assert!(format!("{code:?}").contains(expected), "{number}: {code:?}");
        }
    }

    #[test]
    fn a_failed_handshake_has_its_code() {
        use rustls::{AlertDescription, CertificateError, PeerMisbehaved};
        let tls = |error: rustls::Error| io::Error::new(ErrorKind::InvalidData, error);
        for (error, expected) in [
            (tls(CertificateError::UnknownIssuer.into()), "TlsCertificateError"),
            (tls(CertificateError::Expired.into()), "TlsCertificateError"),
            (tls(rustls::Error::NoCertificatesPresented), "TlsCertificateError"),
            (tls(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)), "TlsAlertReceived"),
            (tls(PeerMisbehaved::UnsolicitedServerHelloExtension.into()), "TlsProtocolError"),
            (ErrorKind::UnexpectedEof.into(), "ConnectionTerminated"),
            (ErrorKind::ConnectionReset.into(), "ConnectionTerminated"),
        ] {
            let code = explain_tls(&error);
            assert!(format!("{code:?}").contains(expected), "{error}: {code:?}");
        }
    }
}

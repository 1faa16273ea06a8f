//! Where a server listens: `SKIFF_HTTP_ADDRESS`, else `PORT` on all addresses, else port 8080 on all addresses.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

const ADDRESS_VARIABLE: &str = "SKIFF_HTTP_ADDRESS";
const PORT_VARIABLE: &str = "PORT";
const DEFAULT_PORT: u16 = 8080;
/// How many connections the kernel keeps for a server that is slow to accept; `net.core.somaxconn` bounds it.
const BACKLOG: i32 = 4096;

/// Where to listen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// On one address.
    One(SocketAddr),
    /// On all addresses of both families, or of IPv4 if there is no IPv6.
    All(u16),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(address) => write!(formatter, "{address}"),
            Self::All(port) => write!(formatter, "port {port}"),
        }
    }
}

/// Reads the address from environment variables. An error is a sentence about the variable.
pub(super) fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Address, String> {
    if let Some(address) = variable(ADDRESS_VARIABLE) {
        return address.parse().map(Address::One).map_err(|_| {
            format!(
                "the environment variable `{ADDRESS_VARIABLE}` is not an address such as `0.0.0.0:8080`: `{address}`"
            )
        });
    }
    match variable(PORT_VARIABLE) {
        Some(port) => port
            .parse()
            .map(Address::All)
            .map_err(|_| format!("the environment variable `{PORT_VARIABLE}` is not a port number: `{port}`")),
        None => Ok(Address::All(DEFAULT_PORT)),
    }
}

/// Binds a non-blocking listener, whose connections keep at most `socket_bytes` in each direction.
///
/// # Errors
/// Those of `socket(2)`, `bind(2)` and `listen(2)`.
pub(super) fn bind(address: &Address, socket_bytes: Option<usize>) -> io::Result<TcpListener> {
    match address {
        Address::One(address) => listen(*address, socket_bytes),
        Address::All(port) => {
            listen((Ipv6Addr::UNSPECIFIED, *port).into(), socket_bytes).or_else(|error| match error.raw_os_error() {
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                    listen((Ipv4Addr::UNSPECIFIED, *port).into(), socket_bytes)
                }
                _ => Err(error),
            })
        }
    }
}

/// Names a listener's address. One on all IPv6 addresses accepts IPv4, too.
pub(super) fn describe(bound: SocketAddr) -> String {
    match bound {
        SocketAddr::V6(all) if all.ip().is_unspecified() => format!("0.0.0.0:{0} and [::]:{0}", all.port()),
        _ => bound.to_string(),
    }
}

fn listen(address: SocketAddr, socket_bytes: Option<usize>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // Otherwise the kernel keeps up to several MiB for each connection, and the container pays for them.
    if let Some(bytes) = socket_bytes {
        socket.set_send_buffer_size(bytes)?;
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_comes_from_the_environment() {
        let check = |variables: &[(&str, &str)], expected: Result<Address, &str>| {
            let found = from_environment(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            });
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        check(&[], Ok(Address::All(8080)));
        check(&[("PORT", "80")], Ok(Address::All(80)));
        check(&[("PORT", "80"), ("SKIFF_HTTP_ADDRESS", "127.0.0.1:81")], Ok(Address::One(([127, 0, 0, 1], 81).into())));
        check(&[("SKIFF_HTTP_ADDRESS", "[::1]:81")], Ok(Address::One((Ipv6Addr::LOCALHOST, 81).into())));
        check(&[("PORT", "http")], Err("`PORT` is not a port number: `http`"));
        check(&[("PORT", "70000")], Err("`70000`"));
        check(&[("SKIFF_HTTP_ADDRESS", "localhost")], Err("`localhost`"));
    }

    #[test]
    fn an_address_of_both_families_is_described_as_both() {
        for (bound, expected) in [
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::]:8080", "0.0.0.0:8080 and [::]:8080"),
            ("127.0.0.1:81", "127.0.0.1:81"),
            ("[::1]:82", "[::1]:82"),
        ] {
            assert_eq!(describe(bound.parse().unwrap()), expected);
        }
    }

    #[test]
    fn both_families_reach_a_server_on_all_addresses() {
        let listener = bind(&Address::All(0), Some(8 << 10)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
    }
}

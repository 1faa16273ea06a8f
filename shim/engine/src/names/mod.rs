//! Names of hosts: the container's `/etc/hosts`, then the servers of its `/etc/resolv.conf`, and nothing else.
//!
//! Invariant: glibc's resolver is not part of the engine. It would load libraries that a file of the image names, and hold
//! a thread for each question. Everything here is asynchronous: a server that does not answer keeps no thread.

mod dns;
mod file;
mod hosts;
mod resolv_conf;
mod wasi;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use url::Host;

use self::dns::Servers;
use self::file::Watched;
use self::hosts::Hosts;
use self::resolv_conf::ResolvConf;
pub(crate) use self::wasi::{add_p2_to_linker, add_p3_to_linker};

/// The container's names of its own. This file and the next are read to look up names, and no others.
pub(crate) const HOSTS: &str = "/etc/hosts";
/// Which servers are asked.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Looks up names.
pub(crate) struct Resolver {
    hosts: Watched<Hosts>,
    conf: Watched<ResolvConf>,
    servers: Mutex<Option<Arc<Servers>>>,
    port: u16,
}

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It is not a name of a host.
    Invalid,
    /// There is no such name, or it has no addresses.
    Unknown,
    /// No server answered in time.
    Silence,
    /// The servers cannot answer now.
    Temporary,
    /// The servers refuse to answer.
    Permanent,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Invalid => "not a name of a host",
            Self::Unknown => "no such name",
            Self::Silence => "no name server answers",
            Self::Temporary => "the name servers cannot answer",
            Self::Permanent => "the name servers refuse to answer",
        })
    }
}

impl Resolver {
    /// The resolver of this container.
    pub(crate) fn of_container() -> Self {
        Self::new(Path::new(HOSTS), Path::new(RESOLV_CONF), dns::PORT)
    }

    fn new(hosts: &Path, conf: &Path, port: u16) -> Self {
        let parse_conf = |text: &str| {
            let host_name = nix::unistd::gethostname().unwrap_or_default();
            ResolvConf::parse(text, &host_name.to_string_lossy())
        };
        Self {
            hosts: Watched::new(hosts, Hosts::parse),
            conf: Watched::new(conf, parse_conf),
            servers: Mutex::new(None),
            port,
        }
    }

    /// The addresses of `name`, the most promising first; an address is its own.
    ///
    /// # Errors
    /// [`Failure`] when there are none.
    pub(crate) async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let name = match Host::parse(name) {
            Ok(Host::Domain(name)) => name,
            Ok(Host::Ipv4(address)) => return Ok(vec![address.into()]),
            Ok(Host::Ipv6(address)) => return Ok(vec![address.into()]),
            // Without brackets.
            Err(_) => {
                return name.parse::<Ipv6Addr>().map(|address| vec![address.into()]).map_err(|_| Failure::Invalid);
            }
        };
        let mut addresses = self.hosts.current().addresses(&name);
        if addresses.is_empty() {
            addresses = self.servers().look_up(&name).await?;
        }
        for address in &mut addresses {
            *address = address.to_canonical();
        }
        sort(&mut addresses, is_routable);
        Ok(addresses)
    }

    /// The servers that the file names now.
    fn servers(&self) -> Arc<Servers> {
        let conf = self.conf.current();
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        match &*servers {
            Some(servers) if servers.is_of(&conf) => Arc::clone(servers),
            _ => Arc::clone(servers.insert(Arc::new(Servers::new(conf, self.port)))),
        }
    }
}

/// Puts addresses that cannot be reached last, and those of IPv6 before those of IPv4, as RFC 6724 does in the main.
fn sort(addresses: &mut [IpAddr], is_routable: fn(IpAddr) -> bool) {
    let of_family = |is_ipv6: bool| addresses.iter().copied().find(|address| address.is_ipv6() == is_ipv6);
    let (Some(ipv6), Some(ipv4)) = (of_family(true), of_family(false)) else { return };
    let prefers_ipv6 = is_routable(ipv6) || !is_routable(ipv4);
    addresses.sort_by_key(|address| address.is_ipv6() != prefers_ipv6);
}

/// Whether there is a way to an address. Nothing is sent.
fn is_routable(address: IpAddr) -> bool {
    let from: SocketAddr = match address {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(from).and_then(|socket| socket.connect((address, dns::PORT))).is_ok()
}

#[cfg(test)]
mod tests;

//! The resolver of a container: from a name to its addresses.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use url::Host;

use super::dns::{self, Servers};
use super::failure::Failure;
use super::file::Watched;
use super::hosts::Hosts;
use super::resolv_conf::ResolvConf;

/// The container's own names. Only this file and the next are read to look up names.
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

    /// The addresses of `name`, the most promising first. The address of an address is itself.
    ///
    /// # Errors
    /// [`Failure`] if there are none.
    pub(crate) async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let name = match Host::parse(name) {
            Ok(Host::Domain(name)) => name,
            Ok(Host::Ipv4(address)) => return Ok(vec![address.into()]),
            Ok(Host::Ipv6(address)) => return Ok(vec![address.into()]),
            // IPv6 without brackets.
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

/// Puts addresses that cannot be reached last, and IPv6 before IPv4, as RFC 6724 mostly does.
fn sort(addresses: &mut [IpAddr], is_routable: fn(IpAddr) -> bool) {
    let of_family = |is_ipv6: bool| addresses.iter().copied().find(|address| address.is_ipv6() == is_ipv6);
    let (Some(ipv6), Some(ipv4)) = (of_family(true), of_family(false)) else { return };
    let prefers_ipv6 = is_routable(ipv6) || !is_routable(ipv4);
    addresses.sort_by_key(|address| address.is_ipv6() != prefers_ipv6);
}

/// Whether there is a route to an address. Nothing is sent.
fn is_routable(address: IpAddr) -> bool {
    let from: SocketAddr = match address {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(from).and_then(|socket| socket.connect((address, dns::PORT))).is_ok()
}

#[cfg(test)]
mod tests;

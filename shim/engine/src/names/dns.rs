//! Questions to name servers: which server is asked when, and for which names, as glibc does it. The protocol itself is
//! left to hickory, with one client for each server.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::time::timeout;

use super::failure::Failure;
use super::resolv_conf::ResolvConf;

/// The port of name servers.
pub(super) const PORT: u16 = 53;

/// The name servers of one configuration.
pub(super) struct Servers {
    conf: Arc<ResolvConf>,
    clients: Vec<TokioResolver>,
    next: AtomicUsize,
}

/// The result for one server, or for one name.
enum Answer {
    Addresses(Vec<IpAddr>),
    /// There is no such name, or it has no address of this kind.
    None,
    Failed(Failure),
}

impl Servers {
    /// The servers of `conf`, on this port.
    pub(super) fn new(conf: Arc<ResolvConf>, port: u16) -> Self {
        let clients = conf.servers.iter().filter_map(|address| client(*address, &conf, port)).collect();
        Self { conf, clients, next: AtomicUsize::new(0) }
    }

    /// Whether these are the servers of exactly this configuration.
    pub(super) fn is_of(&self, conf: &Arc<ResolvConf>) -> bool {
        Arc::ptr_eq(&self.conf, conf)
    }

    /// The addresses of `name`, also in the domains that are searched.
    ///
    /// # Errors
    /// [`Failure`] if there are none.
    pub(super) async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let mut failure = Failure::Unknown;
        for candidate in self.conf.candidates(name) {
            // A name that is too long with a domain appended does not exist.
            let Ok(candidate) = Name::from_ascii(format!("{candidate}.")) else { continue };
            match self.both_kinds(&candidate).await {
                Answer::Addresses(addresses) => return Ok(addresses),
                Answer::None => {}
                // Servers that do not answer at all will not answer for the next domain either.
                Answer::Failed(Failure::Silence) => return Err(Failure::Silence),
                Answer::Failed(other) => failure = other,
            }
        }
        Err(failure)
    }

    /// Asks for addresses of both kinds at once.
    async fn both_kinds(&self, name: &Name) -> Answer {
        let ipv6 = async { if self.conf.no_aaaa { Answer::None } else { self.ask(name, RecordType::AAAA).await } };
        match tokio::join!(ipv6, self.ask(name, RecordType::A)) {
            (Answer::Addresses(mut ipv6), Answer::Addresses(ipv4)) => {
                ipv6.extend(ipv4);
                Answer::Addresses(ipv6)
            }
            (Answer::Addresses(addresses), Answer::None | Answer::Failed(_))
            | (Answer::None | Answer::Failed(_), Answer::Addresses(addresses)) => Answer::Addresses(addresses),
            (Answer::Failed(failure), Answer::None | Answer::Failed(_)) | (Answer::None, Answer::Failed(failure)) => {
                Answer::Failed(failure)
            }
            (Answer::None, Answer::None) => Answer::None,
        }
    }

    /// Asks one server after the other, each as often as allowed, until one knows.
    async fn ask(&self, name: &Name, kind: RecordType) -> Answer {
        let first = if self.conf.rotate { self.next.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let mut failure = Failure::Silence;
        for _ in 0..self.conf.attempts {
            for index in 0..self.clients.len() {
                let Some(client) = self.clients.get(first.wrapping_add(index) % self.clients.len()) else { continue };
                match timeout(self.conf.timeout, client.lookup(name.clone(), kind)).await {
                    Ok(Ok(found)) => {
                        let addresses: Vec<IpAddr> =
                            found.answers().iter().filter_map(|one| address(&one.data)).collect();
                        return if addresses.is_empty() { Answer::None } else { Answer::Addresses(addresses) };
                    }
                    Ok(Err(error)) => match explain(&error) {
                        None => return Answer::None,
                        Some(other) => failure = other,
                    },
                    Err(_) => failure = Failure::Silence,
                }
            }
        }
        Answer::Failed(failure)
    }
}

/// A client of one server. It connects only when it is asked something, caches no answers and repeats no question.
fn client(address: IpAddr, conf: &ResolvConf, port: u16) -> Option<TokioResolver> {
    let mut server = if conf.use_tcp { NameServerConfig::tcp(address) } else { NameServerConfig::udp_and_tcp(address) };
    let at_port = |connection: &mut ConnectionConfig| connection.port = port;
    server.connections.iter_mut().for_each(at_port);
    let provider = TokioRuntimeProvider::default();
    let mut builder =
        TokioResolver::builder_with_config(ResolverConfig::from_parts(None, Vec::new(), vec![server]), provider);
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = conf.timeout;
    options.attempts = 0;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.num_concurrent_reqs = 1;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    // The kernel also chooses ports at random, and then a port that is in use is not an error.
    options.os_port_selection = true;
    builder.build().ok()
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    }
}

/// What an error of a server means; `None` if it means that there is nothing.
fn explain(error: &NetError) -> Option<Failure> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(nothing)) => match nothing.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => None,
            code => Some(explain_code(code)),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => Some(explain_code(*code)),
        NetError::Timeout => Some(Failure::Silence),
        _ => Some(Failure::Temporary),
    }
}

fn explain_code(code: ResponseCode) -> Failure {
    match code {
        ResponseCode::ServFail => Failure::Temporary,
        _ => Failure::Permanent,
    }
}

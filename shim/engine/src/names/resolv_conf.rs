//! `/etc/resolv.conf`: which servers are asked, for what, and how long. Pure: a text in, a configuration out.
//!
//! It is read as glibc reads it, with the same bounds: see
//! [resolv.conf(5)](https://man7.org/linux/man-pages/man5/resolv.conf.5.html). `RES_OPTIONS` and `LOCALDOMAIN` in the
//! environment change nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const SERVERS_MAX: usize = 3;
const SEARCH_MAX: usize = 32;
const NDOTS_MAX: usize = 15;
const TIMEOUT_MAX_S: u64 = 30;
const ATTEMPTS_MAX: u32 = 5;

/// How names are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// The servers, in the order in which they are asked.
    pub(super) servers: Vec<IpAddr>,
    /// What is appended to a name.
    pub(super) search: Vec<String>,
    /// A name with at least this many dots is first looked up as it is.
    pub(super) ndots: usize,
    /// How long one server may take to answer.
    pub(super) timeout: Duration,
    /// How often each server is asked.
    pub(super) attempts: u32,
    /// Whether each question begins with another server.
    pub(super) rotate: bool,
    /// Whether TCP is used from the beginning.
    pub(super) use_tcp: bool,
    /// Whether IPv6 addresses are not asked for.
    pub(super) no_aaaa: bool,
}

impl ResolvConf {
    /// Parses the file's text. If the file names no domain, that of the container's `host_name` is searched. Lines that
    /// make no sense are skipped.
    pub(super) fn parse(text: &str, host_name: &str) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: host_name.split_once('.').map(|(_, domain)| domain.to_owned()).into_iter().collect(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
            use_tcp: false,
            no_aaaa: false,
        };
        for line in text.lines() {
            let Some((keyword, rest)) = line.split_once([' ', '\t']) else { continue };
            let mut words = rest.split_ascii_whitespace();
            match keyword {
                "nameserver" => conf.servers.extend(words.next().and_then(server)),
                "domain" => conf.search = words.next().map(str::to_owned).into_iter().collect(),
                "search" => conf.search = words.take(SEARCH_MAX).map(str::to_owned).collect(),
                "options" => words.for_each(|option| conf.set(option)),
                _ => {}
            }
        }
        conf.servers.truncate(SERVERS_MAX);
        if conf.servers.is_empty() {
            conf.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        conf
    }

    fn set(&mut self, option: &str) {
        let (name, value) = option.split_once(':').unwrap_or((option, ""));
        match name {
            "ndots" => self.ndots = number(value).map_or(self.ndots, |ndots: usize| ndots.min(NDOTS_MAX)),
            "timeout" => {
                let seconds =
                    number(value).filter(|seconds| *seconds > 0).map(|seconds: u64| seconds.min(TIMEOUT_MAX_S));
                self.timeout = seconds.map_or(self.timeout, Duration::from_secs);
            }
            "attempts" => {
                let attempts = number(value).filter(|attempts| *attempts > 0);
                self.attempts = attempts.map_or(self.attempts, |attempts: u32| attempts.min(ATTEMPTS_MAX));
            }
            "rotate" => self.rotate = true,
            "use-vc" => self.use_tcp = true,
            "no-aaaa" => self.no_aaaa = true,
            _ => {}
        }
    }

    /// The complete names to ask for in turn when `name` is looked up.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(complete) = name.strip_suffix('.') {
            return vec![complete.to_owned()];
        }
        let mut candidates: Vec<String> = Vec::with_capacity(self.search.len() + 1);
        let mut add = |candidate: String| {
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        };
        if name.matches('.').count() >= self.ndots {
            add(name.to_owned());
        }
        for domain in &self.search {
            match domain.trim_matches('.') {
                "" => add(name.to_owned()),
                domain => add(format!("{name}.{domain}")),
            }
        }
        add(name.to_owned());
        candidates
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// The address of a server. One with a zone (`%eth0`) is not of the pod's network, and its line makes no sense.
fn server(word: &str) -> Option<IpAddr> {
    word.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_kubelet_is_read() {
        let text = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\n\
                    options ndots:5 timeout:2 attempts:3 edns0\n";
        let conf = ResolvConf::parse(text, "pod");
        assert_eq!(conf.servers, [IpAddr::from([10, 96, 0, 10])]);
        assert_eq!((conf.ndots, conf.timeout, conf.attempts), (5, Duration::from_secs(2), 3));
        let expected = ["db.default.svc.cluster.local", "db.svc.cluster.local", "db.cluster.local", "db"];
        assert_eq!(conf.candidates("db"), expected);
        assert_eq!(conf.candidates("example.org.").as_slice(), ["example.org"]);
        assert_eq!(conf.candidates("a.b.c.d.e.f").first().unwrap(), "a.b.c.d.e.f");
    }

    #[test]
    fn nonsense_is_left_out_and_numbers_are_bounded() {
        let text = "; a comment\n# another\nnameserver\nnameserver none\nnameserver 1.1.1.1 # x\n nameserver 9.9.9.9\n\
                    nameserver fe80::1%eth0\nnameserver ::1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\ndomain a.example\n\
                    options ndots:99 timeout:0 timeout:x attempts:1000 rotate use-vc no-aaaa RES_USE_DNSSEC :\nsortlist 1/2\n";
        let conf = ResolvConf::parse(text, "host.b.example");
        let servers: Vec<String> = conf.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["1.1.1.1", "::1", "2.2.2.2"]);
        assert_eq!(conf.search, ["a.example"]);
        assert_eq!((conf.ndots, conf.timeout, conf.attempts), (15, Duration::from_secs(5), 5));
        assert!(conf.rotate && conf.use_tcp && conf.no_aaaa);
    }

    #[test]
    fn without_a_file_this_machine_is_asked() {
        let conf = ResolvConf::parse("", "host.b.example");
        assert_eq!(conf.servers, [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(conf.candidates("x"), ["x.b.example", "x"]);
        assert_eq!(ResolvConf::parse("search .", "h").candidates("x"), ["x"]);
    }
}

//! `/etc/hosts`: names that need no server. Pure: a text in, addresses out.

use std::net::IpAddr;

/// The contents of a hosts file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts(Vec<(IpAddr, Vec<String>)>);

impl Hosts {
    /// Parses the file's text. Lines that make no sense are skipped, as glibc skips them.
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            Some((address, words.map(str::to_ascii_lowercase).collect()))
        });
        Self(lines.collect())
    }

    /// The addresses of `name` in the file's order; empty if it is not there.
    pub(super) fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for (address, names) in &self.0 {
            if !found.contains(address) && names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                found.push(*address);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_as_glibc_reads_it() {
        let text = "# kubelet's\n127.0.0.1\tlocalhost\n::1 localhost ip6-localhost\n  10.0.0.7  web.example  WEB # no\n\
                    nonsense here\n10.0.0.8\n999.1.1.1 bad\n10.0.0.9 web\n10.0.0.9 web\n";
        let hosts = Hosts::parse(text);
        for (name, expected) in [
            ("localhost", &["127.0.0.1", "::1"][..]),
            ("ip6-localhost", &["::1"]),
            ("web", &["10.0.0.7", "10.0.0.9"]),
            ("WEB.example", &["10.0.0.7"]),
            ("no", &[]),
            ("here", &[]),
            ("bad", &[]),
            ("", &[]),
        ] {
            let expected: Vec<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(hosts.addresses(name), expected, "{name}");
        }
    }
}

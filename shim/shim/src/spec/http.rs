//! The annotations of a pod about outgoing requests of its wasm containers.

use std::collections::BTreeMap;

use skiff_protocol::names::HTTP_DOMAIN;

use super::annotations::of_domain;
use crate::error::Result;

/// The most authorities of one annotation.
const AUTHORITIES_MAX: usize = 256;
/// The longest name of a host, with its port.
const AUTHORITY_BYTES_MAX: usize = 262;

/// The authorities (`host:port`) that are spoken to in HTTP/2 without TLS. A container's own annotation replaces its pod's.
///
/// # Errors
/// `Invalid` with the annotation's key when its name or its value is not understood.
pub(crate) fn http2_authorities(annotations: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut authorities = Vec::new();
    for annotation in of_domain(annotations, HTTP_DOMAIN) {
        authorities = match annotation.name {
            "h2c" => parse(annotation.value).map_err(|wrong| annotation.refused(&wrong))?,
            _ => return Err(annotation.unknown(&["h2c"])),
        };
    }
    Ok(authorities)
}

fn parse(value: &str) -> Result<Vec<String>, String> {
    let all: Option<Vec<String>> = value.split(',').map(|one| authority(one.trim())).collect();
    all.filter(|all| all.len() <= AUTHORITIES_MAX).ok_or_else(|| {
        format!("must be at most {AUTHORITIES_MAX} hosts such as `grpc-server:50051`, separated by commas")
    })
}

/// A host and its port, as the engine compares them: in small letters, and with the port of HTTP if there is none.
fn authority(text: &str) -> Option<String> {
    let end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (host, port) = text.split_at_checked(end)?;
    let port: u16 = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None if port.is_empty() => 80,
        None => return None,
    };
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_part = |byte: u8| match inside {
        Some(_) => byte.is_ascii_hexdigit() || b":.".contains(&byte),
        None => byte.is_ascii_alphanumeric() || b"-._".contains(&byte),
    };
    let name = inside.unwrap_or(host);
    let is_host = !name.is_empty() && name.bytes().all(is_part);
    (is_host && port > 0 && text.len() <= AUTHORITY_BYTES_MAX).then(|| format!("{}:{port}", host.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn authorities(all: &[(&str, &str)]) -> Result<Vec<String>> {
        http2_authorities(&all.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn authorities_of_http_2_are_listed() {
        for (value, expected) in [
            ("grpc:50051", &["grpc:50051"][..]),
            ("GRPC.Default.svc:50051, 10.0.0.1:9,[::1]:7", &["grpc.default.svc:50051", "10.0.0.1:9", "[::1]:7"]),
            ("plain", &["plain:80"]),
        ] {
            assert_eq!(authorities(&[("http.skiff.dev/h2c", value)]).unwrap(), expected);
        }
        assert!(authorities(&[("example.org/h2c", "?")]).unwrap().is_empty());
    }

    #[test]
    fn a_containers_own_authorities_win() {
        for (container, expected) in [("web", "b:2"), ("aaa", "c:3"), ("other", "a:1")] {
            let found = authorities(&[
                ("io.kubernetes.cri.container-name", container),
                ("http.skiff.dev/h2c", "a:1"),
                ("web.http.skiff.dev/h2c", "b:2"),
                ("aaa.http.skiff.dev/h2c", "c:3"),
            ]);
            assert_eq!(found.unwrap(), [expected]);
        }
    }

    #[test]
    fn an_authority_that_is_none_is_named() {
        for value in
            ["", "a:", "a:0", "a:+1", "a:70000", "http://a:1", "a:1,", "a b:1", "[x]:1", "[::1]x", "u@a:1", "a:1/x"]
        {
            let error = authorities(&[("http.skiff.dev/h2c", value)]).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`http.skiff.dev/h2c` is `{value}`")) && error.contains("hosts such as"),
                "{error}"
            );
        }
        let error = authorities(&[("http.skiff.dev/http2", "a:1")]).unwrap_err().to_string();
        assert!(error.contains("no setting `http2`"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 200, ..ProptestConfig::default() })]
        #[test]
        fn whatever_an_annotation_says_it_is_a_list_or_refused(value in ".{0,60}|[a-z0-9.:,\\[\\] ]{0,60}") {
            if let Ok(found) = authorities(&[("http.skiff.dev/h2c", &value)]) {
                prop_assert!(!found.is_empty() && found.iter().all(|one| one.contains(':')));
            }
        }
    }
}

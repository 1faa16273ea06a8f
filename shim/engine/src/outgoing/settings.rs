//! What a guest's environment and its plan say about outgoing requests. Pure: variables in, settings out.

use std::collections::HashSet;
use std::path::PathBuf;

use hyper::http::uri::Scheme;
use hyper::{HeaderMap, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

/// The settings of a container.
pub(crate) struct Settings {
    /// The file that `SSL_CERT_FILE` names.
    pub(super) certificate_file: Option<PathBuf>,
    /// The directories that `SSL_CERT_DIR` names.
    pub(super) certificate_folders: Vec<PathBuf>,
    proxies: Matcher,
    http2: HashSet<String>,
}

impl Settings {
    /// The settings that `variable` and the authorities of the annotation make. Relative paths begin in `cwd`.
    pub(crate) fn new(variable: impl Fn(&str) -> Option<String>, cwd: &str, http2: &[String]) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let absolute = |path: &str| PathBuf::from(cwd).join(path);
        // As for curl. Only HTTP_PROXY is one more: curl reads it in small letters alone, since CGI lets clients set it.
        let either = |large: &str, small: &str| set(small).or_else(|| set(large)).unwrap_or_default();
        let proxies = Matcher::builder()
            .all(either("ALL_PROXY", "all_proxy"))
            .http(either("HTTP_PROXY", "http_proxy"))
            .https(either("HTTPS_PROXY", "https_proxy"))
            .no(either("NO_PROXY", "no_proxy"))
            .build();
        Self {
            certificate_file: set("SSL_CERT_FILE").map(|path| absolute(&path)),
            certificate_folders: set("SSL_CERT_DIR")
                .iter()
                .flat_map(|folders| folders.split(':'))
                .filter(|folder| !folder.is_empty())
                .map(absolute)
                .collect(),
            proxies,
            http2: http2.iter().cloned().collect(),
        }
    }

    /// The proxy for requests to `uri`.
    pub(super) fn proxy(&self, uri: &Uri) -> Option<Intercept> {
        if self.is_http2(uri) { None } else { self.proxies.intercept(uri) }
    }

    /// Adds to the head of a request to `uri` what its proxy wants.
    pub(super) fn authorize(&self, uri: &Uri, headers: &mut HeaderMap) {
        if uri.scheme() == Some(&Scheme::HTTP)
            && let Some(proxy) = self.proxy(uri)
            && let Some(secret) = proxy.basic_auth()
        {
            headers.insert(hyper::header::PROXY_AUTHORIZATION, secret.clone());
        }
    }

    /// Whether the server of `uri` is known to speak HTTP/2 without TLS.
    pub(super) fn is_http2(&self, uri: &Uri) -> bool {
        !self.http2.is_empty()
            && uri.scheme() == Some(&Scheme::HTTP)
            && uri.host().is_some_and(|host| {
                let port = uri.port_u16().unwrap_or(80);
                self.http2.contains(&format!("{}:{port}", host.to_ascii_lowercase()))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], http2: &[&str]) -> Settings {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let http2: Vec<String> = http2.iter().map(|one| (*one).to_owned()).collect();
        Settings::new(find, "/work", &http2)
    }

    #[test]
    fn proxies_are_those_of_the_environment() {
        let all = settings(
            &[
                ("HTTP_PROXY", "http://u:p@proxy:3128"),
                ("https_proxy", "http://secure:3129"),
                ("NO_PROXY", "inside.example, 10.0.0.0/8,localhost"),
            ],
            &["grpc:50051"],
        );
        for (uri, expected) in [
            ("http://outside.example/", Some("proxy")),
            ("https://outside.example/", Some("secure")),
            ("http://inside.example/", None),
            ("https://a.inside.example/", None),
            ("http://10.1.2.3:8080/", None),
            ("http://11.1.2.3:8080/", Some("proxy")),
            ("http://localhost/", None),
            ("http://grpc:50051/", None),
        ] {
            let proxy = all.proxy(&uri.parse().unwrap());
            assert_eq!(proxy.as_ref().and_then(|proxy| proxy.uri().host()), expected, "{uri}");
        }
        for (uri, expected) in [
            ("http://outside.example/", Some("Basic dTpw")),
            ("https://outside.example/", None),
            ("http://10.1.1.1/", None),
        ] {
            let mut headers = HeaderMap::new();
            all.authorize(&uri.parse().unwrap(), &mut headers);
            let found = headers.get("proxy-authorization").map(|value| value.to_str().unwrap());
            assert_eq!(found, expected, "{uri}");
        }
        for (large, small, expected) in [
            ("http://large:1", "http://small:1", Some("small")),
            ("http://large:1", "", Some("large")),
            ("", "http://small:1", Some("small")),
            ("", "", None),
        ] {
            let both = settings(&[("HTTP_PROXY", large), ("http_proxy", small)], &[]);
            let proxy = both.proxy(&"http://a/".parse().unwrap());
            assert_eq!(proxy.as_ref().and_then(|proxy| proxy.uri().host()), expected, "{large:?}, {small:?}");
        }
    }

    #[test]
    fn authorities_of_the_annotation_speak_http_2() {
        let settings = settings(&[], &["grpc:50051", "plain:80", "[::1]:9"]);
        for (uri, expected) in [
            ("http://grpc:50051/x", true),
            ("http://GRPC:50051/x", true),
            ("http://grpc/x", false),
            ("http://plain/", true),
            ("http://plain:80/", true),
            ("http://[::1]:9/", true),
            ("https://grpc:50051/x", false),
        ] {
            assert_eq!(settings.is_http2(&uri.parse().unwrap()), expected, "{uri}");
        }
    }

    #[test]
    fn relative_certificates_begin_in_the_working_directory() {
        let settings = settings(&[("SSL_CERT_FILE", "ca.pem"), ("SSL_CERT_DIR", "/a::b")], &[]);
        assert_eq!(settings.certificate_file, Some(PathBuf::from("/work/ca.pem")));
        assert_eq!(settings.certificate_folders, [PathBuf::from("/a"), PathBuf::from("/work/b")]);
    }
}

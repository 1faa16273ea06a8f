//! Whom a request is for: RFC 9112, 3.2 and RFC 9113, 8.3.1 say when that is unclear. Pure.

use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Request, Version};

/// A request that does not say clearly whom it is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclear;

/// Makes a request name its host once, as `wasi:http` requires.
///
/// # Errors
/// [`Unclear`] if the client must get 400.
pub(super) fn settle<B>(request: &mut Request<B>) -> Result<(), Unclear> {
    let mut lines = request.headers().get_all(HOST).iter();
    let target = request.uri().authority();
    if target.is_some_and(|target| target.as_str().contains('@')) {
        return Err(Unclear);
    }
    let host = match (lines.next(), lines.next()) {
        (_, Some(_)) => return Err(Unclear),
        (Some(line), None) => {
            let host = Authority::try_from(line.as_bytes()).map_err(|_| Unclear)?;
            if host.as_str().contains('@') {
                return Err(Unclear);
            }
            match target {
                Some(target) if *target != host && request.version() == Version::HTTP_2 => return Err(Unclear),
                // The target of the request takes precedence over the header.
                Some(target) if *target != host => HeaderValue::try_from(target.as_str()).map_err(|_| Unclear)?,
                _ => return Ok(()),
            }
        }
        (None, None) => match (request.version(), target) {
            (Version::HTTP_11, _) => return Err(Unclear),
            (_, Some(_)) => return Ok(()),
            (_, None) => HeaderValue::from_static("localhost"),
        },
    };
    request.headers_mut().insert(HOST, host);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_host_once() {
        let (old, usual, new) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        for (version, uri, lines, expected) in [
            (usual, "/", &["a.example"][..], Ok(Some("a.example"))),
            (usual, "/", &["[::1]:80"], Ok(Some("[::1]:80"))),
            (usual, "/", &[], Err(Unclear)),
            (usual, "/", &["a", "a"], Err(Unclear)),
            (usual, "/", &["a", "b"], Err(Unclear)),
            (usual, "/", &[""], Err(Unclear)),
            (usual, "/", &["a b"], Err(Unclear)),
            (usual, "/", &["a/b"], Err(Unclear)),
            (usual, "/", &["user@a"], Err(Unclear)),
            (usual, "/", &["a, b"], Err(Unclear)),
            (usual, "http://a/", &[], Err(Unclear)),
            (usual, "http://a/", &["a"], Ok(Some("a"))),
            (usual, "http://a/", &["A"], Ok(Some("A"))),
            (usual, "http://a/", &["b"], Ok(Some("a"))),
            (usual, "http://a/", &["a", "a"], Err(Unclear)),
            (usual, "http://user@a/", &["a"], Err(Unclear)),
            (old, "/", &[], Ok(Some("localhost"))),
            (old, "/", &["a"], Ok(Some("a"))),
            (old, "/", &["a", "b"], Err(Unclear)),
            (new, "http://a/", &[], Ok(None)),
            (new, "http://a/", &["a"], Ok(Some("a"))),
            (new, "http://a/", &["b"], Err(Unclear)),
            (new, "http://user@a/", &[], Err(Unclear)),
            (new, "/", &[], Ok(Some("localhost"))),
        ] {
            let mut request = Request::builder().version(version).uri(uri);
            for line in lines {
                request = request.header(HOST, *line);
            }
            let mut request = request.body(()).unwrap();
            let settled = settle(&mut request).map(|()| request.headers().get(HOST).map(|line| line.to_str().unwrap()));
            assert_eq!(settled, expected, "{version:?} {uri} {lines:?}");
        }
    }
}

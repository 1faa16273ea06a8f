//! A request to another server, through `wasi:http/outgoing-handler`.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest, Scheme};

/// Gets `http://AUTHORITY/PATH`; answers the status and the body, or why there is none.
pub(crate) fn get(url: &str) -> Result<(u16, Vec<u8>), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("not a URL of HTTP: `{url}`"))?;
    let slash = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    let path = if path.is_empty() { "/" } else { path };
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).expect("HTTP is a scheme");
    request.set_authority(Some(authority)).map_err(|()| format!("not a server: `{authority}`"))?;
    request.set_path_with_query(Some(path)).map_err(|()| format!("not a path: `{path}`"))?;
    let answer = outgoing_handler::handle(request, None).map_err(|error| error.to_string())?;
    answer.subscribe().block();
    let response = answer
        .get()
        .expect("the answer has come")
        .expect("the answer is taken once")
        .map_err(|error| error.to_string())?;
    let body = response.consume().expect("the body is taken once");
    let text = crate::read_to_end(&body.stream().expect("the stream is taken once"));
    Ok((response.status(), text))
}

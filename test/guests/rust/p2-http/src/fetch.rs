//! Requests to other servers, through `wasi:http/outgoing-handler`.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
};

/// The message of `call`: a head of gRPC and two bytes.
const MESSAGE: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

/// Gets `http://AUTHORITY/PATH`, or the same with `https`; answers the status and the body, or why there is none.
pub(crate) fn get(url: &str) -> Result<(u16, Vec<u8>), String> {
    let response = answer(request(url, Fields::new())?, None)?;
    let body = response.consume().expect("the body is taken once");
    let text = crate::read_to_end(&body.stream().expect("the stream is taken once"));
    Ok((response.status(), text))
}

/// Posts a message with a trailer to `url`, as gRPC does; answers the body and the trailers.
pub(crate) fn call(url: &str) -> Result<(u16, Vec<u8>), String> {
    let headers = Fields::new();
    headers.append("content-type", b"application/grpc").expect("the header is valid");
    headers.append("te", b"trailers").expect("the header is valid");
    let request = request(url, headers)?;
    request.set_method(&Method::Post).expect("POST is a method");
    let body = request.body().expect("the body is taken once");
    let response = outgoing_handler::handle(request, None).map_err(|error| error.to_string())?;
    let output = body.write().expect("the stream is taken once");
    output.blocking_write_and_flush(&MESSAGE).ok();
    drop(output);
    let trailers = Fields::new();
    trailers.append("x-sent", b"all").expect("the trailer is valid");
    OutgoingBody::finish(body, Some(trailers)).ok();
    response.subscribe().block();
    let response = response.get().expect("it has come").expect("it is taken once").map_err(|error| error.to_string())?;
    let body = response.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    let mut text = format!("{:?}\n", crate::read_to_end(&stream)).into_bytes();
    drop(stream);
    let trailers = IncomingBody::finish(body);
    trailers.subscribe().block();
    let trailers = trailers.get().expect("they have come").expect("they are taken once");
    for (name, value) in trailers.map_err(|error| error.to_string())?.iter().flat_map(Fields::entries) {
        text.extend(format!("{name}: {}\n", String::from_utf8_lossy(&value)).bytes());
    }
    Ok((response.status(), text))
}

/// Gets `url` with this time for each step, waits, and reads the beginning or everything.
pub(crate) fn try_get(url: &str, ms: u64, wait_ms: u64, reads: bool) -> Result<(u16, Vec<u8>), String> {
    let options = RequestOptions::new();
    let time = (ms > 0).then_some(ms * 1_000_000);
    options.set_connect_timeout(time).expect("the time is valid");
    options.set_first_byte_timeout(time).expect("the time is valid");
    options.set_between_bytes_timeout(time).expect("the time is valid");
    let response = answer(request(url, Fields::new())?, Some(options))?;
    let body = response.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    std::thread::sleep(std::time::Duration::from_millis(wait_ms));
    loop {
        match stream.blocking_read(4096) {
            Ok(_) if !reads => return Ok((200, b"left\n".to_vec())),
            Ok(_) => {}
            Err(wasip2::io::streams::StreamError::Closed) => return Ok((200, b"read\n".to_vec())),
            Err(wasip2::io::streams::StreamError::LastOperationFailed(error)) => {
                let code = wasip2::http::types::http_error_code(&error);
                return Err(code.map_or(error.to_debug_string(), |code| code.to_string()));
            }
        }
    }
}

fn request(url: &str, headers: Fields) -> Result<OutgoingRequest, String> {
    let (scheme, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (Scheme::Http, rest),
        (_, Some(rest)) => (Scheme::Https, rest),
        _ => return Err(format!("not a URL of HTTP: `{url}`")),
    };
    let slash = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    let path = if path.is_empty() { "/" } else { path };
    let request = OutgoingRequest::new(headers);
    request.set_scheme(Some(&scheme)).expect("HTTP is a scheme");
    request.set_authority(Some(authority)).map_err(|()| format!("not a server: `{authority}`"))?;
    request.set_path_with_query(Some(path)).map_err(|()| format!("not a path: `{path}`"))?;
    Ok(request)
}

fn answer(request: OutgoingRequest, options: Option<RequestOptions>) -> Result<IncomingResponse, String> {
    let answer = outgoing_handler::handle(request, options).map_err(|error| error.to_string())?;
    answer.subscribe().block();
    let response = answer.get().expect("the answer has come").expect("the answer is taken once");
    response.map_err(|error| error.to_string())
}

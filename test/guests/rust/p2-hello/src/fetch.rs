//! Requests through `wasi:http/outgoing-handler`, in a command.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest, Scheme};
use wasip2::io::streams::StreamError;

/// Gets `http://SERVER/` as often, one after the other; answers the number of bytes.
pub(crate) fn get(server: &str, count: u32) -> Result<String, String> {
    let mut bytes = 0;
    for _ in 0..count {
        let request = OutgoingRequest::new(Fields::new());
        request.set_scheme(Some(&Scheme::Http)).expect("HTTP is a scheme");
        request.set_authority(Some(server)).map_err(|()| format!("not a server: `{server}`"))?;
        request.set_path_with_query(Some("/")).expect("it is a path");
        let answer = outgoing_handler::handle(request, None).map_err(|error| error.to_string())?;
        answer.subscribe().block();
        let response = answer.get().expect("the answer has come").expect("the answer is taken once");
        let response = response.map_err(|error| error.to_string())?;
        let body = response.consume().expect("the body is taken once");
        let stream = body.stream().expect("the stream is taken once");
        loop {
            match stream.blocking_read(4096) {
                Ok(read) => bytes += read.len(),
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
            }
        }
    }
    Ok(format!("{bytes} bytes\n"))
}

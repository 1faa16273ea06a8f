//! Requests to other servers, through `wasi:http/client`.

use wasip3::http::client;
use wasip3::http::types::{Fields, Method, Request, Response, Scheme};
use wasip3::wit_bindgen::{self, StreamResult};
use wasip3::{wit_future, wit_stream};

/// The message of `call`: a head of gRPC and two bytes.
const MESSAGE: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

/// Gets `url`; answers the status and the body, or why there is none.
pub(crate) async fn get(url: &str) -> Result<(u16, String), String> {
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, no_trailers, None);
    drop(trailers);
    aim(&request, url)?;
    let response = client::send(request).await.map_err(|error| format!("{error:?}"))?;
    let status = response.get_status_code();
    let (body, _) = read(response).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Posts a message with a trailer to `url`, as gRPC does; answers the body and the trailers.
pub(crate) async fn call(url: &str) -> Result<(u16, String), String> {
    let headers = [("content-type".into(), b"application/grpc".to_vec()), ("te".into(), b"trailers".to_vec())];
    let headers = Fields::from_list(&headers).expect("the headers are valid");
    let (mut writer, contents) = wit_stream::new();
    let (trailers_writer, trailers) = wit_future::new(|| Ok(None));
    let (request, sent) = Request::new(headers, Some(contents), trailers, None);
    request.set_method(&Method::Post).expect("POST is a method");
    aim(&request, url)?;
    wit_bindgen::spawn_local(async move {
        writer.write_all(MESSAGE.to_vec()).await;
        drop(writer);
        let trailers = Fields::from_list(&[("x-sent".into(), b"all".to_vec())]).expect("the trailer is valid");
        trailers_writer.write(Ok(Some(trailers))).await.ok();
    });
    let response = client::send(request).await.map_err(|error| format!("{error:?}"))?;
    let status = response.get_status_code();
    let (body, trailers) = read(response).await?;
    let sent = sent.await.map_err(|error| format!("{error:?}"));
    Ok((status, format!("{body:?}\n{trailers}{sent:?}\n")))
}

fn aim(request: &Request, url: &str) -> Result<(), String> {
    let (scheme, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (Scheme::Http, rest),
        (_, Some(rest)) => (Scheme::Https, rest),
        _ => return Err(format!("not a URL of HTTP: `{url}`")),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    request.set_scheme(Some(&scheme)).expect("HTTP is a scheme");
    request.set_authority(Some(authority)).map_err(|()| format!("not a server: `{authority}`"))?;
    let path = if path.is_empty() { "/" } else { path };
    request.set_path_with_query(Some(path)).map_err(|()| format!("not a path: `{path}`"))
}

/// The body and the trailers, each on a line.
async fn read(response: Response) -> Result<(Vec<u8>, String), String> {
    let (outcome, receiver) = wit_future::new(|| Ok(()));
    let (mut body, trailers) = Response::consume_body(response, receiver);
    let mut all = Vec::new();
    loop {
        let (status, bytes) = body.read(Vec::with_capacity(16 * 1024)).await;
        if bytes.is_empty() && !matches!(status, StreamResult::Complete(_)) {
            break;
        }
        all.extend(bytes);
    }
    drop(body);
    drop(outcome);
    let trailers = trailers.await.map_err(|error| format!("{error:?}"))?;
    let lines = trailers.iter().flat_map(|trailers| trailers.copy_all());
    Ok((all, lines.map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(&value))).collect()))
}

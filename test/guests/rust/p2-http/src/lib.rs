//! An HTTP service on `wasi:http/incoming-handler` 0.2, with one route for each thing that a test wants to see.

mod fetch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

wasip2::http::proxy::export!(Service);

struct Service;

static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// What `blocking_write_and_flush` takes at most.
const CHUNK: usize = 4096;
/// How long `/hold` keeps its memory before it answers, and `/break` goes on with its response.
const HOLD: Duration = Duration::from_millis(300);
/// The message `HealthCheckResponse { status: SERVING }` of gRPC's health protocol: not compressed, 2 bytes, field 1 is 1.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

impl wasip2::exports::http::incoming_handler::Guest for Service {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/echo" => echo(&request, out),
            "/big" => big(number(query, "bytes"), out),
            "/stall" => send(out, 200, |output| {
                output.blocking_write_and_flush(b"begun\n").ok();
                std::thread::sleep(Duration::from_millis(number(query, "ms")));
            }),
            "/break" => send(out, 200, |output| {
                output.blocking_write_and_flush(b"begun\n").ok();
                std::thread::sleep(HOLD);
                panic!("on purpose");
            }),
            "/after" => {
                reply(out, 200, b"complete\n");
                std::thread::sleep(HOLD);
                println!("after the response");
            }
            "/flood" => flood(number(query, "bytes"), out),
            "/write" => {
                let result = std::fs::write(parameter(query, "path"), read_all(&request));
                reply_result(out, result.map(|()| b"written".to_vec()));
            }
            "/files" => reply_result(out, std::fs::read(parameter(query, "path"))),
            "/fetch" => reply_fetched(out, fetch::get(parameter(query, "url"))),
            "/call" => reply_fetched(out, fetch::call(parameter(query, "url"))),
            "/try" => {
                let (ms, wait_ms, reads) = (number(query, "ms"), number(query, "wait"), number(query, "read") > 0);
                reply_fetched(out, fetch::try_get(parameter(query, "url"), ms, wait_ms, reads));
            }
            "/grpc.health.v1.Health/Check" => check_health(&request, out),
            _ => {
                let (status, text) = answer(path, query, &request);
                reply(out, status, text.as_bytes());
            }
        }
    }
}

fn answer(path: &str, query: &str, request: &IncomingRequest) -> (u16, String) {
    match path {
        "/" => (200, "hello\n".into()),
        "/env" => (200, std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
        "/args" => (200, std::env::args().map(|argument| format!("{argument}\n")).collect()),
        "/count" => (200, format!("{}\n", REQUESTS.load(Ordering::Relaxed))),
        "/headers" => (200, headers(request)),
        "/slow" => {
            std::thread::sleep(Duration::from_millis(number(query, "ms")));
            (200, "slow\n".into())
        }
        "/log" => {
            println!("on stdout");
            eprintln!("on stderr");
            (200, "logged\n".into())
        }
        "/grow" => (200, grow(number(query, "mib"))),
        "/hold" => {
            let text = grow(number(query, "mib"));
            std::thread::sleep(HOLD);
            (200, text)
        }
        "/leak" => leak(),
        "/status" => (u16::try_from(number(query, "code")).unwrap_or(500), String::new()),
        "/exit" => std::process::exit(i32::try_from(number(query, "code")).unwrap_or(1)),
        "/trap" => panic!("on purpose"),
        "/raise" => {
            // As componentize-py's runtime does.
            eprintln!("Traceback (most recent call last):\nValueError: on purpose");
            panic!("Python function threw an unexpected exception")
        }
        "/spin" => loop {
            std::hint::black_box(0);
        },
        _ => (404, "no such route\n".into()),
    }
}

fn headers(request: &IncomingRequest) -> String {
    let mut lines: Vec<String> = request
        .headers()
        .entries()
        .into_iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(&value)))
        .collect();
    lines.sort();
    lines.concat()
}

/// Grows the memory in steps of 1 MiB and writes to each page, which must be empty: another instance may have had it.
fn grow(mib: u64) -> String {
    const PAGES: usize = 16;
    for grown in 0..mib {
        let first = core::arch::wasm32::memory_grow::<0>(PAGES);
        if first == usize::MAX {
            return format!("refused after {grown} MiB\n");
        }
        for offset in (0..PAGES * 65536).step_by(4096) {
            let byte = (first * 65536 + offset) as *mut u8;
            // SAFETY: the pages were made by the call above and belong to nothing else.
            let before = unsafe { byte.replace(1) };
            assert_eq!(before, 0, "a page of another instance");
        }
    }
    format!("grew {mib} MiB\n")
}

/// Keeps what it allocates until the allocator gives up, which aborts.
fn leak() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}

/// Sends the request's body back as it comes, without holding it.
fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let body = request.consume().expect("the body is taken once");
    let input = body.stream().expect("the stream is taken once");
    send(out, 200, |output| {
        loop {
            match input.blocking_read(CHUNK as u64) {
                Ok(bytes) if output.blocking_write_and_flush(&bytes).is_err() => return,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
}

fn big(bytes: u64, out: ResponseOutparam) {
    send(out, 200, |output| {
        let mut left = bytes;
        while left > 0 {
            let length = left.min(CHUNK as u64);
            if output.blocking_write_and_flush(&[b'x'; CHUNK][..length as usize]).is_err() {
                return;
            }
            left -= length;
        }
    });
}

/// Writes as much at once as the host permits.
fn flood(bytes: u64, out: ResponseOutparam) {
    send(out, 200, |output| {
        let block = vec![b'x'; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            match output.check_write() {
                Ok(0) => output.subscribe().block(),
                Ok(permitted) => {
                    let length = permitted.min(left).min(block.len() as u64);
                    if output.write(&block[..length as usize]).is_err() {
                        return;
                    }
                    left -= length;
                }
                Err(_) => return,
            }
        }
    });
}

/// Answers a gRPC client, such as the kubelet's probe.
fn check_health(request: &IncomingRequest, out: ResponseOutparam) {
    read_all(request);
    let trailers = Fields::new();
    trailers.append("grpc-status", b"0").expect("the trailer is valid");
    let head = [("content-type", "application/grpc")];
    send_with(out, 200, &head, Some(trailers), |output| {
        output.blocking_write_and_flush(&SERVING).ok();
    });
}

fn read_all(request: &IncomingRequest) -> Vec<u8> {
    let body = request.consume().expect("the body is taken once");
    read_to_end(&body.stream().expect("the stream is taken once"))
}

fn read_to_end(input: &InputStream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match input.blocking_read(CHUNK as u64) {
            Ok(bytes) => all.extend(bytes),
            Err(StreamError::Closed | StreamError::LastOperationFailed(_)) => return all,
        }
    }
}

fn reply_fetched(out: ResponseOutparam, result: Result<(u16, Vec<u8>), String>) {
    match result {
        Ok((status, body)) => reply(out, status, &body),
        Err(reason) => reply(out, 502, format!("{reason}\n").as_bytes()),
    }
}

fn reply_result(out: ResponseOutparam, result: std::io::Result<Vec<u8>>) {
    match result {
        Ok(text) => reply(out, 200, &text),
        Err(error) => reply(out, 500, format!("{error}\n").as_bytes()),
    }
}

fn reply(out: ResponseOutparam, status: u16, text: &[u8]) {
    send(out, status, |output| {
        for part in text.chunks(CHUNK) {
            if output.blocking_write_and_flush(part).is_err() {
                return;
            }
        }
    });
}

fn send(out: ResponseOutparam, status: u16, write: impl FnOnce(&OutputStream)) {
    send_with(out, status, &[("x-guest", "rust-p2-http")], None, write);
}

fn send_with(
    out: ResponseOutparam,
    status: u16,
    headers: &[(&str, &str)],
    trailers: Option<Fields>,
    write: impl FnOnce(&OutputStream),
) {
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).expect("the header is valid");
    }
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("the status is valid");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let output = body.write().expect("the stream is taken once");
    write(&output);
    drop(output);
    // A client that went away is no failure of the guest.
    OutgoingBody::finish(body, trailers).ok();
}

fn parameter<'a>(query: &'a str, name: &str) -> &'a str {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or("")
}

fn number(query: &str, name: &str) -> u64 {
    parameter(query, name).parse().unwrap_or(0)
}

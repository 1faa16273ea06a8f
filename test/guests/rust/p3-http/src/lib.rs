//! An HTTP service on `wasi:http/handler` of WASI 0.3, with one route for each thing that a test wants to see.

mod fetch;

use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::wit_bindgen::StreamWriter;
use wasip3::{wit_bindgen, wit_future, wit_stream};

wasip3::http::service::export!(Service);

struct Service;

/// How long `/hold` keeps its memory before it answers, `/break` goes on with its response, and `/later` awaits its work.
const HOLD_NS: u64 = 300_000_000;

impl wasip3::exports::http::handler::Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/echo" => return Ok(echo(request)),
            "/big" => return Ok(big(number(query))),
            "/stall" => return Ok(stall(number(query))),
            "/break" => return Ok(break_off()),
            _ => {}
        }
        let (status, text) = answer(path, query).await;
        Ok(send(status, async move |mut body: StreamWriter<u8>| {
            body.write_all(text.into_bytes()).await;
        }))
    }
}

async fn answer(path: &str, query: &str) -> (u16, String) {
    match path {
        "/" => (200, "hello\n".into()),
        "/env" => (200, std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
        "/slow" => {
            wasip3::clocks::monotonic_clock::wait_for(number(query) * 1_000_000).await;
            (200, "slow\n".into())
        }
        "/log" => {
            println!("on stdout");
            eprintln!("on stderr");
            (200, "logged\n".into())
        }
        "/grow" => (200, grow(number(query))),
        "/hold" => {
            let text = grow(number(query));
            wasip3::clocks::monotonic_clock::wait_for(HOLD_NS).await;
            (200, text)
        }
        "/leak" => leak(),
        "/fetch" => fetched(fetch::get(url(query)).await),
        "/call" => fetched(fetch::call(url(query)).await),
        "/trap" => panic!("on purpose"),
        "/raise" => {
            // As componentize-py's runtime does.
            eprintln!("Traceback (most recent call last):\nValueError: on purpose");
            panic!("Python function threw an unexpected exception")
        }
        "/spin" => spin(),
        "/later" => {
            wasip3::clocks::monotonic_clock::wait_for(HOLD_NS).await;
            spin()
        }
        _ => (404, "no such route\n".into()),
    }
}

/// Grows the memory in steps of 1 MiB and writes to each page.
fn grow(mib: u64) -> String {
    const PAGES: usize = 16;
    for grown in 0..mib {
        let first = core::arch::wasm32::memory_grow::<0>(PAGES);
        if first == usize::MAX {
            return format!("refused after {grown} MiB\n");
        }
        for offset in (0..PAGES * 65536).step_by(4096) {
            // SAFETY: the pages were made by the call above and belong to nothing else.
            unsafe { ((first * 65536 + offset) as *mut u8).write_volatile(1) };
        }
    }
    format!("grew {mib} MiB\n")
}

fn spin() -> ! {
    loop {
        std::hint::black_box(0);
    }
}

/// Keeps what it allocates until the allocator gives up, which aborts.
fn leak() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}

/// Sends the request's body back as it comes, without holding it.
fn echo(request: Request) -> Response {
    let (outcome, receiver) = wit_future::new(|| Ok(()));
    let (mut input, _trailers) = Request::consume_body(request, receiver);
    send(200, async move |mut body: StreamWriter<u8>| {
        let mut buffer = Vec::with_capacity(16 * 1024);
        loop {
            let (status, bytes) = input.read(buffer).await;
            if bytes.is_empty() && !matches!(status, wit_bindgen::StreamResult::Complete(_)) {
                break;
            }
            buffer = body.write_all(bytes).await;
            if !buffer.is_empty() {
                break;
            }
            buffer.reserve(16 * 1024);
        }
        drop(outcome);
    })
}

fn big(bytes: u64) -> Response {
    send(200, async move |mut body: StreamWriter<u8>| {
        let mut left = bytes;
        while left > 0 {
            let length = left.min(64 * 1024);
            if !body.write_all(vec![b'x'; length as usize]).await.is_empty() {
                return;
            }
            left -= length;
        }
    })
}

/// Begins a body, and goes on with it later.
fn stall(ms: u64) -> Response {
    send(200, async move |mut body: StreamWriter<u8>| {
        body.write_all(b"begun\n".to_vec()).await;
        wasip3::clocks::monotonic_clock::wait_for(ms * 1_000_000).await;
    })
}

/// Begins a body, and traps.
fn break_off() -> Response {
    send(200, async move |mut body: StreamWriter<u8>| {
        body.write_all(b"begun\n".to_vec()).await;
        wasip3::clocks::monotonic_clock::wait_for(HOLD_NS).await;
        panic!("on purpose");
    })
}

fn send(status: u16, write: impl AsyncFnOnce(StreamWriter<u8>) + 'static) -> Response {
    let (writer, reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let fields = Fields::from_list(&[("x-guest".into(), b"rust-p3-http".to_vec())]).expect("the header is valid");
    let (response, _sent) = Response::new(fields, Some(reader), trailers_reader);
    response.set_status_code(status).expect("the status is valid");
    wit_bindgen::spawn_local(async move {
        write(writer).await;
        drop(trailers);
    });
    response
}

fn fetched(result: Result<(u16, String), String>) -> (u16, String) {
    result.unwrap_or_else(|reason| (502, format!("{reason}\n")))
}

fn url(query: &str) -> &str {
    query.strip_prefix("url=").unwrap_or_default()
}

/// The value of the only parameter, or 0.
fn number(query: &str) -> u64 {
    query.split_once('=').and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

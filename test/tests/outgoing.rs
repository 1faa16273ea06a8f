//! Requests that wasm containers make to other servers: which annotations reach them, and that nothing that is buffered for
//! them gets a container killed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use skiff_test::{Containerd, free_port, get, is_alive, serving};

const MIB: u64 = 1 << 20;
/// How many requests are made at once.
const CLIENTS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on a free port of this machine that does this with each connection, in a thread of its own.
fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    port
}

/// Reads some of a request, and sends a body that has no end.
fn flood(mut stream: TcpStream) {
    let read = stream.read(&mut [0; 4096]);
    let mut sent = read.and_then(|_| stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
    while sent.is_ok() {
        sent = stream.write_all(&[b'x'; 65536]);
    }
}

#[test]
fn a_server_whose_requests_are_flooded_is_never_killed() {
    let flooding = server(flood);
    for limit_mib in [16, 64] {
        let port = free_port();
        let container = serving(Containerd::shared().job("rust-p2-http").memory(limit_mib * MIB), port);
        // Each waits with the response unread, so that all buffers on the way fill up.
        let path = format!("/try?wait=300&url=http://127.0.0.1:{flooding}/");
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| get(port, &path))).collect();
            clients.into_iter().map(|client| client.join().unwrap().unwrap().status).collect()
        });
        assert!(statuses.iter().all(|status| [200, 502, 503].contains(status)), "{limit_mib} MiB: {statuses:?}");
        assert!(statuses.contains(&200), "{limit_mib} MiB: {statuses:?}");
        assert!(is_alive(container.pid), "{limit_mib} MiB");
        assert_eq!(container.cgroup.oom_kills(), 0, "{limit_mib} MiB");
        assert_eq!(get(port, "/").unwrap().status, 200, "{limit_mib} MiB: it still answers");
        container.kill(libc::SIGTERM).unwrap();
        assert_eq!(container.finish().code, 0, "{limit_mib} MiB");
    }
}

#[test]
fn an_annotation_lists_the_servers_that_speak_http_2() {
    let (seen, first_bytes) = mpsc::channel();
    let other = server(move |mut stream| {
        let mut bytes = [0; 14];
        let read = stream.read_exact(&mut bytes);
        seen.send(read.map(|()| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()).ok();
    });
    let containerd = Containerd::shared();
    for (annotation, value, expected) in [
        ("http.skiff.dev/h2c", format!("elsewhere:1, 127.0.0.1:{other}"), "PRI * HTTP/2.0"),
        ("http.skiff.dev/h2c", "elsewhere:1".to_owned(), "GET / HTTP/1.1"),
    ] {
        let port = free_port();
        let container = serving(containerd.job("rust-p2-http").annotation(annotation, &value), port);
        get(port, &format!("/fetch?url=http://127.0.0.1:{other}/")).unwrap();
        assert_eq!(first_bytes.recv_timeout(PATIENCE).unwrap(), expected, "{value}");
        container.kill(libc::SIGTERM).unwrap();
        container.finish();
    }
    let refused = containerd.job("rust-p2-http").annotation("http.skiff.dev/h2c", "http://a").refused();
    assert!(refused.message.contains("`http.skiff.dev/h2c` is `http://a`"), "{}", refused.message);
}

//! Connections whose clients are silent, slow or gone: none of them lives for ever, and none keeps others out.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use skiff_protocol::Limits;

use crate::driver::Guest;
use crate::frames;
use crate::server::{BOTH, Server, finish};
use crate::watch::{limit_file, set_limit, wait_for};

const MIB: u64 = 1 << 20;
const WHOLE: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

fn server(name: &str, header_time: Duration, idle_time: Duration) -> Server {
    Server::start(Guest::named(name).limits(Limits { header_time, idle_time, ..Limits::default() }))
}

/// Reads one response with a body of six bytes.
fn read_hello(stream: &mut TcpStream) {
    let mut text = Vec::new();
    while !text.ends_with(b"hello\n") && !text.ends_with(b"0\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    if text.ends_with(b"hello\n") && text.windows(7).any(|part| part.eq_ignore_ascii_case(b"chunked")) {
        stream.read_exact(&mut [0; 7]).unwrap();
    }
}

/// Waits until the server closes a connection.
fn wait_for_the_end(what: &str, mut stream: TcpStream) {
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let seen = stream.peek(&mut [0; 1]);
    stream.set_nonblocking(false).unwrap();
    match seen {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

#[test]
fn connections_without_a_request_give_way_to_new_ones() {
    let limit = limit_file(16 * MIB);
    for name in BOTH {
        let server = Server::start(Guest::named(name).limit(limit.path()));
        let kept: Vec<TcpStream> = (0..600)
            .map(|number| match number % 3 {
                0 => server.send(""),
                1 => server.send("GET / HT"),
                _ => {
                    let mut stream = server.send(WHOLE);
                    read_hello(&mut stream);
                    stream
                }
            })
            .collect();
        assert_eq!(server.get("/").status(), 200, "{name}");
        wait_for("the oldest to give way", || !is_open(&kept[0]) && !is_open(&kept[1]) && !is_open(&kept[2]));
        let open = kept.iter().filter(|stream| is_open(stream)).count();
        assert!((50..400).contains(&open), "{name}: {open} are open");
        assert!(kept[570..].iter().any(is_open), "{name}: the youngest stay");
    }
}

#[test]
fn a_request_under_way_does_not_give_way() {
    let limit = limit_file(16 * MIB);
    let server = Server::start(Guest::named("rust-p2-http").limit(limit.path()));
    let mut slow = server.begin("/slow?ms=3000");
    let silent: Vec<TcpStream> = (0..600).map(|_| server.send("")).collect();
    assert_eq!(server.get("/").status(), 200);
    let mut head = [0; 12];
    slow.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert!(!is_open(&silent[0]));
}

#[test]
fn a_head_that_does_not_come_ends_its_connection() {
    let server = server("rust-p2-http", Duration::from_secs(2), LONG);
    let mut second = server.send(WHOLE);
    read_hello(&mut second);
    second.write_all(b"GET / HT").unwrap();
    let mut trickle = server.send("GET / HTTP/1.1\r\n");
    wait_for("the end of a head that comes by single bytes", || {
        std::thread::park_timeout(Duration::from_millis(20));
        trickle.write_all(b"a").is_err()
    });
    for (what, stream) in [
        ("nothing", server.send("")),
        ("a part of the first head", server.send("GET / HTTP/1.1\r\nhost:")),
        ("a part of HTTP/2's preface", server.send("PRI * HTTP/2.0\r\n\r\nSM")),
        ("a part of the second head", second),
    ] {
        wait_for_the_end(what, stream);
    }
    assert_eq!(server.get("/").status(), 200);
}

#[test]
fn an_idle_connection_ends_after_its_time() {
    for name in BOTH {
        let server = server(name, LONG, Duration::from_millis(300));
        let mut used = server.send(WHOLE);
        read_hello(&mut used);
        wait_for_the_end("HTTP/1.1", used);
        let mut http_2 = server.send("");
        http_2.write_all(&frames::hello()).unwrap();
        let mut came = Vec::new();
        http_2.read_to_end(&mut came).unwrap();
        assert!(frames::kinds(&came).contains(&frames::GOAWAY), "{name}: {:?}", frames::kinds(&came));
    }
}

#[test]
fn a_connection_is_not_idle_while_its_guest_works() {
    for name in BOTH {
        let server = server(name, Duration::from_secs(2), Duration::from_millis(300));
        let response = finish(server.begin("/slow?ms=1500"));
        assert_eq!((response.status(), response.body.contains("slow")), (200, true), "{name}");
    }
}

#[test]
fn a_client_of_http_2_that_does_not_reply_is_gone() {
    let server = server("rust-p2-http", LONG, Duration::from_millis(600));
    let mut stream = server.send("");
    stream.write_all(&[frames::hello(), frames::get(1, "/slow?ms=3600000")].concat()).unwrap();
    let mut came = Vec::new();
    // The server may reset what it has not read.
    let _ended = stream.read_to_end(&mut came);
    assert!(frames::kinds(&came).contains(&frames::PING), "{:?}", frames::kinds(&came));
}

#[test]
fn a_client_that_takes_nothing_is_disconnected() {
    for name in BOTH {
        let server = server(name, LONG, Duration::from_millis(500));
        assert_eq!(server.get("/").status(), 200);
        wait_for("the connection to end", || server.connections() == 0);
        let http_1 = server.begin("/big?bytes=100000000");
        wait_for("the response", || http_1.peek(&mut [0; 1]).is_ok_and(|bytes| bytes > 0));
        wait_for("the end of the connection", || server.connections() == 0);
        // Its window is never raised.
        let mut http_2 = server.send("");
        http_2.write_all(&[frames::hello(), frames::get(1, "/big?bytes=100000000")].concat()).unwrap();
        let replying = http_2.try_clone().unwrap();
        let pongs = std::thread::spawn(move || frames::reply_to_pings(replying));
        wait_for("the end of the connection", || pongs.is_finished() && server.connections() == 0);
        assert!(pongs.join().unwrap(), "{name}: a response began");
    }
}

#[test]
fn a_body_that_does_not_come_is_an_error_for_its_guest() {
    for name in BOTH {
        let server = server(name, LONG, Duration::from_millis(300));
        let stream = server.send("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\nx");
        wait_for_the_end(name, stream);
        wait_for("its instance to end", || server.connections() == 0);
    }
}

#[test]
fn idle_connections_give_their_memory_to_a_request() {
    for name in BOTH {
        let limit = limit_file(16 * MIB);
        let server = Server::start(Guest::named(name).limit(limit.path()));
        let silent: Vec<TcpStream> = (0..55).map(|_| server.send("")).collect();
        let mut asking = server.send("GET / HT");
        wait_for("all connections", || server.connections() > 55);
        // Less than the connections and an instance take together.
        set_limit(&limit, &(6 * MIB).to_string());
        asking.write_all(b"TP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        assert_eq!(finish(asking).status(), 200, "{name}");
        assert!(silent.iter().any(|stream| !is_open(stream)), "{name}: none gave way");
    }
}

#[test]
fn bodies_that_do_not_come_give_way_to_other_requests() {
    let limit = limit_file(16 * MIB);
    let limits = Limits { request_time: None, idle_time: LONG, ..Limits::default() };
    let server = Server::start(Guest::named("rust-p2-http").limit(limit.path()).limits(limits));
    let head = "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\nx";
    let silent: Vec<TcpStream> = (0..20).map(|_| server.send(head)).collect();
    wait_for("a response", || server.get("/").status() == 200);
    drop(silent);
}

#[test]
fn a_server_with_few_files_lets_idle_connections_give_way() {
    let server = Server::start(Guest::named("rust-p2-http").files(64));
    let silent: Vec<TcpStream> = (0..100).map(|_| server.send("")).collect();
    assert_eq!(server.get("/").status(), 200);
    assert!(!is_open(&silent[0]));
    let open = silent.iter().filter(|stream| is_open(stream)).count();
    assert!((16..=32).contains(&open), "{open} are open");
}

//! How a server ends: what is under way is finished, and nothing holds the end up.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::driver::Guest;
use crate::server::{BOTH, Server, finish};
use crate::watch::{limit_file, wait_for};

#[test]
fn sigterm_lets_requests_finish_and_ends_with_0() {
    for name in BOTH {
        let mut server = Server::named(name);
        let slow = server.begin("/slow?ms=1500");
        let idle = TcpStream::connect(server.address).unwrap();
        assert_eq!(server.get("/").status(), 200);
        server.running.signal(libc::SIGTERM);
        wait_for("the listener to close", || TcpStream::connect(server.address).is_err());
        let response = finish(slow);
        assert_eq!(response.status(), 200, "{name}");
        assert!(response.body.contains("slow"), "{name}");
        let ended = server.running.end();
        assert_eq!((ended.code, ended.stderr), (0, server.greeting(name)), "{name}");
        drop(idle);
    }
}

#[test]
fn each_signal_of_a_pod_lets_requests_finish() {
    // Those that images name besides SIGTERM (nginx, httpd, PostgreSQL, systemd), and some that are often forgotten.
    let named = [libc::SIGQUIT, libc::SIGWINCH, libc::SIGINT, 37];
    let others = [libc::SIGHUP, libc::SIGUSR1, libc::SIGPIPE, libc::SIGCHLD, libc::SIGPWR, libc::SIGSEGV, 34, 64];
    for signal in named.into_iter().chain(others) {
        let mut server = Server::start(Guest::named("rust-p2-http").in_a_pod());
        let slow = server.begin("/slow?ms=500");
        server.running.signal(signal);
        assert_eq!(finish(slow).status(), 200, "signal {signal}");
        assert_eq!(server.running.end().code, 0, "signal {signal}");
    }
}

#[test]
fn sigterm_lets_a_body_that_is_being_sent_finish() {
    for name in BOTH {
        let mut server = Server::named(name);
        let length = 20 << 20;
        let mut stream = server.begin(&format!("/big?bytes={length}"));
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        server.running.signal(libc::SIGTERM);
        wait_for("the listener to close", || TcpStream::connect(server.address).is_err());
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        let sent = rest.iter().filter(|byte| **byte == b'x').count();
        assert!(sent >= length, "{name}: {sent}");
        assert_eq!(server.running.end().code, 0, "{name}");
    }
}

#[test]
fn requests_that_came_before_sigterm_are_served() {
    let mut server = Server::named("rust-p2-http");
    let streams: Vec<TcpStream> = (0..50).map(|_| server.begin("/")).collect();
    server.running.signal(libc::SIGTERM);
    for stream in streams {
        assert_eq!(finish(stream).status(), 200);
    }
    assert_eq!(server.running.end().code, 0);
}

#[test]
fn connections_without_a_request_do_not_hold_the_end_up() {
    for name in BOTH {
        let mut server = Server::named(name);
        let unused = TcpStream::connect(server.address).unwrap();
        let half = server.send("GET / HTTP/1.1\r\nhost:");
        let mut kept = server.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
        let mut block = [0; 512];
        assert!(kept.read(&mut block).unwrap() > 0);
        let begun = Instant::now();
        server.running.signal(libc::SIGTERM);
        assert_eq!(server.running.end().code, 0, "{name}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{name}: {:?}", begun.elapsed());
        drop((unused, half));
    }
}

#[test]
fn a_second_sigterm_ends_the_server_at_once() {
    let mut server = Server::named("rust-p2-http");
    let spinning = server.begin("/spin");
    assert_eq!(server.get("/").status(), 200);
    server.running.signal(libc::SIGTERM);
    wait_for("the listener to close", || TcpStream::connect(server.address).is_err());
    server.running.signal(libc::SIGTERM);
    assert_eq!(server.running.end().code, 143);
    drop(spinning);
}

#[test]
fn sigterm_lets_a_slow_reader_have_the_rest() {
    let limit = limit_file(16 << 20);
    // Of some of them the guest has written all, and the client has yet to take a part.
    let readers: Vec<(Server, usize, TcpStream)> = (2..16)
        .map(|number| {
            let bytes = number << 12;
            let server = Server::start(Guest::named("rust-p2-http").limit(limit.path()));
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.connect(&server.address.into()).unwrap();
            let mut stream = TcpStream::from(socket);
            let head = format!("GET /big?bytes={bytes} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            (server, bytes, stream)
        })
        .collect();
    for (server, _, stream) in &readers {
        wait_for("the response", || stream.peek(&mut [0; 1]).is_ok_and(|bytes| bytes > 0));
        server.running.signal(libc::SIGTERM);
        wait_for("the listener to close", || TcpStream::connect(server.address).is_err());
    }
    // Longer than idle connections hold the end up.
    std::thread::park_timeout(Duration::from_secs(4));
    for (mut server, bytes, mut stream) in readers {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let sent = text.iter().filter(|byte| **byte == b'x').count();
        assert!(sent >= bytes, "{sent} of {bytes}");
        assert_eq!(server.running.end().code, 0);
    }
}

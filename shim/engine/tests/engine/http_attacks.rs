//! Requests that no well-behaved client sends: what each gets, and that none is taken for two.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::driver::Guest;
use crate::frames::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS};
use crate::server::{BOTH, Server};
use crate::watch::{limit_file, status_of};

/// What follows each attack. Nothing else may reach its route.
const LAST: &str = "GET /nothing HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
/// As many bytes as the server buffers of a head.
const HEAD_MAX: usize = 64 << 10;

/// The status codes of the responses to some bytes and to [`LAST`], which is 404.
fn statuses(server: &Server, bytes: &[u8]) -> Vec<u16> {
    let mut stream = server.send("");
    // In one piece: a server that closes a connection resets it if it has not read everything.
    stream.write_all(&[bytes, LAST.as_bytes()].concat()).unwrap();
    let mut text = Vec::new();
    let _ended = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    text.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().unwrap()).collect()
}

#[test]
fn unclear_requests_are_refused_and_none_is_taken_for_two() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: test\r\n\r\n";
    let many = "a: b\r\n".repeat(101);
    let attacks = [
        ("nothing wrong", "GET / HTTP/1.1\r\nhost: test\r\n\r\n".into(), &[200, 404][..]),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), &[400, 404]),
        ("two hosts", "GET / HTTP/1.1\r\nhost: test\r\nhost: test\r\n\r\n".into(), &[400, 404]),
        ("an empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n".into(), &[400, 404]),
        ("another host", "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n".into(), &[200, 404]),
        ("a space before the colon", "GET / HTTP/1.1\r\nhost : test\r\n\r\n".into(), &[400]),
        ("a folded line", "GET / HTTP/1.1\r\nhost: test\r\na: b\r\n c\r\n\r\n".into(), &[400]),
        ("a bare CR", "GET / HTTP/1.1\r\nhost: test\r\na: b\rc: d\r\n\r\n".into(), &[400]),
        ("a NUL", "GET / HTTP/1.1\r\nhost: test\r\na: b\0\r\n\r\n".into(), &[400]),
        ("bare LFs", "GET / HTTP/1.1\nhost: test\n\n".into(), &[200, 404]),
        ("too many lines", format!("GET / HTTP/1.1\r\nhost: test\r\n{many}\r\n"), &[431]),
        ("another version", "GET / HTTP/3.0\r\nhost: test\r\n\r\n".into(), &[400]),
        ("a TLS client", "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n".into(), &[400]),
        ("half a preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".into(), &[400]),
        (
            "a length and chunks",
            format!(
                "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
                smuggled.len() + 5
            ),
            &[200],
        ),
        (
            "two lengths",
            format!(
                "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\ncontent-length: {}\r\n\r\n{smuggled}",
                smuggled.len()
            ),
            &[400],
        ),
        (
            "two lengths in a line",
            format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 0, {}\r\n\r\n{smuggled}", smuggled.len()),
            &[400],
        ),
        ("a negative length", "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: -1\r\n\r\n".into(), &[400]),
        ("a length with a sign", "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: +1\r\n\r\nx".into(), &[400]),
        ("a huge length", format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {}0\r\n\r\n", u64::MAX), &[400]),
        (
            "an unknown coding",
            "POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n".into(),
            &[400],
        ),
        (
            "chunks that are not the last coding",
            "POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n".into(),
            &[400],
        ),
        (
            "chunks in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            &[400],
        ),
    ];
    let broken = [
        (
            "a chunk of more bytes than there are",
            "POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nx\r\n0\r\n\r\n".into(),
        ),
        (
            "a chunk that is longer than it says",
            "POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n".into(),
        ),
        (
            "a chunk's line that never ends",
            format!("POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(32 << 10)),
        ),
    ];
    for name in BOTH {
        let server = Server::named(name);
        for (what, text, expected) in &attacks {
            assert_eq!(statuses(&server, text.as_bytes()), *expected, "{name}: {what}");
        }
        for (what, text) in &broken {
            // The guest may have begun its response before the body breaks off.
            let found = statuses(&server, text.as_bytes());
            assert!(matches!(found[..], [] | [200 | 500]), "{name}: {what}: {found:?}");
        }
        assert_eq!(server.get("/").status(), 200, "{name}");
    }
}

#[test]
fn a_head_that_is_too_long_is_431() {
    let server = Server::named("rust-p2-http");
    for beginning in ["GET / HTTP/1.1\r\nhost: test\r\nlong: ", "GET /"] {
        // Not one byte more than the server reads, or its end of the connection would be a reset.
        let mut stream = server.send(&format!("{beginning}{}", "x".repeat(HEAD_MAX - beginning.len())));
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 431 ") || text.starts_with("HTTP/1.1 414 "), "{beginning}: {text}");
    }
    assert_eq!(server.get("/").status(), 200);
}

/// Sends frames until the server ends the connection or `count` times, and returns whether the server ended it.
fn flood(server: &Server, count: u32, mut frames_of: impl FnMut(u32) -> Vec<u8>) -> bool {
    let mut stream: TcpStream = server.send("");
    let mut reader = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut came = Vec::new();
        let _ended = reader.read_to_end(&mut came);
        frames::kinds(&came)
    });
    let mut sent = stream.write_all(&frames::hello());
    for number in 0..count {
        if sent.is_err() {
            break;
        }
        sent = stream.write_all(&frames_of(number));
    }
    if sent.is_ok() {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    reading.join().unwrap().contains(&GOAWAY) || sent.is_err()
}

#[test]
fn floods_of_http_2_end_their_connection_and_nothing_else() {
    for name in BOTH {
        let limit = limit_file(64 << 20);
        let server = Server::start(Guest::named(name).limit(limit.path()));
        let begin = frames::frame(HEADERS, END_STREAM, 1, &frames::block("/"));
        let empty = frames::frame(CONTINUATION, 0, 1, b"");
        let more = frames::frame(CONTINUATION, 0, 1, &[&[0, 1, b'a', 127, 0][..], &[b'x'; 127]].concat());
        let reset = frames::frame(RST_STREAM, 0, 0, &8_u32.to_be_bytes());
        let stream_of = |number: u32| number * 2 + 1;
        let rapid_reset = |number| {
            let mut reset = reset.clone();
            reset[5..9].copy_from_slice(&stream_of(number).to_be_bytes());
            [frames::get(stream_of(number), "/slow?ms=60000"), reset].concat()
        };
        let continued = |part: &[u8], number: u32| if number == 0 { begin.clone() } else { part.to_vec() };
        for (what, is_to_end, has_ended) in [
            ("rubbish", true, flood(&server, 10, |_| vec![0xff; 100])),
            (
                "a frame that is too long",
                true,
                flood(&server, 1, |_| [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 100]].concat()),
            ),
            ("data on no stream", true, flood(&server, 1, |_| frames::frame(DATA, 0, 0, b"x"))),
            ("rapid reset", true, flood(&server, 20_000, rapid_reset)),
            ("continuations", true, flood(&server, 50_000, |number| continued(&more, number))),
            ("empty continuations", true, flood(&server, 50_000, |number| continued(&empty, number))),
            (
                "bad header blocks",
                true,
                flood(&server, 1, |_| frames::frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 50])),
            ),
            ("settings", false, flood(&server, 50_000, |_| frames::frame(SETTINGS, 0, 0, b""))),
            ("pings", false, flood(&server, 50_000, |_| frames::frame(PING, 0, 0, &[0; 8]))),
        ] {
            assert_eq!(has_ended, is_to_end, "{name}: {what}");
            assert_eq!(server.get("/").status(), 200, "{name}: {what}");
        }
        let memory = status_of(server.running.child.id(), "RssAnon:");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 16 << 10, "{name}: {memory}");
    }
}

//! The output of a server whose readers are slow or gone.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use nix::pty::{OpenptyResult, openpty};

use crate::driver::Guest;
use crate::server::{BOTH, Server};
use crate::watch::{wait_for, waiting_bytes};

#[test]
fn a_slow_reader_of_stdout_does_not_stop_the_server() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut server = Server::start(Guest::named("rust-p2-http").stdout(writer));
    // Nine bytes each: more than a pipe holds.
    let mut writers = Vec::new();
    for _ in 0..8 {
        let mut stream = server.send("");
        writers.push(std::thread::spawn(move || {
            for _ in 0..2000 {
                let request = b"GET /log HTTP/1.1\r\nhost: test\r\n\r\n";
                if stream.write_all(request).is_err() || stream.read(&mut [0; 512]).is_err() {
                    return;
                }
            }
        }));
    }
    wait_for("the pipe to be full", || waiting_bytes(&reader) > 60_000);
    for _ in 0..5 {
        assert_eq!(server.get("/").status(), 200);
    }
    server.running.child.kill().unwrap();
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn a_log_that_nobody_reads_stops_no_server() {
    let (reader, writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(8192)).unwrap();
    let mut server = Server::start(Guest::named("rust-p2-http").one_processor().stderr(writer));
    // Each is reported in a line of about 80 bytes.
    for _ in 0..1000 {
        assert_eq!(server.get("/exit?code=3").status(), 500);
    }
    assert!(waiting_bytes(&reader) > 3000, "{} bytes", waiting_bytes(&reader));
    for _ in 0..5 {
        assert_eq!(server.get("/").status(), 200);
    }
    server.running.signal(libc::SIGTERM);
    assert_eq!(server.running.end().code, 0);
}

/// Guests that write lines to `output`, from which `reader` reads them when they are `line`, wait for it without a thread.
fn check_waiting(name: &str, output: OwnedFd, mut reader: impl Read + AsFd, line: &str) {
    let server = Server::start(Guest::named(name).one_processor().stdout(output));
    // Most of them fill the output, and the others wait. One processor has eight threads to spare.
    let requests = b"GET /log HTTP/1.1\r\nhost: test\r\n\r\n".repeat(200);
    let writing: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = server.send("");
            stream.write_all(&requests).unwrap();
            stream
        })
        .collect();
    // A request that shares an instance of 0.3 with one that is about to wait waits with it.
    wait_for("all of them to wait", || waiting_bytes(&reader) > 3000 && server.is_at_rest());
    for _ in 0..5 {
        assert_eq!(server.get("/").status(), 200, "{name}");
    }
    // Nothing is lost: all of it comes as soon as somebody reads.
    let mut expected = line.repeat(50 * 200).into_bytes();
    let mut read = vec![0; expected.len()];
    reader.read_exact(&mut read).unwrap();
    if line.ends_with("\r\n") {
        // A terminal may have room for a part of a line only, and another guest writes before the rest of it.
        expected.sort_unstable();
        read.sort_unstable();
    }
    assert!(read == expected, "{name}: {}", String::from_utf8_lossy(&read));
    drop(writing);
}

#[test]
fn guests_that_wait_for_a_reader_keep_no_thread() {
    for name in BOTH {
        let (reader, writer) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(8192)).unwrap();
        check_waiting(name, writer.into(), reader, "on stdout\n");
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        check_waiting(name, slave, File::from(master), "on stdout\r\n");
    }
}

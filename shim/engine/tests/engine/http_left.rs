//! Clients that leave before they have their responses, and what their requests held.

use std::fs::File;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use skiff_protocol::{Activity, Figures, Limits};
use socket2::SockRef;

use crate::driver::Guest;
use crate::server::{BOTH, Server, finish};
use crate::watch::{limit_file, wait_for};

const MIB: u64 = 1 << 20;
const FOR_EVER: &str = "/slow?ms=3600000";
const HEAD: &str = "host: test\r\n";
/// What takes an instance for each request. One of WASI 0.3 takes no further requests while it spins.
const FILLING: [(&str, &str); 2] = [("rust-p2-http", FOR_EVER), ("rust-p3-http", "/spin")];

/// A server, and how much memory its instances use.
struct Watched {
    server: Server,
    account: File,
}

impl Watched {
    fn start(guest: Guest) -> Self {
        let account = guest.account();
        Self { server: Server::start(guest), account }
    }

    fn used_bytes(&self) -> u64 {
        Figures::read(&self.account).unwrap().linear_memory_bytes
    }

    /// Waits until requests are under way.
    fn wait_used(&self) {
        wait_for("an instance", || self.used_bytes() > 0);
    }

    /// Waits until no instance is left, and checks that nobody was blamed.
    fn wait_free(&self, what: &str) {
        wait_for(what, || self.used_bytes() == 0);
        assert_eq!(self.server.get("/").status(), 200, "{what}");
        let told = self.server.running.stderr();
        assert!(!told.contains("trapped") && !told.contains("failed"), "{what}: {told}");
    }
}

/// Limits that end no request by its time.
fn unlimited() -> Limits {
    Limits { request_time: None, ..Limits::default() }
}

#[test]
fn a_client_that_leaves_ends_its_instance() {
    for name in BOTH {
        let watched = Watched::start(Guest::named(name).limits(unlimited()));
        for path in [FOR_EVER, "/spin"] {
            let clients: Vec<TcpStream> = (0..3).map(|_| watched.server.begin(path)).collect();
            watched.wait_used();
            drop(clients);
            watched.wait_free(&format!("{name}: {path}"));
        }
    }
}

#[test]
fn a_client_that_leaves_amid_its_response_ends_its_instance() {
    for name in BOTH {
        let watched = Watched::start(Guest::named(name).limits(unlimited()));
        let mut client = watched.server.begin("/stall?ms=3600000");
        let mut text = Vec::new();
        while !text.ends_with(b"begun\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        assert!(watched.used_bytes() > 0, "{name}");
        drop(client);
        watched.wait_free(name);
    }
}

#[test]
fn a_reset_ends_the_instance() {
    for name in BOTH {
        let watched = Watched::start(Guest::named(name).limits(unlimited()));
        let client = watched.server.begin(FOR_EVER);
        watched.wait_used();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        watched.wait_free(name);
    }
}

#[test]
fn bytes_that_nobody_reads_do_not_hide_that_the_client_left() {
    for name in BOTH {
        let watched = Watched::start(Guest::named(name).limits(unlimited()));
        let pipelined = format!("GET {FOR_EVER} HTTP/1.1\r\n{HEAD}\r\nGET / HTTP/1.1\r\n{HEAD}\r\n");
        // More than the server reads at once, and less than the kernel keeps: it must get as far as the client's end.
        let body = "x".repeat(40_000);
        let unread = format!("POST {FOR_EVER} HTTP/1.1\r\n{HEAD}content-length: 40000\r\n\r\n{body}");
        for (what, text) in [("a second request", pipelined), ("a body", unread)] {
            let client = watched.server.send(&text);
            watched.wait_used();
            drop(client);
            watched.wait_free(&format!("{name}: {what}"));
        }
    }
}

#[test]
fn a_stream_of_http_2_that_is_reset_ends_its_instance() {
    for name in BOTH {
        let watched = Watched::start(Guest::named(name).limits(unlimited()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(watched.server.address).await.unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let get = |path: &str| {
                let uri = format!("http://{}{path}", watched.server.address);
                hyper::Request::get(uri).body(Empty::<Bytes>::new()).unwrap()
            };
            // Memory is reserved for the connection, too.
            let instances = || Activity::read(&watched.account).unwrap().instances;
            for path in [FOR_EVER, "/spin"] {
                let waiting = tokio::spawn(sender.send_request(get(path)));
                until(|| instances() > 0).await;
                waiting.abort();
                until(|| instances() == 0).await;
            }
            let mut begun = sender.send_request(get("/stall?ms=3600000")).await.unwrap();
            assert!(begun.frame().await.is_some());
            drop(begun);
            until(|| instances() == 0).await;
            // The connection has lived through all of it. Now it goes.
            tokio::spawn(sender.send_request(get(FOR_EVER)));
            until(|| instances() > 0).await;
        });
        drop(runtime);
        watched.wait_free(name);
    }
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::watch::PATIENCE, wait).await.unwrap();
}

#[test]
fn clients_that_left_make_room_for_others() {
    for (name, path) in FILLING {
        let limit = limit_file(16 * MIB);
        let watched = Watched::start(Guest::named(name).limits(unlimited()).limit(limit.path()));
        let clients: Vec<TcpStream> = (0..20).map(|_| watched.server.begin(path)).collect();
        wait_for("a full server", || watched.used_bytes() > 8 * MIB);
        // Those that wait for an instance are forgotten, too.
        drop(clients);
        assert_eq!(watched.server.get("/").status(), 200, "{name}");
        watched.wait_free(name);
    }
}

#[test]
fn a_client_that_only_sends_no_more_gets_its_response() {
    for name in BOTH {
        let server = Server::named(name);
        for path in ["/", "/slow?ms=100", "/big?bytes=3000000"] {
            // On a busy machine the guest may pause for longer than such a client is waited for.
            wait_for(&format!("{name}: {path}"), || {
                let mut client = server.begin(path);
                client.shutdown(Shutdown::Write).unwrap();
                let mut text = Vec::new();
                client.read_to_end(&mut text).is_ok() && text.starts_with(b"HTTP/1.1 200 ")
            });
        }
    }
}

#[test]
fn work_after_the_response_is_finished() {
    let server = Server::named("rust-p2-http");
    assert_eq!(server.get("/after").status(), 200);
    let mut client = server.send(&format!("HEAD /after HTTP/1.1\r\n{HEAD}connection: close\r\n\r\n"));
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    wait_for("two lines", || server.running.stdout().matches("after the response\n").count() == 2);
}

#[test]
fn an_instance_that_others_wait_for_outlives_a_client_that_leaves() {
    let watched = Watched::start(Guest::named("rust-p3-http").limits(unlimited()));
    let leaves = watched.server.begin(FOR_EVER);
    watched.wait_used();
    let one = watched.used_bytes();
    let mut stays = watched.server.begin("/stall?ms=2000");
    let mut byte = [0];
    stays.read_exact(&mut byte).unwrap();
    assert_eq!(watched.used_bytes(), one, "one instance serves both");
    drop(leaves);
    assert!(finish(stays).body.contains("begun"));
    watched.wait_free("the last client");
}

#[test]
fn a_probe_finds_room_in_a_full_server() {
    for name in BOTH {
        let limits = Limits { concurrent_requests: 2, ..unlimited() };
        let limit = limit_file(16 * MIB);
        let server = Server::start(Guest::named(name).limits(limits).limit(limit.path()));
        let mut clients: Vec<TcpStream> = (0..2).map(|_| server.begin(FOR_EVER)).collect();
        let probe = |agent: &str| {
            server.send(&format!("GET / HTTP/1.1\r\n{HEAD}user-agent: {agent}\r\nconnection: close\r\n\r\n"))
        };
        for _ in 0..8 {
            assert_eq!(finish(probe("kube-probe/1.36")).status(), 200, "{name}");
        }
        let waiting = probe("curl/8");
        clients.clear();
        assert_eq!(finish(waiting).status(), 200, "{name}");
    }
}

#[test]
fn a_probe_finds_memory_in_a_full_server() {
    for (name, path) in FILLING {
        let limit = limit_file(16 * MIB);
        let watched = Watched::start(Guest::named(name).limits(unlimited()).limit(limit.path()));
        let _clients: Vec<TcpStream> = (0..20).map(|_| watched.server.begin(path)).collect();
        wait_for("a line about the lack of room", || watched.server.running.stderr().contains("no room for"));
        let probe = format!("GET / HTTP/1.1\r\n{HEAD}user-agent: kube-probe/1.36\r\nconnection: close\r\n\r\n");
        assert_eq!(finish(watched.server.send(&probe)).status(), 200, "{name}");
    }
}

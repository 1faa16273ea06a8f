//! HTTP servers of both versions of `wasi:http`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::driver::{Guest, Running, free_port, limit_file, wait_for, waiting_bytes};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use skiff_protocol::{Refusal, Reply};

const MIB: u64 = 1 << 20;
const BOTH: [&str; 2] = ["rust-p2-http", "rust-p3-http"];

/// A started server.
pub(crate) struct Server {
    pub(crate) running: Running,
    address: SocketAddr,
}

/// A response as it came: its head and its body, still in chunks where it was sent so.
pub(crate) struct Response {
    head: String,
    pub(crate) body: String,
}

impl Server {
    pub(crate) fn start(guest: Guest) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self { running: guest.env("SKIFF_HTTP_ADDRESS", &address.to_string()).start().ready(), address }
    }

    fn named(name: &str) -> Self {
        Self::start(Guest::named(name))
    }

    /// Opens a connection and sends the head of a request.
    fn send(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    fn begin(&self, path: &str) -> TcpStream {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"))
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        finish(self.begin(path))
    }

    /// Whether its only worker has slept for a while.
    fn is_at_rest(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.running.child.id());
        let status = || {
            let mut tasks = std::fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().path().join("status"));
            tasks.find_map(|path| {
                std::fs::read_to_string(path).ok().filter(|status| status.starts_with("Name:\ttokio-rt-worker"))
            })
        };
        let before = status().unwrap();
        std::thread::park_timeout(Duration::from_millis(200));
        before.contains("State:\tS") && status().unwrap() == before
    }
}

fn finish(mut stream: TcpStream) -> Response {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not a response: {text:?}"));
    Response { head: head.to_owned(), body: body.to_owned() }
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap()
    }
}

#[test]
fn both_versions_answer() {
    for name in BOTH {
        let server = Server::named(name);
        let response = server.get("/");
        assert_eq!(response.status(), 200, "{}", response.head);
        assert!(response.body.contains("hello"), "{}", response.body);
        assert_eq!(server.get("/nothing").status(), 404);
    }
}

#[test]
fn http_2_without_tls_and_http_1_0_are_served() {
    for name in BOTH {
        let server = Server::named(name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (version, body) = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let uri = format!("http://{}/", server.address);
            let request = hyper::Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
            let response = sender.send_request(request).await.unwrap();
            (response.version(), response.into_body().collect().await.unwrap().to_bytes())
        });
        assert_eq!((version, &body[..]), (hyper::Version::HTTP_2, &b"hello\n"[..]), "{name}");
        let response = finish(server.send("GET / HTTP/1.0\r\n\r\n"));
        assert_eq!((response.status(), response.body.as_str()), (200, "hello\n"), "{name}");
    }
}

#[test]
fn a_body_is_streamed_back_while_it_comes() {
    for name in BOTH {
        let server = Server::named(name);
        let length = 3 << 20;
        let mut stream = server.send(&format!(
            "POST /echo HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        ));
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            for _ in 0..length / 1024 {
                writer.write_all(&[b'y'; 1024]).unwrap();
            }
        });
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        writing.join().unwrap();
        let echoed = response.iter().filter(|byte| **byte == b'y').count();
        assert!(echoed >= length, "{name}: {echoed}");
    }
}

#[test]
fn a_server_has_what_a_command_has() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), "from the host").unwrap();
    let guest = Guest::named("rust-p2-http").preopen(folder.path(), "/data", false).env("A", "1").args(&["one"]);
    let mut server = Server::start(guest);
    assert!(server.get("/files?path=/data/in").body.contains("from the host"));
    assert!(server.get("/env").body.contains("A=1"));
    assert!(server.get("/args").body.contains("one"));
    assert_eq!(server.get("/log").status(), 200);
    server.running.signal(libc::SIGTERM);
    let ended = server.running.end();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("on stdout\n", "on stderr\n"));
}

#[test]
fn instances_of_0_2_serve_one_request_each() {
    let server = Server::named("rust-p2-http");
    for _ in 0..3 {
        assert!(server.get("/count").body.contains("1\n"));
    }
}

#[test]
fn a_trap_answers_500_and_is_told_and_the_server_lives_on() {
    for name in BOTH {
        let server = Server::named(name);
        assert_eq!(server.get("/trap").status(), 500, "{name}");
        assert_eq!(server.get("/").status(), 200, "{name}");
        wait_for("the backtrace", || server.running.stderr().contains("#handle"));
        let told = server.running.stderr();
        assert!(told.contains("on purpose") && told.contains("trapped: wasm `unreachable`"), "{told}");
        assert_eq!(told.matches("skiff: ").count(), 1, "{told}");
    }
}

#[test]
fn an_exit_in_a_request_answers_500_and_the_server_lives_on() {
    let server = Server::named("rust-p2-http");
    assert_eq!(server.get("/exit?code=3").status(), 500);
    assert_eq!(server.get("/").status(), 200);
    wait_for("a line", || server.running.stderr().contains("exited with code 1 while it served"));
}

#[test]
fn a_request_that_spins_does_not_starve_the_others() {
    let server = Server::named("rust-p2-http");
    let spinning: Vec<TcpStream> = (0..8).map(|_| server.begin("/spin")).collect();
    for _ in 0..5 {
        assert_eq!(server.get("/").status(), 200);
    }
    drop(spinning);
}

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
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{name}");
        drop(idle);
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
fn requests_share_the_memory_limit_and_wait_for_each_other() {
    let limit = limit_file(32 * MIB);
    let server = Server::start(Guest::named("rust-p2-http").limit(limit.path()));
    let growing: Vec<TcpStream> = (0..32).map(|_| server.begin("/grow?mib=20")).collect();
    let bodies: Vec<String> = growing.into_iter().map(|stream| finish(stream).body).collect();
    assert!(bodies.iter().all(|body| body.contains("refused after") || body.contains("grew 20 MiB")), "{bodies:?}");
    // What all of them held is free again.
    wait_for("the memory to come back", || server.get("/grow?mib=20").body.contains("grew 20 MiB"));
}

#[test]
fn a_component_beyond_the_limit_is_refused_at_its_start() {
    let limit = limit_file(MIB);
    let guest = Guest::named("rust-p2-http").limit(limit.path()).env("SKIFF_HTTP_ADDRESS", "127.0.0.1:0");
    let sentence = guest.refused_as_guest();
    assert!(sentence.contains("too big to start") && sentence.contains("1048576"), "{sentence}");
}

#[test]
fn an_address_that_makes_no_sense_is_refused() {
    let sentence = Guest::named("rust-p2-http").env("PORT", "http").refused_as_guest();
    assert!(sentence.contains("`PORT`") && sentence.contains("`http`"), "{sentence}");
}

#[test]
fn an_address_in_use_is_refused() {
    let server = Server::named("rust-p2-http");
    let guest = Guest::named("rust-p2-http").env("SKIFF_HTTP_ADDRESS", &server.address.to_string());
    match guest.refused() {
        Refusal::Host(sentence) => assert!(sentence.contains(&server.address.to_string()), "{sentence}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_port_is_open_on_both_families() {
    let port = free_port();
    let running = Guest::named("rust-p2-http").env("PORT", &port.to_string()).start().ready();
    let server = Server { running, address: ([127, 0, 0, 1], port).into() };
    assert_eq!(server.get("/").status(), 200);
    if Path::new("/proc/net/if_inet6").exists() {
        let server = Server { address: (std::net::Ipv6Addr::LOCALHOST, port).into(), ..server };
        assert_eq!(server.get("/").status(), 200);
    }
}

#[test]
fn a_client_that_goes_away_harms_nobody() {
    for name in BOTH {
        let server = Server::named(name);
        for _ in 0..20 {
            let mut stream = server.begin("/big?bytes=100000000");
            stream.read_exact(&mut [0; 64]).unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
        }
        assert_eq!(server.get("/").status(), 200, "{name}");
        assert!(!server.running.stderr().contains("trapped"), "{}", server.running.stderr());
    }
}

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
fn a_server_says_ready_only_once_it_listens() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut running = Guest::named("rust-p3-http").env("SKIFF_HTTP_ADDRESS", &address.to_string()).start();
    assert_eq!(running.reply(), Reply::Ready);
    TcpStream::connect(address).unwrap();
}

/// Files for a container's `/etc`, in a folder of their own.
fn etc(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Whether the test can mount files over those of `/etc`; it says so when not.
fn can_mount(files: &[&str]) -> bool {
    let missing = files.iter().find(|file| !Path::new("/etc").join(file).exists());
    let why = match missing {
        Some(file) => format!("`/etc/{file}` is not there to be mounted over"),
        None if !nix::unistd::geteuid().is_root() => "only root may mount".to_owned(),
        None => return true,
    };
    println!("skipped: {why}");
    false
}

#[test]
fn an_outgoing_request_finds_its_host_in_the_containers_files() {
    if !can_mount(&["hosts", "nsswitch.conf"]) {
        return;
    }
    let other = Server::named("rust-p2-http");
    // glibc would obey it, and find nothing in hosts.
    let files = etc(&[("hosts", "127.0.0.1 other.example\n"), ("nsswitch.conf", "hosts: evil dns\n")]);
    let paths = ["hosts", "nsswitch.conf"].map(|name| files.path().join(name));
    let server = Server::start(Guest::named("rust-p2-http").etc(&[&paths[0], &paths[1]]));
    let port = other.address.port();
    let response = server.get(&format!("/fetch?url=http://other.example:{port}/"));
    assert!(response.status() == 200 && response.body.contains("hello"), "{}\n{}", response.head, response.body);
    for (url, part) in [
        (format!("http://other.example:{}/", free_port()), "ConnectionRefused"),
        ("http://host_that_is.invalid/".to_owned(), "DnsError"),
    ] {
        let response = server.get(&format!("/fetch?url={url}"));
        assert!(response.body.contains(part), "{url}: {}\n{}", response.head, response.body);
    }
}

#[test]
fn a_dead_name_server_delays_no_file() {
    if !can_mount(&["resolv.conf"]) {
        return;
    }
    let silent = std::net::UdpSocket::bind("127.0.0.9:53");
    let Ok(_silent) = silent else {
        println!("skipped: there is no port 53 to be silent on");
        return;
    };
    let conf = "search a.example b.example c.example\nnameserver 127.0.0.9\noptions ndots:5 timeout:1 attempts:1\n";
    let files = etc(&[("resolv.conf", conf), ("in", "from the host")]);
    let guest = Guest::named("rust-p2-http").processors(1).etc(&[&files.path().join("resolv.conf")]);
    let server = Server::start(guest.preopen(files.path(), "/data", false));
    assert!(server.get("/files?path=/data/in").body.contains("from the host"), "the first read takes longer");
    let waiting: Vec<TcpStream> = (0..16).map(|_| server.begin("/fetch?url=http://x.y/")).collect();
    let begun = Instant::now();
    for _ in 0..5 {
        assert!(server.get("/files?path=/data/in").body.contains("from the host"));
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_millis(500), "five reads took {elapsed:?}");
    for stream in waiting {
        let response = finish(stream);
        assert!(response.body.contains("DnsTimeout"), "{}\n{}", response.head, response.body);
    }
}

#[test]
fn the_engine_has_no_resolver_of_glibc() {
    let engine = std::fs::read(env!("CARGO_BIN_EXE_skiff-engine")).unwrap();
    // What its code names: the files that choose libraries and order addresses, and the libraries.
    for file in ["/etc/nsswitch.conf", "/etc/gai.conf", "libnss_"] {
        let found = engine.windows(file.len()).any(|bytes| bytes == file.as_bytes());
        assert!(!found, "`{file}` is part of the engine: something in it looks names up by glibc");
    }
}

#[test]
fn a_log_that_nobody_reads_stops_no_server() {
    let (reader, writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(8192)).unwrap();
    let mut server = Server::start(Guest::named("rust-p2-http").processors(1).stderr(writer));
    // Each is told in a line of some 80 bytes.
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

#[test]
fn a_request_time_beyond_all_clocks_is_none() {
    for name in BOTH {
        let limits = skiff_protocol::Limits {
            request_time: Some(Duration::from_secs(u64::MAX)),
            ..skiff_protocol::Limits::default()
        };
        let server = Server::start(Guest::named(name).limits(limits));
        assert_eq!(server.get("/").status(), 200, "{name}");
    }
}

#[test]
fn guests_that_wait_for_a_reader_keep_no_thread() {
    for name in BOTH {
        let (reader, writer) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(8192)).unwrap();
        let server = Server::start(Guest::named(name).processors(1).stdout(writer));
        // Nine bytes each: most of them fill the pipe, and the others wait. One processor has eight threads to spare.
        let requests = b"GET /log HTTP/1.1\r\nhost: test\r\n\r\n".repeat(100);
        let writing: Vec<TcpStream> = (0..50)
            .map(|_| {
                let mut stream = server.send("");
                stream.write_all(&requests).unwrap();
                stream
            })
            .collect();
        // A request that shares an instance of 0.3 with one that is about to wait waits with it.
        wait_for("all of them to wait", || waiting_bytes(&reader) > 4000 && server.is_at_rest());
        for _ in 0..5 {
            assert_eq!(server.get("/").status(), 200, "{name}");
        }
        // Nothing is lost: all of it comes as soon as somebody reads.
        let mut reader = std::io::BufReader::new(reader);
        for _ in 0..50 * 100 {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
            assert_eq!(line, "on stdout\n", "{name}");
        }
        drop(writing);
    }
}

#[test]
fn every_thread_of_a_server_is_behind_the_wall() {
    let server = Server::named("rust-p2-http");
    assert_eq!(server.get("/").status(), 200);
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.running.child.id())).unwrap();
    for thread in threads {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!((line("Seccomp:"), line("NoNewPrivs:")), ("2".to_owned(), "1".to_owned()), "{status}");
        // DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID and NET_BIND_SERVICE.
        assert_eq!(u64::from_str_radix(&line("CapEff:"), 16).unwrap() & !0x41e, 0, "{status}");
    }
}

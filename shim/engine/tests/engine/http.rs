//! HTTP servers of both versions of `wasi:http`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use skiff_protocol::{Refusal, Reply};

use crate::driver::Guest;
use crate::server::{BOTH, Server, finish};
use crate::watch::{free_port, limit_file, set_limit, wait_for};

const MIB: u64 = 1 << 20;

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
    wait_for("its first line", || server.running.stderr() == server.greeting("rust-p2-http"));
    assert!(server.get("/files?path=/data/in").body.contains("from the host"));
    assert!(server.get("/env").body.contains("A=1"));
    assert!(server.get("/args").body.contains("one"));
    assert_eq!(server.get("/log").status(), 200);
    server.running.signal(libc::SIGTERM);
    let ended = server.running.end();
    let told = format!("{}on stderr\n", server.greeting("rust-p2-http"));
    assert_eq!((ended.stdout.as_str(), ended.stderr), ("on stdout\n", told));
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
        let failed = format!("skiff: /app/{name}.wasm: `GET /trap` failed: its instance has ended\n");
        wait_for("the request to be named", || server.running.stderr().contains(&failed));
        let told = server.running.stderr();
        assert!(told.contains("#handle") && told.contains("on purpose"), "{told}");
        assert!(told.contains("trapped: wasm `unreachable`"), "{told}");
        assert_eq!(
            told.matches("skiff: ").count(),
            4,
            "it listens, a backtrace, an instance trapped, a request failed: {told}"
        );
    }
}

#[test]
fn an_exception_in_a_request_is_told_without_a_backtrace() {
    for name in BOTH {
        let server = Server::named(name);
        assert_eq!(server.get("/raise").status(), 500, "{name}");
        assert_eq!(server.get("/").status(), 200, "{name}");
        let told = format!("skiff: /app/{name}.wasm ended with an exception: ValueError: on purpose\n");
        wait_for("the exception", || server.running.stderr().contains(&told));
        assert!(!server.running.stderr().contains("backtrace of"), "{}", server.running.stderr());
    }
}

#[test]
fn a_response_that_a_trap_cuts_off_does_not_look_whole() {
    for name in BOTH {
        let server = Server::named(name);
        let mut text = Vec::new();
        // What has not been sent yet may be lost.
        let _reset = server.begin("/break").read_to_end(&mut text);
        assert!(!text.ends_with(b"0\r\n\r\n"), "{name}: {:?}", String::from_utf8_lossy(&text));
        wait_for("the trap", || server.running.stderr().contains("trapped"));
        assert_eq!(server.get("/").status(), 200, "{name}");
    }
}

#[test]
fn an_exit_in_a_request_answers_500_and_the_server_lives_on() {
    let server = Server::named("rust-p2-http");
    assert_eq!(server.get("/exit?code=3").status(), 500);
    assert_eq!(server.get("/").status(), 200);
    wait_for("a line", || server.running.stderr().contains("exited with code 1 while serving a request"));
}

#[test]
fn a_request_that_spins_does_not_starve_the_others() {
    for name in BOTH {
        let server = Server::named(name);
        let spinning: Vec<TcpStream> = (0..8).map(|_| server.begin("/spin")).collect();
        for _ in 0..5 {
            assert_eq!(server.get("/").status(), 200, "{name}");
        }
        drop(spinning);
    }
}

#[test]
fn an_instance_that_computes_after_it_has_awaited_something_gets_no_further_requests() {
    let server = Server::named("rust-p3-http");
    let waiting = server.begin("/slow?ms=3600000");
    let mut later = server.begin("/later");
    // What its instance has begun just before would have to wait for it.
    let before = server.processor_time();
    wait_for("it to compute", || server.processor_time() - before > Duration::from_millis(100));
    let deadline = std::time::Instant::now() + Duration::from_secs(1);
    while std::time::Instant::now() < deadline {
        let all: Vec<TcpStream> = (0..20).map(|_| server.begin("/")).collect();
        assert!(all.into_iter().all(|stream| finish(stream).status() == 200));
    }
    later.set_nonblocking(true).unwrap();
    let error = later.read(&mut [0]).expect_err("it computes");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(waiting);
}

#[test]
fn requests_beyond_the_instances_are_served_by_whichever_is_free_first() {
    for name in BOTH {
        let limit = limit_file(16 * MIB);
        let server = Server::start(Guest::named(name).limit(limit.path()));
        let all: Vec<TcpStream> = (0..60).map(|_| server.begin("/slow?ms=100")).collect();
        assert!(all.into_iter().all(|stream| finish(stream).status() == 200), "{name}");
    }
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
fn instances_follow_the_limit_up_and_down() {
    let limit = limit_file(16 * MIB);
    let limits = skiff_protocol::Limits { request_time: None, ..skiff_protocol::Limits::default() };
    let guest = Guest::named("rust-p2-http").limit(limit.path()).limits(limits);
    let account = guest.account();
    let instances = || skiff_protocol::Activity::read(&account).unwrap().instances;
    let server = Server::start(guest);
    let first = server.begin("/slow?ms=3600000");
    wait_for("an instance", || instances() == 1);
    set_limit(&limit, &(512 * MIB).to_string());
    let mut all: Vec<TcpStream> = (1..200).map(|_| server.begin("/slow?ms=3600000")).collect();
    all.push(first);
    wait_for("200 instances at once", || instances() == 200);
    // What is there stays. There is no room for more, until it is fewer again.
    set_limit(&limit, &(16 * MIB).to_string());
    let waiting = server.begin("/");
    all.truncate(20);
    wait_for("20 instances", || instances() == 20);
    all.clear();
    // As long as the others give their memory back, it may get less than it asks for.
    assert!([200, 500, 503].contains(&finish(waiting).status()));
    wait_for("room for others", || server.get("/").status() == 200);
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
fn a_server_says_once_where_it_listens() {
    let guest = Guest::named("rust-p2-http").env("PORT", "0");
    let running = guest.start().ready();
    wait_for("the line", || running.stderr().ends_with('\n'));
    let told = running.stderr();
    let port = told.trim_end().rsplit(':').next().and_then(|port| port.parse().ok());
    let port: u16 = port.unwrap_or_else(|| panic!("no port in {told:?}"));
    assert_ne!(port, 0, "{told}");
    assert!(told.starts_with(&format!("skiff: /app/rust-p2-http.wasm: listening on 0.0.0.0:{port}")), "{told}");
    let server = Server { running, address: ([127, 0, 0, 1], port).into() };
    assert_eq!(server.get("/").status(), 200);
    assert_eq!(server.running.stderr(), told);
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
fn a_server_says_ready_only_once_it_listens() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut running = Guest::named("rust-p3-http").env("SKIFF_HTTP_ADDRESS", &address.to_string()).start();
    assert_eq!(running.reply(), Reply::Ready);
    TcpStream::connect(address).unwrap();
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

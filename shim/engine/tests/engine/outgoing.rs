//! Requests that guests make to other servers: kept connections, HTTP/2, TLS, proxies, and what failures are called.

use std::net::TcpStream;
use std::path::Path;

use crate::driver::Guest;
use crate::others::{Authority, Other, forgetful, proxy, replying};
use crate::server::{BOTH, Response, Server, finish};
use crate::watch::{free_port, limit_file, wait_for};

const MIB: u64 = 1 << 20;

#[track_caller]
fn check(response: &Response, status: u16, part: &str) {
    let is_right = response.status() == status && response.body.contains(part);
    assert!(is_right, "{status} with {part:?} is expected: {}\n{}", response.head, response.body);
}

#[test]
fn many_requests_share_a_handful_of_connections() {
    for name in BOTH {
        let other = Other::plain();
        let server = Server::named(name);
        let path = format!("/fetch?url=http://{}/", other.address);
        for _ in 0..1000 {
            check(&server.get(&path), 200, "hello");
        }
        assert!(other.accepted() < 200, "{name}: {} connections", other.accepted());
    }
}

#[test]
fn requests_of_a_command_share_connections_as_well() {
    let other = Other::plain();
    let ended = Guest::named("rust-p2-hello").args(&["fetch", &other.address.to_string(), "300"]).run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "1800 bytes\n"), "{}", ended.stderr);
    assert!(other.accepted() < 100, "{} connections", other.accepted());
}

#[test]
fn an_instance_at_its_end_leaves_no_connection_behind() {
    let other = Other::plain();
    let server = Server::named("rust-p2-http");
    // It has read the beginning of a response that has no end.
    check(&server.get(&format!("/try?url=http://{}/stalls", other.address)), 200, "left");
    wait_for("the connection of an unread response", || other.open() == 0);
    let waiting = server.begin(&format!("/try?ms=60000&url=http://{}/silent", other.address));
    wait_for("the request", || other.open() == 1);
    drop(waiting);
    wait_for("the connection of a request that nobody waits for", || other.open() == 0);
    check(&server.get(&format!("/fetch?url=http://{}/", other.address)), 200, "hello");
}

#[test]
fn a_request_on_a_connection_that_was_just_closed_is_repeated_only_if_that_is_safe() {
    for name in BOTH {
        let (address, seen) = forgetful();
        let server = Server::named(name);
        // Whether a request finds a kept connection depends on how soon the pool gets it back.
        let gets = || seen.lock().unwrap().len();
        let mut wanted = 0;
        while gets() == wanted {
            assert!(wanted < 1000, "no connection was kept");
            check(&server.get(&format!("/fetch?url=http://{address}/")), 200, "hello");
            wanted += 1;
        }
        let posts = || seen.lock().unwrap().iter().filter(|method| *method == "POST").count();
        for number in 1.. {
            assert!(number < 1000, "no connection was kept");
            let response = server.get(&format!("/call?url=http://{address}/"));
            assert_eq!(posts(), number, "each is sent once");
            if response.status() != 200 {
                check(&response, 502, "ConnectionTerminated");
                break;
            }
        }
    }
}

#[test]
fn trailers_pass_both_ways_over_http_2_by_prior_knowledge() {
    for name in BOTH {
        let other = Other::plain();
        let authority = other.address.to_string();
        let server = Server::start(Guest::named(name).http2(&[&authority]));
        let response = server.get(&format!("/call?url=http://{authority}/grpc"));
        for part in ["[0, 0, 0, 0, 2, 8, 1]", "grpc-status: 0", "x-te: trailers", "x-sent: all"] {
            check(&response, 200, part);
        }
        check(&server.get(&format!("/fetch?url=http://{authority}/version")), 200, "HTTP/2.0 host=false");
        assert_eq!(other.accepted(), 1, "{name}");
        // Of other servers nothing is known.
        let unknown = format!("localhost:{}", other.address.port());
        check(&server.get(&format!("/fetch?url=http://{unknown}/version")), 200, "HTTP/1.1 host=true");
    }
}

#[test]
fn http_2_is_spoken_with_servers_that_choose_it() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.certificate()).unwrap();
    for name in BOTH {
        let guest = Guest::named(name).preopen(folder.path(), "/ca", true).env("SSL_CERT_FILE", "/ca/ca.pem");
        let server = Server::start(guest);
        for (protocols, expected) in
            [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
        {
            let other = Other::secure(&authority, protocols);
            for _ in 0..20 {
                check(&server.get(&format!("/fetch?url=https://{}/version", other.address)), 200, expected);
            }
            assert!(other.accepted() < 15, "{name}, {protocols:?}: {} connections", other.accepted());
        }
        let other = Other::secure(&authority, &["h2"]);
        let response = server.get(&format!("/call?url=https://{}/grpc", other.address));
        for part in ["grpc-status: 0", "x-te: trailers", "x-sent: all"] {
            check(&response, 200, part);
        }
    }
}

/// A root directory of a guest with these files.
fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn with_root(root: &Path) -> Guest {
    Guest::named("rust-p2-http").preopen(root, "/", true)
}

#[test]
fn authorities_are_those_of_the_environment_or_of_the_image() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let other = Other::secure(&ours, &["http/1.1"]);
    let path = format!("/fetch?url=https://{}/", other.address);
    let (ours, theirs) = (ours.certificate(), theirs.certificate());
    let both = format!("# a comment\n{theirs}{ours}");
    const DEBIAN: &str = "etc/ssl/certs/ca-certificates.crt";
    const FEDORA: &str = "etc/pki/tls/certs/ca-bundle.crt";
    for (files, variable, is_trusted) in [
        (&[][..], None, false),
        (&[(DEBIAN, both.as_str())], None, true),
        (&[(FEDORA, &ours)], None, true),
        (&[(DEBIAN, &theirs)], None, false),
        (&[("ca.crt", &ours)], Some(("SSL_CERT_FILE", "/ca.crt")), true),
        (&[("ca.crt", &theirs), (DEBIAN, &ours)], Some(("SSL_CERT_FILE", "/ca.crt")), false),
        (&[("a/1.pem", &theirs), ("a/2.pem", &ours), ("a/x", "?")], Some(("SSL_CERT_DIR", "/none:/a")), true),
        (&[("a/1.pem", &theirs)], Some(("SSL_CERT_DIR", "/a")), false),
    ] {
        let root = root(files);
        let mut guest = with_root(root.path());
        if let Some((name, value)) = variable {
            guest = guest.env(name, value);
        }
        let server = Server::start(guest);
        if is_trusted {
            check(&server.get(&path), 200, "hello");
        } else {
            check(&server.get(&path), 502, "TlsCertificateError");
        }
    }
}

#[test]
fn a_replaced_authority_is_read_again() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let other = Other::secure(&ours, &["http/1.1"]);
    let path = format!("/fetch?url=https://{}/", other.address);
    let root = root(&[("..1/ca.crt", &theirs.certificate()), ("..2/ca.crt", &ours.certificate())]);
    let at = |name: &str| root.path().join(name);
    // As the kubelet mounts a service account.
    std::os::unix::fs::symlink("..1", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/ca.crt", at("ca.crt")).unwrap();
    let server = Server::start(with_root(root.path()).env("SSL_CERT_FILE", "/ca.crt"));
    check(&server.get(&path), 502, "TlsCertificateError");
    std::os::unix::fs::symlink("..2", at("..new")).unwrap();
    std::fs::rename(at("..new"), at("..data")).unwrap();
    check(&server.get(&path), 200, "hello");
}

#[test]
fn what_is_no_bundle_is_never_waited_for_and_reported_once() {
    let other = Other::secure(&Authority::new(), &["http/1.1"]);
    let path = format!("/fetch?url=https://{}/", other.address);
    let root = root(&[("empty", ""), ("rubbish", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")]);
    let at = |name: &str| root.path().join(name);
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    for (link, target) in [("zero", "/dev/zero"), ("process", "/proc/self/environ"), ("circle", "circle")] {
        std::os::unix::fs::symlink(target, at(link)).unwrap();
    }
    for name in ["empty", "rubbish", "fifo", "huge", "folder", "zero", "process", "circle", "missing"] {
        let server = Server::start(with_root(root.path()).env("SSL_CERT_FILE", &format!("/{name}")));
        check(&server.get(&path), 502, "ConfigurationError");
        check(&server.get(&path), 502, "ConfigurationError");
        let line = format!("cannot read certificate authorities from `/{name}`");
        wait_for("the line", || server.running.stderr().contains(&line));
        assert_eq!(server.running.stderr().matches(&line).count(), 1, "{}", server.running.stderr());
    }
}

#[test]
fn proxies_of_the_environment_are_used() {
    let authority = Authority::new();
    let secure = Other::secure(&authority, &["http/1.1"]);
    let (address, seen) = proxy();
    let root = root(&[("ca.pem", &authority.certificate())]);
    let plain = Other::plain();
    let guest = with_root(root.path())
        .env("SSL_CERT_FILE", "/ca.pem")
        .env("HTTP_PROXY", &format!("http://user:secret@{address}"))
        .env("HTTPS_PROXY", &format!("http://user:secret@{address}"))
        .env("NO_PROXY", "localhost");
    let server = Server::start(guest);
    check(&server.get("/fetch?url=http://outside.example/a"), 200, "proxied");
    check(&server.get(&format!("/fetch?url=https://{}/", secure.address)), 200, "hello");
    check(&server.get(&format!("/fetch?url=http://localhost:{}/", plain.address.port())), 200, "hello");
    let seen = seen.lock().unwrap();
    let [first, second] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(first.starts_with("GET http://outside.example/a HTTP/1.1\r\n"), "{first}");
    assert!(second.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", secure.address)), "{second}");
    for head in [first, second] {
        assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq="), "{head}");
    }
}

#[test]
fn each_failure_has_its_code() {
    let server = Server::named("rust-p2-http");
    let other = Other::plain();
    let plain = other.address;
    let closing = replying(b"");
    let rubbish = replying(b"SSH-2.0-x\r\n");
    let short = replying(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort");
    let alert = replying(&[21, 3, 3, 0, 2, 2, 40]);
    for (target, expected) in [
        (format!("fetch?url=http://127.0.0.1:{}/", free_port()), "ConnectionRefused"),
        (format!("fetch?url=http://{closing}/"), "ConnectionTerminated"),
        (format!("fetch?url=http://{rubbish}/"), "HttpProtocolError"),
        (format!("try?read=1&url=http://{short}/"), "incomplete HTTP response"),
        (format!("fetch?url=http://{plain}/head"), "HttpResponseHeaderSectionSize"),
        (format!("fetch?url=https://{closing}/"), "ConnectionTerminated"),
        (format!("fetch?url=https://{rubbish}/"), "TlsProtocolError"),
        (format!("fetch?url=https://{alert}/"), "TlsAlertReceived"),
        (format!("try?ms=300&url=http://{plain}/silent"), "ConnectionReadTimeout"),
        (format!("try?ms=300&read=1&url=http://{plain}/stalls"), "connection read timeout"),
    ] {
        check(&server.get(&format!("/{target}")), 502, expected);
    }
    // Connections that were used before change nothing.
    check(&server.get(&format!("/fetch?url=http://{plain}/")), 200, "hello");
    check(&server.get(&format!("/try?ms=300&url=http://{plain}/silent")), 502, "ConnectionReadTimeout");
}

#[test]
fn idle_connections_give_way_to_new_ones() {
    let other = Other::plain();
    let limit = limit_file(16 * MIB);
    let server = Server::start(Guest::named("rust-p2-http").limit(limit.path()));
    for host in 1..=40 {
        check(&server.get(&format!("/fetch?url=http://127.0.0.{host}:{}/", other.address.port())), 200, "hello");
    }
    assert_eq!(other.accepted(), 40);
    assert!(other.open_max() <= 24, "{} connections were open at once", other.open_max());
}

#[test]
fn requests_wait_where_memory_is_short() {
    let other = Other::plain();
    let limit = limit_file(16 * MIB);
    let server = Server::start(Guest::named("rust-p2-http").limit(limit.path()));
    let path = format!("/fetch?url=http://{}/later", other.address);
    let waiting: Vec<TcpStream> = (0..16).map(|_| server.begin(&path)).collect();
    for stream in waiting {
        check(&finish(stream), 200, "later");
    }
}

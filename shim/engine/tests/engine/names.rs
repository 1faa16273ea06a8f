//! Names of hosts in outgoing requests: the container's files, and no resolver of glibc.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::driver::Guest;
use crate::server::{Server, finish};
use crate::watch::free_port;

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
    let guest = Guest::named("rust-p2-http").one_processor().etc(&[&files.path().join("resolv.conf")]);
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

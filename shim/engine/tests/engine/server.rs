//! A started server, and its responses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::driver::{Guest, Running};
use crate::watch::free_port;

pub(crate) const BOTH: [&str; 2] = ["rust-p2-http", "rust-p3-http"];

/// A started server.
pub(crate) struct Server {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
}

/// A response as it came: its head and its body, still in chunks where it was sent so.
pub(crate) struct Response {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Server {
    pub(crate) fn start(guest: Guest) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self { running: guest.env("SKIFF_HTTP_ADDRESS", &address.to_string()).start().ready(), address }
    }

    pub(crate) fn named(name: &str) -> Self {
        Self::start(Guest::named(name))
    }

    /// What it says on stderr as soon as it listens.
    pub(crate) fn greeting(&self, name: &str) -> String {
        format!("skiff: /app/{name}.wasm: listening on {}\n", self.address)
    }

    /// Opens a connection and sends the head of a request.
    pub(crate) fn send(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    pub(crate) fn begin(&self, path: &str) -> TcpStream {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"))
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        finish(self.begin(path))
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        let process = self.running.child.id();
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let sockets = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        let sockets =
            sockets.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let sockets: Vec<u64> = sockets.collect();
        let is_connection = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (state, number) = (words.nth(3), words.nth(5));
            // A listener's state is 0A.
            state != Some("0A") && number.and_then(|number| number.parse().ok()).is_some_and(|n| sockets.contains(&n))
        };
        let known = |table| std::fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
        ["tcp", "tcp6"].map(known).iter().flat_map(|text| text.lines()).filter(|line| is_connection(line)).count()
    }

    /// How long its threads have run.
    pub(crate) fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.running.child.id())).unwrap();
        let times = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
        Duration::from_nanos(times.map(|times| times.split(' ').next().unwrap().parse::<u64>().unwrap()).sum())
    }

    /// Whether its only worker has slept for a while.
    pub(crate) fn is_at_rest(&self) -> bool {
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

pub(crate) fn finish(mut stream: TcpStream) -> Response {
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

//! A long load of a server's requests, from clients of all kinds.

use std::io::Result;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skiff_test::{Answer, Connection, Container, Containerd, free_port, get, request, serving};

use crate::{Figures, part};

/// How long the load of the whole soak lasts.
const LOAD: Duration = Duration::from_secs(30 * 60);
/// One over this of it comes before the first look.
const WARM_UP: u32 = 10;
/// The least of that. A server's heap is as large as it gets after a minute.
const WARM_UP_LEAST: Duration = Duration::from_secs(60);
const LIMIT_BYTES: u64 = 64 << 20;
/// The length of a body that a client sends or gets.
const BODY_BYTES: usize = 100_000;

/// The clients of one server, until `end`.
struct Clients {
    port: u16,
    end: Instant,
    /// Requests that a trap may end as well share this; who traps has it alone.
    together: RwLock<()>,
    /// Whether an instance serves several requests, which end with it.
    shares_instances: bool,
    served: AtomicU64,
    is_over: AtomicBool,
}

/// The end of one client, also by a panic, is the end of all.
struct Ending<'a>(&'a AtomicBool);

impl Clients {
    /// Goes on with `once` until the end.
    fn repeat(&self, mut once: impl FnMut(u64)) {
        let _ending = Ending(&self.is_over);
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) || Instant::now() > self.end {
                break;
            }
            once(number);
        }
    }

    /// Checks a response that must come.
    fn expect(&self, path: &str, status: u16, begin: &str, answered: Result<Answer>) {
        let answer = answered.unwrap_or_else(|error| panic!("{path}: {error}"));
        let text = answer.text();
        assert!(answer.status == status && text.starts_with(begin), "{path}: {} {text:.200}", answer.status);
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes requests on a connection that stays.
    fn stay(&self) {
        let mut connection = Connection::open(self.port).unwrap();
        self.repeat(|number| {
            let _shared = self.together.read().unwrap();
            let (method, path, body) = match number % 4 {
                0 => ("GET", "/", 0),
                1 => ("GET", "/big?bytes=100000", 0),
                2 => ("POST", "/echo", BODY_BYTES),
                // A request that sets the pace.
                _ => ("GET", "/slow?ms=20", 0),
            };
            let head = format!("{method} {path} HTTP/1.1\r\nhost: soak\r\ncontent-length: {body}\r\n\r\n");
            let asked = connection.send(&[head.as_bytes(), &vec![b'x'; body]].concat());
            let begin = match path {
                "/" => "hello\n",
                "/slow?ms=20" => "slow\n",
                _ => "xxxx",
            };
            let answered = asked.and_then(|()| connection.answer());
            let length = answered.as_ref().map_or(0, |answer| answer.body.len());
            self.expect(path, 200, begin, answered);
            assert!(begin != "xxxx" || length == BODY_BYTES, "{path}: {length} bytes");
        });
    }

    /// Makes each request on a connection of its own.
    fn come_and_go(&self) {
        self.repeat(|_| {
            let _shared = self.together.read().unwrap();
            self.expect("/", 200, "hello\n", get(self.port, "/"));
            self.expect("/echo", 200, "body", request(self.port, "POST", "/echo", b"body"));
            self.expect("/slow", 200, "slow\n", get(self.port, "/slow?ms=20"));
        });
    }

    /// Leaves connections without an end: before, in and after a request.
    fn hang_up(&self) {
        self.repeat(|number| {
            let _shared = self.together.read().unwrap();
            let mut connection = Connection::open(self.port).unwrap();
            let begin: &[u8] = match number % 6 {
                0 => b"",
                1 => b"GET /slow HT",
                2 => b"GET /slow?ms=5000 HTTP/1.1\r\nhost: soak\r\n\r\n",
                3 => b"GET /big?bytes=10000000 HTTP/1.1\r\nhost: soak\r\n\r\n",
                4 => b"POST /echo HTTP/1.1\r\nhost: soak\r\ncontent-length: 1000000\r\n\r\nbegin",
                _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            };
            connection.send(begin).unwrap();
            if number % 6 == 3 {
                assert_eq!(connection.head().unwrap().status, 200);
            }
            self.expect("/slow", 200, "slow\n", get(self.port, "/slow?ms=20"));
        });
    }

    /// Makes requests that fail, and some that take memory.
    fn ask_too_much(&self) {
        let pause = || self.expect("/slow", 200, "slow\n", get(self.port, "/slow?ms=200"));
        self.repeat(|number| {
            let (path, status, begin) = match number % 5 {
                0 => ("/hold?mib=2", 200, "grew 2 MiB\n"),
                1 => ("/nowhere", 404, ""),
                2 => ("/trap", 500, ""),
                // This one takes all the memory and lives on; others of its instance could not even begin.
                3 if !self.shares_instances => ("/grow?mib=100", 200, "refused after "),
                _ => ("/leak", 500, ""),
            };
            let ask = || self.expect(path, status, begin, get(self.port, path));
            if status == 500 && self.shares_instances {
                let _alone = self.together.write().unwrap();
                ask();
                pause();
            } else {
                let _shared = self.together.read().unwrap();
                ask();
                pause();
            }
        });
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Loads a server and returns how many requests it has served.
fn load(port: u16, guest: &str, lasting: Duration) -> u64 {
    let clients = Clients {
        port,
        end: Instant::now() + lasting,
        together: RwLock::default(),
        shares_instances: guest == "rust-p3-http",
        served: AtomicU64::default(),
        is_over: AtomicBool::default(),
    };
    let kinds: [fn(&Clients); 8] = [
        Clients::stay,
        Clients::stay,
        Clients::stay,
        Clients::stay,
        Clients::come_and_go,
        Clients::come_and_go,
        Clients::hang_up,
        Clients::ask_too_much,
    ];
    std::thread::scope(|scope| {
        for kind in kinds {
            let clients = &clients;
            scope.spawn(move || kind(clients));
        }
    });
    clients.served.into_inner()
}

fn figures(server: &Container<'_>) -> Figures {
    let mut figures = Figures::default();
    figures.add_process("the engine", server.pid);
    figures.add_process("its shim", server.shim());
    figures
}

fn soak(containerd: &Containerd, guest: &str) {
    let port = free_port();
    let server = serving(containerd.job(guest).memory(LIMIT_BYTES), port);
    let whole = LOAD / part();
    let warm_up = (whole / WARM_UP).max(WARM_UP_LEAST);
    load(port, guest, warm_up);
    let before = Figures::at_rest(|| figures(&server));
    let served = load(port, guest, whole - warm_up);
    let after = Figures::at_rest(|| figures(&server));
    after.assert_no_growth(&before, &format!("{guest}, after {served} requests"));
    assert_eq!(server.cgroup.oom_kills(), 0, "{guest}");
    server.kill(libc::SIGTERM).unwrap();
    assert_eq!(server.finish().code, 0, "{guest}");
}

#[test]
fn servers_do_not_grow_under_a_long_load() {
    let containerd = Containerd::start();
    std::thread::scope(|scope| {
        for guest in ["rust-p2-http", "rust-p3-http"] {
            let containerd = &containerd;
            scope.spawn(move || soak(containerd, guest));
        }
    });
}

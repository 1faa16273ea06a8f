//! Clients that are slow or many: whatever they send or leave unread, the kernel does not kill the server's container, and
//! it serves others.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skiff_test::{Containerd, free_port, get, is_alive, serving, until};
use socket2::{Domain, Socket, Type};

const MIB: u64 = 1 << 20;
const LIMITS_MIB: [u64; 3] = [16, 64, 256];
/// How many clients read slowly, and how many send without reading.
const CLIENTS: usize = 64;
/// How long they go on. Before the bounds, less than a second was enough for a kill.
const ROUND: Duration = Duration::from_secs(4);
/// What a client reads at once.
const SIP: usize = 1024;

/// Lets this process have as many connections as the tests make.
fn allow_connections() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// What a client does after its first bytes.
#[derive(Clone, Copy)]
enum Then {
    ReadsALittle,
    Sends,
    Nothing,
}

/// A client that takes only what it must.
struct Client {
    stream: TcpStream,
    then: Then,
}

impl Client {
    fn new(port: u16, first: &[u8], then: Then) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Before there is a connection: the kernel never takes back what it has once offered to take.
        socket.set_recv_buffer_size(SIP).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_nonblocking(true).unwrap();
        tolerate(stream.write(first));
        Self { stream, then }
    }

    /// Reads a little, or sends a lot.
    fn go_on(&mut self) {
        let done = match self.then {
            Then::ReadsALittle => self.stream.read(&mut [0; SIP]),
            Then::Sends => self.stream.write(&[b'x'; 64 << 10]),
            Then::Nothing => Ok(0),
        };
        tolerate(done);
    }
}

/// The server may take nothing more, or close the connection.
fn tolerate(done: std::io::Result<usize>) {
    if let Err(error) = done {
        let kinds = [ErrorKind::WouldBlock, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
}

#[test]
fn a_server_with_64_slow_readers_and_64_writers_is_never_killed() {
    allow_connections();
    for (guest, flood) in [("rust-p2-http", "/flood"), ("rust-p3-http", "/big")] {
        for limit_mib in LIMITS_MIB {
            besiege(guest, limit_mib, |port| {
                let readers = (0..CLIENTS).map(|_| {
                    let head = format!("GET {flood}?bytes=100000000 HTTP/1.1\r\nhost: test\r\n\r\n");
                    Client::new(port, head.as_bytes(), Then::ReadsALittle)
                });
                let writers = (0..CLIENTS).map(|number| {
                    let path = if number % 2 == 0 { "/echo" } else { "/slow?ms=20000" };
                    let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000\r\n\r\n");
                    Client::new(port, head.as_bytes(), Then::Sends)
                });
                readers.chain(writers).collect()
            });
        }
    }
}

#[test]
fn a_server_with_128_clients_of_http_2_that_read_nothing_is_never_killed() {
    allow_connections();
    for guest in ["rust-p2-http", "rust-p3-http"] {
        for limit_mib in LIMITS_MIB {
            besiege(guest, limit_mib, |port| {
                let readers = (0..CLIENTS).map(|_| {
                    let page = |stream| http_2::get(stream, "/big?bytes=16384", b"");
                    Client::new(port, &http_2::connection(page), Then::Nothing)
                });
                let long_heads = (0..CLIENTS).map(|_| {
                    let head = |stream| http_2::get(stream, "/slow?ms=20000", &[b'x'; 8000]);
                    Client::new(port, &http_2::connection(head), Then::Nothing)
                });
                readers.chain(long_heads).collect()
            });
        }
    }
}

/// What a client of HTTP/2 sends that asks for all at once and has room for everything.
mod http_2 {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    const END_STREAM_AND_HEADERS: u8 = 5;
    const ROOM: u32 = 1 << 30;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A connection with 16 requests.
    pub(super) fn connection(request: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
        // The initial window of each stream.
        let settings = frame(SETTINGS, 0, 0, &[&[0, 4][..], &ROOM.to_be_bytes()].concat());
        let window = frame(WINDOW_UPDATE, 0, 0, &ROOM.to_be_bytes());
        let requests = (0..16).flat_map(|number| request(number * 2 + 1)).collect();
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), settings, window, requests].concat()
    }

    /// The head of a request for `path`, with a long field.
    pub(super) fn get(stream: u32, path: &str, long: &[u8]) -> Vec<u8> {
        let text = |index: u8, text: &[u8]| [&[index, u8::try_from(text.len()).unwrap()], text].concat();
        // An integer beyond 127, in pieces of seven bits.
        let rest = long.len().saturating_sub(127);
        let length = [127, u8::try_from(rest % 128).unwrap() | 128, u8::try_from(rest / 128).unwrap()];
        let long = if long.is_empty() { Vec::new() } else { [&[0, 1, b'a'], &length[..], long].concat() };
        let block = [vec![0x82, 0x86], text(0x04, path.as_bytes()), text(0x01, b"test"), long].concat();
        frame(HEADERS, END_STREAM_AND_HEADERS, stream, &block)
    }
}

fn besiege(guest: &str, limit_mib: u64, connect: impl Fn(u16) -> Vec<Client>) {
    let name = format!("{guest} under {limit_mib} MiB");
    let port = free_port();
    let server = serving(Containerd::shared().job(guest).memory(limit_mib * MIB), port);
    let mut clients = connect(port);
    let hold = format!("/hold?mib={limit_mib}");
    std::thread::scope(|scope| {
        // Guests that take all that they get, too.
        let holders: Vec<_> = (0..8).map(|_| scope.spawn(|| get(port, &hold))).collect();
        let mut last = String::new();
        let is_dead = until(ROUND, || {
            clients.iter_mut().for_each(Client::go_on);
            if server.cgroup.oom_kills() == 0 {
                last = server.cgroup.memory_in_words();
            }
            !is_alive(server.pid)
        });
        let oom_kills = server.cgroup.oom_kills();
        assert!(!is_dead, "{name}: it ended with {}, shortly after {last}; OOM kills: {oom_kills}", server.wait());
        assert_eq!(oom_kills, 0, "{name}: a process of it was killed, shortly after {last}");
        clients.clear();
        drop(holders.into_iter().map(|holder| holder.join().unwrap()).collect::<Vec<_>>());
    });
    let answers = until(Duration::from_secs(60), || get(port, "/").is_ok_and(|answer| answer.status == 200));
    assert!(answers, "{name}: it does not serve others");
    assert!(is_alive(server.pid), "{name}");
    assert_eq!(server.cgroup.oom_kills(), 0, "{name}");
    server.kill(libc::SIGKILL).unwrap();
    server.finish();
}

#[test]
fn clients_that_take_nothing_of_their_last_response_are_cut_off() {
    allow_connections();
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let server = serving(Containerd::shared().job(guest).memory(16 * MIB), port);
        let request = b"GET /big?bytes=7000 HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
        let mut slow = Client::new(port, request, Then::Nothing).stream;
        let (mut response, mut kept) = (Vec::new(), Vec::new());
        let mut sip = |slow: &mut TcpStream| {
            let mut bytes = [0; 16];
            let length = slow.read(&mut bytes).unwrap_or(0);
            response.extend_from_slice(&bytes[..length]);
            length
        };
        let is_dead = until(ROUND, || {
            if kept.len() < 2000 {
                kept.extend((0..16).map(|_| Client::new(port, request, Then::Nothing)));
            }
            sip(&mut slow);
            !is_alive(server.pid)
        });
        let memory = server.cgroup.memory_in_words();
        assert!(!is_dead, "{guest}: it ended with {}, after {} clients", server.wait(), kept.len());
        // Whoever takes a little now and then gets all of it.
        slow.set_nonblocking(false).unwrap();
        slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        while sip(&mut slow) > 0 {}
        let bytes = response.iter().filter(|byte| **byte == b'x').count();
        assert!(bytes >= 7000 && response.ends_with(b"0\r\n\r\n"), "{guest}: {bytes} bytes");
        let is_reset = |client: &Client| {
            client.stream.take_error().unwrap().is_some_and(|error| error.kind() == ErrorKind::ConnectionReset)
        };
        assert!(until(Duration::from_secs(60), || kept.iter().any(is_reset)), "{guest}: whoever takes nothing is kept");
        println!("{guest}: {} clients, {memory}", kept.len());
        drop(kept);
        let answers = until(Duration::from_secs(60), || get(port, "/").is_ok_and(|answer| answer.status == 200));
        assert!(answers && is_alive(server.pid), "{guest}: it does not serve others");
        assert_eq!(server.cgroup.oom_kills(), 0, "{guest}");
        server.kill(libc::SIGKILL).unwrap();
        server.finish();
    }
}

#[test]
fn a_thousand_idle_connections_leave_a_small_server_answering() {
    allow_connections();
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let server = serving(Containerd::shared().job(guest).memory(16 * MIB), port);
        let kept: Vec<TcpStream> = (0..1200)
            .map(|number| {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                match number % 3 {
                    0 => {}
                    1 => stream.write_all(b"GET / HT").unwrap(),
                    _ => {
                        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
                        assert!(stream.read(&mut [0; 512]).unwrap() > 0, "{guest}: no response on connection {number}");
                    }
                }
                stream
            })
            .collect();
        let took = (0..10).map(|_| {
            let began = Instant::now();
            assert_eq!(get(port, "/").unwrap().status, 200, "{guest}");
            began.elapsed()
        });
        // The machine may be busy, but not each time.
        assert!(took.min() < Some(Duration::from_millis(100)), "{guest}");
        drop(kept);
        assert_eq!(server.cgroup.oom_kills(), 0, "{guest}");
        server.kill(libc::SIGTERM).unwrap();
        assert_eq!(server.finish().code, 0, "{guest}");
    }
}

//! Look-ups against name servers of this test.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::*;

/// A name server on 127.0.0.1 that knows a few names and remembers what it was asked.
struct NameServer {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    fn start() -> Self {
        // One port for both.
        let (udp, tcp) = std::iter::repeat_with(|| {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap());
            (udp, tcp)
        })
        .find_map(|(udp, tcp)| Some((udp, tcp.ok()?)))
        .unwrap();
        let port = udp.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut question = [0; 1500];
            while let Ok((length, from)) = udp.recv_from(&mut question) {
                if let Some(answer) = answer(&question[..length], &noted, true) {
                    udp.send_to(&answer, from).unwrap();
                }
            }
        });
        let noted = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut question).unwrap();
                    let answer = answer(&question, &noted, false).unwrap();
                    stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(&answer).unwrap();
                }
            }
        });
        Self { port, asked }
    }

    /// A container with these files, whose name server this is.
    fn container(&self, hosts: &str, conf: &str) -> Container {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("hosts"), folder.path().join("resolv.conf")];
        std::fs::write(&files[0], hosts).unwrap();
        std::fs::write(&files[1], conf).unwrap();
        let resolver = Resolver::new(&files[0], &files[1], self.port);
        Container { resolver, files, _folder: folder }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

struct Container {
    resolver: Resolver,
    files: [PathBuf; 2],
    _folder: tempfile::TempDir,
}

impl Container {
    fn look_up(&self, name: &str) -> Result<Vec<String>, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(self.resolver.look_up(name));
        found.map(|addresses| addresses.iter().map(ToString::to_string).collect())
    }
}

fn answer(question: &[u8], asked: &Mutex<Vec<String>>, is_udp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let name = query.name().to_utf8();
    asked.lock().unwrap().push(format!("{name} {}{}", query.query_type(), if is_udp { "" } else { " tcp" }));
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.add_query(query.clone());
    let v4 = |last| RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
    let mut add = |name: &Name, data| {
        answer.add_answer(Record::from_rdata(name.clone(), 30, data));
    };
    match (name.as_str(), query.query_type()) {
        ("silent.example.", _) => return None,
        ("both.example.", RecordType::A) => add(query.name(), v4(1)),
        ("both.example.", RecordType::AAAA) => add(query.name(), RData::AAAA(AAAA("fd00::1".parse().unwrap()))),
        ("db.svc.cluster.local.", RecordType::A) => add(query.name(), v4(2)),
        ("alias.example.", RecordType::A) => {
            let target = Name::from_ascii("target.example.").unwrap();
            add(query.name(), RData::CNAME(CNAME(target.clone())));
            add(&target, v4(3));
        }
        ("large.example.", RecordType::A) if is_udp => answer.metadata.truncation = true,
        ("large.example.", RecordType::A) => (1..=100).for_each(|last| add(query.name(), v4(last))),
        ("broken.example.", _) => answer.metadata.response_code = ResponseCode::ServFail,
        ("refused.example.", _) => answer.metadata.response_code = ResponseCode::Refused,
        ("db.svc.cluster.local." | "alias.example." | "large.example.", _) => {}
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.to_vec().ok()
}

const CONF: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";

#[test]
fn a_name_of_the_hosts_file_is_asked_of_nobody() {
    let server = NameServer::start();
    let container = server.container("10.9.9.9 both.example\n", CONF);
    assert_eq!(container.look_up("both.example").unwrap(), ["10.9.9.9"]);
    assert_eq!(container.look_up("BOTH.example").unwrap(), ["10.9.9.9"]);
    for (literal, address) in [("10.1.2.3", "10.1.2.3"), ("::1", "::1"), ("[fd00::7]", "fd00::7")] {
        assert_eq!(container.look_up(literal).unwrap(), [address]);
    }
    assert_eq!(container.look_up("not a name"), Err(Failure::Invalid));
    assert_eq!(server.asked(), [""; 0]);
    std::fs::write(&container.files[0], "# nothing any more\n").unwrap();
    let mut found = container.look_up("both.example").unwrap();
    found.sort();
    assert_eq!(found, ["10.0.0.1", "fd00::1"]);
}

#[test]
fn domains_are_searched_and_aliases_followed() {
    let server = NameServer::start();
    let conf = "search default.svc.cluster.local svc.cluster.local\nnameserver 127.0.0.1\noptions ndots:5 timeout:1\n";
    let container = server.container("", conf);
    assert_eq!(container.look_up("db").unwrap(), ["10.0.0.2"]);
    let mut asked = server.asked();
    asked.sort();
    let kinds = |name: &str| [format!("{name} A"), format!("{name} AAAA")];
    assert_eq!(asked, [kinds("db.default.svc.cluster.local."), kinds("db.svc.cluster.local.")].concat());
    assert_eq!(container.look_up("alias.example.").unwrap(), ["10.0.0.3"]);
}

#[test]
fn an_answer_that_is_too_long_for_udp_comes_by_tcp() {
    let server = NameServer::start();
    let container = server.container("", CONF);
    assert_eq!(container.look_up("large.example").unwrap().len(), 100);
    assert!(server.asked().contains(&"large.example. A tcp".to_owned()));
}

#[test]
fn failures_are_told_apart() {
    let server = NameServer::start();
    let container = server.container("", CONF);
    for (name, failure) in [
        ("nothing.example", Failure::Unknown),
        ("broken.example", Failure::Temporary),
        ("refused.example", Failure::Permanent),
        ("silent.example", Failure::Silence),
    ] {
        assert_eq!(container.look_up(name), Err(failure), "{name}");
    }
}

#[test]
fn the_next_server_is_asked_when_one_does_not_answer() {
    let server = NameServer::start();
    // Nobody listens on the first.
    let container = server.container("", &format!("nameserver 127.0.0.2\n{CONF}"));
    assert_eq!(container.look_up("alias.example").unwrap(), ["10.0.0.3"]);
}

#[test]
fn a_dead_server_keeps_no_thread() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = NameServer { port: silent.local_addr().unwrap().port(), asked: Arc::default() };
    let conf = "search a b c\nnameserver 127.0.0.1\noptions ndots:5 timeout:2 attempts:1\n";
    let container = Arc::new(server.container("", conf));
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let lookups: Vec<_> = (0..64)
            .map(|number| {
                let container = Arc::clone(&container);
                tokio::spawn(async move { container.resolver.look_up(&format!("x{number}.y")).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begun = Instant::now();
        tokio::task::spawn_blocking(|| std::fs::read("/etc/hosts")).await.unwrap().ok();
        assert!(begun.elapsed() < Duration::from_millis(500), "a file took {:?}", begun.elapsed());
        for lookup in lookups {
            assert_eq!(lookup.await.unwrap(), Err(Failure::Silence));
        }
    });
}

#[test]
fn addresses_that_cannot_be_reached_come_last() {
    let check = |is_routable: fn(IpAddr) -> bool, expected: &[&str]| {
        let mut addresses: Vec<IpAddr> =
            ["10.0.0.1", "fd00::1", "10.0.0.2"].iter().map(|address| address.parse().unwrap()).collect();
        sort(&mut addresses, is_routable);
        assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    };
    check(|_| true, &["fd00::1", "10.0.0.1", "10.0.0.2"]);
    check(|address| address.is_ipv4(), &["10.0.0.1", "10.0.0.2", "fd00::1"]);
}

//! The metrics as they are printed, and as they are served to whoever asks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod node;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use node::{Kind, Node, PLAIN};
use skiff_protocol::{Account, Counters};
use tokio::net::TcpSocket;

const CONFIG: &str = "etc/containerd/config.toml";
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the bundle of a container in containerd's state directory, with an account that this process holds.
fn run_container(node: &Node, state: &str, file: &fs::File) -> Account {
    let bundle = format!("{state}/io.containerd.runtime.v2.task/k8s.io/1");
    let annotations = serde_json::json!({"io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.container-name": "main"});
    node.write(&format!("{bundle}/config.json"), &serde_json::json!({"annotations": annotations}).to_string());
    let link = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    symlink(link, node.path(&bundle).join("account")).unwrap();
    Account::keep_in(file).unwrap()
}

#[test]
fn the_metrics_are_those_of_the_state_directory_that_containerd_has() {
    for (config, state) in [("version = 3\n", "run/containerd"), ("version = 3\nstate = '/data/state'\n", "data/state")]
    {
        let node = Node::new(&PLAIN, &[(CONFIG, config)]);
        let file = Account::create().unwrap();
        let account = run_container(&node, state, &file);
        account.take(4096, 8192).unwrap();
        fs::create_dir_all(node.path("var/lib/skiff/cache")).unwrap();
        Counters { hits: 7, ..Counters::default() }.add_to(&node.path("var/lib/skiff/cache")).unwrap();
        let text = node.succeed(&["metrics"]);
        let labels = r#"{namespace="shop",pod="web",container="main"}"#;
        assert!(text.contains(&format!("\nskiff_container_memory_bytes{labels} 4096\n")), "{text}");
        assert!(text.contains("\nskiff_cache_hits_total 7\n"), "{text}");
        assert!(text.contains("skiff_info{version=\"0.1.0\",programs=\"\"} 1\n"), "{text}");
        let other = node.succeed(&["metrics", "--state", "/none", "--cache", "/none"]);
        assert!(other.contains("\nskiff_containers 0\n") && other.contains("\nskiff_cache_hits_total 0\n"), "{other}");
    }
    let node = Node::new(&Kind { program: "/opt/other/containerd", ..PLAIN }, &[]);
    assert!(node.run(&["metrics"]).stderr.contains("containerd is not among"));
}

/// `keep` with metrics, which ends with the test.
struct Kept {
    child: Child,
    port: u16,
}

impl Kept {
    fn start(node: &Node) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port_text = port.to_string();
        let words = ["keep", "--interval", "1", "--metrics-port", port_text.as_str()];
        let kept = Self { child: node.command(&words).stderr(Stdio::null()).spawn().unwrap(), port };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        kept
    }

    fn send(&self, text: &str) -> TcpStream {
        self.send_from(Ipv4Addr::LOCALHOST, text)
    }

    /// Sends from an address of this machine.
    fn send_from(&self, address: Ipv4Addr, text: &str) -> TcpStream {
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((address, 0).into())?;
            socket.connect((Ipv4Addr::LOCALHOST, self.port).into()).await?.into_std()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let mut stream = runtime.block_on(connect).unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A server that has read enough closes the connection before everything is written.
        drop(stream.write_all(text.as_bytes()));
        stream
    }

    /// The response to a request; the server closes the connection after it.
    fn ask(&self, line: &str) -> String {
        rest(self.send(&format!("{line} HTTP/1.1\r\nHost: node\r\n\r\n")))
    }
}

fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    // A server that closes a connection with something unread resets it.
    drop(stream.read_to_string(&mut text));
    text
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn keep_serves_metrics_at_one_path_and_nothing_else() {
    let node = Node::new(&PLAIN, &[(CONFIG, "version = 3\n")]);
    let file = Account::create().unwrap();
    run_container(&node, "run/containerd", &file).add_trap();
    let kept = Kept::start(&node);
    let text = kept.ask("GET /metrics");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
    assert!(
        text.contains("\nskiff_container_traps_total{namespace=\"shop\",pod=\"web\",container=\"main\"} 1\n"),
        "{text}"
    );
    let head = kept.ask("HEAD /metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(kept.ask("GET /").starts_with("HTTP/1.1 404"));
    assert!(kept.ask("GET /metrics/../etc/passwd").starts_with("HTTP/1.1 404"));
    assert!(kept.ask("POST /metrics").starts_with("HTTP/1.1 405"));
}

#[test]
fn clients_that_say_nothing_or_too_much_do_not_stop_the_metrics() {
    let node = Node::new(&PLAIN, &[(CONFIG, "version = 3\n")]);
    let kept = Kept::start(&node);
    let neighbour = Ipv4Addr::new(127, 0, 0, 2);
    let silent: Vec<_> = (0..100).map(|_| kept.send_from(neighbour, "GET /met")).collect();
    assert!(kept.ask("GET /metrics").starts_with("HTTP/1.1 200"), "beside the silent ones");
    let long = rest(kept.send(&format!("GET /metrics HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(1 << 20))));
    assert!(!long.starts_with("HTTP/1.1 200"), "{long}");
    assert!(kept.ask("GET /metrics").starts_with("HTTP/1.1 200"));
    drop(silent);
}

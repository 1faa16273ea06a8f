//! From the message on the control socket to a guest that runs: replies, start functions, and what is open meanwhile.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use skiff_protocol::{Refusal, Reply, send_message};

use crate::driver::Guest;
use crate::watch::{limit_file, status_of, wait_for};

const MIB: u64 = 1 << 20;

#[test]
fn code_of_another_engine_is_refused_and_the_next_message_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = Vec::new();
    Guest::named("c-hello").code().read_to_end(&mut whole).unwrap();
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("text", b"not compiled code at all".to_vec()),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("other", {
            let mut bytes = whole.clone();
            let at = bytes.windows(11).position(|window| window == b"wasmtime-48").unwrap();
            bytes[at] = b'W';
            bytes
        }),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut running = Guest::of_code("/app/x.wasm", &path).start();
        match running.reply() {
            Reply::Refused(Refusal::Incompatible(_)) => {}
            reply => panic!("{name}: {reply:?}"),
        }
        assert!(running.has_hung_up(), "{name}");
        running.send(Guest::named("c-hello").message());
        assert_eq!(running.reply(), Reply::Ready, "{name}");
        assert_eq!(running.end().stdout, "hello\n", "{name}");
    }
}

#[test]
fn an_engine_without_a_shim_ends_with_125() {
    let mut running = Guest::named("c-hello").spawn();
    running.socket.shutdown(std::net::Shutdown::Both).unwrap();
    let ended = running.end();
    assert_eq!(ended.code, 125);
    assert!(ended.stderr.contains("the shim is gone"), "{}", ended.stderr);
}

#[test]
fn a_guest_that_is_loaded_runs_only_when_the_shim_lets_it() {
    let mut running = Guest::named("c-hello").start();
    assert_eq!(running.said_next(), Reply::Loaded);
    running.socket.shutdown(std::net::Shutdown::Both).unwrap();
    let ended = running.end();
    assert_eq!((ended.code, ended.stdout), (125, String::new()));
    assert!(ended.stderr.contains("the shim is gone"), "{}", ended.stderr);
}

/// Its own start function waits for a byte of standard input.
const WAITS_IN_ITS_START_FUNCTION: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\01\00\00\00")
    (func $wait (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))))
    (start $wait)
    (func (export "_start") (call $exit (i32.const 7))))"#;

#[test]
fn a_guest_runs_when_the_shim_no_longer_waits_for_its_start_function() {
    let (stdin, mut typed) = std::io::pipe().unwrap();
    let mut running = Guest::text(WAITS_IN_ITS_START_FUNCTION).stdin(stdin).start();
    assert_eq!(running.next_reply(), Reply::Loaded);
    running.hang_up();
    typed.write_all(b"x").unwrap();
    let ended = running.end();
    assert_eq!((ended.code, ended.stderr), (7, String::new()));
}

#[test]
fn what_no_shim_hears_is_said_on_stderr() {
    let guest = Guest::named("c-hello");
    let (message, heard) = guest.message();
    let mut running = guest.spawn();
    drop(heard);
    send_message(&running.socket, &message).unwrap();
    running.socket.shutdown(std::net::Shutdown::Write).unwrap();
    let ended = running.end();
    assert_eq!((ended.code, ended.stdout), (125, String::new()));
    assert!(ended.stderr.starts_with("skiff: cannot talk to the shim: "), "{}", ended.stderr);
}

/// The open descriptors of a process, by their numbers.
fn descriptors(process: u32) -> BTreeMap<i32, String> {
    let links = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().map(|link| link.unwrap());
    let target = |link: &std::fs::DirEntry| std::fs::read_link(link.path()).unwrap().to_string_lossy().into_owned();
    links.map(|link| (link.file_name().to_string_lossy().parse().unwrap(), target(&link))).collect()
}

#[test]
fn a_start_function_finds_nothing_of_the_shim_but_the_pipe_for_replies() {
    let limit = limit_file(64 * MIB);
    let (stdin, mut typed) = std::io::pipe().unwrap();
    let mut running = Guest::text(WAITS_IN_ITS_START_FUNCTION).stdin(stdin).limit(limit.path()).start();
    assert_eq!(running.next_reply(), Reply::Loaded);
    assert_eq!(running.socket.read(&mut [0]).unwrap(), 0, "the socket is closed");
    let limit = limit.path().to_string_lossy().into_owned();
    // Behind the wall there are the standard streams, the limit and its statistics (`/dev/null` here), tokio's own, and what
    // wasmtime keeps of the code and of the process's pages.
    wait_for("the wall", || status_of(running.child.id(), "Seccomp:") == "2");
    let open = descriptors(running.child.id());
    let count = |part: &str| open.values().filter(|target| target.contains(part)).count();
    assert_eq!(count("pipe:"), 4, "{open:?}");
    assert_eq!((count(&limit), count("memfd:"), count("skiff-engine")), (1, 0, 0), "{open:?}");
    assert!(count(".cwasm") <= 1, "{open:?}");
    let known = ["pipe:", "anon_inode:", "socket:", "/dev/urandom", ".cwasm", "/pagemap", limit.as_str(), "/dev/null"];
    assert!(open.values().all(|target| known.iter().any(|part| target.contains(part))), "{open:?}");
    typed.write_all(b"x").unwrap();
    assert_eq!(running.reply(), Reply::Ready);
    assert!(running.has_hung_up());
    assert_eq!(running.end().code, 7);
}

#[test]
fn the_process_has_the_modules_name() {
    let running = Guest::named("c-sleep").start().ready().said("sleeping");
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", running.child.id())).unwrap(), "c-sleep.wasm\n");
}

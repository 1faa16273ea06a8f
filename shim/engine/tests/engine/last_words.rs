//! Why a guest ended, in the file in which Kubernetes looks for it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use skiff_protocol::{Limits, Task};

use crate::calls::CallSocket;
use crate::command::module;
use crate::driver::Guest;
use crate::watch::{limit_file, wait_for};

const LOG: &str = "/dev/termination-log";

/// Runs a guest that ends with `code`, and returns what is in its termination log, which had `before` in it.
fn last_words(guest: Guest, code: i32, before: &str) -> String {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("dev")).unwrap();
    let log = root.path().join(Path::new(LOG).strip_prefix("/").unwrap());
    std::fs::write(&log, before).unwrap();
    // A guest with little time may be over before it is ready.
    let ended = guest.preopen(root.path(), "/", false).termination_log(LOG).start().end();
    assert_eq!(ended.code, code, "{ended:?}");
    let words = std::fs::read_to_string(log).unwrap();
    assert!(!words.starts_with("skiff: ") || ended.stderr.ends_with(&format!("{words}\n")), "{words}: {ended:?}");
    words
}

#[test]
fn an_end_that_is_not_the_guests_own_is_in_the_termination_log() {
    let limits = Limits { run_time: Some(Duration::from_millis(50)), ..Limits::default() };
    let limit = limit_file(16 << 20);
    let grow = "(drop (memory.grow (i32.const 1000))) unreachable";
    for (guest, code, expected) in [
        (module("unreachable"), 134, "trapped: wasm `unreachable` instruction executed, in <wasm function 1>"),
        (module("(loop (br 0))").limits(limits), 143, "ran longer than its limit `run-time` of 50ms"),
        (module(grow).limit(limit.path()), 137, "ran out of memory: its memories, tables and buffers would take 6"),
    ] {
        let words = last_words(guest, code, "");
        assert!(words.starts_with(&format!("skiff: /app/guest.wasm {expected}")), "{words}");
    }
}

#[test]
fn a_panics_message_is_in_the_termination_log() {
    let words = last_words(Guest::named("rust-panic"), 134, "");
    let (said, sentence) = words.rsplit_once("\nskiff: ").unwrap();
    assert!(said.contains("index out of bounds") && sentence.contains("rust-panic.wasm trapped: "), "{words}");
}

#[test]
fn a_trap_in_a_call_is_in_the_termination_log() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("log"), "").unwrap();
    let library = Guest::text("(module (func (export \"fail\") unreachable))");
    let (socket, guest) = CallSocket::of(library.preopen(root.path(), "/", false).termination_log("/log"));
    let mut running = guest.start().ready();
    assert_eq!(socket.asks(Task::Invoke(vec!["fail()".to_owned()])).run().code, 134);
    assert_eq!(running.end().code, 134);
    let words = std::fs::read_to_string(root.path().join("log")).unwrap();
    assert!(words.starts_with("skiff: /app/guest.wasm trapped: wasm `unreachable`"), "{words}");
}

#[test]
fn what_ends_a_service_is_in_the_termination_log() {
    let service = |then: &str| {
        let text = format!(r#"(module (memory 1) (func (export "_initialize") {then}) (func (export "f")))"#);
        Guest::text(&text)
    };
    let limits = Limits { call_time: Some(Duration::from_millis(50)), ..Limits::default() };
    let limit = limit_file(16 << 20);
    let grow = "(drop (memory.grow (i32.const 1000))) unreachable";
    for (guest, code, expected) in [
        (service("unreachable"), 134, "/app/guest.wasm trapped: wasm `unreachable` instruction executed, in "),
        (service("(loop (br 0))").limits(limits), 143, "the call of `_initialize` of /app/guest.wasm took longer than"),
        (service(grow).limit(limit.path()), 137, "/app/guest.wasm ran out of memory: its memories"),
    ] {
        let words = last_words(guest, code, "");
        assert!(words.starts_with(&format!("skiff: {expected}")), "{words}");
    }
}

#[test]
fn a_trap_after_memory_was_refused_is_told_before_the_refusal() {
    let limit = limit_file(16 << 20);
    let ended = module("(drop (memory.grow (i32.const 1000))) unreachable").limit(limit.path()).run();
    let trap = ended.stderr.find("trapped: wasm `unreachable`");
    assert!(trap.is_some() && trap < ended.stderr.find("ran out of memory: "), "{ended:?}");
}

#[test]
fn the_reason_is_there_though_nobody_reads_stderr() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("dev")).unwrap();
    let log = root.path().join("dev/termination-log");
    std::fs::write(&log, "").unwrap();
    let (_reader, mut full) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&full, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    full.write_all(&[b'x'; 4096]).unwrap();
    let guest = module("unreachable").preopen(root.path(), "/", false).termination_log(LOG).stderr(full);
    let running = guest.start().ready();
    wait_for("the last words", || std::fs::read_to_string(&log).unwrap().contains("trapped: "));
    drop(running);
}

#[test]
fn the_guests_own_end_and_words_stay_as_they_are() {
    assert_eq!(last_words(module("(call $exit (i32.const 3))"), 3, ""), "");
    assert_eq!(last_words(module("unreachable"), 134, "the guest's own"), "the guest's own");
    let write = Guest::named("c-files").args(&["write:/dev/termination-log=farewell", "read:/none"]);
    assert_eq!(last_words(write, 1, ""), "farewell");
}

#[test]
fn without_the_file_or_the_right_to_write_a_guest_runs_as_ever() {
    assert_eq!(module("unreachable").termination_log(LOG).run().code, 134);
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("dev/termination-log")).unwrap();
    assert_eq!(module("unreachable").preopen(root.path(), "/", true).termination_log(LOG).run().code, 134);
}

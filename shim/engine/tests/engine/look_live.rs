//! The looking glass, where the engine of the guest answers: what is under way, memory, backtraces, profiles and core dumps of guests that
//! go on.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::thread::scope;
use std::time::{Duration, Instant};

use serde_json::Value;
use skiff_protocol::{Frame, Question, Task};

use crate::calls::CallSocket;
use crate::driver::{Ended, Guest, Running};
use crate::server::{BOTH, Server};
use crate::watch::wait_for;

/// A guest that computes until it is killed.
const SPINNING: &str = r#"(module $spinning
  (memory (export "memory") 3)
  (data (i32.const 100000) "a needle")
  (global (export "number") (mut i64) (i64.const -7))
  (func $inner (export "inner") (loop $again (br $again)))
  (func $outer (call $inner))
  (func (export "_start") (call $outer)))"#;

/// A guest that waits for input.
const WAITING: &str = r#"(module $waiting
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\01\00\00\00")
  (func $listen (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 32))))
  (func (export "_start") (call $listen)))"#;

/// A guest that sleeps for `TIME` nanoseconds, and ends with the number of the event (1) and what it is for (7).
const SLEEPING: &str = r#"(module $sleeping
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $nap
    (i32.store8 (i32.const 0) (i32.const 7))
    (i64.store (i32.const 24) (i64.const TIME))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 96))))
  (func (export "_start")
    (call $nap)
    (call $exit (i32.add (i32.mul (i32.load (i32.const 96)) (i32.const 10)) (i32.load8_u (i32.const 64))))))"#;

fn started(guest: Guest) -> (CallSocket, Running) {
    let (socket, guest) = CallSocket::of(guest);
    (socket, guest.start().ready())
}

fn asked(socket: &CallSocket, args: &[&str]) -> Guest {
    socket.asks(Task::Look(args.iter().map(|arg| (*arg).to_owned()).collect()))
}

fn look(socket: &CallSocket, args: &[&str]) -> Ended {
    asked(socket, args).run()
}

#[test]
fn a_guest_that_computes_shows_where_it_is_and_hardly_stands_still_for_it() {
    let (socket, mut running) = started(Guest::text(SPINNING));
    // The best of several: whoever is preempted meanwhile stands still for longer.
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        let ended = look(&socket, &["backtrace"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
        let places: Vec<usize> = ["spinning!inner", "spinning!outer"]
            .map(|name| ended.stdout.find(name).unwrap_or_else(|| panic!("no {name}: {}", ended.stdout)))
            .to_vec();
        assert!(places.is_sorted(), "{}", ended.stdout);
        let stood = ended.stdout.split("within ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        least = least.min(stood.parse().unwrap());
    }
    println!("it stood still for {least} ms");
    assert!(least < 10.0, "{least} ms");
    assert!(running.child.try_wait().unwrap().is_none());
}

/// Waits until a backtrace shows a guest that waits in `call`, with this among its calls: it may be found on its way there.
fn waits_in(socket: &CallSocket, call: &str, place: &str) {
    let mut ended = look(socket, &["backtrace"]);
    let call = format!(" ms, waits in `{call}");
    wait_for("a guest that waits", || {
        ended = look(socket, &["backtrace"]);
        ended.stdout.contains(&call)
    });
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.contains(place), "{}", ended.stdout);
}

#[test]
fn a_guest_that_waits_for_input_shows_where_and_goes_on() {
    let (input, mut typed) = std::io::pipe().unwrap();
    let (socket, mut running) = started(Guest::text(WAITING).stdin(input));
    waits_in(&socket, "fd_read`", "waiting!listen");
    let ended = look(&socket, &["profile", "1"]);
    assert!(ended.code == 0 && ended.stderr.contains("there are no samples"), "{}", ended.stderr);
    serde_json::from_str::<Value>(&ended.stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ended = asked(&socket, &["coredump", "/core"]).preopen(folder.path(), "/", false).run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(fs::metadata(folder.path().join("core")).unwrap().len() > 0);
    assert!(running.child.try_wait().unwrap().is_none());
    typed.write_all(b"x").unwrap();
    assert_eq!(running.end().code, 0);
}

#[test]
fn a_guest_that_sleeps_shows_where_and_sleeps_as_long_as_it_wanted() {
    let (socket, mut running) = started(Guest::text(&SLEEPING.replace("TIME", "3600000000000")));
    for _ in 0..3 {
        waits_in(&socket, "poll_oneoff`", "sleeping!nap");
    }
    assert!(running.child.try_wait().unwrap().is_none());
    let begun = Instant::now();
    let ended = Guest::text(&SLEEPING.replace("TIME", "200000000")).run();
    assert_eq!(ended.code, 17, "{}", ended.stderr);
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn a_call_that_sleeps_shows_where() {
    let service = SLEEPING.replace("TIME", "3600000000000").replace("\"_start\"", "\"sleep\"");
    let (socket, _running) = started(Guest::text(&service));
    let _caller = socket.asks(Task::Invoke(vec!["sleep()".to_owned()])).start().ready();
    waits_in(&socket, "poll_oneoff`", "sleeping!nap");
}

#[test]
fn a_component_that_waits_shows_where_and_goes_on() {
    let (socket, _running) = started(Guest::named("rust-p2-hello").args(&["sleep", "3600000"]));
    waits_in(&socket, "wasi:io/poll#", "hello");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (socket, mut running) = started(Guest::named("rust-p2-hello").args(&["fetch", &address, "1"]));
    let (mut connection, _) = server.accept().unwrap();
    connection.read_exact(&mut [0; 10]).unwrap();
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab").unwrap();
    waits_in(&socket, "wasi:io/streams#[method]input-stream.blocking-read`", "hello");
    connection.write_all(b"cde").unwrap();
    let ended = running.end();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "5 bytes\n"), "{}", ended.stderr);
}

#[test]
fn instances_of_a_server_that_wait_show_where_or_that_they_cannot() {
    for name in BOTH {
        let (socket, guest) = CallSocket::of(Guest::named(name));
        let server = Server::start(guest);
        let _waiting = server.begin("/slow?ms=3600000");
        wait_for("a request", || look(&socket, &["ps"]).stdout.contains("  request   GET /slow\n"));
        if name.contains("p2") {
            waits_in(&socket, "wasi:io/poll#", "http");
        } else {
            // It may be found on its way there.
            wait_for("a guest that waits", || {
                let ended = look(&socket, &["backtrace"]);
                ended.code == 1
                    && ended.stderr.contains("the guest waits in a call of the host that does not show where")
            });
        }
    }
}

#[test]
fn what_is_under_way_and_what_memories_take_is_told() {
    let (socket, _running) = started(Guest::text(SPINNING));
    let ended = look(&socket, &["ps"]);
    assert!(ended.stdout.ends_with("s  instance  196608 bytes (0.2Mi)\n"), "{ended:?}");
    let ended = look(&socket, &["memory"]);
    for part in ["GC heaps: 196608 bytes (0.2Mi)\n", "container: none\n", "growths: 0\ninstance "] {
        assert!(ended.stdout.contains(part), "{part}: {ended:?}");
    }
}

#[test]
fn requests_and_instances_of_a_server_are_told_with_where_they_are() {
    for name in BOTH {
        let (socket, guest) = CallSocket::of(Guest::named(name));
        let server = Server::start(guest);
        let ended = look(&socket, &["backtrace"]);
        assert!(ended.code == 1 && ended.stderr.contains("no request is under way"), "{ended:?}");
        let spinning: Vec<_> = (0..2).map(|_| server.begin("/spin?token=secret")).collect();
        wait_for("two requests", || look(&socket, &["ps"]).stdout.matches("  request   GET /spin\n").count() == 2);
        let ps = look(&socket, &["ps"]).stdout;
        assert!(ps.contains("  instance  ") && !ps.contains("secret"), "{ps}");
        let ended = look(&socket, &["backtrace"]);
        assert!(ended.code == 0 && ended.stdout.starts_with("instance "), "{ended:?}");
        let folder = tempfile::tempdir().unwrap();
        let ended = asked(&socket, &["coredump", "/core"]).preopen(folder.path(), "/", false).run();
        assert!(ended.code == 1 && ended.stderr.contains("a component cannot be dumped"), "{ended:?}");
        drop(spinning);
        wait_for("no request", || !look(&socket, &["ps"]).stdout.contains("request"));
    }
}

#[test]
fn a_profile_is_json_for_firefoxs_profiler() {
    let (socket, _running) = started(Guest::text(SPINNING));
    let ended = look(&socket, &["profile", "1"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let profile: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(profile["meta"]["product"], "/app/guest.wasm");
    assert!(profile["meta"]["preprocessedProfileVersion"].as_u64().unwrap() > 40, "{}", profile["meta"]);
    let thread = &profile["threads"][0];
    assert!(thread["samples"]["length"].as_u64().unwrap() > 0, "{}", thread["samples"]["length"]);
    assert!(ended.stdout.contains("\"inner\"") && ended.stdout.contains("\"outer\""));
    assert_can_be_loaded(&profile);
}

/// Checks what the profiler's loader relies on: that tables are whole, and refer to what is there
/// (<https://github.com/firefox-devtools/profiler/blob/main/src/types/profile.ts>).
fn assert_can_be_loaded(profile: &Value) {
    let thread = &profile["threads"][0];
    let length = |table: &str| thread[table]["length"].as_u64().unwrap();
    let strings = thread["stringArray"].as_array().unwrap().len() as u64;
    let categories = profile["meta"]["categories"].as_array().unwrap().len() as u64;
    for (table, column, below) in [
        ("samples", "stack", Some(length("stackTable"))),
        ("samples", "timeDeltas", None),
        ("samples", "threadCPUDelta", None),
        ("samples", "weight", None),
        ("stackTable", "prefix", Some(length("stackTable"))),
        ("stackTable", "frame", Some(length("frameTable"))),
        ("frameTable", "address", None),
        ("frameTable", "category", Some(categories)),
        ("frameTable", "func", Some(length("funcTable"))),
        ("frameTable", "line", None),
        ("funcTable", "name", Some(strings)),
        ("funcTable", "resource", None),
        ("funcTable", "isJS", None),
        ("markers", "name", None),
        ("resourceTable", "name", Some(strings)),
        ("nativeSymbols", "name", Some(strings)),
    ] {
        let cells = thread[table][column].as_array().unwrap_or_else(|| panic!("no {column} of {table}"));
        assert_eq!(cells.len() as u64, length(table), "{column} of {table}");
        if let Some(below) = below {
            let are_there = cells.iter().all(|cell| cell.is_null() || cell.as_u64().unwrap() < below);
            assert!(are_there, "{column} of {table}: {cells:?}");
        }
    }
    let computed = thread["samples"]["threadCPUDelta"].as_array().unwrap();
    assert!(computed.iter().skip(1).all(|delta| delta == 1000), "microseconds: {computed:?}");
    for field in ["interval", "startTime", "processType", "version", "markerSchema", "sampleUnits"] {
        assert!(!profile["meta"][field].is_null(), "{field}");
    }
    for field in ["name", "isMainThread", "pid", "tid", "registerTime", "processType", "pausedRanges"] {
        assert!(!thread[field].is_null(), "{field}");
    }
    assert!(profile["libs"].is_array() && profile["counters"].is_array(), "{}", profile["libs"]);
}

#[test]
fn a_profile_of_deep_stacks_ends_when_its_memory_is_used_up() {
    let (socket, _running) = started(Guest::text(&deep()));
    let ended = look(&socket, &["profile", "60"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("more would take more memory than 16777216 bytes"), "{}", ended.stderr);
    serde_json::from_str::<Value>(&ended.stdout).unwrap();
}

/// A guest whose stack is some thousand calls deep, and whose calls are others each time: a generator of numbers chooses between two
/// places to call from.
fn deep() -> String {
    r#"(module
      (global $random (mut i32) (i32.const 1))
      (func $go (param $depth i32)
        (global.set $random (i32.add (i32.mul (global.get $random) (i32.const 1664525)) (i32.const 1013904223)))
        (if (local.get $depth) (then
          (if (i32.lt_s (global.get $random) (i32.const 0))
            (then (call $go (i32.sub (local.get $depth) (i32.const 1))))
            (else (call $go (i32.sub (local.get $depth) (i32.const 1))))))))
      (func (export "_start") (loop $again (call $go (i32.const 5000)) (br $again))))"#
        .to_owned()
}

#[test]
fn one_profile_is_taken_at_a_time() {
    let (socket, _running) = started(Guest::text(SPINNING));
    let begin = || asked(&socket, &["profile", "60"]).start().ready();
    let mut first = begin();
    wait_for("the first profile", || {
        let is_refused = look(&socket, &["profile", "1"]).stderr.contains("another one is under way");
        if !is_refused {
            // It may have been the first itself.
            first = begin();
        }
        is_refused
    });
    drop(first);
    wait_for("the next profile", || look(&socket, &["profile", "1"]).code == 0);
}

#[test]
fn a_dump_that_nobody_takes_does_not_hold_the_guest() {
    // More than the connection holds.
    let full = SPINNING
        .replace("(memory (export \"memory\") 3)", "(memory (export \"memory\") 64)")
        .replace("(call $outer)))", "(memory.fill (i32.const 0) (i32.const 1) (i32.const 4194304)) (call $outer)))");
    let (socket, mut running) = started(Guest::text(&full));
    let is_computing = || look(&socket, &["backtrace"]).stdout.contains("spinning!inner");
    wait_for("a guest that computes", is_computing);
    let question = serde_json::to_vec(&Question::Look(vec!["coredump".to_owned(), "/core".to_owned()])).unwrap();
    let begin = || {
        let connection = socket.connect();
        Frame::write(Frame::QUESTION, &question, &connection).unwrap();
        connection
    };
    let folder = tempfile::tempdir().unwrap();
    let mut kept = begin();
    wait_for("the dump", || {
        let other = asked(&socket, &["coredump", "/other"]).preopen(folder.path(), "/", false).run();
        let is_refused = other.stderr.contains("another dump is under way");
        if !is_refused {
            // It may have been the first itself.
            kept = begin();
        }
        is_refused
    });
    let begun = Instant::now();
    wait_for("a guest that goes on", is_computing);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(running.child.try_wait().unwrap().is_none());
    drop(kept);
}

/// The sections of a module: the names of those that have one, and the ids of the others.
pub(crate) fn sections(wasm: &[u8]) -> Vec<String> {
    fn number(wasm: &[u8], at: &mut usize) -> usize {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = wasm[*at];
            *at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    assert!(wasm.starts_with(b"\0asm\x01\0\0\0"));
    let (mut at, mut found) = (8, Vec::new());
    while at < wasm.len() {
        let id = wasm[at];
        at += 1;
        let length = number(wasm, &mut at);
        let end = at + length;
        found.push(if id == 0 {
            let length = number(wasm, &mut at);
            String::from_utf8(wasm[at..at + length].to_vec()).unwrap()
        } else {
            id.to_string()
        });
        at = end;
    }
    assert_eq!(at, wasm.len());
    found
}

#[test]
fn a_core_dump_is_written_into_a_new_file_and_the_guest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, mut running) = started(Guest::text(SPINNING));
    let dump =
        |path: &str, is_read_only| asked(&socket, &["coredump", path]).preopen(folder.path(), "/", is_read_only).run();
    let ended = dump("/core", false);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("skiff: the core dump takes "), "{}", ended.stderr);
    let wasm = fs::read(folder.path().join("core")).unwrap();
    assert_eq!(sections(&wasm), ["core", "5", "6", "11", "coremodules", "coreinstances", "corestack"]);
    assert!(wasm.windows(8).any(|part| part == b"a needle") && wasm.len() < 1000, "{}", wasm.len());
    for (path, why) in [("/core", "file exists"), ("/missing/core", "no such file"), ("/", "not the path of a file")] {
        let ended = dump(path, false);
        assert!(ended.code == 1 && ended.stderr.contains(why), "{path}: {ended:?}");
    }
    assert_eq!(fs::read(folder.path().join("core")).unwrap(), wasm);
    assert!(running.child.try_wait().unwrap().is_none());
}

#[test]
fn a_part_of_a_core_dump_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (theirs, mut ours) = UnixStream::pair().unwrap();
    let task = Task::Look(vec!["coredump".to_owned(), "/core".to_owned()]);
    let mut running = Guest::task(task).calls(theirs).preopen(folder.path(), "/", false).start().ready();
    Frame::read(&mut ours, &mut Vec::new()).unwrap();
    Frame::write(Frame::OUTPUT, b"part", &mut ours).unwrap();
    drop(ours);
    let ended = running.end();
    assert!(ended.code == 1 && ended.stderr.contains("closed the connection before"), "{ended:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn looks_at_once_are_all_answered_and_can_be_turned_off() {
    let (socket, _running) = started(Guest::text(SPINNING));
    scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let ended = look(&socket, &["backtrace"]);
                assert!(ended.code == 0 && ended.stdout.contains("spinning!inner"), "{ended:?}");
            });
        }
    });
    let (socket, _running) = started(Guest::text(SPINNING).looks_are_off());
    for args in [["ps"], ["memory"], ["backtrace"]] {
        let ended = look(&socket, &args);
        assert!(ended.code == 1 && ended.stderr.contains("`debug.skiff.dev/look` turns"), "{ended:?}");
    }
}

//! The limits of a guest: what each refuses, and how a guest ends that cannot live with a refusal.

use std::io::Write;
use std::time::{Duration, Instant};

use skiff_protocol::{Figures, Limits};

use crate::driver::{Ended, Guest};
use crate::server::Server;
use crate::watch::{limit_file, set_limit, wait_for};

const MIB: u64 = 1 << 20;
const AGE: Duration = Duration::from_millis(50);

/// A guest with a memory, and WASI's `fd_write` and `proc_exit`; `$say` writes the text at 64.
fn guest(text: &str, body: &str) -> Guest {
    let length = text.len();
    Guest::text(&format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\40\00\00\00\{length:02x}\00\00\00") (data (i32.const 64) "{text}")
            (func $say (param $fd i32)
                (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16))))
            (func (export "_start") {body}))"#
    ))
}

const GROW_IN_VAIN: &str = "(drop (memory.grow (i32.const 30000)))";

fn ended_under_64_mib(text: &str, body: &str) -> (Ended, Figures) {
    let limit = limit_file(64 * MIB);
    let guest = guest(text, body).limit(limit.path());
    let account = guest.account();
    (guest.run(), Figures::read(&account).unwrap())
}

#[test]
fn who_traps_after_a_refusal_ran_out_of_memory() {
    let (ended, figures) = ended_under_64_mib("", &format!("{GROW_IN_VAIN} unreachable"));
    assert_eq!(ended.code, 137, "{ended:?}");
    for part in ["ran out of memory", "1966145536 bytes", "67108864 bytes", "unreachable"] {
        assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
    }
    let expected = Figures {
        linear_memory_bytes: 65536,
        peak_bytes: 65536,
        refusals: 1,
        ran_out: true,
        limit_bytes: Some(64 * MIB),
    };
    assert_eq!(figures, expected);
}

#[test]
fn who_says_out_of_memory_and_fails_ran_out_of_memory() {
    let body =
        |fd: u8, code: u8| format!("{GROW_IN_VAIN} (call $say (i32.const {fd})) (call $exit (i32.const {code}))");
    let said = "fatal error: out of memory";
    for said in [said, "MemoryError", "[FATAL] failed to allocate memory"] {
        let (ended, figures) = ended_under_64_mib(said, &body(2, 1));
        assert_eq!((ended.code, figures.ran_out), (137, true), "{said}: {ended:?}");
        assert!(ended.stderr.contains("67108864 bytes (64Mi)"), "{ended:?}");
    }
    for (text, fd, code) in [(said, 2, 0), (said, 1, 3), ("no memory for me", 2, 3)] {
        let (ended, figures) = ended_under_64_mib(text, &body(fd, code));
        assert_eq!((ended.code, figures.ran_out), (i32::from(code), false), "{text} on {fd}: {ended:?}");
        assert!(!ended.stderr.contains("ran out of memory"), "{ended:?}");
        let is_told = ended.stderr.contains(&format!("ended with {code} after it was refused memory"));
        assert_eq!(is_told, code != 0, "{ended:?}");
        assert!(code == 0 || ended.stderr.contains("67108864 bytes (64Mi)"), "{ended:?}");
    }
}

#[test]
fn who_goes_on_after_a_refusal_is_not_touched() {
    let long_work = "(loop $again (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br_if $again (i64.lt_u (local.get $i) (i64.const 6000000000))))";
    for between in ["(drop (memory.grow (i32.const 1)))", long_work] {
        let body = format!("(local $i i64) {GROW_IN_VAIN} {between} unreachable");
        let (ended, figures) = ended_under_64_mib("", &body);
        assert_eq!((ended.code, figures.ran_out, figures.refusals), (134, false, 1), "{between}: {ended:?}");
    }
}

#[test]
fn a_heap_of_objects_counts_and_its_end_is_told() {
    let limit = limit_file(32 * MIB);
    let keep_all = Guest::text(
        "(module (type $node (sub (struct (field (ref null $node)) (field i64 i64 i64 i64))))
            (func (export \"_start\") (local $list (ref null $node))
                (loop $again
                    (local.set $list (struct.new $node (local.get $list)
                        (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4)))
                    (br $again))))",
    );
    let guest = keep_all.limit(limit.path());
    let account = guest.account();
    let ended = guest.run();
    assert_eq!(ended.code, 137, "{ended:?}");
    assert!(ended.stderr.contains("ran out of memory"), "{ended:?}");
    let figures = Figures::read(&account).unwrap();
    assert!(figures.peak_bytes > 8 * MIB && figures.peak_bytes < 32 * MIB, "{figures:?}");
}

#[test]
fn a_lowered_limit_refuses_and_keeps_what_is_there() {
    let limit = limit_file(64 * MIB);
    // Grows to 32 MiB, waits for a line, and exits with 1 for a granted growth, 2 for a refused one by nothing.
    let grower = Guest::text(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 512) (data (i32.const 0) "\40\00\00\00\10\00\00\00")
            (func (export "_start")
                (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
                (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then (call $exit (i32.const 1))))
                (if (i32.eq (memory.grow (i32.const 0)) (i32.const -1)) (then (call $exit (i32.const 2))))))"#,
    );
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut running = grower.stdin(reader).limit(limit.path()).start().ready();
    set_limit(&limit, "16777216");
    // As long as a known limit may stand.
    wait_for("the limit to be old", || limit.path().metadata().unwrap().modified().unwrap().elapsed().unwrap() > AGE);
    writeln!(writer, "go on").unwrap();
    assert_eq!(running.end().code, 0);
}

#[test]
fn a_command_over_its_time_ends_wherever_it_is() {
    let limits = Limits { run_time: Some(Duration::from_millis(300)), ..Limits::default() };
    let (reader, _writer) = std::io::pipe().unwrap();
    let spinning = Guest::text(r#"(module (func (export "_start") (loop $again (br $again))))"#);
    for (what, guest) in [("a loop", spinning), ("a call of the host", Guest::named("c-cat").stdin(reader))] {
        let begun = Instant::now();
        // It may be over before it is ready.
        let ended = guest.limits(limits.clone()).start().end();
        assert_eq!(ended.code, 143, "{what}: {ended:?}");
        assert!(ended.stderr.contains("run-time") && ended.stderr.contains("300ms"), "{what}: {ended:?}");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{what}");
    }
    let enough = Limits { run_time: Some(Duration::from_secs(3600)), ..Limits::default() };
    let ended = Guest::named("c-hello").limits(enough).run();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
}

#[test]
fn limits_that_do_nothing_for_this_kind_of_guest_are_named() {
    let all = Limits {
        run_time: Some(Duration::from_secs(3600)),
        request_time: Some(Duration::from_secs(3600)),
        header_time: Duration::from_secs(7),
        idle_time: Duration::from_secs(7),
        concurrent_requests: 7,
        ..Limits::default()
    };
    let line = |name: &str, what: &str| format!("skiff: the limit `{name}` has no effect on {what}\n");
    let ended = Guest::named("c-hello").limits(all.clone()).run();
    let command = "/app/c-hello.wasm, which is a command";
    let names = ["request-time", "header-time", "idle-time", "concurrent-requests"];
    assert_eq!(ended.stderr, names.map(|name| line(name, command)).concat());
    let mut server = Server::start(Guest::named("rust-p2-http").limits(all));
    server.running.signal(libc::SIGTERM);
    let said = server.running.end().stderr;
    assert!(said.contains(&line("run-time", "/app/rust-p2-http.wasm, which is an HTTP server")), "{said}");
    assert_eq!(said.matches("has no effect").count(), 1, "{said}");
}

#[test]
fn memories_have_no_more_pages_than_they_may() {
    let pages = |limit| Limits { memory_pages: Some(limit), ..Limits::default() };
    let grow = || guest("", "(call $exit (i32.eq (memory.grow (i32.const 9)) (i32.const -1)))");
    assert_eq!(grow().limits(pages(10)).run().code, 0);
    assert_eq!(grow().limits(pages(9)).run().code, 1);
    let sentence = Guest::text(r#"(module (memory 11) (func (export "_start")))"#).limits(pages(10)).refused_as_guest();
    assert!(sentence.contains("11 pages") && sentence.contains("`memory-pages` is 10"), "{sentence}");
}

#[test]
fn counts_are_bounded() {
    let text = r#"(module (memory 1) (memory 1) (table 5 funcref) (table 5 funcref) (func (export "_start")))"#;
    let starts = |limits| Guest::text(text).limits(limits).run().code;
    assert_eq!(starts(Limits { memories: 2, tables: 2, table_elements: 10, instances: 1, ..Limits::default() }), 0);
    for (limits, part) in [
        (Limits { memories: 1, ..Limits::default() }, "memor"),
        (Limits { tables: 1, ..Limits::default() }, "table"),
        (Limits { instances: 0, ..Limits::default() }, "instance"),
        (Limits { table_elements: 9, ..Limits::default() }, "10 elements, but the limit `table-elements` is 9"),
    ] {
        let sentence = Guest::text(text).limits(limits).refused_as_guest();
        assert!(sentence.contains(part), "{sentence}");
    }
}

#[test]
fn the_stack_is_as_deep_as_it_may_be() {
    let deep = || {
        Guest::text(
            r#"(module (func $down (param i64) (result i64)
                (if (result i64) (i64.eqz (local.get 0)) (then (i64.const 0))
                    (else (i64.add (i64.const 1) (call $down (i64.sub (local.get 0) (i64.const 1)))))))
                (func (export "_start") (drop (call $down (i64.const 60000)))))"#,
        )
    };
    let ended = deep().run();
    assert_eq!(ended.code, 134, "{ended:?}");
    assert!(ended.stderr.contains("stack"), "{ended:?}");
    let limits = Limits { stack_bytes: 8 << 20, ..Limits::default() };
    assert_eq!(deep().limits(limits.clone()).run().code, 0);
    let limit = limit_file(8 * MIB);
    let sentence = deep().limits(limits).limit(limit.path()).refused_as_guest();
    assert!(sentence.contains("too big to start"), "a larger stack is the guest's own memory: {sentence}");
}

#[test]
fn output_is_slowed_down_and_nothing_of_it_is_lost() {
    let text = "x".repeat(100);
    let body = "(call $say (i32.const 1)) (call $say (i32.const 2))".repeat(10);
    let limits = Limits { output_bytes_per_second: Some(1000), ..Limits::default() };
    let begun = Instant::now();
    let ended = guest(&text, &body).limits(limits).run();
    assert_eq!((ended.code, ended.stdout.len(), ended.stderr.len()), (0, 1000, 1000));
    let elapsed = begun.elapsed();
    assert!((900..5000).contains(&elapsed.as_millis()), "2000 bytes, 1000 of them at once, took {elapsed:?}");
}

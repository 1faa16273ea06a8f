//! What bounds calls: their time, the memory of what they are given and return, and the places of those who ask. Whoever may ask may be
//! a stranger.

use std::io::{Seek, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use skiff_protocol::{Activity, Figures, Frame, Limits, OnTrap, Question, Reply, Task};

use crate::calls::words;
use crate::driver::Guest;
use crate::invoke::{COMPONENT, Service};
use crate::watch::{limit_file, status_of, wait_for, waiting_bytes};

/// A core module whose functions do not return by themselves.
const STAYING: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (func (export "one") (result i32) (i32.const 1))
    (func (export "spin") (loop $again (br $again)))
    (func $wait (param $nanoseconds i64)
        (i32.store (i32.const 4) (i32.const 1))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 200)))
        (i64.store (i32.const 24) (local.get $nanoseconds))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
    (func $sleep (export "sleep") (call $wait (i64.const 3600000000000)))
    (func (export "nap") (result i32) (call $wait (i64.const 6000000000)) (i32.const 7))
    (func (export "write") (param $fd i32)
        (i32.store (i32.const 4) (i32.const 65536))
        (loop $again
            (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 200)))
            (br $again)))
    START)"#;

const COMMAND: &str = r#"(func (export "_start") (call $sleep))"#;

fn staying(start: &str) -> Guest {
    Guest::text(&STAYING.replace("START", start))
}

fn call_time(limit: Option<Duration>) -> Limits {
    Limits { call_time: limit, ..Limits::default() }
}

fn short() -> Limits {
    call_time(Some(Duration::from_millis(200)))
}

#[test]
fn a_call_that_waits_in_the_host_is_ended_in_time() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (_errors, more) = std::io::pipe().unwrap();
    let service = Service::of(staying("").limits(short()).on_trap(OnTrap::Restart).stdout(writer).stderr(more));
    for call in ["sleep()", "write(1)", "write(2)"] {
        for args in [&[call][..], &["--fresh", call]] {
            let ended = service.invoke(args);
            assert_eq!(ended.code, 143, "{args:?}: {}", ended.stderr);
            assert!(ended.stderr.contains("longer than its limit `call-time` of 200ms"), "{}", ended.stderr);
            assert_eq!(service.value_in_time(&["one()"]), "1\n", "{args:?}");
        }
    }
    assert!(waiting_bytes(&reader) > 60_000);
    let command = Service::of(staying(COMMAND).limits(short()));
    for call in ["sleep()", "spin()"] {
        assert_eq!(command.invoke(&[call]).code, 143, "{call}");
    }
    assert_eq!(command.value_in_time(&["one()"]), "1\n");
}

#[test]
fn what_runs_before_a_call_is_ended_in_time() {
    let spins = "(func (loop $again (br $again)))";
    let start = spins.replace("(func", "(func $start") + "(start $start)";
    let initialize = spins.replace("(func", r#"(func (export "_initialize")"#);
    for (text, what) in [(start, "the start of "), (initialize, "the call of `_initialize` of ")] {
        let told = format!("skiff: {what}/app/guest.wasm took longer than its limit `call-time` of 200ms\n");
        let ended = staying(&text).limits(short()).start().ready().end();
        assert_eq!((ended.code, ended.stderr.as_str()), (143, told.as_str()));
        if what.contains("_initialize") {
            let command = Service::of(staying(&(text + COMMAND)).limits(short()));
            let ended = command.invoke(&["one()"]);
            assert_eq!((ended.code, ended.stderr), (143, told));
        }
    }
}

#[test]
fn a_signal_ends_a_service_that_is_not_called() {
    let initialize = r#"(func (export "_initialize") (call $sleep))"#;
    for (text, written) in [(initialize, 1), ("", 0)] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut service = Service::of(staying(text).limits(call_time(None)).stdout(writer));
        wait_for("the guest to wait", || waiting_bytes(&reader) >= written);
        service.running.signal(libc::SIGTERM);
        assert_eq!(service.running.end().code, 0);
    }
}

#[test]
fn a_signal_waits_for_a_call_that_waits_in_the_host() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut service = Service::of(staying("").limits(call_time(None)).stdout(writer));
    let mut caller = service.ask(&["nap()", "one()"]);
    wait_for("the call", || waiting_bytes(&reader) > 0);
    service.running.signal(libc::SIGTERM);
    let ended = caller.end();
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "7\n"));
    assert_eq!(ended.stderr, "skiff: the guest is about to end and takes no more calls\n");
    assert_eq!(service.running.end().code, 0);
}

#[test]
fn a_second_signal_waits_for_no_call() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut service = Service::of(staying("").limits(call_time(None)).stdout(writer));
    let _caller = service.ask(&["sleep()"]);
    wait_for("the call", || waiting_bytes(&reader) > 0);
    service.running.signal(libc::SIGTERM);
    service.running.signal(libc::SIGINT);
    assert!([130, 143].contains(&service.running.end().code));
}

#[test]
fn what_waits_for_its_turn_is_forgotten_with_its_caller() {
    let service = Service::of(staying("").limits(call_time(None)));
    let used = || Figures::read(&service.account).unwrap().linear_memory_bytes;
    let _first = service.ask(&["spin()"]);
    wait_for("the call", || service.ps().contains("  call      spin\n"));
    let before = used();
    let mut long = tempfile::tempfile().unwrap();
    writeln!(long, "one({})", " ".repeat(900_000)).unwrap();
    long.rewind().unwrap();
    let second = service.socket.asks(Task::Invoke(Vec::new())).stdin(long).start().ready();
    // Its line for as long as it is read, and three times its text as long as it waits.
    wait_for("the second one to wait", || used() - before > (2 << 20) + 2_600_000);
    drop(second);
    wait_for("its memory to come back", || used() == before);
    assert!(service.ps().contains("  call      spin\n"));
}

#[test]
fn fresh_instances_end_with_whoever_asked_for_them() {
    let service = Service::of(staying("").limits(call_time(None)));
    let instances = || Activity::read(&service.account).unwrap().instances;
    for call in ["spin()", "sleep()"] {
        let caller = service.ask(&["--parallel", "3", "--repeat", "9", call]);
        wait_for("three instances", || instances() == 4);
        drop(caller);
        wait_for("their end", || instances() == 1);
    }
    assert_eq!(service.value(&["one()"]), "1\n");
}

#[test]
fn connections_on_which_nothing_happens_give_way() {
    let service = Service::of(staying(""));
    let question = serde_json::to_vec(&Question::Invoke(Vec::new())).unwrap();
    // Some never say what is to be called, and some take no results.
    let silent: Vec<UnixStream> = (0..64)
        .map(|number| {
            let mut connection = service.socket.connect();
            Frame::write(Frame::QUESTION, &question, &mut connection).unwrap();
            if number % 2 == 0 {
                connection.set_nonblocking(true).unwrap();
                while Frame::write(Frame::INPUT, &b"one()\n".repeat(1000), &mut connection).is_ok() {}
            }
            connection
        })
        .collect();
    for _ in 0..3 {
        assert_eq!(service.value(&["one()"]), "1\n");
    }
    drop(silent);
}

#[test]
fn what_can_be_called_is_listed_within_bounds_and_without_controls() {
    let long = "x".repeat(300);
    let exports: String = (0..1000).map(|number| format!("(func (export \"{long}-{number}\") (param i32))")).collect();
    let service = Service::of(staying(&format!("{exports}(func (export \"\\1b[2J\"))")));
    let listed = service.value(&[]);
    assert!(listed.starts_with("\\u{1b}[2J()\n"), "{listed}");
    assert!((60_000..70_000).contains(&listed.len()), "{}", listed.len());
    let last = listed.lines().last().unwrap();
    assert!(last.starts_with("… and ") && last.ends_with(" more"), "{last}");
    let ended = service.invoke(&["\u{1b}[2J\u{7}()"]);
    assert!(ended.code == 2 && ended.stderr.contains(r"`\u{1b}[2J\u{7}`"), "{}", ended.stderr);
}

#[test]
fn text_of_results_is_counted_in_the_budget() {
    let limit = limit_file(12 << 20);
    let service = Service::of(Guest::text(COMPONENT).limit(limit.path()));
    // Six bytes of JSON for each.
    let controls = "\u{1}".repeat(500_000);
    let ended = service.evaluate(&["--json"], format!("text(\"{controls}\")\n").as_bytes());
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("skiff: the result of `text` is too long: its memories"), "{}", ended.stderr);
    assert_eq!(service.value(&["truth(true)"]), "true\n");
}

/// A service whose function `f` returns a list of items of a type, all of which are made of the same 8 bytes. There is text at 1024.
fn listing(ty: &str, encoding: &str) -> Guest {
    Guest::text(&format!(
        r#"(component
            (core module $m
                (memory (export "memory") 65)
                (func (export "f") (param $pattern i64) (param $count i32) (result i32)
                    (local $at i32)
                    (memory.fill (i32.const 1024) (i32.const 8) (i32.const 60000))
                    (local.set $at (i32.const 4194304))
                    (loop $again
                        (i64.store (i32.add (local.get $at) (i32.const 65528)) (local.get $pattern))
                        (br_if $again (local.tee $at (i32.sub (local.get $at) (i32.const 8)))))
                    (i32.store (i32.const 16) (i32.const 65536))
                    (i32.store (i32.const 20) (local.get $count))
                    (i32.const 16)))
            (core instance $i (instantiate $m))
            (type $inner {ty})
            (export $item "item" (type $inner))
            (func (export "f") (param "pattern" u64) (param "count" u32) (result (list $item))
                (canon lift (core func $i "f") (memory (core memory $i "memory")) string-encoding={encoding})))"#
    ))
}

#[test]
fn no_result_takes_more_than_its_bound() {
    let letters: Vec<String> = ('a'..='z').map(|one| format!("\"{one}\"")).collect();
    let [flags, names] = [&letters[..], &letters[..2]].map(|names| names.join(" "));
    for (ty, pattern, encoding) in [
        (format!("(flags {flags} \"aa\" \"bb\" \"cc\" \"dd\" \"ee\" \"ff\")"), u64::MAX, "utf8"),
        (format!("(enum {names})"), 0, "utf8"),
        ("(record (field \"a\" u8))".to_owned(), 0, "utf8"),
        ("(variant (case \"a\" u8))".to_owned(), 0, "utf8"),
        ("(tuple u8)".to_owned(), 0, "utf8"),
        ("(option (option (option u8)))".to_owned(), 0x0101_0101_0101_0101, "utf8"),
        ("(result (error u8))".to_owned(), 0x0101_0101_0101_0101, "utf8"),
        // A byte at 1024.
        ("(list u8)".to_owned(), 0x1_0000_0400, "utf8"),
        // What is a list of one text itself, which is a byte of this.
        ("(list (tuple string))".to_owned(), 0x1_0001_0000, "utf8"),
        ("(record (field \"a\" string) (field \"b\" string))".to_owned(), 0x1_0000_0400, "utf8"),
        ("u64".to_owned(), 0, "utf8"),
        // Letters of three bytes.
        ("string".to_owned(), 0x1_0000_0400, "utf16"),
        ("string".to_owned(), 0x1000_0000_0400, "utf16"),
    ] {
        let limit = limit_file(16 << 20);
        let service = Service::of(listing(&ty, encoding).on_trap(OnTrap::Restart).limit(limit.path()));
        let peak = || status_of(service.running.child.id(), "VmHWM:").trim_end_matches(" kB").parse::<u64>().unwrap();
        let call = |count: u32| service.evaluate(&[], format!("f({pattern}, {count})").as_bytes());
        // Traps, and so needs all that a trap needs.
        assert_eq!(call(u32::MAX).code, 134, "{ty}");
        assert_eq!(call(1).code, 0, "{ty}");
        let before = peak();
        let mut most = 1;
        for step in (0..18).rev() {
            let ended = call(most + (1 << step));
            match ended.code {
                0 => most += 1 << step,
                _ => assert!(ended.stderr.contains("too much data is being copied"), "{ty}: {}", ended.stderr),
            }
        }
        let took = peak() - before;
        println!("{most} of {ty}: {took} KiB");
        assert!((64..2000).contains(&took), "{most} of {ty}: {took} KiB");
    }
}

#[test]
fn room_for_a_result_is_not_the_guests() {
    let limit = limit_file(64 << 20);
    // 59.9 MiB are not the host's, and a result may take 4 MiB of them.
    for (pages, is_refused) in [(880, false), (950, true)] {
        let text =
            COMPONENT.replace("(memory (export \"memory\") 2)", &format!("(memory (export \"memory\") {pages})"));
        let mut running = Guest::text(&text).limit(limit.path()).start();
        let reply = running.reply();
        assert_eq!(matches!(reply, Reply::Refused(_)), is_refused, "{pages}: {reply:?}");
    }
}

#[test]
fn fields_that_need_not_be_written_are_counted_in_the_budget() {
    let fields: String = (0..100).map(|number| format!("(field \"f{number}\" (option u8))")).collect();
    let limit = limit_file(64 << 20);
    let service = Service::of(
        Guest::text(&format!(
            r#"(component
                (core module $m
                    (memory (export "memory") 1)
                    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0))
                    (func (export "count") (param i32 i32) (result i32) (local.get 1)))
                (core instance $i (instantiate $m))
                (type $fields' (record {fields}))
                (export $fields "fields" (type $fields'))
                (func (export "count") (param "all" (list $fields)) (result u32)
                    (canon lift (core func $i "count")
                        (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))"#
        ))
        .limit(limit.path()),
    );
    for (count, code, output) in [(10, 0, "10\n"), (100_000, 2, "")] {
        let ended = service.evaluate(&[], format!("count([{}])", "{:},".repeat(count)).as_bytes());
        assert_eq!((ended.code, ended.stdout.as_str()), (code, output), "{}", ended.stderr);
        assert!(code == 0 || ended.stderr.contains("an expression is too long: its memories"), "{}", ended.stderr);
    }
}

#[test]
fn no_mutilated_expression_does_harm() {
    let service = Service::of(Guest::text(COMPONENT));
    let good = [
        "char('é')",
        r#"text("a \"b\" \u{e9}\n")"#,
        "numbers([1, 2, 3])",
        "perhaps(some(7))",
        "try(ok(7))",
        "try(err(3))",
        "both((-1, 2))",
        "a:b/api@1.0.0#same(5)",
    ];
    let parts =
        ["(", ")", "[", "]", "{", "}", "\"", "'", "\\", ",", ":", "some(", "-", "nan", "\u{0}", "é", "%", "9e9"];
    // Always the same ones.
    let mut state = 1_u32;
    let mut chance = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        usize::try_from(state >> 8).unwrap() % below
    };
    for _ in 0..2000 {
        let mut text: Vec<char> = good[chance(good.len())].chars().collect();
        for _ in 0..=chance(3) {
            let at = chance(text.len());
            let end = at + chance(text.len() - at + 1).min(3);
            text.splice(at..end, parts[chance(parts.len())].chars().take(chance(6)));
            text.push(' ');
        }
        let text: String = text.into_iter().collect();
        let (code, said) = answer(service.socket.connect(), &[&text]);
        assert!([0, 1, 2].contains(&code) && said < 5000, "{text:?}: {code}, {said} bytes");
    }
    assert_eq!(service.value(&["truth(true)"]), "true\n");
}

/// Asks without a process of its own, and returns the code and how many bytes were said.
fn answer(mut connection: UnixStream, args: &[&str]) -> (u8, usize) {
    let question = serde_json::to_vec(&Question::Invoke(words(args))).unwrap();
    Frame::write(Frame::QUESTION, &question, &mut connection).unwrap();
    let (mut said, mut content) = (0, Vec::new());
    loop {
        match Frame::read(&mut connection, &mut content).unwrap().kind {
            Frame::EXIT => return (content[0], said),
            _ => said += content.len(),
        }
    }
}

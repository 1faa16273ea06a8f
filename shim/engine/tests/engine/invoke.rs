//! Calls of functions: of reactors, whose instance keeps its state, and of fresh instances of everything else.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use skiff_protocol::{Activity, Limits, OnTrap, Task, called_functions};
use tempfile::TempDir;

use crate::calls::{CallSocket, words};
use crate::driver::{Ended, Guest, Running};
use crate::watch::wait_for;

/// A core module with state, and with what can go wrong.
const CORE: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (import "wasi_snapshot_preview1" "path_filestat_get" (func $stat (param i32 i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "done")
    (global $count (mut i32) (i32.const 0))
    (global $start (mut i32) (i32.const 0))
    (func (export "_initialize") (global.set $start (i32.const 100)))
    (func (export "next") (result i32)
        (global.set $count (i32.add (global.get $count) (i32.const 1)))
        (i32.add (global.get $start) (global.get $count)))
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
    (func (export "swap") (param i64 f64) (result f64 i64) (local.get 1) (local.get 0))
    (func (export "nothing"))
    (func (export "trap") unreachable)
    (func (export "exit") (param i32) (call $exit (local.get 0)))
    (func (export "spin") (loop $again (br $again)))
    (func (export "work") (result i32)
        (loop $again (br_if $again (call $stat (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 8))))
        (i32.const 7))
    (func (export "reference") (param externref))
    (func (export "grow") (result i32)
        (if (i32.eq (memory.grow (i32.const 60000)) (i32.const -1)) (then unreachable))
        (i32.const 1)))"#;

/// A component that exports functions of all kinds of values, each of which returns what it is given.
pub(crate) const COMPONENT: &str = r#"(component
    (core module $m
        (memory (export "memory") 2)
        (global $end (mut i32) (i32.const 1024))
        (func (export "realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
            (local $at i32)
            (global.set $end (i32.and (i32.add (global.get $end) (i32.const 7)) (i32.const -8)))
            (local.set $at (global.get $end))
            (global.set $end (i32.add (global.get $end) (local.get $size)))
            (if (i32.gt_u (global.get $end) (i32.mul (memory.size) (i32.const 65536)))
                (then (drop (memory.grow (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1))))))
            (local.get $at))
        (func (export "one") (param i32) (result i32) (local.get 0))
        (func (export "pair") (param i32 i32) (result i32)
            (i32.store (i32.const 16) (local.get 0))
            (i32.store (i32.const 20) (local.get 1))
            (i32.const 16))
        (func (export "maybe") (param i32 i32) (result i32)
            (i32.store8 (i32.const 32) (local.get 0))
            (i32.store (i32.const 36) (local.get 1))
            (i32.const 32)))
    (core instance $i (instantiate $m))
    (func (export "char") (param "a" char) (result char) (canon lift (core func $i "one")))
    (func (export "truth") (param "a" bool) (result bool) (canon lift (core func $i "one")))
    (func (export "text") (param "a" string) (result string)
        (canon lift (core func $i "pair") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
    (func (export "numbers") (param "a" (list u32)) (result (list u32))
        (canon lift (core func $i "pair") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
    (func (export "perhaps") (param "a" (option u32)) (result (option u32))
        (canon lift (core func $i "maybe") (memory (core memory $i "memory"))))
    (func (export "try") (param "a" (result u32 (error u32))) (result (result u32 (error u32)))
        (canon lift (core func $i "maybe") (memory (core memory $i "memory"))))
    (func (export "both") (param "a" (tuple s32 s32)) (result (tuple s32 s32))
        (canon lift (core func $i "pair") (memory (core memory $i "memory"))))
    (component $inner
        (import "one" (func $one (param "a" u32) (result u32)))
        (export "same" (func $one)))
    (func $same (param "a" u32) (result u32) (canon lift (core func $i "one")))
    (instance $api (instantiate $inner (with "one" (func $same))))
    (export "a:b/api@1.0.0" (instance $api)))"#;

/// A guest that runs, and the way to ask it.
pub(crate) struct Service {
    pub(crate) socket: CallSocket,
    pub(crate) running: Running,
    pub(crate) account: File,
}

/// Work that goes on.
struct Work(TempDir);

impl Work {
    fn end(&self) {
        File::create(self.0.path().join("done")).unwrap();
    }
}

impl Service {
    pub(crate) fn of(guest: Guest) -> Self {
        let account = guest.account();
        let (socket, guest) = CallSocket::of(guest);
        Self { socket, running: guest.start().ready(), account }
    }

    fn core() -> Self {
        Self::of(Guest::text(CORE))
    }

    /// One whose `work()` ends when the test says so.
    fn working() -> (Self, Work) {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { call_time: None, ..Limits::default() };
        (Self::of(Guest::text(CORE).limits(limits).preopen(folder.path(), "/", false)), Work(folder))
    }

    /// What is under way.
    pub(crate) fn ps(&self) -> String {
        self.socket.asks(Task::Look(words(&["ps"]))).run().stdout
    }

    /// Begins to ask.
    pub(crate) fn ask(&self, args: &[&str]) -> Running {
        self.socket.asks(Task::Invoke(words(args))).start().ready()
    }

    pub(crate) fn invoke(&self, args: &[&str]) -> Ended {
        self.ask(args).end()
    }

    /// What a call prints that succeeds.
    pub(crate) fn value(&self, args: &[&str]) -> String {
        let ended = self.invoke(args);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// What a call prints that succeeds, once a busy machine makes it within the limit.
    pub(crate) fn value_in_time(&self, args: &[&str]) -> String {
        let mut ended = self.invoke(args);
        wait_for("a call in time", || {
            if ended.code == 128 + libc::SIGTERM {
                ended = self.invoke(args);
            }
            ended.code == 0
        });
        ended.stdout
    }

    /// Has expressions evaluated that come through stdin.
    pub(crate) fn evaluate(&self, args: &[&str], input: &[u8]) -> Ended {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        self.socket.asks(Task::Invoke(words(args))).stdin(file).start().ready().end()
    }
}

#[test]
fn a_reactor_keeps_its_state_between_calls() {
    let mut service = Service::core();
    assert_eq!(service.value(&["next()"]), "101\n");
    assert_eq!(service.value(&["next()", "next()", "add(1, 2)"]), "102\n103\n3\n");
    assert_eq!(service.value(&["--fresh", "next()"]), "101\n");
    assert_eq!(service.value(&["next()"]), "104\n");
    service.running.signal(libc::SIGTERM);
    assert_eq!(service.running.end().code, 0);
}

#[test]
fn functions_of_core_modules_take_and_return_numbers() {
    let service = Service::core();
    for (args, expected) in [
        (&["swap(-9223372036854775808, 1.5)"][..], "(1.5, -9223372036854775808)\n"),
        (&["--json", "swap(7, nan)"], "[\"nan\",7]\n"),
        (&["nothing()"], "()\n"),
        (&["--json", "nothing()"], "null\n"),
        (&["  add ( 1 , 2 ) "], "3\n"),
    ] {
        assert_eq!(service.value(args), expected, "{args:?}");
    }
}

#[test]
fn functions_of_components_take_and_return_values_of_wave() {
    let service = Service::of(Guest::text(COMPONENT));
    for (expression, wave, json) in [
        ("char('é')", "'é'", "\"é\""),
        ("truth(true)", "true", "true"),
        (r#"text("a \"b\"\n")"#, r#""a \"b\"\n""#, r#""a \"b\"\n""#),
        ("numbers([1, 2, 3])", "[1, 2, 3]", "[1,2,3]"),
        ("numbers([])", "[]", "[]"),
        ("perhaps(some(7))", "some(7)", "7"),
        ("perhaps(none)", "none", "null"),
        ("try(ok(7))", "ok(7)", "{\"ok\":7}"),
        ("both((-1, 2))", "(-1, 2)", "[-1,2]"),
        ("a:b/api@1.0.0#same(5)", "5", "5"),
    ] {
        assert_eq!(service.value(&[expression]), format!("{wave}\n"), "{expression}");
        assert_eq!(service.value(&["--json", expression]), format!("{json}\n"), "{expression}");
    }
    let ended = service.invoke(&["try(err(3))", "truth(true)"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (1, "", "err(3)\n"));
}

#[test]
fn what_can_be_called_is_listed_with_its_types() {
    let core = Service::core().value(&[]);
    assert!(core.contains("add(i32, i32) -> i32\n") && core.contains("swap(i64, f64) -> (f64, i64)\n"), "{core}");
    assert!(!core.contains("_initialize") && !core.contains("memory"), "{core}");
    let listed = Service::of(Guest::text(COMPONENT)).value(&[]);
    for line in [
        "text(a: string) -> string\n",
        "a:b/api@1.0.0#same(a: u32) -> u32\n",
        "try(a: result<u32, u32>) -> result<u32, u32>\n",
    ] {
        assert!(listed.contains(line), "{listed}");
    }
}

#[test]
fn expressions_of_the_input_are_evaluated_line_by_line_until_one_fails() {
    let service = Service::core();
    let ended = service.evaluate(&[], b"add(1, 2)\n\n next()\r\nadd(3, 4)");
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "3\n101\n7\n"), "{}", ended.stderr);
    let ended = service.evaluate(&[], b"add(1, 2)\nadd(1)\nadd(3, 4)\n");
    assert_eq!((ended.code, ended.stdout.as_str()), (2, "3\n"));
    assert!(ended.stderr.contains("`add`"), "{}", ended.stderr);
    let many = "next()\n".repeat(10_000);
    let ended = service.evaluate(&[], many.as_bytes());
    assert_eq!((ended.code, ended.stdout.lines().count()), (0, 10_000), "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().last(), Some("10101"));
}

#[test]
fn what_cannot_be_called_is_refused_with_a_sentence() {
    let service = Service::core();
    for (expression, part) in [
        ("missing()", "there is no function `missing`"),
        ("_initialize()", "there is no function `_initialize`"),
        ("memory()", "there is no function `memory`"),
        ("reference(1)", "a reference"),
        ("add(1)", "the arguments of `add` are wrong"),
        ("add(1, 2, 3)", "the arguments of `add` are wrong"),
        ("add(1, 4294967296)", "the arguments of `add` are wrong"),
        ("add(1, \"x\")", "the arguments of `add` are wrong"),
        ("add(1, 2) add", "the arguments of `add` are wrong"),
        ("add", "is not a call such as"),
        ("add(", "the arguments of `add` are wrong"),
        ("", "is not a call such as"),
        ("--nonsense", "there is no option"),
    ] {
        let ended = service.invoke(&[expression]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{expression}: {}", ended.stderr);
        assert!(ended.stderr.contains(part), "{expression}: {}", ended.stderr);
    }
    assert_eq!(service.value(&["next()"]), "101\n");
}

#[test]
fn hostile_input_is_answered_with_an_error_and_nothing_else() {
    let service = Service::of(Guest::text(COMPONENT));
    let long = format!("text(\"{}\")", "x".repeat(10 << 20));
    let deep = format!("numbers({}1{})", "[".repeat(10_000), "]".repeat(10_000));
    let quoted = format!("numbers([{}\"x\"])", "1,".repeat(100_000));
    for input in
        [long.as_bytes(), deep.as_bytes(), quoted.as_bytes(), b"text(\"\xff\xfe\")", b"\0\0\0", b"(((((((", b")"]
    {
        let ended = service.evaluate(&[], input);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{}", ended.stderr);
        assert!(ended.stderr.starts_with("skiff: ") && ended.stderr.len() < 4096, "{}", ended.stderr.len());
    }
    let ended = service.invoke(&[&"x".repeat(70_000)]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("the arguments are longer than 65536 bytes (0.1Mi): send"), "{}", ended.stderr);
    let text = "x".repeat(1 << 19);
    let ended = service.evaluate(&[], format!("text(\"{text}\")\n").as_bytes());
    assert_eq!((ended.code, ended.stdout), (0, format!("\"{text}\"\n")), "{}", ended.stderr);
}

#[test]
fn a_trap_in_a_call_ends_the_call_and_the_container() {
    let mut service = Service::core();
    let ended = service.invoke(&["add(1, 2)", "trap()", "add(3, 4)"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (134, "3\n"));
    assert!(ended.stderr.contains("trapped: wasm `unreachable` instruction executed, in "), "{}", ended.stderr);
    assert!(ended.stderr.contains("<unknown>!trap") || ended.stderr.contains("wasm function"), "{}", ended.stderr);
    let ended = service.running.end();
    assert_eq!(ended.code, 134);
    assert!(ended.stderr.contains("trapped"), "{}", ended.stderr);
}

#[test]
fn a_container_that_is_told_so_goes_on_with_a_fresh_instance() {
    let service = Service::of(Guest::text(CORE).on_trap(OnTrap::Restart));
    assert_eq!(service.value(&["next()"]), "101\n");
    assert_eq!(service.invoke(&["trap()"]).code, 134);
    assert_eq!(service.value(&["next()"]), "101\n");
    assert_eq!(service.invoke(&["exit(7)"]).code, 7);
    assert_eq!(service.value(&["next()"]), "101\n");
    assert_eq!(Activity::read(&service.account).unwrap().traps, 1);
    assert_eq!(Activity::read(&service.account).unwrap().instances, 1);
}

#[test]
fn a_guest_that_ends_itself_in_a_call_ends_the_container_with_its_code() {
    let mut service = Service::core();
    assert_eq!(service.invoke(&["exit(7)"]).code, 7);
    assert_eq!(service.running.end().code, 7);
}

#[test]
fn a_call_that_takes_too_long_is_ended() {
    for args in [&["spin()"][..], &["--fresh", "spin()"]] {
        let limits = Limits { call_time: Some(Duration::from_millis(200)), ..Limits::default() };
        let service = Service::of(Guest::text(CORE).on_trap(OnTrap::Restart).limits(limits));
        let ended = service.invoke(args);
        assert_eq!(ended.code, 143, "{}", ended.stderr);
        assert!(ended.stderr.contains("longer than its limit `call-time` of 200ms"), "{}", ended.stderr);
        assert_eq!(service.value_in_time(&["next()"]), "101\n");
    }
}

#[test]
fn a_trap_in_a_fresh_instance_ends_the_call_alone() {
    let service = Service::core();
    assert_eq!(service.value(&["next()"]), "101\n");
    assert_eq!(service.invoke(&["--fresh", "trap()"]).code, 134);
    assert_eq!(service.value(&["next()"]), "102\n");
}

#[test]
fn many_instances_work_at_once() {
    let service = Service::core();
    let said = service.value(&["--parallel", "4", "--repeat", "100", "next()"]);
    assert_eq!(said, "101\n".repeat(100));
    let ended = service.invoke(&["--parallel", "4", "--repeat", "1000000", "trap()"]);
    assert_eq!(ended.code, 134);
    assert_eq!(Activity::read(&service.account).unwrap().instances, 1);
}

#[test]
fn functions_of_a_command_are_called_in_fresh_instances() {
    let service = Service::of(Guest::text(
        r#"(module
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (global $count (mut i32) (i32.const 0))
            (func (export "next") (result i32)
                (global.set $count (i32.add (global.get $count) (i32.const 1)))
                (global.get $count))
            (func (export "_start")
                (i64.store (i32.const 24) (i64.const 3600000000000))
                (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#,
    ));
    assert_eq!(service.value(&["next()", "next()"]), "1\n1\n");
}

#[test]
fn calls_of_many_at_once_all_have_their_turn() {
    let service = Service::core();
    let asking: Vec<Running> =
        (0..100).map(|_| service.socket.asks(Task::Invoke(words(&["next()"]))).start()).collect();
    let mut numbers: Vec<u32> = asking.into_iter().map(|mut one| one.end().stdout.trim().parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (101..=200).collect::<Vec<_>>());
}

#[test]
fn a_caller_that_is_gone_leaves_the_instance_as_it_was() {
    let (service, work) = Service::working();
    let caller = service.ask(&["next()", "work()"]);
    wait_for("the call", || service.ps().contains("  call      work\n"));
    drop(caller);
    let mut next = service.ask(&["next()"]);
    work.end();
    // What was under way ran to its end.
    assert_eq!(next.end().stdout, "102\n");
}

#[test]
fn growth_in_a_call_is_refused_by_the_containers_limit() {
    let limit = crate::watch::limit_file(64 << 20);
    let service = Service::of(Guest::text(CORE).on_trap(OnTrap::Restart).limit(limit.path()));
    let ended = service.invoke(&["grow()"]);
    assert_eq!(ended.code, 137, "{}", ended.stderr);
    assert!(ended.stderr.contains("ran out of memory"), "{}", ended.stderr);
    assert_eq!(service.value(&["next()"]), "101\n");
}

#[test]
fn a_signal_waits_for_the_call_that_is_under_way() {
    let (mut service, work) = Service::working();
    let mut caller = service.ask(&["work()"]);
    wait_for("the call", || service.ps().contains("  call      work\n"));
    service.running.signal(libc::SIGTERM);
    work.end();
    let ended = caller.end();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "7\n"), "{}", ended.stderr);
    assert_eq!(service.running.end().code, 0);
}

#[test]
fn calls_that_are_under_way_are_listed_until_they_end() {
    let (service, work) = Service::working();
    let mut caller = service.ask(&["work()"]);
    wait_for("the call", || service.ps().contains("  call      work\n"));
    work.end();
    assert_eq!(caller.end().code, 0);
    wait_for("no call", || !service.ps().contains("  call  "));
}

#[test]
fn calls_are_counted_by_function() {
    let service = Service::of(Guest::text(CORE).on_trap(OnTrap::Restart));
    service.value(&["next()", "next()", "add(1, 2)"]);
    service.value(&["--repeat", "5", "next()"]);
    assert_eq!(service.invoke(&["trap()"]).code, 134);
    assert_eq!(service.invoke(&["add(1)", "missing()"]).code, 2);
    let called = called_functions(&service.account).unwrap();
    let counts: Vec<_> =
        called.iter().map(|(name, function)| (name.as_str(), function.calls, function.traps)).collect();
    assert_eq!(counts, [("add", 1, 0), ("next", 7, 0), ("trap", 1, 1)]);
    assert!(called.values().all(|function| function.longest > Duration::ZERO && function.time >= function.longest));
}

#[test]
fn twenty_thousand_calls_do_not_take_long() {
    let service = Service::core();
    let many = "add(1, 2)\n".repeat(20_000);
    let begun = Instant::now();
    let ended = service.evaluate(&[], many.as_bytes());
    let took = begun.elapsed();
    assert_eq!((ended.code, ended.stdout.lines().count()), (0, 20_000), "{}", ended.stderr);
    println!("20,000 calls in {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

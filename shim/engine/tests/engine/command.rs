//! Commands, from the message on the control socket to the exit code.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::driver::{Guest, limit_file, pause, set_limit, status_of, wait_for};
use skiff_protocol::{Refusal, Reply, send_message};

const MIB: u64 = 1 << 20;

/// A module with `body` as its `_start` and what it needs of WASI 0.1.
fn module(body: &str) -> Guest {
    Guest::text(&format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (table $table 1 funcref)
            (func (export "_start") {body}))"#
    ))
}

#[test]
fn a_module_runs_to_its_end() {
    let ended = Guest::named("c-hello").run();
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "hello\n", ""));
}

#[test]
fn components_of_both_versions_run_to_their_end() {
    for (name, expected) in [("rust-p2-hello", "hello from WASI 0.2\n"), ("rust-p3-hello", "hello from WASI 0.3\n")] {
        let ended = Guest::named(name).run();
        assert_eq!((ended.code, ended.stdout.as_str()), (0, expected), "{name}: {}", ended.stderr);
    }
}

#[test]
fn real_programs_of_other_languages_run() {
    for (name, expected) in [("go-hello", "hello\n"), ("rust-hello", "hello from Rust\n")] {
        let ended = Guest::named(name).run();
        assert_eq!((ended.code, ended.stdout.as_str()), (0, expected), "{name}: {}", ended.stderr);
    }
}

#[test]
fn proc_exit_ends_with_its_code_modulo_256() {
    for (code, expected) in [(0, 0), (1, 1), (125, 125), (126, 126), (200, 200), (256, 0), (300, 44), (-1, 255)] {
        let ended = module(&format!("(call $exit (i32.const {code}))")).run();
        assert_eq!((ended.code, ended.stderr.as_str()), (expected, ""), "proc_exit({code})");
    }
}

#[test]
fn the_snapshot_before_preview_1_works_too() {
    let guest = Guest::text(
        r#"(module (import "wasi_unstable" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const 201))))"#,
    );
    assert_eq!(guest.run().code, 201);
}

#[test]
fn every_trap_ends_with_134_and_is_told() {
    for (body, message) in [
        ("unreachable", "wasm `unreachable` instruction executed"),
        ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", "integer divide by zero"),
        ("(drop (i32.load (i32.const 65536)))", "out of bounds memory access"),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", "invalid conversion to integer"),
        ("(call_indirect $table (i32.const 0))", "uninitialized element"),
    ] {
        let ended = module(body).run();
        assert_eq!(ended.code, 134, "{body}");
        let told = format!("skiff: /app/guest.wasm trapped: {message}\n");
        assert!(ended.stderr.starts_with(&told), "{body}: {}", ended.stderr);
    }
}

#[test]
fn a_stack_overflow_is_a_trap() {
    let ended = Guest::named("c-stackoverflow").run();
    assert_eq!(ended.code, 134);
    assert!(ended.stderr.contains("call stack exhausted"), "{}", ended.stderr);
}

#[test]
fn a_backtrace_has_the_names_of_the_source() {
    let ended = Guest::named("c-trap").run();
    assert_eq!(ended.code, 134);
    for name in ["!innermost\n", "!middle\n", "!outermost\n", "!main\n"] {
        assert!(ended.stderr.contains(name), "{name:?}: {}", ended.stderr);
    }
    let ended = Guest::named("rust-panic").run();
    assert_eq!(ended.code, 134);
    assert!(ended.stderr.contains("::innermost\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("core[") && ended.stderr.contains("::panicking::panic_fmt"), "{}", ended.stderr);
}

#[test]
fn a_trap_in_the_start_function_is_a_trap_of_the_guest() {
    let ended = Guest::text(r#"(module (func $start unreachable) (start $start) (func (export "_start")))"#).run();
    assert_eq!(ended.code, 134);
    assert!(ended.stderr.contains("unreachable"), "{}", ended.stderr);
}

#[test]
fn a_function_of_a_library_runs_by_its_name() {
    let reactor = |function: &str| Guest::named("c-reactor").function(function);
    let ended = reactor("greet").run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "hello from greet\n"));
    assert_eq!(reactor("seven").run().code, 0);
    assert_eq!(reactor("leave").run().code, 9);
    assert_eq!(reactor("fail").run().code, 134);
}

#[test]
fn a_function_that_cannot_be_called_is_refused_by_name() {
    let reactor = |function: &str| Guest::named("c-reactor").function(function).refused_as_guest();
    assert_eq!(
        reactor("add"),
        "`/app/c-reactor.wasm` exports the function `add`, which takes 2 parameters: skiff has none"
    );
    assert_eq!(reactor("gone"), "`/app/c-reactor.wasm` exports no function `gone`");
    assert_eq!(reactor("memory"), "`/app/c-reactor.wasm` exports `memory`, but it is a memory, not a function");
    assert_eq!(
        Guest::named("c-reactor").refused_as_guest(),
        "`/app/c-reactor.wasm` exports no function `_start`: it is a library, not a command"
    );
}

#[test]
fn unknown_imports_are_refused_by_name() {
    let importing =
        |imports: &str| Guest::text(&format!(r#"(module {imports} (func (export "_start")))"#)).refused_as_guest();
    assert_eq!(
        importing(r#"(import "env" "answer" (func (result i32)))"#),
        "cannot link `/app/guest.wasm`: unknown import: `env::answer` has not been defined"
    );
    assert_eq!(
        importing(r#"(import "env" "a" (func)) (import "env" "b" (memory 1))"#),
        "cannot link `/app/guest.wasm`: unknown imports: `env::a`, `env::b` have not been defined"
    );
    let sentence = importing(r#"(import "wasi_snapshot_preview1" "fd_write" (global i32))"#);
    assert!(sentence.contains("`wasi_snapshot_preview1::fd_write`") && sentence.contains("global"), "{sentence}");
    let sentence = importing(r#"(import "wasi_snapshot_preview1" "proc_exit" (func (param i64)))"#);
    assert!(sentence.contains("`wasi_snapshot_preview1::proc_exit`") && sentence.contains("i64"), "{sentence}");
    let sentence = Guest::text(r#"(component (import "a:b/c@1.0.0" (instance (export "f" (func)))))"#)
        .function("f")
        .refused_as_guest();
    assert!(sentence.contains("`a:b/c@1.0.0`"), "{sentence}");
}

#[test]
fn shared_memory_is_refused() {
    let guest = Guest::text(r#"(module (memory 1 2 shared) (func (export "_start")))"#);
    let sentence = guest.refused_as_guest();
    assert!(sentence.contains("shared"), "{sentence}");
}

#[test]
fn a_component_without_anything_to_run_is_refused() {
    let sentence = Guest::text("(component)").refused_as_guest();
    assert!(sentence.contains("neither a command nor an HTTP server"), "{sentence}");
}

/// A component that exports `run` of `wasi:cli/run`, which answers `code`, and some functions.
fn component(code: i32) -> Guest {
    Guest::text(&format!(
        r#"(component
            (core module $m
                (func (export "run") (result i32) i32.const {code})
                (func (export "add") (param i32 i32) (result i32) i32.const 0))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (func $add (param "a" u32) (param "b" u32) (result u32) (canon lift (core func $i "add")))
            (instance $cli (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $cli))
            (export "go" (func $run))
            (export "add" (func $add)))"#
    ))
}

#[test]
fn the_result_of_a_component_is_its_exit_code() {
    for code in [0, 1] {
        assert_eq!(component(code).run().code, code);
        assert_eq!(component(code).function("go").run().code, code);
    }
    assert!(component(0).function("add").refused_as_guest().contains("`add`, which takes 2 parameters"));
    assert!(component(0).function("gone").refused_as_guest().contains("exports no function `gone`"));
    assert!(component(0).function("wasi:cli/run@0.2.0").refused_as_guest().contains("an instance, not a function"));
}

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
    // Behind the wall there are the standard streams, the limit, tokio's own, and what wasmtime keeps of the code.
    wait_for("the wall", || status_of(running.child.id(), "Seccomp:") == "2");
    let open = descriptors(running.child.id());
    let count = |part: &str| open.values().filter(|target| target.contains(part)).count();
    assert_eq!(count("pipe:"), 4, "{open:?}");
    assert_eq!((count(&limit), count("memfd:"), count("skiff-engine")), (1, 0, 0), "{open:?}");
    assert!(count(".cwasm") <= 1, "{open:?}");
    let known = ["pipe:", "anon_inode:", "socket:", "/dev/urandom", ".cwasm", limit.as_str()];
    assert!(open.values().all(|target| known.iter().any(|part| target.contains(part))), "{open:?}");
    typed.write_all(b"x").unwrap();
    assert_eq!(running.reply(), Reply::Ready);
    assert!(running.has_hung_up());
    assert_eq!(running.end().code, 7);
}

/// Does to files below its first directory all that WASI 0.1 can do, and exits with the number of what fails.
const USES_FILES: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_set_times"
        (func $path_times (param i32 i32 i32 i32 i64 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_get" (func $path_stat (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_readlink" (func $readlink (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_remove_directory" (func $rmdir (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pread" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pwrite" (func $pwrite (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_sync" (func $sync (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_datasync" (func $datasync (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_advise" (func $advise (param i32 i64 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $set_size (param i32 i64) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_set_times" (func $times (param i32 i64 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_fdstat_set_flags" (func $set_flags (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\64\00\00\00\04\00\00\00")
    (data (i32.const 100) "text")
    (data (i32.const 200) "d") (data (i32.const 210) "d/a") (data (i32.const 220) "b")
    (data (i32.const 230) "l") (data (i32.const 240) "s")
    (func $try (param $step i32) (param $errno i32) (if (local.get $errno) (then (call $exit (local.get $step)))))
    (func (export "_start") (local $fd i32)
        (call $try (i32.const 1) (call $mkdir (i32.const 3) (i32.const 200) (i32.const 1)))
        (call $try (i32.const 2) (call $open (i32.const 3) (i32.const 0) (i32.const 210) (i32.const 3)
            (i32.const 1) (i64.const 0x1fffffff) (i64.const 0) (i32.const 0) (i32.const 16)))
        (local.set $fd (i32.load (i32.const 16)))
        (call $try (i32.const 3) (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16)))
        (call $try (i32.const 4) (call $pwrite (local.get $fd) (i32.const 0) (i32.const 1) (i64.const 4) (i32.const 16)))
        (call $try (i32.const 5) (call $pread (local.get $fd) (i32.const 0) (i32.const 1) (i64.const 2) (i32.const 16)))
        (call $try (i32.const 6) (call $sync (local.get $fd)))
        (call $try (i32.const 7) (call $datasync (local.get $fd)))
        (call $try (i32.const 8) (call $advise (local.get $fd) (i64.const 0) (i64.const 4) (i32.const 3)))
        (call $try (i32.const 9) (call $set_size (local.get $fd) (i64.const 100)))
        (call $try (i32.const 10) (call $times (local.get $fd) (i64.const 1) (i64.const 2) (i32.const 5)))
        (call $try (i32.const 11) (call $stat (local.get $fd) (i32.const 1024)))
        (call $try (i32.const 12) (call $set_flags (local.get $fd) (i32.const 1)))
        (call $try (i32.const 13) (call $close (local.get $fd)))
        (call $try (i32.const 14) (call $path_times
            (i32.const 3) (i32.const 0) (i32.const 210) (i32.const 3) (i64.const 1) (i64.const 2) (i32.const 5)))
        (call $try (i32.const 15) (call $path_times
            (i32.const 3) (i32.const 1) (i32.const 210) (i32.const 3) (i64.const 1) (i64.const 2) (i32.const 5)))
        (call $try (i32.const 16) (call $rename
            (i32.const 3) (i32.const 210) (i32.const 3) (i32.const 3) (i32.const 220) (i32.const 1)))
        (call $try (i32.const 17) (call $link (i32.const 3) (i32.const 0) (i32.const 220) (i32.const 1)
            (i32.const 3) (i32.const 210) (i32.const 3)))
        (call $try (i32.const 18) (call $symlink
            (i32.const 220) (i32.const 1) (i32.const 3) (i32.const 240) (i32.const 1)))
        (call $try (i32.const 19) (call $readlink
            (i32.const 3) (i32.const 240) (i32.const 1) (i32.const 1024) (i32.const 64) (i32.const 16)))
        (call $try (i32.const 20) (call $path_stat
            (i32.const 3) (i32.const 1) (i32.const 240) (i32.const 1) (i32.const 1024)))
        (call $try (i32.const 21) (call $readdir
            (i32.const 3) (i32.const 1024) (i32.const 1024) (i64.const 0) (i32.const 16)))
        (call $try (i32.const 22) (call $unlink (i32.const 3) (i32.const 240) (i32.const 1)))
        (call $try (i32.const 23) (call $unlink (i32.const 3) (i32.const 210) (i32.const 3)))
        (call $try (i32.const 24) (call $rmdir (i32.const 3) (i32.const 200) (i32.const 1)))))"#;

#[test]
fn files_are_used_as_before_behind_the_wall() {
    let folder = tempfile::tempdir().unwrap();
    let ended = Guest::text(USES_FILES).preopen(folder.path(), "/", false).run();
    assert_eq!(ended.code, 0, "the step with this number fails: {ended:?}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["b"]);
    assert_eq!(&std::fs::read(folder.path().join("b")).unwrap()[..9], b"texttext\0");
}

#[test]
fn a_user_without_capabilities_uses_files_behind_the_wall() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can run as somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(1000), None).unwrap();
    let ended = Guest::text(USES_FILES).preopen(folder.path(), "/", false).user(1000).run();
    assert_eq!(ended.code, 0, "the step with this number fails: {ended:?}");
}

#[test]
fn nothing_but_the_plan_is_a_guests_environment() {
    let guest = || {
        Guest::named("go-env").own_env("LD_PRELOAD", "/x").own_env("HOME", "/root").own_env("RUST_BACKTRACE", "full")
    };
    let ended = guest().env("A", "1").run();
    let environment = ended.stdout.split_once(r#""env":"#).map_or(ended.stdout.as_str(), |(_, rest)| rest);
    assert!(environment.contains(r#""A":"1""#) && environment.contains(r#""HOME":"/root""#), "{}", ended.stdout);
    assert!(!ended.stdout.contains("LD_PRELOAD") && !ended.stdout.contains("RUST_BACKTRACE"), "{}", ended.stdout);
    let ended = guest().env("HOME", "/mine").run();
    assert!(ended.stdout.contains(r#""HOME":"/mine""#) && !ended.stdout.contains("/root"), "{}", ended.stdout);
}

#[test]
fn a_guest_that_would_see_a_kernel_file_system_is_refused() {
    for (host, guest, place) in
        [("/proc", "/host/proc", "/host/proc"), ("/", "/host", "/host/"), ("/proc/sys", "/me", "/me")]
    {
        let sentence = Guest::named("c-hello").preopen(Path::new(host), guest, false).refused_as_guest();
        assert!(sentence.contains("file system `") && sentence.contains(&format!("at `{place}")), "{sentence}");
    }
}

#[test]
fn the_process_has_the_modules_name() {
    let running = Guest::named("c-sleep").start().ready().said("sleeping");
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", running.child.id())).unwrap(), "c-sleep.wasm\n");
}

#[test]
fn initial_memory_beyond_the_limit_is_refused_with_both_numbers() {
    let limit = limit_file(32 * MIB);
    let guest = Guest::text(r#"(module (memory 2048) (func (export "_start")))"#).limit(limit.path());
    let sentence = guest.refused_as_guest();
    assert!(sentence.contains("134217728") && sentence.contains("33554432"), "{sentence}");
}

#[test]
fn initial_tables_beyond_the_bound_are_refused() {
    let guest = Guest::text(r#"(module (table 20000000 funcref) (func (export "_start")))"#);
    let sentence = guest.refused_as_guest();
    assert!(sentence.contains("20000000") && sentence.contains("10000000"), "{sentence}");
}

/// A module that grows by `body`, which leaves what `memory.grow` or `table.grow` answered, and exits with 1 for -1.
fn growing(body: &str) -> Guest {
    Guest::text(&format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory $one (export "memory") 1) (memory $two 1) (table $table 1 externref)
            (func (export "_start") (call $exit (i32.eq (i32.const -1) {body}))))"#
    ))
}

#[test]
fn memories_and_tables_share_the_limit() {
    let limit = limit_file(64 * MIB);
    for (body, refused) in [
        ("(memory.grow $one (i32.const 800))", false),
        ("(memory.grow $one (i32.const 1000))", true),
        ("(memory.grow $one (i32.const 500)) drop (memory.grow $two (i32.const 300))", false),
        ("(memory.grow $one (i32.const 500)) drop (memory.grow $two (i32.const 500))", true),
        ("(table.grow $table (ref.null extern) (i32.const 7000000))", false),
        ("(memory.grow $one (i32.const 500)) drop (table.grow $table (ref.null extern) (i32.const 7000000))", true),
    ] {
        let body = match body.split_once(" drop ") {
            Some((first, second)) => format!("(block (result i32) (drop {first}) {second})"),
            None => body.to_owned(),
        };
        assert_eq!(growing(&body).limit(limit.path()).run().code, i32::from(refused), "{body}");
    }
}

#[test]
fn tables_are_bounded_without_any_limit() {
    let grow = |elements: u32| growing(&format!("(table.grow $table (ref.null extern) (i32.const {elements}))"));
    assert_eq!(grow(9_000_000).run().code, 0);
    assert_eq!(grow(11_000_000).run().code, 1);
}

#[test]
fn a_guest_that_takes_all_is_refused_politely() {
    let limit = limit_file(64 * MIB);
    let ended = Guest::named("c-memgrow").limit(limit.path()).run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "refused after 59 MiB\n"));
}

#[test]
fn a_raised_limit_is_seen_by_a_running_guest() {
    let limit = limit_file(16 * MIB);
    // Tries to grow by 32 MiB until it can.
    let guest = Guest::text(
        r#"(module (memory 1)
            (func (export "_start") (loop $again (br_if $again (i32.eq (i32.const -1) (memory.grow (i32.const 512)))))))"#,
    );
    let mut running = guest.limit(limit.path()).start().ready();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(100) {
        assert!(running.child.try_wait().unwrap().is_none(), "it grew beyond its limit");
        pause();
    }
    set_limit(&limit, "max");
    assert_eq!(running.end().code, 0);
}

#[test]
fn arguments_environment_and_directory_arrive() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("work")).unwrap();
    let guest = Guest::named("go-env").args(&["one", "two words"]).env("A", "1").env("B", "x=y");
    let ended = guest.preopen(folder.path(), "/", false).cwd("/work").run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for part in [r#"["/app/go-env.wasm","one","two words"]"#, r#""A":"1""#, r#""B":"x=y""#, r#""cwd":"/work""#] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
}

#[test]
fn a_guest_has_the_directories_of_its_plan_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), "from the host").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("out")).unwrap();
    let files = |path: &Path, read_only: bool, steps: &[&str]| {
        Guest::named("c-files").preopen(path, "/data", read_only).args(steps).run()
    };
    let ended = files(folder.path(), false, &["read:/data/in", "write:/data/new=text", "read:/data/new"]);
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert!(ended.stdout.contains("from the host") && ended.stdout.contains("text"), "{}", ended.stdout);
    assert_eq!(std::fs::read_to_string(folder.path().join("new")).unwrap(), "text");
    let outside = ["read:/etc/passwd", "read:/data/../../etc/passwd", "read:/data/out", "list:/proc"];
    assert_eq!(files(folder.path(), false, &outside).code, 4);
    let ended = files(folder.path(), true, &["read:/data/in", "write:/data/more=text"]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    assert!(!folder.path().join("more").exists());
}

#[test]
fn a_missing_directory_is_the_hosts_fault() {
    let guest = Guest::named("c-hello").preopen(Path::new("/no/such/directory"), "/data", false);
    match guest.refused() {
        Refusal::Host(sentence) => assert!(sentence.contains("`/data`"), "{sentence}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn stdin_reaches_the_guest_until_its_end() {
    let text: Vec<u8> = (0..MIB).map(|index| b'a' + u8::try_from(index % 26).unwrap()).collect();
    for non_blocking in [false, true] {
        let (reader, mut writer) = UnixStream::pair().unwrap();
        reader.set_nonblocking(non_blocking).unwrap();
        let mut running = Guest::named("c-cat").stdin(std::os::fd::OwnedFd::from(reader)).start().ready();
        writer.write_all(&text).unwrap();
        drop(writer);
        let ended = running.end();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stdout.as_bytes() == text, "{} bytes of {}", ended.stdout.len(), text.len());
    }
}

#[test]
fn a_slow_reader_blocks_the_guest_and_loses_nothing() {
    for non_blocking in [false, true] {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(non_blocking).unwrap();
        let mut running =
            Guest::named("c-flood").args(&["2"]).stdout(std::os::fd::OwnedFd::from(writer)).start().ready();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            assert!(running.child.try_wait().unwrap().is_none(), "nobody has read, and the guest has ended");
            pause();
        }
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(running.end().code, 0);
        assert_eq!(text.lines().count(), 2 * 16384);
        assert!(text.lines().enumerate().all(|(index, line)| line.parse() == Ok(index)), "the lines are not in order");
    }
}

#[test]
fn a_reader_that_went_away_is_an_error_of_the_guest() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(Guest::named("c-flood").stdout(writer).run().code, 1);
}

#[test]
fn sigterm_ends_a_guest_after_a_short_grace() {
    for (name, said) in [("c-spin", "spinning"), ("c-sleep", "sleeping"), ("go-sleep", "")] {
        for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
            let mut running = Guest::named(name).start().ready().said(said);
            let begun = Instant::now();
            running.signal(signal);
            assert_eq!(running.end().code, code, "{name}");
            assert!(begun.elapsed() >= Duration::from_millis(250), "{name}: no grace");
        }
    }
}

#[test]
fn sigterm_ends_a_guest_that_blocks_in_the_host() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut running = Guest::named("c-flood").args(&["64"]).stdout(writer).start().ready();
    running.signal(libc::SIGTERM);
    assert_eq!(running.end().code, 143);
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut running = Guest::named("c-cat").stdin(reader).start().ready();
    running.signal(libc::SIGTERM);
    assert_eq!(running.end().code, 143);
}

#[test]
fn a_guest_that_ends_within_the_grace_keeps_its_code() {
    let mut running = Guest::named("c-sleep").args(&["150"]).start().ready().said("sleeping");
    running.signal(libc::SIGTERM);
    let ended = running.end();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "sleeping\nwoke\n"));
}

#[test]
fn other_signals_end_the_guest_at_once() {
    for (signal, code) in
        [(libc::SIGHUP, 129), (libc::SIGQUIT, 131), (libc::SIGUSR1, 138), (libc::SIGUSR2, 140), (libc::SIGALRM, 142)]
    {
        let mut running = Guest::named("c-spin").start().ready().said("spinning");
        running.signal(signal);
        assert_eq!(running.end().code, code);
    }
    let mut running = Guest::named("c-spin").start().ready().said("spinning");
    running.signal(libc::SIGTERM);
    running.signal(libc::SIGINT);
    assert!([130, 143].contains(&running.end().code));
}

#[test]
fn a_signal_before_the_guest_runs_ends_the_engine() {
    let mut running = Guest::named("c-hello").spawn();
    let status = format!("/proc/{}/status", running.child.id());
    wait_for("the signal handlers", || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
        caught.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & (1 << 14) != 0)
    });
    running.signal(libc::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, 143, "{}", ended.stderr);
}

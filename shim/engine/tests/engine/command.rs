//! Commands that run to their end: modules, components and single functions, their exit codes and their streams.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::driver::Guest;
use crate::watch::pause;

const MIB: u64 = 1 << 20;

/// A module with `body` as its `_start` and what it needs of WASI 0.1.
pub(crate) fn module(body: &str) -> Guest {
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
        let told = format!("skiff: /app/guest.wasm trapped: {message}, in <wasm function 1>\n");
        assert!(ended.stderr.ends_with(&told), "{body}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("skiff: backtrace of /app/guest.wasm, "), "{body}: {}", ended.stderr);
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
fn a_backtrace_has_files_and_lines_where_there_is_debug_information() {
    let ended = Guest::named("c-debug").own_env("WASMTIME_BACKTRACE_DETAILS", "0").run();
    assert_eq!(ended.code, 134);
    for part in ["at /src/c/debug.c:7:", "- middle\n", "at /src/c/debug.c:11:", "- outermost\n", "- main\n"] {
        assert!(ended.stderr.contains(part), "{part:?}: {}", ended.stderr);
    }
    let summary = "trapped: wasm `unreachable` instruction executed, in innermost (debug.c:7)\n";
    assert!(ended.stderr.ends_with(summary), "{}", ended.stderr);
}

#[test]
fn a_functions_name_is_a_part_of_one_line_of_a_backtrace() {
    let name = r"f\0a    1:    0x21e - m!innocent\0a                    at /src/innocent.c:1:1\0askiff: all is well";
    let ended = Guest::text(&format!(
        r#"(module $m (func $f (@name "{name}") unreachable) (func $main (export "_start") (call $f)))"#
    ))
    .run();
    assert_eq!(ended.code, 134);
    let shown = name.replace(r"\0a", r"\n");
    assert!(ended.stderr.contains(&format!(" - m!{shown}\n    1:")), "{}", ended.stderr);
    assert!(ended.stderr.contains(" - m!main\nskiff: /app/guest.wasm trapped"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 4, "{}", ended.stderr);
}

#[test]
fn debug_information_that_would_take_too_long_to_read_is_left_out() {
    // A unit, a function in it, and calls that are inlined into each other, too deep for the stack of whoever reads them.
    let info =
        [&[1, 0, 0, 0, 0, 0xff, 0, 0, 0, 2, 0, 0, 0, 0, 0xff, 0, 0, 0][..], &vec![3; 500_000], &vec![0; 500_002]]
            .concat();
    let length = u32::try_from(info.len() + 7).unwrap().to_le_bytes();
    let info = [&length[..], &[4, 0, 0, 0, 0, 0, 4], &info].concat();
    let escaped: String = info.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let kinds = "\\01\\11\\01\\11\\01\\12\\06\\00\\00\\02\\2e\\01\\11\\01\\12\\06\\00\\00\\03\\1d\\01\\00\\00\\00";
    let ended = Guest::text(&format!(
        r#"(module (@custom ".debug_abbrev" "{kinds}") (@custom ".debug_info" "{escaped}")
            (func $innermost unreachable) (func (export "_start") (call $innermost)))"#
    ))
    .run();
    assert_eq!(ended.code, 134, "{}", ended.stderr);
    assert!(ended.stderr.ends_with("instruction executed, in innermost\n"), "{}", ended.stderr);
}

#[test]
fn an_exit_does_not_read_debug_information() {
    // Many units, all of which are looked at for each call of a backtrace.
    let kind = "\\01\\11\\00\\11\\01\\12\\06\\00\\00\\00";
    let unit = "\\10\\00\\00\\00\\04\\00\\00\\00\\00\\00\\04\\01\\00\\00\\00\\00\\01\\00\\00\\00";
    let units = unit.repeat(10_000);
    let time = |end: &str, code| {
        let guest = || {
            Guest::text(&format!(
                r#"(module (@custom ".debug_abbrev" "{kind}") (@custom ".debug_info" "{units}")
                (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (memory (export "memory") 1)
                (func $go (param $depth i32)
                  (if (i32.eqz (local.get $depth)) (then {end}))
                  (call $go (i32.sub (local.get $depth) (i32.const 1))))
                (func (export "_start") (call $go (i32.const 30))))"#
            ))
        };
        let run = |guest: Guest| {
            let begun = Instant::now();
            assert_eq!(guest.run().code, code);
            begun.elapsed()
        };
        // The shortest of some: others may have the processor.
        std::iter::repeat_with(|| run(guest())).take(3).min().unwrap()
    };
    let (exit, trap) = (time("(call $exit (i32.const 7))", 7), time("unreachable", 134));
    println!("an exit takes {exit:?}, a trap {trap:?}");
    assert!(exit * 3 < trap, "{exit:?}, {trap:?}");
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
    let ended = reactor("seven").run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "7\n"));
    assert_eq!(reactor("leave").run().code, 9);
    assert_eq!(reactor("fail").run().code, 134);
}

#[test]
fn a_function_that_cannot_be_called_is_refused_by_name() {
    let reactor = |function: &str| Guest::named("c-reactor").function(function).refused_as_guest();
    assert_eq!(
        reactor("add"),
        "`/app/c-reactor.wasm` exports the function `add`, which takes 2 parameters: skiff passes none"
    );
    assert_eq!(reactor("gone"), "`/app/c-reactor.wasm` exports no function `gone`");
    assert_eq!(reactor("memory"), "`/app/c-reactor.wasm` exports `memory`, but it is a memory, not a function");
    assert_eq!(
        Guest::text("(module (memory (export \"memory\") 1) (func (export \"_initialize\")))").refused_as_guest(),
        "`/app/guest.wasm` exports no function `_start`: it is neither a command nor a service, which exports functions"
    );
}

/// A component that exports `run` of `wasi:cli/run`, which returns `code`, and some functions.
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
fn the_result_of_a_function_is_printed() {
    let two = "(module (func (export \"two\") (result i64 f32) (i64.const -5) (f32.const 0.5)))";
    let ended = Guest::text(two).function("two").run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "-5\n0.5\n"));
    let of_component = |ty: &str| {
        Guest::text(&format!(
            r#"(component
                (core module $m (memory (export "memory") 1) (data (i32.const 16) "\00\00\00\00\20\00\00\00\05\00\00\00")
                    (data (i32.const 32) "hello")
                    (func (export "f") (result i32) (i32.const 16)))
                (core instance $i (instantiate $m))
                (func (export "f") (result {ty}) (canon lift (core func $i "f") (memory (core memory $i "memory")))))"#
        ))
        .function("f")
        .run()
    };
    for (ty, code, text) in [
        ("u8", 0, "16\n"),
        ("(tuple u32 string)", 0, "(0, \"hello\")\n"),
        ("(result u32 (error u32))", 0, "ok(32)\n"),
        ("(result (error string))", 0, ""),
    ] {
        let ended = of_component(ty);
        assert_eq!((ended.code, ended.stdout.as_str()), (code, text), "{ty}: {ended:?}");
    }
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
fn a_file_in_the_place_of_stdin_is_read_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "first, second").unwrap();
    let reading = Guest::text(
        r#"(module
            (import "wasi_snapshot_preview1" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\10\00\00\00\07\00\00\00")
            (data (i32.const 8) "file")
            (func (export "_start")
                (if (call $open (i32.const 3) (i32.const 0) (i32.const 8) (i32.const 4) (i32.const 0)
                    (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 32)) (then unreachable))
                (if (call $renumber (i32.load (i32.const 32)) (i32.const 0)) (then unreachable))
                (loop $again
                    (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 36)) (then unreachable))
                    (i32.store (i32.const 4) (i32.load (i32.const 36)))
                    (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)) (then unreachable))
                    (br_if $again (i32.load (i32.const 36))))))"#,
    );
    let ended = reading.preopen(folder.path(), "/", true).run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "first, second"), "{}", ended.stderr);
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

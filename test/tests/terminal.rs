//! Terminals of wasm containers: the guest sees one, what is typed reaches it, and the keys that end a program end it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use skiff_test::{
    Archive, Container, Containerd, File as Packed, Image, Job, Lasting, Streams, assert_nothing_left, free_port, get,
    guest, random_name, serving, until,
};
use tonic::Code;

/// The annotation with the pod's id, which containerd sets.
const POD: &str = "io.kubernetes.cri.sandbox-id";
const CTRL_C: &[u8] = b"\x03";
const CTRL_D: &[u8] = b"\x04";
const CTRL_Z: &[u8] = b"\x1a";
const CTRL_BACKSLASH: &[u8] = b"\x1c";
/// How long nothing may happen before it is taken for granted.
const QUIET: Duration = Duration::from_millis(500);

/// A job at a terminal on which somebody types.
fn typed_at(job: Job<'_>) -> Container<'_> {
    job.terminal().stdin().start()
}

/// The guest that copies its input to its output, which has begun to do so.
fn copying(job: Job<'_>) -> Container<'_> {
    let container = typed_at(job);
    container.streams.write(b"begin\n");
    container.streams.wait_for_stdout("begin\r\nbegin\r\n");
    container
}

/// A job that is a container of a pod, in which each signal that is sent may be the one that stops it.
fn of_a_pod(job: Job<'_>) -> Job<'_> {
    let id = job.id().to_owned();
    job.annotation(POD, &id)
}

fn cat() -> Job<'static> {
    Containerd::shared().job("c-cat")
}

/// A core module whose function tells which streams are terminals, as C libraries of WASI 0.1 find it out (1, 2 and 4), and
/// which are character devices, as Go does (8, 16 and 32).
const WASI_0_1: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $status (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_filestat_get" (func $file (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $terminal (param $fd i32) (result i32)
    (drop (call $status (local.get $fd) (i32.const 0)))
    (i32.and
      (i32.eq (i32.load8_u (i32.const 0)) (i32.const 2))
      (i64.eqz (i64.and (i64.load (i32.const 8)) (i64.const 0x24)))))
  (func $device (param $fd i32) (result i32)
    (drop (call $file (local.get $fd) (i32.const 64)))
    (i32.eq (i32.load8_u (i32.const 80)) (i32.const 2)))
  (func $of (param $fd i32) (result i32)
    (i32.shl
      (i32.or (call $terminal (local.get $fd)) (i32.shl (call $device (local.get $fd)) (i32.const 3)))
      (local.get $fd)))
  (func (export "look") (result i32)
    (i32.or (i32.or (call $of (i32.const 0)) (call $of (i32.const 1))) (call $of (i32.const 2)))))"#;

/// A component whose function tells which streams have a terminal, by the interfaces of this release of WASI.
fn component(release: &str) -> String {
    let streams = [("stdin", "input"), ("stdout", "output"), ("stderr", "output")];
    let imports = streams.map(|(stream, kind)| {
        format!(
            r#"(import "wasi:cli/terminal-{stream}@{release}" (instance ${stream}
                 (alias outer 1 ${kind} (type $t)) (export "terminal-{kind}" (type $of (eq $t)))
                 (export "get-terminal-{stream}" (func (result (option (own $of)))))))"#
        )
    });
    let lowered = streams.map(|(stream, _)| {
        format!(
            r#"(core func $get-{stream} (canon lower (func ${stream} "get-terminal-{stream}") (memory (core memory $memory "memory"))))"#
        )
    });
    let kinds = ["input", "output"].map(|kind| {
        format!(
            r#"(import "wasi:cli/terminal-{kind}@{release}" (instance $i-{kind} (export "terminal-{kind}" (type (sub resource)))))
               (alias export $i-{kind} "terminal-{kind}" (type ${kind}))"#
        )
    });
    let functions = streams.map(|(stream, _)| format!(r#"(export "{stream}" (func $get-{stream}))"#));
    let [kinds, imports, lowered] = [kinds.concat(), imports.concat(), lowered.concat()];
    let functions = functions.concat();
    format!(
        r#"(component {kinds} {imports}
          (core module $m (memory (export "memory") 1))
          (core instance $memory (instantiate $m))
          {lowered}
          (core module $look
            (import "streams" "memory" (memory 1))
            (import "streams" "stdin" (func $stdin (param i32)))
            (import "streams" "stdout" (func $stdout (param i32)))
            (import "streams" "stderr" (func $stderr (param i32)))
            (func (export "look") (result i32)
              (call $stdin (i32.const 0)) (call $stdout (i32.const 8)) (call $stderr (i32.const 16))
              (i32.or
                (i32.load8_u (i32.const 0))
                (i32.or
                  (i32.shl (i32.load8_u (i32.const 8)) (i32.const 1))
                  (i32.shl (i32.load8_u (i32.const 16)) (i32.const 2))))))
          (core instance $looks (instantiate $look
            (with "streams" (instance (export "memory" (memory $memory "memory")) {functions}))))
          (func (export "look") (result u32) (canon lift (core func $looks "look"))))"#
    )
}

#[test]
fn a_guest_sees_a_terminal_where_there_is_one_and_nowhere_else() {
    let containerd = Containerd::shared();
    for (name, text, at_terminal) in [
        ("0.1", WASI_0_1.to_owned(), "63"),
        ("0.0", WASI_0_1.replace("wasi_snapshot_preview1", "wasi_unstable"), "63"),
        ("0.2", component("0.2.0"), "7"),
        ("0.3", component("0.3.0"), "7"),
    ] {
        let job = || containerd.job_of(&Image::of_text(containerd, &text)).command(["/app.wasm#look"]);
        let said = job().terminal().stdin().run();
        assert_eq!((said.code, said.stdout), (0, format!("{at_terminal}\r\n")), "WASI {name} at a terminal");
        let said = job().stdin().run();
        assert_eq!((said.code, said.stdout.as_str()), (0, "0\n"), "WASI {name} with pipes");
    }
}

#[test]
fn what_is_typed_is_shown_and_reaches_the_guest_and_ctrl_d_ends_its_input() {
    for job in [cat(), cat().user(1000, 1000)] {
        let container = copying(job);
        container.streams.write(b"one\x7fly\n");
        container.streams.wait_for_stdout("only\r\n");
        container.streams.write(CTRL_D);
        let outcome = container.finish();
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
}

/// A module that says `end` whenever a read finds nothing, and ends with the second time.
const TWO_ENDS: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\40\00\00\00\40\00\00\00") (data (i32.const 16) "\20\00\00\00\04\00\00\00")
  (data (i32.const 32) "end\n")
  (func (export "_start") (local $ends i32)
    (loop $again
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 24)))
      (if (i32.eqz (i32.load (i32.const 24))) (then
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 28)))
        (local.set $ends (i32.add (local.get $ends) (i32.const 1)))))
      (br_if $again (i32.lt_u (local.get $ends) (i32.const 2))))))"#;

#[test]
fn ctrl_d_ends_one_read_and_the_next_one_waits_again() {
    let containerd = Containerd::shared();
    let job = || containerd.job_of(&Image::of_text(containerd, TWO_ENDS));
    let container = typed_at(job());
    container.streams.write(CTRL_D);
    container.streams.wait_for_stdout("end\r\n");
    assert!(container.wait_for(QUIET).is_err(), "it does not wait");
    container.streams.write(&[b"line\n", CTRL_D].concat());
    let outcome = container.finish();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "end\r\nline\r\nend\r\n"));
    // What is no terminal ends for good.
    let outcome = job().run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "end\nend\n"));
}

#[test]
fn keys_that_end_a_program_end_a_guest_with_128_and_their_signal() {
    let containerd = Containerd::shared();
    for (name, key, code) in [("Ctrl-C", CTRL_C, 130), ("Ctrl-\\", CTRL_BACKSLASH, 131)] {
        for in_pod in [false, true] {
            let placed = |job| if in_pod { of_a_pod(job) } else { job };
            let container = copying(placed(cat()));
            container.streams.write(key);
            assert_eq!(container.finish().code, code, "{name}, a guest that reads, in a pod: {in_pod}");
            let container = typed_at(placed(containerd.job("c-spin")));
            container.streams.wait_for_stdout("spinning\r\n");
            container.streams.write(key);
            assert_eq!(container.finish().code, code, "{name}, a guest that computes, in a pod: {in_pod}");
        }
    }
}

#[test]
fn a_guest_that_ends_just_after_ctrl_c_keeps_its_code() {
    let container = copying(cat());
    // At once, so that the guest has all of its grace for what is typed after Ctrl-C.
    container.streams.write(&[CTRL_C, b"after\n", CTRL_D].concat());
    let outcome = container.finish();
    assert!(outcome.code == 0 && outcome.stdout.ends_with("after\r\nafter\r\n"), "{outcome:?}");
}

#[test]
fn ctrl_z_and_a_new_size_change_nothing() {
    for in_pod in [false, true] {
        let container = copying(if in_pod { of_a_pod(cat()) } else { cat() });
        container.streams.write(CTRL_Z);
        for (width, height) in [(80, 24), (132, 43)] {
            container.resize(width, height).unwrap();
        }
        assert!(container.wait_for(QUIET).is_err(), "it ended, in a pod: {in_pod}");
        container.streams.write(b"after\n");
        container.streams.wait_for_stdout("after\r\nafter\r\n");
        container.streams.write(CTRL_D);
        assert_eq!(container.finish().code, 0, "in a pod: {in_pod}");
    }
}

#[test]
fn a_container_without_a_terminal_has_no_size() {
    let container = Containerd::shared().job("c-spin").start();
    let refused = container.resize(80, 24).unwrap_err();
    assert!(refused.message.contains("has no terminal"), "{refused}");
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137, "it goes on after a refusal");
}

#[test]
fn a_terminal_with_a_log_file_is_refused_by_name() {
    let containerd = Containerd::shared();
    for job in [cat(), containerd.shell("echo")] {
        let refused = job.terminal().log("file:///nowhere/log").refused();
        assert_eq!(refused.code, Code::Unimplemented, "{refused}");
        assert!(refused.message.contains("a terminal's output to an address `file://`"), "{refused}");
    }
}

#[test]
fn a_log_program_gets_what_is_written_to_a_terminal() {
    let containerd = Containerd::shared();
    let directory = tempfile::tempdir().unwrap();
    let (program, log) = (directory.path().join("logger"), directory.path().join("log"));
    let script = format!("#!/bin/sh\nexec 5>&-\n{{ echo \"$CONTAINER_ID\"; cat <&3; }} > {}\n", log.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for (job, code, said) in [
        (containerd.job("c-hello"), 0, "hello\r\n"),
        (containerd.shell("tty >&2 && echo hello"), 0, "hello\r\n"),
        (containerd.job("c-trap").args(["unreachable"]), 134, "trapped: wasm `unreachable`"),
    ] {
        let container = job.terminal().log(&format!("binary://{}", program.display())).start();
        let id = container.id.clone();
        assert_eq!(container.wait(), code);
        drop(container);
        let read = || fs::read_to_string(&log).unwrap_or_default();
        let is_whole = || read().starts_with(&format!("{id}\n")) && read().contains(said);
        assert!(until(Duration::from_secs(60), is_whole), "{said:?} is not in {:?}", read());
        fs::remove_file(&log).unwrap();
    }
}

#[test]
fn a_client_leaves_a_terminal_and_another_one_comes() {
    let container = cat().terminal().stdin().streams(Streams::unread()).create();
    let open = || File::open(container.streams.path("stdout")).unwrap();
    let read = |stdout: &mut File, expected: &str| {
        let mut read = vec![0; expected.len()];
        stdout.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), expected);
    };
    let mut stdout = open();
    container.start().unwrap();
    container.streams.write(b"first\n");
    read(&mut stdout, "first\r\nfirst\r\n");
    container.streams.close_stdin();
    drop(stdout);
    assert!(container.wait_for(QUIET).is_err(), "it ended with its client");
    container.streams.write(b"meanwhile\n");
    let mut stdout = open();
    read(&mut stdout, "meanwhile\r\nmeanwhile\r\n");
    container.streams.write(CTRL_D);
    assert_eq!(container.wait(), 0);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn a_terminals_output_is_whole_when_the_guest_ends() {
    let outcome = Containerd::shared().job("c-flood").args(["1"]).terminal().run();
    assert_eq!((outcome.code, outcome.stdout.len()), (0, (1 << 20) / 64 * 65));
}

#[test]
fn messages_of_the_engine_and_of_the_shim_are_on_the_terminal() {
    let containerd = Containerd::shared();
    let trapped = containerd.job("c-trap").args(["unreachable"]).terminal().run();
    assert!(trapped.code == 134 && trapped.stdout.contains("trapped: wasm `unreachable`"), "{trapped:?}");
    let filled = containerd
        .job("c-fill")
        .args(["/data/big"])
        .mount("/data", "tmpfs", "tmpfs", &["size=512m"])
        .memory(64 << 20)
        .terminal()
        .run();
    assert_eq!(filled.code, 137, "{filled:?}");
    let last = filled.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("skiff: killed by the kernel at its memory limit of"), "{filled:?}");
}

#[test]
fn the_shell_of_sqlite_is_used_as_on_any_terminal() {
    let shell = || Containerd::shared().job("sqlite-shell");
    let at_terminal = || {
        let container = typed_at(shell());
        container.streams.wait_for_stdout("sqlite> ");
        container.streams.write(b"select 1+1;\n");
        container.streams.wait_for_stdout("sqlite> select 1+1;\r\n2\r\nsqlite> ");
        container
    };
    let container = at_terminal();
    container.streams.write(b"create table t(a); insert into t values (20), (22);\nselect sum(a)\n");
    container.streams.wait_for_stdout("   ...> ");
    container.resize(132, 43).unwrap();
    container.streams.write(b"from t;\n");
    container.streams.wait_for_stdout("from t;\r\n42\r\nsqlite> ");
    for (end, code) in [(&b".exit 7\n"[..], 7), (CTRL_D, 0), (CTRL_C, 130)] {
        let container = at_terminal();
        container.streams.write(end);
        assert_eq!(container.finish().code, code);
    }
    let container = shell().stdin().start();
    container.streams.write(b"select 1+1;\n");
    container.streams.close_stdin();
    container.close_io().unwrap();
    let outcome = container.finish();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "2\n"), "it prompts nobody");
}

#[test]
fn a_module_that_is_executed_in_a_container_has_a_terminal_of_its_own() {
    let containerd = Containerd::shared();
    let module = |name: &str| fs::read(guest(name)).unwrap();
    let files = [Packed::program("app.wasm", module("c-sleep")), Packed::program("sql.wasm", module("sqlite-shell"))];
    let container = containerd.job_of(&Archive::ordinary(&files, &["/app.wasm"]).import(containerd)).start();
    for (end, code) in [(&b".exit 7\n"[..], 7), (CTRL_D, 0), (CTRL_C, 130), (CTRL_BACKSLASH, 131)] {
        let shell = container.exec(&["/sql.wasm"], true).unwrap();
        shell.start().unwrap();
        shell.resize(132, 43).unwrap();
        shell.streams.write(b"select 1+1;\n");
        shell.streams.wait_for_stdout("2\r\nsqlite> ");
        shell.streams.write(end);
        let outcome = shell.finish();
        assert_eq!(outcome.code, code, "{outcome:?}");
    }
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137, "the container does not end with what is executed in it");
}

#[test]
fn ctr_runs_a_guest_at_its_own_terminal() {
    let containerd = Containerd::shared();
    let id = random_name("ctr");
    let command = containerd.ctr_run_command(&id, &containerd.guest("sqlite-shell"), &["--tty"], &[]);
    let mut session = Lasting::at_terminal(&command);
    session.expect("sqlite> ");
    session.write("select 1+1;\n");
    session.expect("\n2\r");
    session.write(".exit 0\n");
    session.end().unwrap();
    assert_nothing_left(containerd, &id);
}

#[test]
fn ctr_executes_a_module_at_a_terminal_of_its_own() {
    let containerd = Containerd::shared();
    let module = |name: &str| fs::read(guest(name)).unwrap();
    let files = [Packed::program("app.wasm", module("c-sleep")), Packed::program("sql.wasm", module("sqlite-shell"))];
    let container = containerd.job_of(&Archive::ordinary(&files, &["/app.wasm"]).import(containerd)).start();
    let words = ["tasks", "exec", "--tty", "--exec-id", "shell", &container.id, "/sql.wasm"];
    let mut session = Lasting::at_terminal(&containerd.ctr_command(words));
    session.expect("sqlite> ");
    session.write("select 1+1;\n");
    session.expect("\n2\r");
    session.write(".exit 7\n");
    assert!(session.end().is_err(), "it ends with the code of the shell");
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
}

#[test]
fn a_server_at_a_terminal_serves_until_ctrl_c() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let container = serving(Containerd::shared().job(guest).terminal().stdin(), port);
        assert_eq!(get(port, "/log").unwrap().text(), "logged\n", "{guest}");
        container.streams.wait_for_stdout("on stdout\r\n");
        container.streams.write(CTRL_C);
        assert_eq!(container.finish().code, 0, "{guest}");
    }
}

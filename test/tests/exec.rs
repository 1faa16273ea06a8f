//! Further processes in a wasm container: what their arguments mean, and how they live and end.

use std::fs;
use std::sync::OnceLock;

use nix::sys::signal::Signal;
use serde_json::json;
use skiff_test::{
    Archive, Container, Containerd, Exec, File, Image, children_of, eventually, guest, is_alive, signal, slow_module,
    tools, zombies_of,
};
use tonic::Code;

/// A module with a function that says something.
const LIBRARY: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\06\00\00\00") (data (i32.const 16) "greet\n")
    (func (export "greet") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// An image whose guest sleeps, with modules and native programs beside it.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let read = |name: &str| fs::read(guest(name)).unwrap();
        let files = [
            File::program("app.wasm", read("c-sleep")),
            File::program("bin/hello.wasm", read("c-hello")),
            File::program("bin/cat.wasm", read("c-cat")),
            File::program("bin/grow.wasm", read("c-grow")),
            File::program("bin/sleep.wasm", read("c-sleep")),
            File::program("work/tool", read("c-hello")),
            File::link("work/busybox-here", "../bin/busybox"),
            File::program("lib.wasm", wat::parse_str(LIBRARY).unwrap()),
            File::program("broken.wasm", b"\0asm\x01\0\0\0broken".to_vec()),
            File::text("notes.txt", "notes"),
            File::program("bin/busybox", fs::read(tools().join("busybox")).unwrap()),
            File::link("bin/sh", "busybox"),
            File::link("bin/both", "hello.wasm"),
            File::program("bin/both.wasm", read("c-cat")),
        ];
        Archive::ordinary(&files, &["/app.wasm"]).import(Containerd::shared())
    })
}

/// A container whose guest sleeps.
fn sleeping() -> Container<'static> {
    let container = Containerd::shared().job_of(image()).start();
    container.streams.wait_for_stdout("sleeping\n");
    container
}

fn holds(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

fn started<'a>(container: &'a Container<'_>, args: &[&str]) -> Exec<'a> {
    let exec = container.exec(args, false).unwrap();
    exec.start().unwrap_or_else(|refused| panic!("{args:?}: {refused}"));
    exec
}

fn end(container: Container<'_>) {
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
}

#[test]
fn arguments_mean_a_module_a_native_program_or_nothing() {
    let container = sleeping();
    for (args, code, stdout) in [
        (&["/bin/hello.wasm", "args", "x"][..], 0, "/bin/hello.wasm\nargs\nx\n"),
        (&["bin/hello.wasm", "args"], 0, "bin/hello.wasm\nargs\n"),
        (&["hello.wasm", "args", "x", "y"], 0, "hello.wasm\nargs\nx\ny\n"),
        (&["hello", "args"], 0, "hello\nargs\n"),
        (&["/bin/hello", "exit", "7"], 7, ""),
        // The magic number decides, not the name.
        (&["/work/tool", "args"], 0, "/work/tool\nargs\n"),
        // A file of just this name comes first.
        (&["both", "args"], 0, "both\nargs\n"),
        (&["/lib.wasm#greet"], 0, "greet\n"),
        (&["/lib#greet"], 0, "greet\n"),
        (&["/bin/sh", "-c", "echo native; exit 3"], 3, "native\n"),
        (&["sh", "-c", "echo $0 $PATH"], 0, "sh /bin\n"),
        (&["ls", "-l"], 127, ""),
        (&["/no/such/file"], 127, ""),
        (&["/lib.wasm#"], 127, ""),
    ] {
        let outcome = started(&container, args).finish();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (code, stdout), "{args:?}: {outcome:?}");
        if code == 127 {
            let sentence = format!("there is no `{}` in this wasm container", args[0]);
            assert!(outcome.stderr.contains(&sentence) && outcome.stderr.contains("`invoke "), "{outcome:?}");
        }
    }
    end(container);
}

#[test]
fn the_commands_of_skiff_show_the_container_and_its_guest() {
    let container = sleeping();
    for (args, part) in [
        (&["skiff", "ls", "/"][..], "notes.txt\n"),
        (&["skiff", "cat", "/notes.txt"], "notes"),
        (&["skiff", "stat", "/notes.txt"], "/notes.txt"),
        (&["skiff", "env"], "PATH="),
        (&["skiff", "mounts"], "/"),
        (&["skiff", "ps"], "  instance  "),
        (&["skiff", "memory"], "refused growths: 0\n"),
    ] {
        let outcome = started(&container, args).finish();
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}: {outcome:?}");
        assert!(outcome.stdout.contains(part), "{args:?}: {outcome:?}");
    }
    let outcome = started(&container, &["skiff", "backtrace"]).finish();
    assert!(outcome.code == 0 && outcome.stdout.contains("waits in `poll_oneoff`"), "{outcome:?}");
    end(container);
}

#[test]
fn what_cannot_be_run_is_refused_by_start_and_has_ended() {
    let container = sleeping();
    for (args, part) in [
        (&["/broken.wasm"][..], "`/broken.wasm` is corrupt"),
        (&["/notes.txt"], "`/notes.txt`"),
        (&["/lib.wasm#none"], "none"),
        (&[""], "its arguments are empty"),
    ] {
        let exec = container.exec(args, false).unwrap();
        let refused = exec.start().unwrap_err();
        assert!(refused.message.contains(part), "{args:?}: {refused}");
        assert_eq!(exec.state().unwrap().status, 3, "{args:?} is stopped");
        exec.delete().unwrap();
    }
    holds("nothing but the guest is left", || container.pids().unwrap() == [container.pid]);
    end(container);
}

#[test]
fn an_exec_has_its_own_arguments_environment_directory_and_user() {
    let container = sleeping();
    let process = |args: &[&str]| json!({"args": args, "cwd": "/work", "env": ["PATH=/bin", "A=1"], "user": {"uid": 1000, "gid": 1000}});
    for (args, stdout) in [
        (&["tool", "args"][..], "tool\nargs\n"),
        (&["./tool", "env", "PWD"], "/work\n"),
        (&["./busybox-here", "echo", "native"], "native\n"),
        // In the working directory only a module is found by its bare name.
        (&["busybox-here", "echo", "native"], ""),
        (&["hello", "env", "A"], "1\n"),
        (&["hello", "env", "PATH"], "/bin\n"),
    ] {
        let exec = container.exec_of(&process(args)).unwrap();
        let pid = exec.start().unwrap();
        assert_ne!(pid, container.pid);
        assert_eq!(exec.finish().stdout, stdout, "{args:?}");
    }
    let exec = container.exec_of(&process(&["sleep"])).unwrap();
    let pid = exec.start().unwrap();
    exec.streams.wait_for_stdout("sleeping\n");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t1000\t1000\t1000\t1000"), "{status}");
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_eq!(of(pid), of(container.pid), "{namespace}");
    }
    let cgroup = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroup(pid), cgroup(container.pid));
    exec.kill(libc::SIGKILL).unwrap();
    assert_eq!(exec.finish().code, 137);
    end(container);
}

#[test]
fn an_exec_is_read_from_killed_and_seen_among_the_processes() {
    let container = sleeping();
    let exec = started(&container, &["cat"]);
    exec.streams.write(b"through");
    exec.streams.close_stdin();
    exec.close_io().unwrap();
    assert_eq!(exec.finish().stdout, "through");
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGKILL, 137)] {
        let exec = container.exec(&["sleep"], false).unwrap();
        assert_eq!(exec.state().unwrap().status, 1, "created");
        let pid = exec.start().unwrap();
        exec.streams.wait_for_stdout("sleeping\n");
        assert_eq!((exec.state().unwrap().status, exec.state().unwrap().pid), (2, pid), "running");
        assert!(container.pids().unwrap().contains(&pid));
        let refused = exec.resize(80, 24).unwrap_err();
        assert!(refused.message.contains("the process has no terminal"), "{refused}");
        exec.kill(signal).unwrap();
        assert_eq!(exec.finish().code, code);
    }
    assert_eq!(container.pids().unwrap(), [container.pid]);
    end(container);
}

#[test]
fn an_orphan_of_an_exec_leaves_no_zombie() {
    let container = sleeping();
    let outcome = started(&container, &["sh", "-c", "busybox sleep 1000 >/dev/null 2>&1 &"]).finish();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let orphans = || children_of(container.pid);
    holds("the guest's engine is its parent", || !orphans().is_empty());
    for orphan in orphans() {
        signal(orphan, Signal::SIGKILL).unwrap();
    }
    holds("it is gone", || orphans().is_empty() && zombies_of(container.pid).is_empty());
    assert_eq!(container.pids().unwrap(), [container.pid]);
    end(container);
}

#[test]
fn an_exec_needs_a_container_that_runs_and_ends_with_it() {
    let container = Containerd::shared().job_of(image()).create();
    let early = container.exec(&["hello"], false).unwrap();
    let refused = early.start().unwrap_err();
    assert!(refused.message.contains("cannot start a process in a container that is created"), "{refused}");
    early.delete().unwrap();
    container.start().unwrap();
    container.streams.wait_for_stdout("sleeping\n");
    container.pause_patiently();
    let paused = container.exec(&["hello"], false).unwrap();
    let refused = paused.start().unwrap_err();
    assert!(refused.message.contains("cannot start a process in a container that is paused"), "{refused}");
    container.resume().unwrap();
    assert_eq!(started(&container, &["hello"]).finish().code, 0);
    let exec = started(&container, &["sleep"]);
    let pid = exec.state().unwrap().pid;
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.wait(), 137);
    assert_eq!(exec.finish().code, 137);
    assert!(!is_alive(pid));
    let late = container.exec(&["hello"], false).unwrap();
    let refused = late.start().unwrap_err();
    assert!(refused.message.contains("stopped") || refused.code == Code::NotFound, "{refused}");
    drop((early, paused, late));
    container.finish();
}

#[test]
fn an_exec_that_is_still_compiled_is_killed_or_deleted_or_ends_with_its_container() {
    let containerd = Containerd::with_own_cache();
    let files = [
        File::program("app.wasm", fs::read(guest("c-sleep")).unwrap()),
        File::program("slow.wasm", slow_module(11, 700)),
    ];
    let image = Archive::ordinary(&files, &["/app.wasm"]).import(&containerd);
    let container = containerd.job_of(&image).start();
    let compiles = || !containerd.compilers().is_empty();
    for way in ["killed", "deleted", "with its container"] {
        let exec = container.exec(&["/slow.wasm"], false).unwrap();
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| exec.start());
            holds("it compiles", compiles);
            match way {
                "killed" => exec.kill(libc::SIGKILL).unwrap(),
                "deleted" => exec.delete().unwrap(),
                _ => container.kill(libc::SIGKILL).unwrap(),
            }
            let refused = starting.join().unwrap().unwrap_err();
            assert_eq!(refused.code, Code::FailedPrecondition, "{way}: {refused}");
        });
        holds("the compiler ends", || !compiles());
        if way == "killed" {
            exec.delete().unwrap();
        }
        if way != "with its container" {
            assert_eq!(container.pids().unwrap(), [container.pid], "{way}");
        }
    }
    assert_eq!(container.finish().code, 137);
}

#[test]
fn a_guest_that_has_taken_all_memory_is_not_killed_by_an_exec() {
    let job = Containerd::shared().job_of(image()).command(["/bin/grow.wasm", "wait", "1"]).stdin().memory(32 << 20);
    let container = job.start();
    holds("it has taken all", || container.streams.stdout().contains("refused after"));
    for args in [&["hello"][..], &["sh", "-c", "true"], &["nothing"]] {
        let exec = container.exec(args, false).unwrap();
        let refused = exec.start().unwrap_err();
        assert!(refused.message.contains("there is no memory for another process"), "{args:?}: {refused}");
        exec.delete().unwrap();
    }
    container.streams.write(b"1\n");
    container.streams.close_stdin();
    container.close_io().unwrap();
    let outcome = container.finish();
    assert_eq!(outcome.code, 0, "the guest was not killed: {outcome:?}");
}

#[test]
fn a_small_container_has_room_for_a_probe() {
    let job =
        Containerd::shared().job_of(image()).command(["/bin/grow.wasm", "wait", "1", "6"]).stdin().memory(16 << 20);
    let container = job.start();
    container.streams.wait_for_stdout("grew 6 MiB\n");
    for args in [&["sh", "-c", "true"][..], &["hello", "args"]] {
        for _ in 0..10 {
            let outcome = started(&container, args).finish();
            assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}");
        }
    }
    end(container);
}

#[test]
fn the_processes_of_a_container_share_one_limit() {
    let container = Containerd::shared().job_of(image()).memory(64 << 20).start();
    container.streams.wait_for_stdout("sleeping\n");
    let first = started(&container, &["grow", "wait"]);
    holds("it has taken all", || first.streams.stdout().contains("refused after"));
    let refused = container.exec(&["hello"], false).unwrap().start().unwrap_err();
    assert!(refused.message.contains("there is no memory for another process"), "{refused}");
    // What a killed process had taken is free again.
    first.kill(libc::SIGKILL).unwrap();
    assert_eq!(first.finish().code, 137);
    let second = started(&container, &["grow", "on", "16", "30"]);
    let outcome = second.finish();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "grew 30 MiB\n"));
    end(container);
}

#[test]
fn a_hundred_execs_at_once_run_in_one_container() {
    let container = sleeping();
    std::thread::scope(|scope| {
        let execs: Vec<_> = (0..100)
            .map(|number: u32| {
                let container = &container;
                scope.spawn(move || {
                    let word = number.to_string();
                    let outcome = started(container, &["hello", "exit", &word]).finish();
                    assert_eq!(outcome.code, number, "{outcome:?}");
                })
            })
            .collect();
        execs.into_iter().for_each(|exec| exec.join().unwrap());
    });
    assert_eq!(container.pids().unwrap(), [container.pid]);
    end(container);
}

//! How containers end: exit codes, traps and signals, as containerd reports them.

use std::time::{Duration, Instant};

use skiff_test::{Container, Containerd, Image, Outcome, mostly};
use tonic::Code;

/// What guests that do not end by themselves print first.
const STARTED: [(&str, &[&str], &str); 5] = [
    ("c-spin", &[], "spinning\n"),
    ("c-sleep", &[], "sleeping\n"),
    ("go-sleep", &[], "sleeping\n"),
    ("rust-p2-hello", &["sleep", "3600000"], "sleeping\n"),
    ("c-flood", &["4"], "0000"),
];

fn run(guest: &str, args: &[&str]) -> Outcome {
    Containerd::shared().job(guest).args(args.iter().copied()).run()
}

fn run_text(module: &str) -> Outcome {
    let containerd = Containerd::shared();
    containerd.job_of(&Image::of_text(containerd, module)).run()
}

fn started(guest: &str, args: &[&str], says: &str) -> Container<'static> {
    let container = Containerd::shared().job(guest).args(args.iter().copied()).start();
    container.streams.wait_for_stdout(says);
    container
}

#[test]
fn proc_exit_and_return_are_told_modulo_256() {
    let numbers = [0, 1, 2, 64, 100, 125, 126, 127, 128, 129, 134, 137, 143, 200, 254, 255, 256, 300];
    std::thread::scope(|scope| {
        for half in numbers.chunks(numbers.len() / 2) {
            scope.spawn(move || {
                for number in half {
                    let expected = u32::try_from(number % 256).unwrap();
                    assert_eq!(run("c-exit", &[&number.to_string()]).code, expected, "proc_exit({number})");
                }
            });
        }
    });
    for (verb, number) in [("return", 0), ("return", 77), ("return", 255), ("exit", 3)] {
        assert_eq!(run("c-hello", &[verb, &number.to_string()]).code, number, "{verb} {number}");
    }
}

#[test]
fn a_trap_ends_with_134_and_a_backtrace_with_the_names_of_c() {
    for (kind, message) in [
        ("unreachable", "unreachable"),
        ("bounds", "out of bounds memory access"),
        ("divide", "integer divide by zero"),
    ] {
        let outcome = run("c-trap", &[kind]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (134, "about to trap\n"), "{kind}");
        assert!(
            outcome.stderr.contains(message) && outcome.stderr.contains("/c-trap.wasm"),
            "{kind}: {}",
            outcome.stderr
        );
        for name in ["innermost", "outermost"] {
            assert!(outcome.stderr.contains(name), "{kind}: no `{name}` in {}", outcome.stderr);
        }
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("skiff: /c-trap.wasm trapped: ") && last.ends_with(", in innermost"),
            "{kind}: {last}"
        );
    }
}

#[test]
fn a_trap_leaves_a_core_dump_in_a_volume() {
    let volume = tempfile::tempdir().unwrap();
    let trap = |access| {
        let job = Containerd::shared().job("c-trap").annotation("debug.skiff.dev/core-dump", "/data/core");
        let outcome = job.bind(volume.path(), "/data", &[access]).run();
        assert_eq!(outcome.code, 134, "{outcome:?}");
        outcome.stderr
    };
    let stderr = trap("ro");
    assert!(stderr.contains("skiff: cannot write the core dump to `/data/core`: read-only file system\n"), "{stderr}");
    let stderr = trap("rw");
    assert!(stderr.contains("skiff: the core dump is in `/data/core`\n"), "{stderr}");
    let dump = std::fs::read(volume.path().join("core")).unwrap();
    let has = |text: &[u8]| dump.windows(text.len()).any(|part| part == text);
    assert!(dump.starts_with(b"\0asm") && has(b"corestack") && has(b"about to trap"), "{} bytes", dump.len());
}

#[test]
fn a_trap_in_rust_and_go_names_their_functions() {
    let outcome = run("rust-panic", &[]);
    assert_eq!(outcome.code, 134);
    for part in ["index out of bounds", "trapped", "innermost", "outermost", "main"] {
        assert!(outcome.stderr.contains(part), "no `{part}` in {}", outcome.stderr);
    }
    let outcome = Containerd::shared().job("go-reactor").command(["/go-reactor.wasm#fail"]).run();
    assert_eq!(outcome.code, 134, "{outcome:?}");
    assert!(outcome.stderr.contains("fail") && outcome.stderr.contains("runtime."), "{}", outcome.stderr);
}

#[test]
fn a_component_that_panics_ends_with_134() {
    let outcome = run("rust-p2-hello", &["panic"]);
    assert_eq!(outcome.code, 134, "{outcome:?}");
    assert!(outcome.stderr.contains("on purpose") && outcome.stderr.contains("trapped"), "{}", outcome.stderr);
}

#[test]
fn a_stack_that_overflows_is_a_trap() {
    let outcome = run("c-stackoverflow", &[]);
    assert_eq!(outcome.code, 134, "{outcome:?}");
    assert!(
        outcome.stderr.contains("call stack exhausted") && outcome.stderr.contains("descend"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn what_happens_in_a_start_function_is_told_like_what_happens_in_main() {
    let trap = run_text("(module (func $boom unreachable) (start $boom) (func (export \"_start\")))");
    assert!(trap.code == 134 && trap.stderr.contains("boom"), "{trap:?}");
    let exit = run_text(
        "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
           (memory (export \"memory\") 1) (func $leave (call $exit (i32.const 21))) (start $leave) (func (export \"_start\")))",
    );
    assert_eq!(exit.code, 21, "{exit:?}");
}

#[test]
fn sigterm_ends_guests_that_spin_or_wait_with_143_within_a_second() {
    for (guest, args, says) in STARTED.iter().filter(|(guest, ..)| *guest != "c-flood") {
        let time_to_end = || {
            let container = started(guest, args, says);
            let began = Instant::now();
            container.kill(libc::SIGTERM).unwrap();
            assert_eq!(container.wait(), 143, "{guest}");
            (guest, began.elapsed())
        };
        mostly(time_to_end, |(_, took)| *took < Duration::from_secs(1));
    }
}

#[test]
fn a_guest_that_is_about_done_when_sigterm_comes_ends_by_itself() {
    let container = Containerd::shared().job("c-cat").stdin().start();
    container.streams.write(b"before");
    container.streams.wait_for_stdout("before");
    container.kill(libc::SIGTERM).unwrap();
    container.streams.close_stdin();
    container.close_io().unwrap();
    assert_eq!(container.finish().code, 0);
}

#[test]
fn signals_end_a_guest_with_128_and_their_number() {
    // Some that images name as their stop signal, and some that the kernel would not deliver to the first process of a pid
    // namespace: SIGSTKFLT, SIGXCPU, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, and real-time signals.
    let named = [libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, 37];
    for signal in named.into_iter().chain([libc::SIGKILL, libc::SIGSEGV, 16, 24, 26, 27, 29, 30, 34, 64]) {
        let container = started("c-sleep", &[], "sleeping\n");
        let began = Instant::now();
        container.kill(signal).unwrap();
        assert_eq!(container.finish().code, 128 + signal.cast_unsigned(), "signal {signal}");
        assert!(began.elapsed() < Duration::from_secs(20), "signal {signal} took {:?}", began.elapsed());
    }
}

#[test]
fn what_a_terminal_sends_does_not_end_a_guest_outside_of_a_pod() {
    let container = started("c-sleep", &[], "sleeping\n");
    for signal in [libc::SIGWINCH, libc::SIGCHLD, libc::SIGCONT, libc::SIGTSTP, libc::SIGURG] {
        container.kill(signal).unwrap();
    }
    container.kill(libc::SIGUSR1).unwrap();
    assert_eq!(container.finish().code, 138);
}

#[test]
fn a_guest_that_waits_in_a_host_call_is_killed_too() {
    for (guest, args, says) in &STARTED[1..4] {
        let container = started(guest, args, says);
        container.kill(libc::SIGKILL).unwrap();
        assert_eq!(container.finish().code, 137, "{guest}");
    }
}

#[test]
fn a_start_function_without_end_does_not_hold_up_start_and_can_be_ended() {
    let containerd = Containerd::shared();
    let image = Image::of_text(
        containerd,
        "(module (func $spin (loop $again (br $again))) (start $spin) (func (export \"_start\")))",
    );
    let container = containerd.job_of(&image).start();
    container.kill(libc::SIGTERM).unwrap();
    assert_eq!(container.finish().code, 143);
}

#[test]
fn everybody_who_waits_is_told_the_same() {
    let container = started("c-spin", &[], "spinning\n");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| container.wait())).collect();
        container.kill(libc::SIGKILL).unwrap();
        assert!(waiting.into_iter().all(|waiter| waiter.join().unwrap() == 137));
    });
    assert_eq!(container.wait(), 137, "also after the end");
    assert_eq!(container.state().unwrap().exit_status, 137);
}

#[test]
fn what_has_ended_cannot_be_signalled_and_what_runs_cannot_be_deleted() {
    let container = started("c-spin", &[], "spinning\n");
    assert_eq!(container.delete_task().unwrap_err().code, Code::FailedPrecondition);
    container.kill(libc::SIGKILL).unwrap();
    container.wait();
    assert_eq!(container.kill(libc::SIGTERM).unwrap_err().code, Code::NotFound);
    assert!(container.start().is_err(), "it cannot be started again");
}

#[test]
fn a_container_that_was_never_started_can_be_killed_and_deleted() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-hello"), containerd.shell("exit 0")] {
        let mut container = job.create();
        assert_eq!(container.delete().unwrap(), 137);
    }
    let container = containerd.job("c-hello").create();
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
}

#[test]
fn native_programs_end_as_they_do_elsewhere() {
    let containerd = Containerd::shared();
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("sh -c 'kill -9 $$'; exit $?", 137)] {
        assert_eq!(containerd.shell(script).run().code, code, "{script}");
    }
    let container = containerd.shell("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done").start();
    container.streams.wait_for_stdout("ready\n");
    container.kill(libc::SIGTERM).unwrap();
    assert_eq!(container.finish().code, 9);
    let container = containerd.shell("echo ready; exec sleep 3600").start();
    container.streams.wait_for_stdout("ready\n");
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
}

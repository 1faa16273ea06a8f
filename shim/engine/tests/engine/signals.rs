//! Signals to a command.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::driver::Guest;
use crate::watch::wait_for;

#[test]
fn a_signal_ends_a_guest_after_a_short_grace() {
    for (name, said) in [("c-spin", "spinning"), ("c-sleep", "sleeping"), ("go-sleep", "")] {
        for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGQUIT, 131), (37, 165)] {
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
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut running = Guest::named("c-cat").stdin(reader).start().ready();
    running.signal(libc::SIGTERM);
    writer.write_all(b"after the signal\n").unwrap();
    drop(writer);
    let ended = running.end();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "after the signal\n"));
}

/// Each signal that a handler can have, except for the two that belong to the C library.
fn signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(signal))
}

/// Those that do not end a native program.
const HARMLESS: [i32; 7] =
    [libc::SIGCHLD, libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGURG, libc::SIGWINCH];

#[test]
fn each_signal_of_a_pod_ends_a_command_with_128_and_its_number() {
    let mut running: Vec<_> =
        signals().map(|signal| (signal, Guest::named("c-sleep").in_a_pod().start().ready())).collect();
    for (signal, running) in &running {
        running.signal(*signal);
    }
    for (signal, running) in &mut running {
        assert_eq!(running.end().code, 128 + *signal, "signal {signal}");
    }
}

#[test]
fn outside_of_a_pod_the_same_signals_end_a_command_as_end_a_native_program() {
    let mut running: Vec<_> = signals()
        .filter(|signal| signal % 4 == 0 || HARMLESS.contains(signal))
        .map(|signal| (signal, Guest::named("c-sleep").start().ready()))
        .collect();
    for (signal, running) in &running {
        running.signal(*signal);
    }
    for (signal, running) in &mut running {
        let code = match HARMLESS.contains(signal) {
            true => {
                // Here, unlike in a container, some of them have stopped it.
                running.signal(libc::SIGCONT);
                running.signal(libc::SIGUSR1);
                128 + libc::SIGUSR1
            }
            false => 128 + *signal,
        };
        assert_eq!(running.end().code, code, "signal {signal}");
    }
}

#[test]
fn a_second_signal_ends_a_command_at_once() {
    let mut running = Guest::named("c-spin").start().ready().said("spinning");
    running.signal(libc::SIGTERM);
    running.signal(libc::SIGINT);
    assert!([130, 143].contains(&running.end().code));
}

#[test]
fn what_the_kernel_sends_because_of_a_write_is_no_request_to_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut running = Guest::named("c-hello").in_a_pod().stdout(writer).start().ready();
    let code = running.end().code;
    assert!(code < 128, "SIGPIPE ended the guest: {code}");
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

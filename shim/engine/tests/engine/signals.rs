//! Signals to a command.

use std::time::{Duration, Instant};

use crate::driver::Guest;
use crate::watch::wait_for;

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

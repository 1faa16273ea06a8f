//! What tests look at from outside, and how they wait for it.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        pause();
    }
}

/// Lets others run between two looks at a condition.
pub(crate) fn pause() {
    std::thread::park_timeout(Duration::from_millis(2));
}

/// A file that holds a memory limit.
pub(crate) fn limit_file(bytes: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{bytes}").unwrap();
    file
}

/// Puts another limit into a file of [`limit_file`].
pub(crate) fn set_limit(file: &tempfile::NamedTempFile, text: &str) {
    // As long as what was there, so that no reader sees half a number.
    std::fs::write(file.path(), format!("{text:<10}\n")).unwrap();
}

/// A port that is free, and that no connection takes meanwhile.
pub(crate) fn free_port() -> u16 {
    /// Below those that the kernel gives to connections (`ip_local_port_range`).
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(next % u32::from(PORTS.end - PORTS.start)).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A line of what the kernel says about a process, by its name.
pub(crate) fn status_of(process: u32, line: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let value = status.lines().find_map(|known| known.strip_prefix(line)).unwrap_or_default();
    value.trim().to_owned()
}

/// How many bytes wait in a pipe.
pub(crate) fn waiting_bytes(reader: &impl std::os::fd::AsFd) -> usize {
    usize::try_from(rustix::io::ioctl_fionread(reader).unwrap()).unwrap()
}

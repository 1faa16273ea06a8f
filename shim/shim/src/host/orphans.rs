//! Reaps children that nobody waits for. The shim is the subreaper of its containers, so orphans become its children, for
//! example those of containers in the node's pid namespace. Without this they would stay zombies as long as the pod lives.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::process::is_owned;

/// How long an owner may take to reap a child that has ended; much longer than any owner needs.
const GRACE: Duration = Duration::from_secs(5);

/// Reaps orphans for ever. It only looks after a child has ended, and a zombie counts as an orphan when it is seen twice.
pub(crate) async fn reap() {
    let Ok(mut ended) = signal(SignalKind::child()) else {
        log::error!("cannot wait for SIGCHLD: orphans will not be reaped");
        return;
    };
    while ended.recv().await.is_some() {
        let mut seen = BTreeSet::new();
        loop {
            tokio::time::sleep(GRACE).await;
            let zombies = zombies();
            for pid in zombies.intersection(&seen) {
                // Fails if somebody else has just reaped it: then there is nothing to do.
                let _reaped = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
            }
            seen = zombies.difference(&seen).copied().collect();
            if seen.is_empty() {
                break;
            }
        }
    }
}

/// The children that have ended and that nobody will wait for.
fn zombies() -> BTreeSet<i32> {
    let lists = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = lists.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children =
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
    children.filter(|pid| !is_owned(*pid) && is_zombie(*pid)).collect()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The process's name before it may contain anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_that_has_ended_and_is_not_waited_for_is_a_zombie() {
        let mut child = Command::new("/bin/sh").args(["-c", "exit"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !zombies().contains(&pid) {
            assert!(std::time::Instant::now() < deadline, "{pid}");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!zombies().contains(&pid));
    }
}

//! Reaping what nobody waits for: the shim is the subreaper of its containers, so that orphans become its children, those of
//! containers in the node's pid namespace, say. Without this they would stay zombies for as long as the pod lives.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::process::is_owned;

/// How long an owner may take to wait for a child that has ended; much longer than any does.
const GRACE: Duration = Duration::from_secs(5);

/// Reaps orphans, for ever. It looks only after children have ended, and twice before it takes one for an orphan.
pub(crate) async fn reap() {
    let Ok(mut ended) = signal(SignalKind::child()) else {
        log::error!("cannot wait for the signal of children: orphans will not be reaped");
        return;
    };
    while ended.recv().await.is_some() {
        let mut seen = BTreeSet::new();
        loop {
            tokio::time::sleep(GRACE).await;
            let zombies = zombies();
            for pid in zombies.intersection(&seen) {
                // Somebody else may have reaped it just now: then there is nothing to do.
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
    // The name before it may hold anything.
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

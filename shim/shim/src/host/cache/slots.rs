//! How many guests the node compiles at once, and whose turn is next.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::MetadataExt;
use std::thread::available_parallelism;

use nix::sys::stat::{major, minor};

use super::{Cache, PENDING, at, make_private_dir};

/// The prefix of the names of slots.
pub(super) const SLOT: &str = "slot.";

/// The right to compile; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "it is held for its lock")] File);

impl Cache {
    /// Waits for the turn of `pod`, whose compilers may take `compiler_bytes` of memory each. A pod always has the same slot,
    /// so it compiles one guest at a time, and the kernel grants a slot in the order in which pods began to wait.
    ///
    /// # Errors
    /// Those of making and locking the slot.
    pub(super) fn slot(&self, pod: &str, compiler_bytes: u64) -> io::Result<Slot> {
        let mut hasher = DefaultHasher::new();
        pod.hash(&mut hasher);
        let processors = available_parallelism().map_or(1, NonZero::get);
        let count = slots(processors as u64, node_memory_bytes().unwrap_or(0), compiler_bytes);
        let number = hasher.finish() % count;
        // A directory can be locked like a file, and never has content to clean up.
        let path = self.dir.join(format!("{SLOT}{number}"));
        make_private_dir(&self.dir)?;
        make_private_dir(&path)?;
        let slot = File::open(&path).map_err(|error| at("open", &path, &error))?;
        loop {
            match slot.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                locked => return locked.map(|()| Slot(slot)).map_err(|error| at("lock", &path, &error)),
            }
        }
    }
}

impl Cache {
    /// Whether another thread or process waits for the code of `digest`, which is being compiled.
    pub(crate) fn is_awaited(&self, digest: &str) -> bool {
        let Ok(meta) = self.path(digest, PENDING).and_then(std::fs::metadata) else { return false };
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let inode = format!("{:02x}:{:02x}:{}", major(meta.dev()), minor(meta.dev()), meta.ino());
        locks.lines().any(|line| line.contains(" -> FLOCK ") && line.split_whitespace().any(|field| field == inode))
    }
}

/// At most half of the processors compile, and no more compilers run than fit into a quarter of the node's memory.
fn slots(processors: u64, memory_bytes: u64, compiler_bytes: u64) -> u64 {
    (processors / 2).min(memory_bytes / 4 / compiler_bytes.max(1)).max(1)
}

fn node_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_leave_the_node_processors_and_memory() {
        for (processors, gibibytes, compilers, expected) in [
            (1, 1, 2, 1),
            (2, 24, 2, 1),
            (4, 24, 2, 2),
            (64, 24, 2, 3),
            (64, 24, 6, 1),
            (64, 24, 1, 6),
            (64, 24, 0, 32),
            (64, 512, 2, 32),
            (8, 0, 2, 1),
        ] {
            let found = slots(processors, gibibytes << 30, compilers << 30);
            assert_eq!(found, expected, "{processors} {gibibytes} {compilers}");
        }
        assert!(node_memory_bytes().unwrap() > 1 << 20);
    }
}

//! How a memory limit is divided between the host and its guest.

use std::fs::File;
use std::os::unix::fs::FileExt;

use skiff_linux::cgroup::{parse_limit, parse_shared_memory};

use crate::MemoryLimit;

/// Where the host's share stops growing with the limit, page tables aside.
const HOST_SHARE_MAX_BYTES: u64 = 64 * MIB;
/// The host's share of a small limit: the engine itself, its stacks and the kernel's memory of one busy process.
const HOST_SHARE_MIN_BYTES: u64 = 4 * MIB;
const MIB: u64 = 1 << 20;
/// How much of a `memory.stat` is read. It has some 60 lines.
const STAT_BYTES_MAX: usize = 8 << 10;

/// What each process that is started beside the guest takes of the guest's share as long as it runs, in bytes: its engine, and
/// the OCI runtime's process that becomes it. Up to 2 MiB were measured.
pub const FURTHER_PROCESS_BYTES: u64 = 4 * MIB;

/// How much of a memory limit is kept for the host's side of a guest, in bytes: the engine, stacks, page tables, HTTP
/// buffers and what the kernel charges for sockets and pipes. The rest is the guest's.
///
/// A sixteenth, at least 4 MiB and at most 64 MiB, and the page tables of the whole limit (8 bytes for each 4 KiB),
/// but never more than half.
pub fn host_share_bytes(limit_bytes: u64) -> u64 {
    let share_bytes = (limit_bytes / 16).clamp(HOST_SHARE_MIN_BYTES, HOST_SHARE_MAX_BYTES) + limit_bytes / 512;
    share_bytes.min(limit_bytes / 2)
}

/// How much of a memory limit the guest may use, in bytes.
pub fn guest_share_bytes(limit_bytes: u64) -> u64 {
    limit_bytes - host_share_bytes(limit_bytes)
}

/// A limit, and what files in memory take of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The limit, in bytes.
    pub limit_bytes: u64,
    /// What files in memory take of it, in bytes.
    pub shared_bytes: u64,
}

impl Room {
    /// What is left for the guest, in bytes.
    pub fn guest_bytes(self) -> u64 {
        guest_share_bytes(self.limit_bytes).saturating_sub(self.shared_bytes)
    }
}

impl MemoryLimit {
    /// Reads the limit, and what files in memory take of it unless that is known. The outer `None` means that they cannot be
    /// read, the inner one that there is no limit.
    pub fn room(&self, shared_bytes: Option<u64>) -> Option<Option<Room>> {
        let mut text = [0_u8; STAT_BYTES_MAX];
        let Some(limit_bytes) = parse_limit(read_text(&self.limit, &mut text)?) else { return Some(None) };
        let shared_bytes = match shared_bytes {
            Some(known) => known,
            None => parse_shared_memory(read_text(&self.stat, &mut text)?),
        };
        Some(Some(Room { limit_bytes, shared_bytes }))
    }
}

fn read_text<'a>(file: &File, text: &'a mut [u8]) -> Option<&'a str> {
    let length = file.read_at(text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_keeps_its_share_of_every_limit() {
        for (limit_bytes, host_bytes) in [
            (0, 0),
            (MIB, MIB / 2),
            (8 * MIB, 4 * MIB),
            (16 * MIB, 4 * MIB + 32 * 1024),
            (64 * MIB, 4 * MIB + 128 * 1024),
            (256 * MIB, 16 * MIB + MIB / 2),
            (1024 * MIB, 66 * MIB),
            (64 * 1024 * MIB, 192 * MIB),
        ] {
            assert_eq!(host_share_bytes(limit_bytes), host_bytes, "of {limit_bytes}");
            assert_eq!(guest_share_bytes(limit_bytes), limit_bytes - host_bytes, "of {limit_bytes}");
        }
    }

    #[test]
    fn a_raised_limit_never_takes_from_the_guest() {
        let mut last = 0;
        for limit_bytes in (0..4096).map(|mib| mib * MIB) {
            let share = guest_share_bytes(limit_bytes);
            assert!(share >= last, "at {limit_bytes}");
            last = share;
        }
    }
}

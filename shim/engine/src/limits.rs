//! The arithmetic of limits. Pure: no file, clock or lock.

/// The size of one table element: wasmtime keeps a pointer, for every type of reference.
pub(crate) const TABLE_ELEMENT_BYTES: u64 = 8;
/// The most connections that a server keeps open, and the fewest.
const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_MIN: usize = 128;
/// Threads that wait for files and slow readers: for each processor, and in all.
const BLOCKING_THREADS_EACH: usize = 8;
const BLOCKING_THREADS_MAX: usize = 64;

/// The most and the fewest instances of a server at once. Each takes address space and a stack set up ahead.
const INSTANCES_MAX: u32 = 1000;
const INSTANCES_MIN: u32 = 16;

const MIB: u64 = 1 << 20;
/// The host's share of a small limit: the engine itself, its stacks and the kernel's memory of one busy process.
const HOST_SHARE_MIN_BYTES: u64 = 4 * MIB;
/// Where the host's share stops growing with the limit, page tables aside: more connections than this are not served.
const HOST_SHARE_MAX_BYTES: u64 = 64 * MIB;
/// What one connection may cost: its buffers, its task and the kernel's socket.
const CONNECTION_BYTES: u64 = 16 << 10;

/// How much of a memory limit is kept for the host's side of a guest, in bytes: the engine, stacks, page tables, HTTP
/// buffers and what the kernel charges for sockets and pipes. The rest is the guest's.
///
/// A sixteenth, at least 4 MiB and at most 64 MiB, and the page tables of the whole limit (8 bytes for each 4 KiB),
/// but never more than half.
pub(crate) fn host_share_bytes(limit_bytes: u64) -> u64 {
    let share_bytes = (limit_bytes / 16).clamp(HOST_SHARE_MIN_BYTES, HOST_SHARE_MAX_BYTES) + limit_bytes / 512;
    share_bytes.min(limit_bytes / 2)
}

/// How much of a memory limit the guest may use, in bytes.
pub(crate) fn guest_share_bytes(limit_bytes: u64) -> u64 {
    limit_bytes - host_share_bytes(limit_bytes)
}

/// The most connections that a server keeps open under a memory limit; further ones wait to be accepted.
pub(crate) fn connections_max(limit_bytes: Option<u64>) -> usize {
    let share_bytes = limit_bytes.map_or(HOST_SHARE_MAX_BYTES, host_share_bytes);
    usize::try_from(share_bytes / CONNECTION_BYTES).unwrap_or(CONNECTIONS_MAX).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// The most instances of a server under a memory limit; further requests wait. One for each MiB of the guest's share:
/// the smallest real guests use about that much.
pub(crate) fn instances_max(limit_bytes: Option<u64>) -> u32 {
    let share_bytes = limit_bytes.map_or(u64::MAX, guest_share_bytes);
    u32::try_from(share_bytes / MIB).unwrap_or(INSTANCES_MAX).clamp(INSTANCES_MIN, INSTANCES_MAX)
}

/// How many threads of a server run guests, and how many more may wait for the node: where `runnable` processors may be
/// used, and quotas allow as much as `quota` of them.
pub(crate) fn threads(runnable: usize, quota: Option<usize>) -> (usize, usize) {
    let workers = runnable.min(quota.unwrap_or(usize::MAX)).max(1);
    (workers, workers.saturating_mul(BLOCKING_THREADS_EACH).min(BLOCKING_THREADS_MAX))
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

    #[test]
    fn instances_follow_the_guests_share() {
        for (limit_bytes, expected) in
            [(None, 1000), (Some(0), 16), (Some(16 * MIB), 16), (Some(64 * MIB), 59), (Some(u64::MAX / 4), 1000)]
        {
            assert_eq!(instances_max(limit_bytes), expected, "under {limit_bytes:?}");
        }
    }

    #[test]
    fn threads_follow_the_quota() {
        for (runnable, quota, expected) in [
            (2, None, (2, 16)),
            (2, Some(1), (1, 8)),
            (64, None, (64, 64)),
            (64, Some(3), (3, 24)),
            (1, Some(9), (1, 8)),
        ] {
            assert_eq!(threads(runnable, quota), expected, "{runnable} and {quota:?}");
        }
    }

    #[test]
    fn connections_fit_into_the_hosts_share() {
        for (limit_bytes, expected) in
            [(None, 4096), (Some(MIB), 128), (Some(64 * MIB), 264), (Some(256 * MIB), 1056), (Some(u64::MAX / 4), 4096)]
        {
            assert_eq!(connections_max(limit_bytes), expected, "under {limit_bytes:?}");
        }
    }
}

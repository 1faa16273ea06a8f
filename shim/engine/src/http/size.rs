//! How large a server is: its instances and threads, from the limits of its container. Pure: no file, clock
//! or lock.

use skiff_protocol::guest_share_bytes;

/// The quota that a server's threads can always follow: their number is fixed, but a quota may be raised later. The kernel
/// keeps the threads to a smaller quota.
const QUOTA_MIN: usize = 8;
/// Threads that wait for files and slow readers: for each processor, and in all.
const BLOCKING_THREADS_EACH: usize = 8;
const BLOCKING_THREADS_MAX: usize = 64;
/// The most and the fewest instances of a server at once.
const INSTANCES_MAX: u32 = 1000;
const INSTANCES_MIN: u32 = 16;
/// The fewest that a server is prepared for: its limit may be raised. Each costs about 1 KiB before it is used, most of it
/// for the guard page of a stack.
const POOL_MIN: u32 = 256;
/// What is kept beyond that for probes, which anybody can pretend to be: requests, and instances to serve them.
pub(super) const PROBE_REQUESTS: usize = 4;
pub(super) const PROBE_INSTANCES: u32 = 4;
/// What an instance's memories leave in the pool: at most this, and all of them together this part of the guest's share.
const RESIDENT_BYTES_MAX: u64 = 1 << 20;
const RESIDENT_PART: u64 = 8;
const MIB: u64 = 1 << 20;

/// The most instances of a server under a memory limit; further requests wait. One for each MiB of the guest's share:
/// the smallest real guests use about that much.
pub(super) fn instances_max(limit_bytes: Option<u64>) -> u32 {
    let share_bytes = limit_bytes.map_or(u64::MAX, guest_share_bytes);
    u32::try_from(share_bytes / MIB).unwrap_or(INSTANCES_MAX).clamp(INSTANCES_MIN, INSTANCES_MAX)
}

/// How many instances a server that starts under a memory limit is prepared for.
pub(super) fn pool_instances(limit_bytes: Option<u64>) -> u32 {
    instances_max(limit_bytes).max(POOL_MIN)
}

/// How many bytes of an instance's memories stay resident for the next one, in a server that starts under a memory limit.
pub(super) fn resident_bytes(limit_bytes: Option<u64>) -> u64 {
    let share_bytes = limit_bytes.map_or(u64::MAX, guest_share_bytes);
    // A small limit that is raised and lowered again may have filled a pool that is far too large for it.
    match instances_max(limit_bytes) {
        ..POOL_MIN => 0,
        instances => (share_bytes / RESIDENT_PART / u64::from(instances + PROBE_INSTANCES)).min(RESIDENT_BYTES_MAX),
    }
}

/// How many threads of a server run guests, and how many more may block on files and slow readers, if the process may use
/// `runnable` processors and the quotas allow `quota` of them at first.
pub(super) fn threads(runnable: usize, quota: Option<usize>) -> (usize, usize) {
    let workers = runnable.min(quota.unwrap_or(usize::MAX).max(QUOTA_MIN)).max(1);
    (workers, workers.saturating_mul(BLOCKING_THREADS_EACH).min(BLOCKING_THREADS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_follow_the_guests_share() {
        for (limit_bytes, expected) in
            [(None, 1000), (Some(0), 16), (Some(16 * MIB), 16), (Some(64 * MIB), 59), (Some(u64::MAX / 4), 1000)]
        {
            assert_eq!(instances_max(limit_bytes), expected, "under {limit_bytes:?}");
            assert_eq!(pool_instances(limit_bytes), expected.max(256), "under {limit_bytes:?}");
        }
    }

    #[test]
    fn what_stays_resident_is_an_eighth_of_the_guests_share_at_most() {
        for limit_bytes in [0, 16 * MIB, 64 * MIB, 1 << 30, u64::MAX / 4] {
            let instances = pool_instances(Some(limit_bytes)) + PROBE_INSTANCES;
            let all_bytes = resident_bytes(Some(limit_bytes)) * u64::from(instances);
            assert!(all_bytes <= guest_share_bytes(limit_bytes) / 8, "under {limit_bytes}");
        }
        assert_eq!(resident_bytes(None), MIB);
        assert!((96 << 10..131 << 10).contains(&resident_bytes(Some(512 * MIB))));
    }

    #[test]
    fn threads_follow_the_quota() {
        for (runnable, quota, expected) in [
            (2, None, (2, 16)),
            (2, Some(1), (2, 16)),
            (64, None, (64, 64)),
            (64, Some(3), (8, 64)),
            (64, Some(9), (9, 64)),
            (1, Some(9), (1, 8)),
        ] {
            assert_eq!(threads(runnable, quota), expected, "{runnable} and {quota:?}");
        }
    }
}

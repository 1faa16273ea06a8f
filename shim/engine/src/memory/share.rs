//! How a memory limit is divided between the host and its guest. Pure: no file, clock or lock.

/// The size of one table element: wasmtime keeps a pointer, for every type of reference.
pub(crate) const TABLE_ELEMENT_BYTES: u64 = 8;
/// Where the host's share stops growing with the limit, page tables aside.
const HOST_SHARE_MAX_BYTES: u64 = 64 * MIB;
/// The host's share of a small limit: the engine itself, its stacks and the kernel's memory of one busy process.
const HOST_SHARE_MIN_BYTES: u64 = 4 * MIB;
const MIB: u64 = 1 << 20;

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

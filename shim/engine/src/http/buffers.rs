//! How many connections a server has, and what each of them may hold, from the memory limit of its container. Pure.

use crate::memory::share::{guest_share_bytes, host_share_bytes};

/// The most connections that a server keeps open, and the fewest.
const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_MIN: usize = 16;
/// Which part of the host's share is for connections, and which part of the guest's share they may take besides.
const PART_OF_HOST: u64 = 2;
const PART_OF_GUEST: u64 = 4;
const KIB: usize = 1 << 10;
const MIB: u64 = 1 << 20;

/// What one connection may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffers {
    /// A request's head, or what is written of a response.
    pub(super) user_bytes: usize,
    /// What the kernel keeps in each direction. It charges up to twice as much. `None` if the kernel decides.
    pub(super) socket_bytes: Option<usize>,
    /// The most requests at once on a connection of HTTP/2, and how much of a body each may send unread.
    pub(super) streams: u32,
    pub(super) window_bytes: u32,
    /// What is reserved for one connection: all of this in one direction, and its own state.
    pub(super) reserved_bytes: u64,
}

impl Buffers {
    /// Those under a memory limit.
    pub(super) fn under(limit_bytes: Option<u64>) -> Self {
        let of = |user, socket: Option<usize>, streams, reserved: u64| Self {
            user_bytes: user * KIB,
            socket_bytes: socket.map(|socket| socket * KIB),
            streams,
            window_bytes: 32 << 10,
            reserved_bytes: reserved << 10,
        };
        match limit_bytes {
            Some(limit_bytes) if limit_bytes < 128 * MIB => of(16, Some(8), 16, 48),
            Some(limit_bytes) if limit_bytes < 512 * MIB => of(32, Some(32), 32, 112),
            Some(_) => of(64, Some(64), 100, 208),
            None => of(64, None, 100, 208),
        }
    }
}

/// The most connections under a memory limit, and how many of them the host's share pays for. The guest's share pays for
/// the others.
pub(super) fn connections_max(limit_bytes: Option<u64>) -> (usize, usize) {
    let Some(limit_bytes) = limit_bytes else { return (CONNECTIONS_MAX, CONNECTIONS_MAX) };
    let each = Buffers::under(Some(limit_bytes)).reserved_bytes;
    let paid_by = |share_bytes| usize::try_from(share_bytes / each).unwrap_or(CONNECTIONS_MAX);
    let host = paid_by(host_share_bytes(limit_bytes) / PART_OF_HOST).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
    let guest = paid_by(guest_share_bytes(limit_bytes) / PART_OF_GUEST);
    (host.saturating_add(guest).min(CONNECTIONS_MAX), host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_shares() {
        for (limit_bytes, expected) in [
            (None, (4096, 4096)),
            (Some(MIB), (18, 16)),
            (Some(16 * MIB), (106, 43)),
            (Some(64 * MIB), (363, 44)),
            (Some(256 * MIB), (622, 75)),
            (Some(1024 * MIB), (1341, 162)),
            (Some(u64::MAX / 4), (4096, 4096)),
        ] {
            assert_eq!(connections_max(limit_bytes), expected, "under {limit_bytes:?}");
        }
    }
}

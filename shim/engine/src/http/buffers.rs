//! How many connections a server has, and what each of them may hold, from the limits of its container. Pure.

use skiff_protocol::{guest_share_bytes, host_share_bytes};

/// The most connections that a server keeps open, and the fewest.
const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_MIN: usize = 16;
/// Which part of the host's share is for connections, and which part of the guest's share they may take besides.
const PART_OF_HOST: u64 = 2;
const PART_OF_GUEST: u64 = 4;
/// What HTTP/2 keeps of a request: its head, or what is written of its response and one piece more.
const STREAM_BYTES: u64 = 24 << 10;
/// What HTTP/2 keeps for itself: frames in both directions, and bodies that the guest has not read.
const FRAMES_BYTES: u64 = 64 << 10;
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
    /// What is reserved for one connection: all of this in both directions, and its own state.
    pub(super) reserved_bytes: u64,
}

impl Buffers {
    /// The longest head of HTTP/2, and the most that is written of one of its responses.
    pub(super) const STREAM_PART_BYTES: u32 = 8 << 10;

    /// What is reserved besides for a connection of HTTP/2.
    pub(super) fn http_2_bytes(&self) -> u64 {
        u64::from(self.streams) * STREAM_BYTES + FRAMES_BYTES
    }

    /// Those under a memory limit.
    pub(super) fn under(limit_bytes: Option<u64>) -> Self {
        // A guest that sends back what it gets, to a client that reads nothing, fills both directions.
        let of = |user, socket: Option<usize>, streams, reserved: u64| Self {
            user_bytes: user * KIB,
            socket_bytes: socket.map(|socket| socket * KIB),
            streams,
            window_bytes: 32 << 10,
            reserved_bytes: reserved << 10,
        };
        match limit_bytes {
            Some(limit_bytes) if limit_bytes < 128 * MIB => of(16, Some(8), 4, 76),
            Some(limit_bytes) if limit_bytes < 512 * MIB => of(32, Some(32), 16, 204),
            Some(_) => of(64, Some(64), 32, 396),
            None => of(64, None, 32, 396),
        }
    }
}

/// The most connections under a memory limit if `each_bytes` are reserved for one and `files` may be open, and how many of
/// them the host's share pays for. The guest's share pays for the others.
pub(super) fn connections_max(limit_bytes: Option<u64>, each_bytes: u64, files: usize) -> (usize, usize) {
    // The other half is for the guest's files and its own connections.
    let most = CONNECTIONS_MAX.min(files / 2).max(1);
    let Some(limit_bytes) = limit_bytes else { return (most, most) };
    let paid_by = |share_bytes| usize::try_from(share_bytes / each_bytes).unwrap_or(CONNECTIONS_MAX);
    let host = paid_by(host_share_bytes(limit_bytes) / PART_OF_HOST).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
    let guest = paid_by(guest_share_bytes(limit_bytes) / PART_OF_GUEST);
    (host.saturating_add(guest).min(most), host.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_shares() {
        for (limit_bytes, files, expected) in [
            (None, 1 << 20, (4096, 4096)),
            (None, 1024, (512, 512)),
            (None, 0, (1, 1)),
            (Some(MIB), 1 << 20, (17, 16)),
            (Some(16 * MIB), 1024, (67, 27)),
            (Some(64 * MIB), 1024, (228, 27)),
            (Some(256 * MIB), 1024, (341, 41)),
            (Some(256 * MIB), 1 << 20, (341, 41)),
            (Some(256 * MIB), 64, (32, 32)),
            (Some(1024 * MIB), 1 << 20, (704, 85)),
            (Some(u64::MAX / 4), 1 << 20, (4096, 4096)),
        ] {
            let each_bytes = Buffers::under(limit_bytes).reserved_bytes;
            assert_eq!(connections_max(limit_bytes, each_bytes, files), expected, "under {limit_bytes:?}");
        }
    }
}

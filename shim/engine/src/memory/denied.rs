//! What a guest asked for and did not get, in words.

use std::fmt;

use skiff_protocol::bytes_and_mi;

/// Files in memory that take less than this are not worth a word: skiff itself has a few small ones.
const SHARED_BYTES_TOLD: u64 = 1 << 20;

/// What a guest asked for and did not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// More memory than the container has for its guest.
    Memory {
        /// All that the guest would use.
        wanted_bytes: u64,
        /// What the limit leaves for the guest.
        guest_bytes: u64,
        /// The container's limit.
        limit_bytes: u64,
        /// What files in memory take of it.
        shared_bytes: u64,
    },
    /// A linear memory of more pages than one may have.
    Pages {
        /// The pages that it would have.
        wanted_pages: u64,
        /// The pages that it may have.
        max_pages: u64,
    },
    /// More table elements than the guest may have.
    Table {
        /// All table elements that the guest would use.
        wanted_elements: u64,
        /// What it may use.
        max_elements: u64,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { wanted_bytes, guest_bytes, limit_bytes, shared_bytes } => {
                write!(
                    formatter,
                    "its memories, tables and buffers would take {}, but the memory limit of {} leaves {} for the guest",
                    bytes_and_mi(*wanted_bytes),
                    bytes_and_mi(*limit_bytes),
                    bytes_and_mi(*guest_bytes)
                )?;
                match shared_bytes {
                    0..SHARED_BYTES_TOLD => Ok(()),
                    _ => write!(formatter, ": files in memory take {}", bytes_and_mi(*shared_bytes)),
                }
            }
            Self::Pages { wanted_pages, max_pages } => write!(
                formatter,
                "a memory would have {wanted_pages} pages, but the limit `memory-pages` is {max_pages}"
            ),
            Self::Table { wanted_elements, max_elements } => write!(
                formatter,
                "its tables would have {wanted_elements} elements, but the limit `table-elements` is {max_elements}"
            ),
        }
    }
}

impl std::error::Error for Denied {}

//! Memory that processes share through a file.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};

/// The size of the mapping, in bytes.
pub const PAGE_BYTES: u64 = PAGE.get() as u64;
const PAGE: NonZero<usize> = NonZero::new(4096).unwrap();

/// The words at the beginning of `file`, shared with every other process that maps it, as long as this process lives.
///
/// # Errors
/// `InvalidInput` for a file shorter than [`PAGE_BYTES`] and for more words than fit into a page; those of `mmap(2)`.
pub fn shared_words<const COUNT: usize>(file: &File) -> io::Result<&'static [AtomicU64; COUNT]> {
    let bytes = size_of::<[AtomicU64; COUNT]>().max(1);
    if bytes > PAGE.get() || file.metadata()?.len() < PAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is too short to be shared"));
    }
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches none of Rust's memory.
    let page = unsafe { mmap(None, PAGE, protection, MapFlags::MAP_SHARED, file, 0)? };
    // SAFETY: the mapping is a whole page, aligned and never unmapped; it is used only as atomics, which others may change.
    Ok(unsafe { page.cast().as_ref() })
}

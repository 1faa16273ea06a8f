//! Memory that processes share through a file, and what this process has of its own.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};

const PAGE_BYTES: usize = 4096;

/// The size of a file through which `count` words are shared, in bytes: whole pages.
pub const fn shared_bytes(count: usize) -> usize {
    (count * size_of::<AtomicU64>()).next_multiple_of(PAGE_BYTES)
}

/// What this process has allocated on its heap, in bytes, without what it has mapped itself.
#[must_use]
pub fn heap_bytes() -> usize {
    // SAFETY: it takes nothing, and only reads the allocator's own figures under the allocator's locks.
    let heap = unsafe { libc::mallinfo2() };
    heap.uordblks.saturating_add(heap.hblkhd)
}

/// Lets all threads that begin later allocate from the one heap that grows by large steps. Each of the others would have a heap of its
/// own that grows page by page, with a system call for each.
pub fn use_one_heap() {
    // SAFETY: it changes a setting of the allocator under the allocator's locks.
    let _set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives the kernel those pages of this process's heap that nothing uses any more.
pub fn trim_heap() {
    // SAFETY: it changes nothing that is in use, under the allocator's locks.
    let _trimmed = unsafe { libc::malloc_trim(0) };
}

/// The words at the beginning of `file`, shared with every other process that maps it, as long as this process lives.
///
/// # Errors
/// `InvalidInput` for no words and for a file shorter than [`shared_bytes`] says; those of `mmap(2)`.
pub fn shared_words<const COUNT: usize>(file: &File) -> io::Result<&'static [AtomicU64; COUNT]> {
    let Some(bytes) = NonZero::new(shared_bytes(COUNT)).filter(|bytes| is_as_long(file, bytes.get())) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is too short to be shared"));
    };
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches none of Rust's memory.
    let pages = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0)? };
    // SAFETY: the mapping is whole pages with room for the words, aligned and never unmapped; it is used only as atomics, which
    // others may change.
    Ok(unsafe { pages.cast().as_ref() })
}

fn is_as_long(file: &File, bytes: usize) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.len() >= bytes as u64)
}

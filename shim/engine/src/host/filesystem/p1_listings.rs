//! Listings of WASI 0.1, in place of wasmtime's own, which reads the whole directory for every few names. A guest goes on
//! where the kernel says, so it finds every name that stays, once, while others come and go.

use std::hash::{DefaultHasher, Hash, Hasher};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use skiff_protocol::interfaces::Preview;
use wasmtime::{Caller, Linker, Result};
use wasmtime_wasi::p1::types::Errno as P1Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1 as p1;
use wiggle::GuestMemory;

use super::code;
use super::p1_directory::{Placeholder, SUCCESS, number, parts, place, write};
use crate::files::listing::{Entry, Listing};
use crate::store::State;

/// How many directories are kept open for listing. One that is not is opened again at the place where the guest goes on.
const LISTINGS_MAX: usize = 64;
/// The size of a `dirent`, which the name follows.
const HEAD_BYTES: usize = 24;

/// Replaces the functions.
pub(in crate::host) fn replace(linker: &mut Linker<State>, preview: &Preview) -> Result<()> {
    linker.func_wrap_async(
        preview.module,
        "fd_readdir",
        |mut caller: Caller<'_, State>, (descriptor, buffer, length, cookie, used): (i32, i32, i32, i64, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                if let Err(errno) = find(state, descriptor, cookie.cast_unsigned()).await? {
                    return Ok(errno);
                }
                let Some(listing) = state.listings.get_mut(&descriptor) else { return Ok(number(P1Errno::Badf)) };
                let (begin, end) = (place(buffer), place(buffer).saturating_add(place(length)));
                match fill(listing, memory, begin, end)? {
                    Ok(filled) => write(memory, place(used), &u32::try_from(filled)?.to_le_bytes())?,
                    Err(error) => return Ok(number(code::p1(error))),
                }
                Ok(SUCCESS)
            })
        },
    )?;
    linker.func_wrap_async(preview.module, "fd_close", |mut caller: Caller<'_, State>, (descriptor,): (i32,)| {
        Box::new(async move {
            let (memory, state) = parts(&mut caller)?;
            state.listings.remove(&descriptor);
            p1::fd_close(&mut state.wasi, &mut GuestMemory::Unshared(memory), descriptor).await
        })
    })?;
    linker.func_wrap_async(
        preview.module,
        "fd_renumber",
        |mut caller: Caller<'_, State>, (from, to): (i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let errno = p1::fd_renumber(&mut state.wasi, &mut GuestMemory::Unshared(memory), from, to).await?;
                if errno == SUCCESS && from != to {
                    state.listings.remove(&to);
                    let moved = state.listings.remove(&from);
                    state.listings.extend(moved.map(|listing| (to, listing)));
                }
                Ok(errno)
            })
        },
    )?;
    Ok(())
}

/// Has a listing of this directory go on at a place.
async fn find(state: &mut State, descriptor: i32, cookie: u64) -> Result<Result<(), i32>> {
    if cookie == 0 || !state.listings.contains_key(&descriptor) {
        let placeholder = match Placeholder::of(state, descriptor).await? {
            Ok(placeholder) => placeholder,
            Err(errno) => {
                state.listings.remove(&descriptor);
                return Ok(Err(if errno == number(P1Errno::Badf) { why_not(state, descriptor).await? } else { errno }));
            }
        };
        let listing = Listing::of(&placeholder.directory);
        placeholder.close(state).await?;
        match listing {
            Ok(listing) => drop(state.listings.insert(descriptor, listing)),
            Err(error) => return Ok(Err(number(code::p1(error)))),
        }
        if state.listings.len() > LISTINGS_MAX {
            let other = state.listings.keys().copied().find(|other| *other != descriptor);
            other.map(|other| state.listings.remove(&other));
        }
    }
    let there = state.listings.get_mut(&descriptor).map_or(Err(Errno::BADF), |listing| listing.go_to(cookie));
    Ok(there.map_err(|error| number(code::p1(error))))
}

/// Why a descriptor cannot be listed, by the error of a call that cannot succeed.
async fn why_not(state: &mut State, descriptor: i32) -> Result<i32> {
    let mut memory = [0; 64];
    let found = p1::fd_filestat_get(&mut state.wasi, &mut GuestMemory::Unshared(&mut memory), descriptor, 0).await?;
    Ok(number(if found == SUCCESS { P1Errno::Notdir } else { P1Errno::Badf }))
}

/// Writes entries until the buffer is full or there are none left. The last one is cut to what fits; the guest asks for it
/// again. Returns how many bytes are written.
fn fill(listing: &mut Listing, memory: &mut [u8], begin: usize, end: usize) -> Result<Result<usize, Errno>> {
    let mut at = begin;
    while at < end {
        let place = listing.place();
        let entry = match listing.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            // What was read before an error is still right. The error comes back.
            Err(_) if at > begin => break,
            Err(error) => return Ok(Err(error)),
        };
        let Some((inode, kind)) = identity(listing, &entry) else { continue };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + entry.name.len());
        bytes.extend(entry.next.to_le_bytes());
        bytes.extend(inode.to_le_bytes());
        bytes.extend(u32::try_from(entry.name.len())?.to_le_bytes());
        bytes.extend(u32::from(kind).to_le_bytes());
        bytes.extend(entry.name.as_bytes());
        let fitting = bytes.get(..end - at).unwrap_or(&bytes);
        write(memory, at, fitting)?;
        at += fitting.len();
        if fitting.len() < bytes.len() {
            listing.put_back(entry, place);
        }
    }
    Ok(Ok(at - begin))
}

/// The inode and type of an entry, as `path_filestat_get` has them; `None` if the entry is gone.
fn identity(listing: &Listing, entry: &Entry) -> Option<(u64, u8)> {
    // The parent of the guest's root is none of its business.
    let name = if entry.name == ".." { "." } else { &entry.name };
    Some(match listing.look(name)? {
        Ok(status) => (inode_of(&status), type_of(FileType::from_raw_mode(status.st_mode))),
        Err(_) => (entry.inode, type_of(entry.kind)),
    })
}

/// What wasmtime makes of device and inode.
pub(super) fn inode_of(status: &Stat) -> u64 {
    let mut hasher = DefaultHasher::new();
    (status.st_dev, status.st_ino).hash(&mut hasher);
    hasher.finish()
}

/// The `filetype` of 0.1.
fn type_of(kind: FileType) -> u8 {
    match kind {
        FileType::BlockDevice => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 3,
        FileType::RegularFile => 4,
        FileType::Symlink => 7,
        FileType::Fifo | FileType::Socket | FileType::Unknown => 0,
    }
}

//! The end of a cache entry, after the artefact: which guest's code it is, who had it compiled, and a hash of everything
//! before the hash.
//!
//! The hash protects against broken disks and half-written files, not against an attacker: only root can write here.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::unistd::Uid;
use xxhash_rust::xxh3::Xxh3;

/// The format and its version.
const MAGIC: &[u8; 8] = b"skiffao2";
/// The owner's name is cut to this many bytes, one more than the longest Kubernetes namespace.
const OWNER_BYTES: usize = 64;
/// The magic, the length of the artefact, and the key in hexadecimal.
const KEY_BYTES: usize = 8 + 8 + 64;
/// The key, and the owner.
const HEAD_BYTES: usize = KEY_BYTES + OWNER_BYTES;
/// The head, then xxh3-128 of artefact and head.
const TRAILER_BYTES: usize = HEAD_BYTES + 16;

/// How many bytes are read and hashed at a time: they stay in the processor's cache.
const CHUNK_BYTES: usize = 32 << 10;

/// Copies what the compiler wrote to `entry`, from its beginning, and appends the trailer.
///
/// # Errors
/// `InvalidData` when the compiler wrote nothing; those of reading and writing.
pub(super) fn write(artefact: &File, digest: &str, owner: &str, entry: &File) -> io::Result<()> {
    entry.set_len(0)?;
    let mut hasher = Xxh3::new();
    let mut end = 0;
    for_each_chunk(artefact, u64::MAX, |chunk| {
        hasher.update(chunk);
        entry.write_all_at(chunk, end)?;
        end += chunk.len() as u64;
        Ok(())
    })?;
    if end == 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "the compiler wrote nothing"));
    }
    let mut trailer = key(end, digest);
    trailer.extend(owner_field(owner));
    hasher.update(&trailer);
    trailer.extend(hasher.digest128().to_le_bytes());
    entry.write_all_at(&trailer, end)
}

/// Checks that an open entry is a file that only root can have made, and contains what was written for `digest`.
///
/// # Errors
/// `InvalidData` with what is wrong with the entry; those of reading.
pub(super) fn verify(entry: &File, digest: &str) -> io::Result<()> {
    let meta = entry.metadata()?;
    let permissions = meta.mode() & 0o7777;
    if !meta.is_file() {
        return Err(bad("it is not a regular file"));
    }
    if meta.uid() != Uid::effective().as_raw() {
        return Err(bad("it belongs to another user"));
    }
    if meta.nlink() != 1 {
        return Err(bad("it has another hard link"));
    }
    if permissions & 0o022 != 0 {
        return Err(bad("others can write to it"));
    }
    let Some(artefact_bytes) = meta.len().checked_sub(TRAILER_BYTES as u64) else {
        return Err(bad("it is too short"));
    };
    let mut trailer = [0; TRAILER_BYTES];
    entry.read_exact_at(&mut trailer, artefact_bytes)?;
    let (found_head, found_hash) = trailer.split_at(HEAD_BYTES);
    if found_head[..KEY_BYTES] != key(artefact_bytes, digest) {
        return Err(bad("its trailer is damaged"));
    }
    let mut hasher = Xxh3::new();
    for_each_chunk(entry, meta.len() - 16, |chunk| {
        hasher.update(chunk);
        Ok(())
    })?;
    if found_hash != hasher.digest128().to_le_bytes() {
        return Err(bad("its content does not match its hash"));
    }
    Ok(())
}

/// The owner of an entry, padded with zeros; only zeros for a file that is not an entry.
pub(super) fn owner_of(entry: &File) -> [u8; OWNER_BYTES] {
    let mut owner = [0; OWNER_BYTES];
    let place = entry.metadata().ok().and_then(|meta| meta.len().checked_sub((OWNER_BYTES + 16) as u64));
    match place.map(|place| entry.read_exact_at(&mut owner, place)) {
        Some(Ok(())) => owner,
        Some(Err(_)) | None => [0; OWNER_BYTES],
    }
}

fn owner_field(name: &str) -> [u8; OWNER_BYTES] {
    let mut owner = [0; OWNER_BYTES];
    for (place, byte) in owner.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    owner
}

fn key(artefact_bytes: u64, digest: &str) -> Vec<u8> {
    [MAGIC, artefact_bytes.to_le_bytes().as_slice(), digest.as_bytes()].concat()
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

/// Calls `work` with each piece of the file's first `limit_bytes` bytes, and returns how many bytes there were.
fn for_each_chunk(file: &File, limit_bytes: u64, mut work: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done_bytes = 0;
    while done_bytes < limit_bytes {
        let wanted = usize::try_from(limit_bytes - done_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        match file.read_at(&mut buffer[..wanted], done_bytes) {
            Ok(0) => break,
            Ok(read) => {
                work(&buffer[..read])?;
                done_bytes += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done_bytes)
}

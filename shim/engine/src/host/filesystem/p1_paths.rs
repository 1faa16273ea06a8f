//! What WASI 0.1 does with paths. wasmtime resolves them below one directory. Where a path leads out of it, and where wasmtime
//! has no word for the kernel's error, the same is done once more with the path resolved in the guest's root.

use std::any::Any;
use std::fs::File;
use std::sync::Arc;

use rustix::fs::{StatVfsMountFlags, Timespec, Timestamps, fstat, fstatvfs};
use rustix::io::Errno;
use skiff_protocol::interfaces::{PREVIEW_0, Preview};
use wasmtime::{Caller, Linker, Result};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p0::wasi_unstable as p0;
use wasmtime_wasi::p1::types::Errno as P1Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1 as p1;
use wiggle::GuestMemory;

use super::code;
use super::opening::{NO_CHANGE, NOW, Open, look, time};
use super::p1_directory::{Placeholder, SUCCESS, SYNC_FLAGS, number, parts, place, text, write};
use super::p1_listings::inode_of;
use crate::files::tree::{Links, Tree};
use crate::store::State;

const FOLLOW: i32 = 1;

/// The arguments of `path_open`.
type OpenArguments = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

/// Replaces the functions.
pub(in crate::host) fn replace(linker: &mut Linker<State>, preview: &Preview) -> Result<()> {
    replace_changes(linker, preview.module)?;
    replace_pairs(linker, preview.module)?;
    replace_looks(linker, preview)?;
    linker.func_wrap_async(
        preview.module,
        "path_open",
        |mut caller: Caller<'_, State>, arguments: OpenArguments| {
            Box::new(async move { path_open(&mut caller, arguments).await })
        },
    )?;
    Ok(())
}

fn replace_changes(linker: &mut Linker<State>, module: &str) -> Result<()> {
    linker.func_wrap_async(
        module,
        "path_create_directory",
        |mut caller: Caller<'_, State>, (from, path, length): (i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let shared = &mut GuestMemory::Unshared(memory);
                let errno = p1::path_create_directory(&mut state.wasi, shared, from, path, length).await?;
                again(&mut caller, errno, from, path, length, |tree, from, path| tree.create_directory(from, path))
                    .await
            })
        },
    )?;
    linker.func_wrap_async(
        module,
        "path_remove_directory",
        |mut caller: Caller<'_, State>, (from, path, length): (i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let shared = &mut GuestMemory::Unshared(memory);
                let errno = p1::path_remove_directory(&mut state.wasi, shared, from, path, length).await?;
                again(&mut caller, errno, from, path, length, |tree, from, path| tree.remove_directory(from, path))
                    .await
            })
        },
    )?;
    linker.func_wrap_async(
        module,
        "path_unlink_file",
        |mut caller: Caller<'_, State>, (from, path, length): (i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let shared = &mut GuestMemory::Unshared(memory);
                let errno = p1::path_unlink_file(&mut state.wasi, shared, from, path, length).await?;
                again(&mut caller, errno, from, path, length, |tree, from, path| tree.unlink(from, path)).await
            })
        },
    )?;
    linker.func_wrap_async(
        module,
        "path_symlink",
        |mut caller: Caller<'_, State>, (target, target_length, from, path, length): (i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let target_text = text(memory, target, target_length);
                let shared = &mut GuestMemory::Unshared(memory);
                let made = p1::path_symlink(&mut state.wasi, shared, target, target_length, from, path, length);
                let errno = made.await?;
                let Some(target) = target_text else { return Ok(errno) };
                again(&mut caller, errno, from, path, length, move |tree, from, path| tree.symlink(&target, from, path))
                    .await
            })
        },
    )?;
    linker.func_wrap_async(
        module,
        "path_filestat_set_times",
        |mut caller: Caller<'_, State>,
         (from, flags, path, length, accessed, modified, which): (i32, i32, i32, i32, i64, i64, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let shared = &mut GuestMemory::Unshared(memory);
                let set = p1::path_filestat_set_times(
                    &mut state.wasi,
                    shared,
                    from,
                    flags,
                    path,
                    length,
                    accessed,
                    modified,
                    which,
                );
                let errno = set.await?;
                again(&mut caller, errno, from, path, length, move |tree, from, path| {
                    tree.set_times(from, path, links(flags), &times(accessed, modified, which)?)
                })
                .await
            })
        },
    )?;
    linker.func_wrap_async(
        module,
        "fd_filestat_set_times",
        |mut caller: Caller<'_, State>, (descriptor, accessed, modified, which): (i32, i64, i64, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let shared = &mut GuestMemory::Unshared(memory);
                let set = p1::fd_filestat_set_times(&mut state.wasi, shared, descriptor, accessed, modified, which);
                let errno = set.await?;
                let is_hidden = errno == number(P1Errno::Io) && is_read_only(state, descriptor).await?;
                Ok(if is_hidden { number(P1Errno::Rofs) } else { errno })
            })
        },
    )?;
    Ok(())
}

/// Whether a descriptor is for something on a read-only file system, for which wasmtime has no word.
async fn is_read_only(state: &mut State, descriptor: i32) -> Result<bool> {
    // A `filestat` begins with the device and the inode.
    let mut memory = [0; 64];
    let looked = p1::fd_filestat_get(&mut state.wasi, &mut GuestMemory::Unshared(&mut memory), descriptor, 0).await?;
    let [_, _, _, _, _, _, _, _, inode @ ..] = memory;
    let Some(inode) = inode.first_chunk().filter(|_| looked == SUCCESS).map(|bytes| u64::from_le_bytes(*bytes)) else {
        return Ok(false);
    };
    // Which of the open files it is only wasmtime knows, but they can all be looked at.
    let is_it = |file: &File| {
        fstat(file).is_ok_and(|status| inode_of(&status) == inode)
            && fstatvfs(file).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
    };
    Ok(state.wasi.ctx().table.iter_mut().any(|entry| match (entry as &dyn Any).downcast_ref() {
        Some(Descriptor::File(file)) => is_it(&file.file),
        Some(Descriptor::Dir(directory)) => is_it(&directory.dir),
        None => false,
    }))
}

fn replace_pairs(linker: &mut Linker<State>, module: &str) -> Result<()> {
    linker.func_wrap_async(
        module,
        "path_rename",
        |mut caller: Caller<'_, State>,
         (from, path, length, to, new_path, new_length): (i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let new = text(memory, new_path, new_length);
                let shared = &mut GuestMemory::Unshared(memory);
                let renamed = p1::path_rename(&mut state.wasi, shared, from, path, length, to, new_path, new_length);
                let errno = renamed.await?;
                let Some((new, to)) = second(&mut caller, errno, new, to).await? else { return Ok(errno) };
                again(&mut caller, errno, from, path, length, move |tree, from, path| {
                    tree.rename(from, path, &to, &new)
                })
                .await
            })
        },
    )?;
    linker.func_wrap_async(
        module,
        "path_link",
        |mut caller: Caller<'_, State>,
         (from, flags, path, length, to, new_path, new_length): (i32, i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let new = text(memory, new_path, new_length);
                let shared = &mut GuestMemory::Unshared(memory);
                let linked =
                    p1::path_link(&mut state.wasi, shared, from, flags, path, length, to, new_path, new_length);
                let errno = linked.await?;
                let Some((new, to)) = second(&mut caller, errno, new, to).await? else { return Ok(errno) };
                again(&mut caller, errno, from, path, length, move |tree, from, path| tree.link(from, path, &to, &new))
                    .await
            })
        },
    )?;
    Ok(())
}

fn replace_looks(linker: &mut Linker<State>, preview: &Preview) -> Result<()> {
    let is_snapshot_0 = preview.module == PREVIEW_0.module;
    linker.func_wrap_async(
        preview.module,
        "path_filestat_get",
        move |mut caller: Caller<'_, State>, (from, flags, path, length, out): (i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let shared = &mut GuestMemory::Unshared(memory);
                let errno = if is_snapshot_0 {
                    p0::path_filestat_get(&mut state.wasi, shared, from, flags, path, length, out).await?
                } else {
                    p1::path_filestat_get(&mut state.wasi, shared, from, flags, path, length, out).await?
                };
                let Some((path, placeholder)) = another_try(&mut caller, errno, from, path, length).await? else {
                    return Ok(errno);
                };
                let (memory, state) = parts(&mut caller)?;
                let errno = match look(&state.tree, &placeholder.directory, &path, links(flags)) {
                    Ok(seen) => {
                        let seen = placeholder.show(state, seen)?;
                        let shared = &mut GuestMemory::Unshared(memory);
                        if is_snapshot_0 {
                            p0::fd_filestat_get(&mut state.wasi, shared, seen, out).await?
                        } else {
                            p1::fd_filestat_get(&mut state.wasi, shared, seen, out).await?
                        }
                    }
                    Err(error) => number(code::p1(error)),
                };
                placeholder.close(state).await?;
                Ok(errno)
            })
        },
    )?;
    linker.func_wrap_async(
        preview.module,
        "path_readlink",
        |mut caller: Caller<'_, State>,
         (from, path, length, buffer, buffer_length, used): (i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = parts(&mut caller)?;
                let shared = &mut GuestMemory::Unshared(memory);
                let read = p1::path_readlink(&mut state.wasi, shared, from, path, length, buffer, buffer_length, used);
                let errno = read.await?;
                let Some((path, placeholder)) = another_try(&mut caller, errno, from, path, length).await? else {
                    return Ok(errno);
                };
                let (memory, state) = parts(&mut caller)?;
                let read = state.tree.read_link(&placeholder.directory, &path);
                placeholder.close(state).await?;
                match read {
                    Ok(target) => {
                        let fitting = target.as_bytes().get(..place(buffer_length)).unwrap_or(target.as_bytes());
                        write(memory, place(buffer), fitting)?;
                        write(memory, place(used), &u32::try_from(fitting.len())?.to_le_bytes())?;
                        Ok(SUCCESS)
                    }
                    Err(error) => Ok(number(code::p1(error))),
                }
            })
        },
    )?;
    Ok(())
}

async fn path_open(caller: &mut Caller<'_, State>, arguments: OpenArguments) -> Result<i32> {
    let (from, flags, path, length, open_flags, rights, inheriting, fdflags, out) = arguments;
    let (memory, state) = parts(caller)?;
    let shared = &mut GuestMemory::Unshared(memory);
    let opened =
        p1::path_open(&mut state.wasi, shared, from, flags, path, length, open_flags, rights, inheriting, fdflags, out);
    let errno = opened.await?;
    let Some((path, placeholder)) = another_try(caller, errno, from, path, length).await? else { return Ok(errno) };
    let (memory, state) = parts(caller)?;
    let how = Open {
        links: links(flags),
        create: open_flags & 0b1 != 0,
        directory: open_flags & 0b10 != 0,
        exclusive: open_flags & 0b100 != 0,
        truncate: open_flags & 0b1000 != 0,
        read: rights & (1 << 1) != 0,
        write: rights & (1 << 6) != 0,
        sync: fdflags & SYNC_FLAGS != 0,
    };
    let opened = match how.open(&state.tree, &placeholder.directory, &path) {
        Ok(opened) => placeholder.become_the_guests(state, opened, fdflags).await?,
        Err(error) => placeholder.close(state).await.map(|()| Err(error))?,
    };
    match opened {
        Ok(descriptor) => write(memory, place(out), &descriptor.to_le_bytes()).map(|()| SUCCESS),
        Err(error) => Ok(number(code::p1(error))),
    }
}

/// Does something once more, unless wasmtime's result stands.
async fn again(
    caller: &mut Caller<'_, State>,
    errno: i32,
    from: i32,
    path: i32,
    length: i32,
    body: impl FnOnce(&Tree, &File, &str) -> Result<(), Errno>,
) -> Result<i32> {
    let Some((path, placeholder)) = another_try(caller, errno, from, path, length).await? else { return Ok(errno) };
    let state = caller.data_mut();
    let done = body(&state.tree, &placeholder.directory, &path);
    placeholder.close(state).await?;
    Ok(done.map_or_else(|error| number(code::p1(error)), |()| SUCCESS))
}

/// The path and directory for another try, unless wasmtime's result stands.
async fn another_try(
    caller: &mut Caller<'_, State>,
    errno: i32,
    from: i32,
    path: i32,
    length: i32,
) -> Result<Option<(String, Placeholder)>> {
    if !leaves_open(errno) {
        return Ok(None);
    }
    let (memory, state) = parts(caller)?;
    let Some(path) = text(memory, path, length) else { return Ok(None) };
    Ok(Placeholder::of(state, from).await?.ok().map(|placeholder| (path, placeholder)))
}

/// The second path and directory of a call that has two, if it is worth another try.
async fn second(
    caller: &mut Caller<'_, State>,
    errno: i32,
    path: Option<String>,
    directory: i32,
) -> Result<Option<(String, Arc<File>)>> {
    let Some(path) = path.filter(|_| leaves_open(errno)) else { return Ok(None) };
    let state = caller.data_mut();
    let Ok(placeholder) = Placeholder::of(state, directory).await? else { return Ok(None) };
    let directory = Arc::clone(&placeholder.directory);
    placeholder.close(state).await?;
    Ok(Some((path, directory)))
}

/// Whether an error may only be wasmtime's: a path that leads out of its directory, or an error that it has no word for.
fn leaves_open(errno: i32) -> bool {
    errno == number(P1Errno::Perm) || errno == number(P1Errno::Io)
}

fn links(flags: i32) -> Links {
    if flags & FOLLOW == 0 { Links::Keep } else { Links::Follow }
}

/// The times of a `filestat`, of which the flags say which are set. wasmtime has refused both ways at once.
fn times(accessed: i64, modified: i64, which: i32) -> Result<Timestamps, Errno> {
    let one = |at: i64, set: i32, now: i32| -> Result<Timespec, Errno> {
        let at = at.cast_unsigned();
        if which & now != 0 {
            Ok(NOW)
        } else if which & set != 0 {
            let seconds = i64::try_from(at / 1_000_000_000).map_err(|_| Errno::OVERFLOW)?;
            time(seconds, u32::try_from(at % 1_000_000_000).map_err(|_| Errno::OVERFLOW)?)
        } else {
            Ok(NO_CHANGE)
        }
    };
    Ok(Timestamps { last_access: one(accessed, 0b1, 0b10)?, last_modification: one(modified, 0b100, 0b1000)? })
}

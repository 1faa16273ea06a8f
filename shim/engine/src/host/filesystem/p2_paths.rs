//! What `wasi:filesystem` of 0.2 does with paths and directories, in place of wasmtime's own: paths are resolved in the
//! guest's root, listings are read as they are asked for, and errors are the kernel's.

use std::collections::VecDeque;
use std::sync::Arc;

use rustix::fs::{FileType, Timestamps};
use rustix::io::Errno;
use skiff_protocol::interfaces::WASI_0_2;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DescriptorType, DirectoryEntry, DirectoryEntryStream, ErrorCode, HostDescriptor, NewTimestamp,
    OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{FsError, FsResult};

use super::code;
use super::opening::{NO_CHANGE, NOW, Open, look as look_at, time};
use crate::files::listing::{Entry, Listing};
use crate::files::tree::{Links, Tree, set_times};
use crate::store::State;

type Store<'a> = StoreContextMut<'a, State>;
type Directory = Resource<Descriptor>;

/// The names of a directory that are not read yet.
///
/// wasmtime's own type cannot be made from outside. The table holds this one instead; the guest only sees its number.
#[derive(Default)]
struct Names {
    listing: Option<Listing>,
    read: VecDeque<Entry>,
}

/// Replaces the functions.
pub(super) fn replace(linker: &mut Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    let replaced = replace_paths(linker).and_then(|()| replace_listings(linker));
    linker.allow_shadowing(false);
    replaced
}

fn replace_paths(linker: &mut Linker<State>) -> Result<()> {
    let mut types = linker.instance(&format!("wasi:filesystem/types@{}", WASI_0_2.release))?;
    types.func_wrap_async(
        "[method]descriptor.create-directory-at",
        |mut store: Store<'_>, (from, path): (Directory, String)| {
            Box::new(
                async move { reply(at(&mut store, &from, move |tree, from| tree.create_directory(from, &path)).await) },
            )
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.remove-directory-at",
        |mut store: Store<'_>, (from, path): (Directory, String)| {
            Box::new(
                async move { reply(at(&mut store, &from, move |tree, from| tree.remove_directory(from, &path)).await) },
            )
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.unlink-file-at",
        |mut store: Store<'_>, (from, path): (Directory, String)| {
            Box::new(async move { reply(at(&mut store, &from, move |tree, from| tree.unlink(from, &path)).await) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.readlink-at",
        |mut store: Store<'_>, (from, path): (Directory, String)| {
            Box::new(async move { reply(at(&mut store, &from, move |tree, from| tree.read_link(from, &path)).await) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.symlink-at",
        |mut store: Store<'_>, (from, target, path): (Directory, String, String)| {
            Box::new(
                async move { reply(at(&mut store, &from, move |tree, from| tree.symlink(&target, from, &path)).await) },
            )
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.rename-at",
        |mut store: Store<'_>, (from, path, to, new_path): (Directory, String, Directory, String)| {
            Box::new(async move { reply(rename(&mut store, &from, path, &to, new_path).await) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.link-at",
        |mut store: Store<'_>, (from, flags, path, to, new_path): (Directory, PathFlags, String, Directory, String)| {
            Box::new(async move { reply(link(&mut store, &from, flags, path, &to, new_path).await) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: Store<'_>,
         (from, path_flags, path, open_flags, flags): (Directory, PathFlags, String, OpenFlags, DescriptorFlags)| {
            Box::new(async move {
                let how = how(path_flags, open_flags, flags);
                let opened = at(&mut store, &from, move |tree, from| how.open(tree, from, &path)).await;
                reply(opened.and_then(|opened| Ok(store.data_mut().ctx().table.push(opened)?)))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.stat-at",
        |mut store: Store<'_>, (from, flags, path): (Directory, PathFlags, String)| {
            Box::new(async move {
                reply(match look(&mut store, &from, flags, path).await {
                    Ok(seen) => {
                        let mut files = store.data_mut().filesystem();
                        let status = files.stat(Resource::new_borrow(seen.rep())).await;
                        forget(files.table.delete(seen), status)
                    }
                    Err(error) => Err(error),
                })
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.metadata-hash-at",
        |mut store: Store<'_>, (from, flags, path): (Directory, PathFlags, String)| {
            Box::new(async move {
                reply(match look(&mut store, &from, flags, path).await {
                    Ok(seen) => {
                        let mut files = store.data_mut().filesystem();
                        let hash = files.metadata_hash(Resource::new_borrow(seen.rep())).await;
                        forget(files.table.delete(seen), hash)
                    }
                    Err(error) => Err(error),
                })
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.set-times-at",
        |mut store: Store<'_>,
         (from, flags, path, accessed, modified): (Directory, PathFlags, String, NewTimestamp, NewTimestamp)| {
            Box::new(async move {
                let change =
                    move |tree: &Tree, from: &_| tree.set_times(from, &path, links(flags), &times(accessed, modified)?);
                reply(at(&mut store, &from, change).await)
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.set-times",
        |mut store: Store<'_>, (descriptor, accessed, modified): (Directory, NewTimestamp, NewTimestamp)| {
            Box::new(async move { reply(set_times_of(&mut store, &descriptor, accessed, modified).await) })
        },
    )
}

fn replace_listings(linker: &mut Linker<State>) -> Result<()> {
    let mut types = linker.instance(&format!("wasi:filesystem/types@{}", WASI_0_2.release))?;
    types.func_wrap_async(
        "[method]descriptor.read-directory",
        |mut store: Store<'_>, (directory,): (Directory,)| {
            Box::new(async move {
                let listing = at(&mut store, &directory, |_, directory| Listing::of(directory)).await;
                let names = listing.map(|listing| Names { listing: Some(listing), read: VecDeque::new() });
                let pushed = names.and_then(|names| Ok(store.data_mut().ctx().table.push(names)?));
                reply(pushed.map(|names| Resource::<DirectoryEntryStream>::new_own(names.rep())))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]directory-entry-stream.read-directory-entry",
        |mut store: Store<'_>, (stream,): (Resource<DirectoryEntryStream>,)| {
            Box::new(async move { reply(next_name(&mut store, &stream).await) })
        },
    )?;
    types.resource("directory-entry-stream", ResourceType::host::<DirectoryEntryStream>(), |mut store, stream| {
        store.data_mut().ctx().table.delete(Resource::<Names>::new_own(stream))?;
        Ok(())
    })
}

async fn next_name(store: &mut Store<'_>, stream: &Resource<DirectoryEntryStream>) -> FsResult<Option<DirectoryEntry>> {
    let stream = Resource::<Names>::new_borrow(stream.rep());
    let tree = store.data().tree.clone();
    let names = store.data_mut().ctx().table.get_mut(&stream)?;
    if names.read.is_empty()
        && let Some(mut listing) = names.listing.take()
    {
        let (listing, read) = tree
            .run(move || {
                let read = listing.next_names();
                (listing, read)
            })
            .await;
        let names = store.data_mut().ctx().table.get_mut(&stream)?;
        names.read = read.map_err(code::p2)?.into();
        // A listing that failed or ended is over.
        names.listing = Some(listing).filter(|_| !names.read.is_empty());
    }
    let next = store.data_mut().ctx().table.get_mut(&stream)?.read.pop_front();
    Ok(next.map(|Entry { name, kind, .. }| DirectoryEntry { type_: kind_of(kind), name }))
}

fn kind_of(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Fifo | FileType::Socket | FileType::Unknown => DescriptorType::Unknown,
    }
}

fn how(path_flags: PathFlags, open_flags: OpenFlags, flags: DescriptorFlags) -> Open {
    let sync = DescriptorFlags::FILE_INTEGRITY_SYNC
        | DescriptorFlags::DATA_INTEGRITY_SYNC
        | DescriptorFlags::REQUESTED_WRITE_SYNC;
    Open {
        links: links(path_flags),
        create: open_flags.contains(OpenFlags::CREATE),
        directory: open_flags.contains(OpenFlags::DIRECTORY),
        exclusive: open_flags.contains(OpenFlags::EXCLUSIVE),
        truncate: open_flags.contains(OpenFlags::TRUNCATE),
        read: flags.contains(DescriptorFlags::READ),
        write: flags.contains(DescriptorFlags::WRITE),
        sync: flags.intersects(sync),
    }
}

fn links(flags: PathFlags) -> Links {
    if flags.contains(PathFlags::SYMLINK_FOLLOW) { Links::Follow } else { Links::Keep }
}

fn times(accessed: NewTimestamp, modified: NewTimestamp) -> Result<Timestamps, Errno> {
    let one = |given| match given {
        NewTimestamp::NoChange => Ok(NO_CHANGE),
        NewTimestamp::Now => Ok(NOW),
        NewTimestamp::Timestamp(at) => time(i64::try_from(at.seconds).map_err(|_| Errno::OVERFLOW)?, at.nanoseconds),
    };
    Ok(Timestamps { last_access: one(accessed)?, last_modification: one(modified)? })
}

async fn set_times_of(
    store: &mut Store<'_>,
    descriptor: &Directory,
    accessed: NewTimestamp,
    modified: NewTimestamp,
) -> FsResult<()> {
    let file = match store.data_mut().ctx().table.get(descriptor)? {
        Descriptor::File(file) => Arc::clone(&file.file),
        Descriptor::Dir(directory) => Arc::clone(&directory.dir),
    };
    let change = move || set_times(&file, &times(accessed, modified)?);
    Ok(store.data().tree.clone().run(change).await.map_err(code::p2)?)
}

async fn rename(
    store: &mut Store<'_>,
    from: &Directory,
    path: String,
    to: &Directory,
    new_path: String,
) -> FsResult<()> {
    let to = directory(store, to)?;
    at(store, from, move |tree, from| tree.rename(from, &path, &to, &new_path)).await
}

async fn link(
    store: &mut Store<'_>,
    from: &Directory,
    flags: PathFlags,
    path: String,
    to: &Directory,
    new_path: String,
) -> FsResult<()> {
    let to = directory(store, to)?;
    if flags.contains(PathFlags::SYMLINK_FOLLOW) {
        return Err(ErrorCode::Invalid.into());
    }
    at(store, from, move |tree, from| tree.link(from, &path, &to, &new_path)).await
}

/// Opens something to look at it.
async fn look(store: &mut Store<'_>, from: &Directory, flags: PathFlags, path: String) -> FsResult<Directory> {
    let seen = at(store, from, move |tree, from| look_at(tree, from, &path, links(flags))).await?;
    Ok(store.data_mut().ctx().table.push(seen)?)
}

/// What was found out about something that was open for no other reason.
fn forget<T, D>(closed: Result<D, wasmtime_wasi::ResourceTableError>, found: FsResult<T>) -> FsResult<T> {
    drop(closed?);
    found
}

/// Does something in a directory.
async fn at<T: Send + 'static>(
    store: &mut Store<'_>,
    from: &Directory,
    body: impl FnOnce(&Tree, &std::fs::File) -> Result<T, Errno> + Send + 'static,
) -> FsResult<T> {
    let from = directory(store, from)?;
    let tree = store.data().tree.clone();
    let inside = tree.clone();
    Ok(tree.run(move || body(&inside, &from)).await.map_err(code::p2)?)
}

fn directory(store: &mut Store<'_>, directory: &Directory) -> FsResult<Arc<std::fs::File>> {
    match store.data_mut().ctx().table.get(directory)? {
        Descriptor::Dir(directory) => Ok(Arc::clone(&directory.dir)),
        Descriptor::File(_) => Err(ErrorCode::NotDirectory.into()),
    }
}

/// What the guest is returned: a result, or a trap.
fn reply<T>(result: Result<T, FsError>) -> Result<(Result<T, ErrorCode>,)> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

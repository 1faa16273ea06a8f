//! What `wasi:filesystem` of 0.3 does with paths and directories, in place of wasmtime's own: paths are resolved in the
//! guest's root, listings are read as they are asked for, and errors are the kernel's.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::{FileType, Timestamps};
use rustix::io::Errno;
use skiff_protocol::interfaces::WASI_0_3;
use tokio::sync::oneshot;
use wasmtime::component::{
    Accessor, Destination, FutureReader, HasSelf, Linker, Resource, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p3::bindings::filesystem::types::{
    DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, HostDescriptorWithStore,
    MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::{FilesystemError, FilesystemResult};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn_blocking};
use wasmtime_wasi::{ResourceTable, WasiView};

use super::code;
use super::opening::{NO_CHANGE, NOW, Open, look as look_at, time};
use crate::files::listing::{Entry, Listing};
use crate::files::tree::{Links, Tree, set_times};
use crate::store::State;

type Store = Accessor<State, HasSelf<State>>;
type Directory = Resource<Descriptor>;

/// Replaces the functions.
pub(super) fn replace(linker: &mut Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    let replaced = replace_all(linker);
    linker.allow_shadowing(false);
    replaced
}

fn replace_all(linker: &mut Linker<State>) -> Result<()> {
    let mut types = linker.instance(&format!("wasi:filesystem/types@{}", WASI_0_3.release))?;
    types.func_wrap_concurrent(
        "[method]descriptor.create-directory-at",
        |store: &Store, (from, path): (Directory, String)| {
            Box::pin(async move { reply(at(store, &from, move |tree, from| tree.create_directory(from, &path)).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.remove-directory-at",
        |store: &Store, (from, path): (Directory, String)| {
            Box::pin(async move { reply(at(store, &from, move |tree, from| tree.remove_directory(from, &path)).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.unlink-file-at",
        |store: &Store, (from, path): (Directory, String)| {
            Box::pin(async move { reply(at(store, &from, move |tree, from| tree.unlink(from, &path)).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.readlink-at",
        |store: &Store, (from, path): (Directory, String)| {
            Box::pin(async move { reply(at(store, &from, move |tree, from| tree.read_link(from, &path)).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.symlink-at",
        |store: &Store, (from, target, path): (Directory, String, String)| {
            Box::pin(async move { reply(at(store, &from, move |tree, from| tree.symlink(&target, from, &path)).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.rename-at",
        |store: &Store, (from, path, to, new_path): (Directory, String, Directory, String)| {
            Box::pin(async move { reply(rename(store, &from, path, &to, new_path).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.link-at",
        |store: &Store, (from, flags, path, to, new_path): (Directory, PathFlags, String, Directory, String)| {
            Box::pin(async move { reply(link(store, &from, flags, path, &to, new_path).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.open-at",
        |store: &Store,
         (from, path_flags, path, open_flags, flags): (Directory, PathFlags, String, OpenFlags, DescriptorFlags)| {
            Box::pin(async move { reply(open(store, &from, how(path_flags, open_flags, flags), path).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.stat-at",
        |store: &Store, (from, flags, path): (Directory, PathFlags, String)| {
            Box::pin(async move { reply(stat(store, &from, flags, path).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.metadata-hash-at",
        |store: &Store, (from, flags, path): (Directory, PathFlags, String)| {
            Box::pin(async move { reply(hash(store, &from, flags, path).await) })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.set-times-at",
        |store: &Store,
         (from, flags, path, accessed, modified): (Directory, PathFlags, String, NewTimestamp, NewTimestamp)| {
            Box::pin(async move {
                let change = move |tree: &Tree, from: &File| {
                    tree.set_times(from, &path, links(flags), &times(accessed, modified)?)
                };
                reply(at(store, &from, change).await)
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.set-times",
        |store: &Store, (descriptor, accessed, modified): (Directory, NewTimestamp, NewTimestamp)| {
            Box::pin(async move { reply(set_times_of(store, &descriptor, accessed, modified).await) })
        },
    )?;
    types.func_wrap("[method]descriptor.read-directory", |store, (directory,): (Directory,)| {
        Ok((read_directory(store, &directory)?,))
    })
}

type Names = (StreamReader<DirectoryEntry>, FutureReader<Result<(), ErrorCode>>);

fn read_directory(mut store: StoreContextMut<'_, State>, fd: &Directory) -> Result<Names> {
    let may_block = store.data().tree.may_block();
    let (end, ended) = oneshot::channel();
    let step = match directory(store.data_mut().ctx().table, fd) {
        Ok(directory) => Step::begin(may_block, move || Listing::of(&directory)),
        Err(error) => {
            let code = error.downcast()?;
            drop(end.send(Err(code)));
            let none = StreamReader::new(&mut store, std::iter::empty())?;
            return Ok((none, FutureReader::new(&mut store, async move { Ok::<_, wasmtime::Error>(ended.await?) })?));
        }
    };
    let names = StreamReader::new(&mut store, Reading { step, may_block, end: Some(end) })?;
    // Whoever drops the stream early wants no more of it.
    let ended = async move { Ok::<_, wasmtime::Error>(ended.await.unwrap_or(Ok(()))) };
    Ok((names, FutureReader::new(&mut store, ended)?))
}

/// A directory that is being listed for a stream.
struct Reading {
    step: Step,
    may_block: bool,
    end: Option<oneshot::Sender<Result<(), ErrorCode>>>,
}

type Read = Result<(Listing, Vec<Entry>), Errno>;

/// The reading of one block.
enum Step {
    Done(Option<Read>),
    UnderWay(AbortOnDropJoinHandle<Read>),
}

impl Step {
    fn begin(may_block: bool, listing: impl FnOnce() -> Result<Listing, Errno> + Send + 'static) -> Self {
        let read = || {
            let mut listing = listing()?;
            listing.next_names().map(|names| (listing, names))
        };
        if may_block { Self::Done(Some(read())) } else { Self::UnderWay(spawn_blocking(read)) }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Read>> {
        match self {
            Self::Done(read) => Poll::Ready(read.take()),
            Self::UnderWay(task) => Pin::new(task).poll(context).map(Some),
        }
    }
}

impl Reading {
    fn end(&mut self, result: Result<(), ErrorCode>) -> StreamResult {
        if let Some(end) = self.end.take() {
            drop(end.send(result));
        }
        StreamResult::Dropped
    }
}

impl<D> StreamProducer<D> for Reading {
    type Item = DirectoryEntry;
    type Buffer = VecBuffer<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<Result<StreamResult>> {
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let read = match self.step.poll(context) {
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            polled => ready!(polled),
        };
        Poll::Ready(Ok(match read {
            Some(Ok((listing, names))) if !names.is_empty() => {
                let names =
                    names.into_iter().map(|Entry { name, kind, .. }| DirectoryEntry { type_: kind_of(kind), name });
                destination.set_buffer(names.collect::<Vec<_>>().into());
                self.step = Step::begin(self.may_block, move || Ok(listing));
                StreamResult::Completed
            }
            Some(Err(error)) => self.end(Err(code::p3(error))),
            Some(Ok(_)) | None => self.end(Ok(())),
        }))
    }
}

fn kind_of(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::Unknown => DescriptorType::Other(None),
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
        NewTimestamp::Timestamp(at) => time(at.seconds, at.nanoseconds),
    };
    Ok(Timestamps { last_access: one(accessed)?, last_modification: one(modified)? })
}

async fn set_times_of(
    store: &Store,
    descriptor: &Directory,
    accessed: NewTimestamp,
    modified: NewTimestamp,
) -> FilesystemResult<()> {
    let (tree, file) = store.with(|mut access| {
        let state = access.get();
        let file = match state.ctx().table.get(descriptor)? {
            Descriptor::File(file) => Arc::clone(&file.file),
            Descriptor::Dir(directory) => Arc::clone(&directory.dir),
        };
        FilesystemResult::Ok((state.tree.clone(), file))
    })?;
    let change = move || set_times(&file, &times(accessed, modified)?);
    Ok(tree.run(change).await.map_err(code::p3)?)
}

async fn rename(
    store: &Store,
    from: &Directory,
    path: String,
    to: &Directory,
    new_path: String,
) -> FilesystemResult<()> {
    let to = store.with(|mut access| directory(access.get().ctx().table, to))?;
    at(store, from, move |tree, from| tree.rename(from, &path, &to, &new_path)).await
}

async fn link(
    store: &Store,
    from: &Directory,
    flags: PathFlags,
    path: String,
    to: &Directory,
    new_path: String,
) -> FilesystemResult<()> {
    let to = store.with(|mut access| directory(access.get().ctx().table, to))?;
    if flags.contains(PathFlags::SYMLINK_FOLLOW) {
        return Err(ErrorCode::Invalid.into());
    }
    at(store, from, move |tree, from| tree.link(from, &path, &to, &new_path)).await
}

async fn open(store: &Store, from: &Directory, how: Open, path: String) -> FilesystemResult<Directory> {
    let opened = at(store, from, move |tree, from| how.open(tree, from, &path)).await?;
    Ok(store.with(|mut access| access.get().ctx().table.push(opened))?)
}

async fn stat(store: &Store, from: &Directory, flags: PathFlags, path: String) -> FilesystemResult<DescriptorStat> {
    let seen = look(store, from, flags, path).await?;
    let files = store.with_getter::<WasiFilesystem>(State::filesystem);
    let status = WasiFilesystem::stat(&files, Resource::new_borrow(seen.rep())).await;
    store.with(|mut access| access.get().ctx().table.delete(seen))?;
    status
}

async fn hash(store: &Store, from: &Directory, flags: PathFlags, path: String) -> FilesystemResult<MetadataHashValue> {
    let seen = look(store, from, flags, path).await?;
    let files = store.with_getter::<WasiFilesystem>(State::filesystem);
    let hash = WasiFilesystem::metadata_hash(&files, Resource::new_borrow(seen.rep())).await;
    store.with(|mut access| access.get().ctx().table.delete(seen))?;
    hash
}

/// Opens something to look at it.
async fn look(store: &Store, from: &Directory, flags: PathFlags, path: String) -> FilesystemResult<Directory> {
    let seen = at(store, from, move |tree, from| look_at(tree, from, &path, links(flags))).await?;
    Ok(store.with(|mut access| access.get().ctx().table.push(seen))?)
}

/// Does something in a directory.
async fn at<T: Send + 'static>(
    store: &Store,
    from: &Directory,
    body: impl FnOnce(&Tree, &File) -> Result<T, Errno> + Send + 'static,
) -> FilesystemResult<T> {
    let (tree, from) = store.with(|mut access| {
        let state = access.get();
        FilesystemResult::Ok((state.tree.clone(), directory(state.ctx().table, from)?))
    })?;
    let inside = tree.clone();
    Ok(tree.run(move || body(&inside, &from)).await.map_err(code::p3)?)
}

fn directory(table: &ResourceTable, directory: &Directory) -> FilesystemResult<Arc<File>> {
    match table.get(directory)? {
        Descriptor::Dir(directory) => Ok(Arc::clone(&directory.dir)),
        Descriptor::File(_) => Err(ErrorCode::NotDirectory.into()),
    }
}

/// What the guest is returned: a result, or a trap.
fn reply<T>(result: Result<T, FilesystemError>) -> Result<(Result<T, ErrorCode>,)> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

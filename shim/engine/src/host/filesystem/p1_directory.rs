//! The open directories of WASI 0.1. wasmtime keeps its descriptors to itself. But whatever it opens is in the resource
//! table, and there it can be looked at and replaced.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use wasmtime::component::Resource;
use wasmtime::{AsContextMut, Caller, Extern, Result, bail};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::{Descriptor, Dir};
use wasmtime_wasi::p1::types::Errno as P1Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as p1, WasiSnapshotPreview1};
use wiggle::GuestMemory;

use crate::store::State;

/// What the functions of 0.1 return if they did what they should.
pub(in crate::host) const SUCCESS: i32 = 0;
/// Of `fdflags`: whether writes are to reach the disk before they return.
pub(super) const SYNC_FLAGS: i32 = 0b1_1010;

const DIRECTORY_FLAG: i32 = 0b10;
const READ_RIGHT: i64 = 0b10;
/// A file that every container has and that the wall leaves in reach.
const SOME_FILE: (&str, &str) = ("/dev", "urandom");

/// The guest's memory, and the state of its store.
pub(in crate::host) fn parts<'a>(caller: &'a mut Caller<'_, State>) -> Result<(&'a mut [u8], &'a mut State)> {
    let fuel = caller.as_context_mut().hostcall_fuel();
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else { bail!("missing required memory export") };
    let (bytes, state) = memory.data_and_store_mut(caller);
    state.wasi.set_hostcall_fuel(fuel);
    Ok((bytes, state))
}

/// The number of an error.
pub(super) fn number(errno: P1Errno) -> i32 {
    i32::from(u16::from(errno))
}

/// The longest path of the kernel.
const PATH_BYTES_MAX: usize = 4096;

/// A path in the guest's memory. What is longer than the kernel's paths is not copied: no call can succeed with it.
pub(super) fn text(memory: &[u8], begin: i32, length: i32) -> Option<String> {
    let (begin, length) = (place(begin), Some(place(length)).filter(|length| *length <= PATH_BYTES_MAX)?);
    let bytes = memory.get(begin..begin.checked_add(length)?)?;
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// Writes into the guest's memory. What is outside of it is a trap, as wasmtime has it.
pub(in crate::host) fn write(memory: &mut [u8], begin: usize, bytes: &[u8]) -> Result<()> {
    let end = begin.checked_add(bytes.len());
    match end.and_then(|end| memory.get_mut(begin..end)) {
        Some(there) => there.copy_from_slice(bytes),
        None => bail!("pointer out of bounds: {begin} and {} bytes", bytes.len()),
    }
    Ok(())
}

/// An address or length of the guest.
pub(in crate::host) fn place(number: i32) -> usize {
    number.cast_unsigned() as usize
}

/// A descriptor of 0.1 that only the host knows, for one of the guest's directories.
pub(super) struct Placeholder {
    number: i32,
    resource: u32,
    /// The directory itself.
    pub(super) directory: Arc<File>,
}

impl Placeholder {
    /// Opens a directory of the guest once more, or says by which error of 0.1 that fails: `BADF` also if the descriptor is
    /// not a directory.
    pub(super) async fn of(state: &mut State, descriptor: i32) -> Result<Result<Self, i32>> {
        let (number, resource) = match open(state, descriptor, ".", DIRECTORY_FLAG, 0).await? {
            Ok(opened) => opened,
            Err(errno) => return Ok(Err(errno)),
        };
        match state.wasi.ctx().table.get(&Resource::<Descriptor>::new_borrow(resource)) {
            Ok(Descriptor::Dir(directory)) => Ok(Ok(Self { number, resource, directory: Arc::clone(&directory.dir) })),
            Ok(Descriptor::File(_)) | Err(_) => bail!("an opened directory is not in the table"),
        }
    }

    /// Closes it.
    pub(super) async fn close(self, state: &mut State) -> Result<()> {
        p1::fd_close(&mut state.wasi, &mut GuestMemory::Unshared(&mut []), self.number).await.map(drop)
    }

    /// Makes it a descriptor for something else that is only looked at, and returns its number.
    pub(super) fn show(&self, state: &mut State, shown: Descriptor) -> Result<i32> {
        replace(state, self.resource, shown)?;
        Ok(self.number)
    }

    /// Makes it the guest's descriptor for what was opened, and returns its number, or why not.
    pub(super) async fn become_the_guests(
        self,
        state: &mut State,
        opened: Descriptor,
        fdflags: i32,
    ) -> Result<Result<i32, Errno>> {
        let number = self.show(state, opened.clone())?;
        if let Descriptor::Dir(_) = opened {
            return Ok(Ok(number));
        }
        // For wasmtime this is a directory. A file is made of a file that is opened in it.
        let (folder, name) = SOME_FILE;
        let folder = openat(rustix::fs::CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let folder = match folder {
            Ok(folder) => folder,
            Err(error) => return self.close(state).await.map(|()| Err(error)),
        };
        let folder = Dir::new(folder.into(), wasmtime_wasi::FsPerms::ReadOnly, wasmtime_wasi::OpenMode::READ, true);
        replace(state, self.resource, Descriptor::Dir(folder))?;
        let Ok((file, resource)) = open(state, number, name, 0, fdflags & !SYNC_FLAGS).await? else {
            return self.close(state).await.map(|()| Err(Errno::NFILE));
        };
        replace(state, resource, opened)?;
        // The guest gets the lowest number, as it would from wasmtime.
        p1::fd_renumber(&mut state.wasi, &mut GuestMemory::Unshared(&mut []), file, number).await?;
        Ok(Ok(number))
    }
}

fn replace(state: &mut State, resource: u32, descriptor: Descriptor) -> Result<()> {
    *state.wasi.ctx().table.get_mut(&Resource::new_borrow(resource))? = descriptor;
    Ok(())
}

/// Opens something to read it, and returns its number and its place in the table, or the error of 0.1.
async fn open(
    state: &mut State,
    from: i32,
    path: &str,
    open_flags: i32,
    fdflags: i32,
) -> Result<Result<(i32, u32), i32>> {
    const NUMBER: usize = 16;
    let mut memory = [0; NUMBER + size_of::<i32>()];
    write(&mut memory, 0, path.as_bytes())?;
    // The table fills the place first that became free last.
    let table = state.wasi.ctx().table;
    let free = table.push(())?;
    let resource = free.rep();
    table.delete(free)?;
    state.wasi.set_hostcall_fuel(memory.len());
    let length = i32::try_from(path.len())?;
    let shared = &mut GuestMemory::Unshared(&mut memory);
    let errno = p1::path_open(
        &mut state.wasi,
        shared,
        from,
        0,
        0,
        length,
        open_flags,
        READ_RIGHT,
        0,
        fdflags,
        i32::try_from(NUMBER)?,
    );
    let errno = errno.await?;
    if errno != SUCCESS {
        return Ok(Err(errno));
    }
    let [.., a, b, c, d] = memory;
    Ok(Ok((i32::from_le_bytes([a, b, c, d]), resource)))
}

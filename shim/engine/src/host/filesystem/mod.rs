//! `wasi:filesystem`: the directories of the plan, and nothing else of the container's files.

use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiView, p2, p3};

mod code;
mod opening;
pub(super) mod p1_directory;
pub(super) mod p1_listings;
pub(super) mod p1_paths;
mod p2_paths;
mod p3_paths;

use super::add::Add;
use crate::files::directories::Directories;
use crate::role::Role;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| p2::bindings::filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem),
    |linker| {
        p2::bindings::filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem)?;
        p2_paths::replace(linker)
    },
];

/// The interfaces of 0.3.
pub(crate) const P3: &[Add] = &[
    |linker| p3::bindings::filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem),
    |linker| {
        p3::bindings::filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem)?;
        p3_paths::replace(linker)
    },
];

/// Grants the open directories to an instance of this role.
pub(crate) fn grant(wasi: &mut WasiP1Ctx, directories: &Directories, role: Role) {
    *wasi.ctx().ctx.filesystem() = directories.filesystem(role);
}

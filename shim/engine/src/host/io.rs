//! `wasi:io`: streams and what waits for them. WASI 0.3 has them in the component model itself.

use wasmtime::component::{HasData, ResourceTable};
use wasmtime_wasi::p2::bindings::io;

use super::add::Add;
use super::waiting::{replace_poll, replace_streams, table};

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| io::error::add_to_linker::<_, Table>(linker, table),
    |linker| {
        io::poll::add_to_linker::<_, Table>(linker, table)?;
        replace_poll(linker)
    },
    |linker| {
        io::streams::add_to_linker::<_, Table>(linker, table)?;
        replace_streams(linker)
    },
];

struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

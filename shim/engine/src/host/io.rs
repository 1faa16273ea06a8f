//! `wasi:io`: streams and what waits for them. WASI 0.3 has them in the component model itself.

use wasmtime::component::{HasData, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::bindings::io;

use super::add::Add;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| io::error::add_to_linker::<_, Table>(linker, table),
    |linker| io::poll::add_to_linker::<_, Table>(linker, table),
    |linker| io::streams::add_to_linker::<_, Table>(linker, table),
];

struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

fn table(state: &mut State) -> &mut ResourceTable {
    state.ctx().table
}

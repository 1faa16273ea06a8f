//! `wasi:clocks`: the time of the node. Every guest has it.

use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::{p2, p3};

use super::add::Add;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| p2::bindings::clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(linker, State::clocks),
    |linker| p2::bindings::clocks::wall_clock::add_to_linker::<_, WasiClocks>(linker, State::clocks),
];

/// The interfaces of 0.3.
pub(crate) const P3: &[Add] = &[
    |linker| p3::bindings::clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(linker, State::clocks),
    |linker| p3::bindings::clocks::system_clock::add_to_linker::<_, WasiClocks>(linker, State::clocks),
    |linker| p3::bindings::clocks::types::add_to_linker::<_, WasiClocks>(linker, State::clocks),
];

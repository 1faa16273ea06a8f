//! `wasi:random`: the node's random numbers. Every guest has them.

use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi::{p2, p3};

use super::add::Add;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| p2::bindings::random::insecure::add_to_linker::<_, WasiRandom>(linker, State::random),
    |linker| p2::bindings::random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, State::random),
    |linker| p2::bindings::random::random::add_to_linker::<_, WasiRandom>(linker, State::random),
];

/// The interfaces of 0.3.
pub(crate) const P3: &[Add] = &[
    |linker| p3::bindings::random::insecure::add_to_linker::<_, WasiRandom>(linker, State::random),
    |linker| p3::bindings::random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, State::random),
    |linker| p3::bindings::random::random::add_to_linker::<_, WasiRandom>(linker, State::random),
];

//! `wasi:http` towards others: the requests that a guest makes. What sends them is [`Outgoing`](crate::outgoing::Outgoing).

use wasmtime_wasi_http::p2::bindings::http as p2;
use wasmtime_wasi_http::p3::bindings::http as p3;
use wasmtime_wasi_http::{WasiHttp, WasiHttpView};

use super::add::Add;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| p2::outgoing_handler::add_to_linker::<_, WasiHttp>(linker, State::http),
    |linker| p2::types::add_to_linker::<_, WasiHttp>(linker, &p2::types::LinkOptions::default(), State::http),
];

/// The interfaces of 0.3.
pub(crate) const P3: &[Add] = &[
    |linker| p3::client::add_to_linker::<_, WasiHttp>(linker, State::http),
    |linker| p3::types::add_to_linker::<_, WasiHttp>(linker, State::http),
];

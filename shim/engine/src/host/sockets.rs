//! `wasi:sockets`, but for looking up names: TCP and UDP in the pod's network.

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::bindings::sockets as p2;
use wasmtime_wasi::p3::bindings::sockets as p3;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView};

use super::add::Add;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| p2::instance_network::add_to_linker::<_, WasiSockets>(linker, State::sockets),
    |linker| {
        let options = p2::network::LinkOptions::default();
        p2::network::add_to_linker::<_, WasiSockets>(linker, &options, State::sockets)
    },
    |linker| p2::tcp::add_to_linker::<_, WasiSockets>(linker, State::sockets),
    |linker| p2::tcp_create_socket::add_to_linker::<_, WasiSockets>(linker, State::sockets),
    |linker| p2::udp::add_to_linker::<_, WasiSockets>(linker, State::sockets),
    |linker| p2::udp_create_socket::add_to_linker::<_, WasiSockets>(linker, State::sockets),
];

/// The interfaces of 0.3.
pub(crate) const P3: &[Add] = &[|linker| p3::types::add_to_linker::<_, WasiSockets>(linker, State::sockets)];

/// Grants the network. Its namespace is the pod's own: the pod's rules bound it, as they bound a native process.
pub(crate) fn grant(builder: &mut WasiCtxBuilder) {
    builder.inherit_network().allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true);
}

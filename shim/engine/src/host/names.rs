//! `wasi:sockets/ip-name-lookup`, by the engine's own resolver.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::vec;

use wasmtime::component::{Accessor, HasData, Resource, ResourceTable};
use wasmtime::{Error, Result};
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup as p2;
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode as P2ErrorCode, IpAddress as P2Address, Network};
use wasmtime_wasi::p2::{DynPollable, IoError, Pollable, SocketError, subscribe};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup as p3;
use wasmtime_wasi::p3::bindings::sockets::types::IpAddress as P3Address;
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi::{WasiView, async_trait};

use super::add::Add;
use crate::names::failure::Failure;
use crate::names::resolver::Resolver;
use crate::store::State;

/// The interface of 0.2.
pub(crate) const P2: &[Add] = &[|linker| p2::add_to_linker::<_, Lookups>(linker, names)];
/// The interface of 0.3.
pub(crate) const P3: &[Add] = &[|linker| p3::add_to_linker::<_, Lookups>(linker, names)];

struct Lookups;

impl HasData for Lookups {
    type Data<'a> = Names<'a>;
}

/// What look-ups of one store need.
struct Names<'a> {
    table: &'a mut ResourceTable,
    resolver: Arc<Resolver>,
}

fn names(state: &mut State) -> Names<'_> {
    let resolver = Arc::clone(&state.resolver);
    Names { table: state.ctx().table, resolver }
}

type Found = Result<vec::IntoIter<IpAddr>, Failure>;

/// A look-up of 0.2 under way, or its result.
///
/// wasmtime's own type cannot be made from outside. The table holds this one instead; the guest only sees its number.
enum Lookup {
    UnderWay(AbortOnDropJoinHandle<Result<Vec<IpAddr>, Failure>>),
    Done(Found),
}

impl Lookup {
    /// Goes as far as possible at once: an address, or a name of the hosts file, needs no task.
    fn begin(mut lookup: Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, Failure>> + Send>>) -> Self {
        match lookup.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(found) => Self::Done(found.map(Vec::into_iter)),
            Poll::Pending => Self::UnderWay(spawn(lookup)),
        }
    }

    fn of_handle(handle: &Resource<p2::ResolveAddressStream>) -> Resource<Self> {
        Resource::new_borrow(handle.rep())
    }
}

#[async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Self::UnderWay(task) = self {
            let found = (&mut *task).await;
            *self = Self::Done(found.map(Vec::into_iter));
        }
    }
}

impl network::Host for Names<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> Result<P2ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, _: Resource<IoError>) -> Result<Option<P2ErrorCode>> {
        // Only the conversion is called through this implementation of `network`.
        Ok(None)
    }
}

impl network::HostNetwork for Names<'_> {
    fn drop(&mut self, network: Resource<Network>) -> Result<()> {
        self.table.delete(network).map(drop).map_err(Error::from)
    }
}

impl p2::Host for Names<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> Result<Resource<p2::ResolveAddressStream>, SocketError> {
        // Whoever has a network may look up names.
        self.table.get(&network)?;
        let resolver = Arc::clone(&self.resolver);
        let lookup = Lookup::begin(Box::pin(async move { resolver.look_up(&name).await }));
        if let Lookup::Done(Err(failure)) = lookup {
            return Err(p2_code(failure).into());
        }
        let handle = self.table.push(lookup)?;
        Ok(Resource::new_own(handle.rep()))
    }
}

impl p2::HostResolveAddressStream for Names<'_> {
    fn resolve_next_address(
        &mut self,
        handle: Resource<p2::ResolveAddressStream>,
    ) -> Result<Option<P2Address>, SocketError> {
        let lookup = self.table.get_mut(&Lookup::of_handle(&handle))?;
        if let Lookup::UnderWay(task) = lookup {
            let mut context = Context::from_waker(Waker::noop());
            match Pin::new(task).poll(&mut context) {
                Poll::Ready(found) => *lookup = Lookup::Done(found.map(Vec::into_iter)),
                Poll::Pending => return Err(P2ErrorCode::WouldBlock.into()),
            }
        }
        match lookup {
            Lookup::Done(Ok(addresses)) => Ok(addresses.next().map(Into::into)),
            Lookup::Done(Err(failure)) => Err(p2_code(*failure).into()),
            Lookup::UnderWay(_) => Err(P2ErrorCode::WouldBlock.into()),
        }
    }

    fn subscribe(&mut self, handle: Resource<p2::ResolveAddressStream>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, Lookup::of_handle(&handle))
    }

    fn drop(&mut self, handle: Resource<p2::ResolveAddressStream>) -> Result<()> {
        self.table.delete(Resource::<Lookup>::new_own(handle.rep())).map(drop).map_err(Error::from)
    }
}

fn p2_code(failure: Failure) -> P2ErrorCode {
    match failure {
        Failure::Invalid => P2ErrorCode::InvalidArgument,
        Failure::Unknown => P2ErrorCode::NameUnresolvable,
        Failure::Silence | Failure::Temporary => P2ErrorCode::TemporaryResolverFailure,
        Failure::Permanent => P2ErrorCode::PermanentResolverFailure,
    }
}

impl p3::Host for Names<'_> {}

impl<T: Send> p3::HostWithStore<T> for Lookups {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> Result<Result<Vec<P3Address>, p3::ErrorCode>> {
        let resolver = store.with(|mut view| view.get().resolver);
        let found = resolver.look_up(&name).await;
        Ok(found.map(|addresses| addresses.into_iter().map(Into::into).collect()).map_err(p3_code))
    }
}

fn p3_code(failure: Failure) -> p3::ErrorCode {
    match failure {
        Failure::Invalid => p3::ErrorCode::InvalidArgument,
        Failure::Unknown => p3::ErrorCode::NameUnresolvable,
        Failure::Silence | Failure::Temporary => p3::ErrorCode::TemporaryResolverFailure,
        Failure::Permanent => p3::ErrorCode::PermanentResolverFailure,
    }
}

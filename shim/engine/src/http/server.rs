//! The server itself: what it needs before its guest is instantiated, and its life until a signal.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skiff_protocol::Refusal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, watch};
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};
use wasmtime_wasi_http::handler::ProxyPre;

use super::activity::Patience;
use super::address::{self, Address};
use super::answer::Service;
use super::buffers::Buffers;
use super::connection::{self, FRESH_GRACE, serve};
use super::instances::Instances;
use super::places::{Need, Place, Places};
use super::size::threads;
use crate::error::engine_failed;
use crate::link::link_server;
use crate::shared::Shared;
use crate::signals;
use crate::store::State;

/// How long an ending server waits for connections that have nothing under way.
const IDLE_GRACE: Duration = Duration::from_secs(2);
/// How long to wait if a connection cannot be accepted because descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A server that is bound and does not accept yet.
pub(crate) struct Server {
    runtime: Runtime,
    listener: TcpListener,
    /// Readable after the first signal.
    terminated: Receiver,
    service: Arc<Service>,
    /// Closed when the last connection and the last instance are gone.
    gone: mpsc::Receiver<Infallible>,
    ending: watch::Sender<bool>,
    places: Arc<Places>,
    patience: Patience,
    /// Notified while requests wait for instances, and for memory.
    crowded: Arc<Notify>,
    short_of_memory: Arc<Notify>,
}

/// A component that is linked as a server. Nothing of it has run.
pub(crate) struct LinkedServer {
    engine: Engine,
    handler: ProxyPre<State>,
    address: Address,
    /// How many processors this process may use. It is in files that are out of reach later.
    runnable: usize,
    /// How many files it may have open.
    files: usize,
}

impl LinkedServer {
    /// What its instances are made of.
    pub(crate) fn pre(&self) -> &InstancePre<State> {
        match &self.handler {
            ProxyPre::P2(proxy) => proxy.instance_pre(),
            ProxyPre::P3(service) => service.instance_pre(),
        }
    }

    /// Links a component as a server.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if it imports something that skiff does not provide, or its address makes no sense.
    pub(crate) fn new(component: &Component, shared: &Shared) -> Result<Self, Refusal> {
        let handler = link_server(component, shared)?;
        let address = address::from_environment(|name| shared.variable(name)).map_err(Refusal::Guest)?;
        let runnable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // tokio makes two sockets once for all of its runtimes. Behind the wall it could not.
        let first = Builder::new_current_thread().enable_io().build();
        first.map_err(|error| cannot_serve(shared, &error))?;
        let files = raise_files().map_err(|error| cannot_serve(shared, &error.into()))?;
        Ok(Self { engine: component.engine().clone(), handler, address, runnable, files })
    }

    /// Tries out one instance and binds the server's address.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if no instance can be made, [`Refusal::Host`] if the address cannot be bound.
    pub(crate) fn prepare(self, shared: Arc<Shared>) -> Result<Server, Refusal> {
        let Self { engine, handler, address, runnable, files } = self;
        shared.reporter.write_by_queue().map_err(|error| cannot_serve(&shared, &error))?;
        let runtime = runtime(runnable, &shared)?;
        let entered = runtime.enter();
        let (alive, gone) = mpsc::channel(1);
        let (ending, is_ending) = watch::channel(false);
        let buffers = Buffers::under(shared.budget.limit_bytes());
        let (places, patience) = (Places::new(&shared.budget, buffers, files), Patience::of(&shared.plan.limits));
        let (module, reporter) = (shared.plan.module.clone(), Arc::clone(&shared.reporter));
        let instances = Instances::new(&engine, handler, shared, alive, is_ending)?;
        runtime.block_on(instances.try_out())?;
        let listener = address::bind(&address, buffers.socket_bytes)
            .and_then(TcpListener::from_std)
            .map_err(|error| Refusal::Host(format!("cannot listen on {address}: {error}")))?;
        // Before Ready: from then on a signal must find the server's course.
        let terminated = signals::notify().and_then(Receiver::from_owned_fd);
        let terminated = terminated.map_err(|error| engine_failed(&error.into()))?;
        let (crowded, short_of_memory) = (Arc::clone(instances.crowded()), Arc::clone(instances.short_of_memory()));
        let service = Arc::new(Service::new(instances, connection::builder(patience, &buffers)));
        let bound = listener.local_addr().map_err(|error| engine_failed(&error.into()))?;
        reporter.line(&format!("{module}: listening on {}", address::describe(bound)));
        drop(entered);
        Ok(Server { runtime, listener, terminated, service, gone, ending, places, patience, crowded, short_of_memory })
    }
}

impl Server {
    /// Serves until a signal, and returns the exit code.
    pub(crate) fn run(self) -> i32 {
        let Self { runtime, listener, mut terminated, service, gone, ending, places, patience, .. } = self;
        let (crowded, short_of_memory) = (self.crowded, self.short_of_memory);
        runtime.block_on(async move {
            let mut door = Door { service, ending, places: Arc::clone(&places), patience, waiting: None };
            tokio::select! {
                () = door.accept(&listener) => {}
                () = make_room(&places, &crowded, &short_of_memory) => {}
                _ = terminated.read_u8() => {}
            }
            door.take_backlog(listener);
            let Door { service, ending, .. } = door;
            ending.send_replace(true);
            finish(service, &places, gone).await;
        });
        // The process ends here: waiting for threads that block would only take time.
        std::mem::forget(runtime);
        0
    }
}

/// Lets this process have as many open files as it may, and returns how many that is.
fn raise_files() -> nix::Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(usize::try_from(most).unwrap_or(usize::MAX))
}

fn runtime(runnable: usize, shared: &Shared) -> Result<Runtime, Refusal> {
    let (workers, blocking) = threads(runnable, shared.plan.processors);
    Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(blocking)
        .enable_all()
        .build()
        .map_err(|error| cannot_serve(shared, &error))
}

fn cannot_serve(shared: &Shared, error: &io::Error) -> Refusal {
    Refusal::Host(format!("cannot prepare to serve `{}`: {error}", shared.plan.module))
}

/// Where connections come in.
struct Door {
    service: Arc<Service>,
    ending: watch::Sender<bool>,
    places: Arc<Places>,
    patience: Patience,
    /// A connection that has no place yet.
    waiting: Option<TcpStream>,
}

impl Door {
    /// Accepts connections for ever.
    async fn accept(&mut self, listener: &TcpListener) {
        loop {
            if self.waiting.is_none() {
                match listener.accept().await {
                    Ok((stream, _)) => self.waiting = Some(stream),
                    Err(_) => {
                        self.places.make_room(Need::Place);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
            if self.waiting.is_some() {
                let place = self.places.take().await;
                if let Some(stream) = self.waiting.take() {
                    self.serve(stream, place);
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, place: Place) {
        let (service, ending) = (Arc::clone(&self.service), self.ending.subscribe());
        tokio::spawn(serve(stream, service, self.patience, place, ending));
    }

    /// Takes over as many connections that the kernel has already accepted as there may be, even if others have all places,
    /// and closes the listener.
    fn take_backlog(&mut self, listener: TcpListener) {
        if let Some(stream) = self.waiting.take() {
            self.serve(stream, self.places.take_more());
        }
        let Ok(listener) = listener.into_std() else { return };
        let accepted = std::iter::from_fn(|| listener.accept().ok());
        for (stream, _) in accepted.take(self.places.most()) {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.serve(stream, self.places.take_more());
            }
        }
    }
}

/// Lets connections give way while requests wait for an instance.
async fn make_room(places: &Places, crowded: &Notify, short_of_memory: &Notify) {
    loop {
        tokio::select! {
            biased;
            () = short_of_memory.notified() => places.make_room(Need::Memory),
            () = crowded.notified() => places.make_room(Need::Instance),
        }
    }
}

/// Waits until everything under way is done. Idle connections do not delay the end; those whose client has yet to take
/// something do.
async fn finish(service: Arc<Service>, places: &Places, mut gone: mpsc::Receiver<Infallible>) {
    let ending_since = tokio::time::Instant::now();
    let watched = Arc::downgrade(&service);
    drop(service);
    let nothing_under_way = async {
        let mut interval = tokio::time::interval_at(ending_since + IDLE_GRACE, FRESH_GRACE);
        loop {
            interval.tick().await;
            if watched.upgrade().is_none_or(|service| service.is_idle() && places.are_idle()) {
                return;
            }
        }
    };
    tokio::select! {
        _ = gone.recv() => {}
        () = nothing_under_way => {}
    }
}

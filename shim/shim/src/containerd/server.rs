//! A serving shim: its threads, its socket, the signals that end it, and its last events.

use std::collections::HashMap;
use std::future::pending;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::protos::sandbox_async::create_sandbox;
use containerd_shim::protos::shim_async::create_task;
use containerd_shim::protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim::protos::ttrpc::asynchronous::{Server, Service};
use skiff_linux::memory::use_one_heap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::containerd::publisher::Publisher;
use crate::containerd::sandbox::SandboxService;
use crate::containerd::socket;
use crate::containerd::task::TaskService;
use crate::error::{Context, Error, Kind, Result};
use crate::host::compile::finish_for_others;
use crate::host::namespaces::{self, Holder};
use crate::host::{orphans, shim_log};
use crate::identity::Identity;
use crate::pod::Pod;

const VERSION_3: &str = "containerd.task.v3.Task";
const VERSION_2: &str = "containerd.task.v2.Task";
/// How long the shim waits at its end for connections to close.
const DISCONNECT_LIMIT: Duration = Duration::from_millis(300);
/// How long the shim waits at its end for events to be taken.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// How long a shim waits for its first container. Whoever started it may have been killed before containerd knew where it listens.
const UNUSED_LIMIT: Duration = Duration::from_secs(120);

/// What a shim begins to serve with.
pub(super) struct Serving {
    pub(super) listener: UnixListener,
    pub(super) identity: Identity,
    /// containerd's socket for events.
    pub(super) events: String,
    pub(super) debug: bool,
}

/// Serves the Task and the Sandbox API until containerd has no more use for it. The calling thread, which must be the main one, holds the
/// pod's namespaces meanwhile.
pub(super) fn run(serving: Serving) -> Result<()> {
    let Serving { listener, identity, events, debug } = serving;
    use_one_heap();
    shim_log::open(debug);
    nix::sys::prctl::set_child_subreaper(true).doing(|| "cannot become the subreaper".into())?;
    let (holder, jobs) = namespaces::holder();
    let serving = std::thread::Builder::new().name("serve".into()).spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "cannot start".into())?;
        let served = runtime.block_on(serve(listener, identity, events, holder));
        runtime.shutdown_background();
        served
    });
    let serving = serving.doing(|| "cannot start a thread".into())?;
    jobs.serve();
    let served = serving.join().map_err(|_| Error::new(Kind::Host, "the serving thread panicked"))?;
    if let Err(error) = &served {
        log::error!("{}", crate::error::chain(error));
    }
    served
}

/// Serves at `listener` until containerd shuts the shim down or a signal ends it.
async fn serve(listener: UnixListener, identity: Identity, events: String, holder: Holder) -> Result<()> {
    let publisher = Publisher::start(events, identity.namespace.clone());
    let address = identity.socket.clone();
    let done = Arc::new(Notify::new());
    let pod = Arc::new(Pod::new(identity, Arc::new(publisher.clone()), holder));
    let tasks = TaskService::new(pod.clone(), done.clone());
    let sandboxes = SandboxService::new(pod.clone(), done.clone());
    tokio::spawn(orphans::reap());
    listener.set_nonblocking(true).doing(|| "cannot use the socket".into())?;
    let listener = tokio::net::UnixListener::from_std(listener).doing(|| "cannot use the socket".into())?;
    let listener = Listener::from(listener);
    let mut server =
        Server::new().add_listener(listener).register_service(services(Arc::new(tasks), Arc::new(sandboxes)));
    server.start().await.doing(|| "cannot serve".into())?;
    let mut signals = Signals::new()?;
    tokio::select! {
        () = done.notified() => {}
        () = unused(&pod, UNUSED_LIMIT) => log::info!("ended, because it has no container {UNUSED_LIMIT:?} after its start"),
        name = signals.next() => log::info!("ended by {name}"),
    }
    let path = socket::path_in(&address);
    let removed = std::fs::remove_file(path).doing(|| format!("cannot remove the socket `{}`", path.display()));
    // Replies under way are sent, but a containerd that keeps its connection open is not waited for.
    if tokio::time::timeout(DISCONNECT_LIMIT, server.disconnect()).await.is_err() {
        log::debug!("a connection was still open when the shim ended");
    }
    publisher.flush(FLUSH_LIMIT).await;
    // The pod is gone for everybody; only who waits for the same code is still helped.
    tokio::select! {
        () = finish_for_others() => {}
        name = signals.next() => log::info!("ended by {name}"),
    }
    removed
}

/// Returns after `limit` if the pod has no container then, and otherwise never.
async fn unused(pod: &Pod, limit: Duration) {
    tokio::time::sleep(limit).await;
    if !pod.close_if_empty() {
        pending::<()>().await;
    }
}

/// The signals that end the shim.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let watch = |kind| signal(kind).doing(|| "cannot wait for signals".into());
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The Sandbox service, and the Task service under both of its names: their messages are the same.
fn services(tasks: Arc<TaskService>, sandboxes: Arc<SandboxService>) -> HashMap<String, Service> {
    let mut services = create_task(tasks.clone());
    services.extend(create_sandbox(sandboxes));
    if let Some(service) = create_task(tasks).remove(VERSION_3) {
        services.insert(VERSION_2.into(), service);
    }
    services
}

//! The sandbox of a pod: what its containers share. No process of its own holds it. The Task API sees it as a container.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_linux::cgroup::Cgroup;
use skiff_protocol::exit_code_of_signal;

use crate::error::{Context, Result, chain};
use crate::host::namespaces::Holder;
use crate::pod::shared_pids::SharedPids;
use crate::pod::standin::StandIn;
use crate::spec::sandbox::SandboxNamespaces;

/// The sandbox of a pod, whether it was made or not.
pub(crate) struct Sandbox {
    /// Held for as long as the pod is: the main thread serves until the last holder is gone.
    holder: Holder,
    /// The cgroup of the sandbox that was made, if it has one.
    cgroup: Mutex<Option<Cgroup>>,
    /// Shows the pod's network namespace in the cgroup.
    stand_in: tokio::sync::Mutex<StandIn>,
    /// The pid namespace that containers of the pod share, once one does. Its drop ends nothing; [`Sandbox::end_pids`] does.
    pids: tokio::sync::Mutex<Option<SharedPids>>,
}

impl Sandbox {
    /// A sandbox that is not made yet; `holder` reaches the thread that will hold its namespaces.
    pub(super) fn new(holder: Holder) -> Self {
        Self {
            holder,
            cgroup: Mutex::default(),
            stand_in: tokio::sync::Mutex::new(StandIn::Unwanted),
            pids: tokio::sync::Mutex::default(),
        }
    }

    /// Makes the sandbox: an empty cgroup, and the `namespaces`. Nothing is left behind when that fails.
    pub(super) async fn create(&self, namespaces: SandboxNamespaces, cgroup: Option<Cgroup>) -> Result<()> {
        if let Some(cgroup) = &cgroup {
            cgroup.create_empty().doing(|| "cannot make the cgroup of the sandbox".into())?;
        }
        let has_own_network = namespaces.network.is_some();
        let entered = self.holder.enter(namespaces).await.doing(|| "cannot enter the namespaces of the pod".into());
        if entered.is_ok() {
            // On the node's network there is nothing to find.
            if has_own_network {
                *self.stand_in.lock().await = StandIn::Expected;
            }
            *self.held_cgroup() = cgroup;
        } else if let Some(cgroup) = cgroup
            && let Err(error) = remove(cgroup).await
        {
            log::error!("{}", chain(&error));
        }
        entered
    }

    /// Starts the process that shows the pod in its cgroup. Nobody waits for it: moving a process into a cgroup may take as long as
    /// everything else that starts a pod.
    pub(super) fn start(self: &Arc<Self>) {
        let sandbox = self.clone();
        tokio::spawn(async move {
            let mut stand_in = sandbox.stand_in.lock().await;
            if let Some(cgroup) = sandbox.cgroup() {
                stand_in.start(&sandbox.holder, cgroup).await;
            }
        });
    }

    /// Ends that process.
    pub(super) async fn end(&self) {
        self.stand_in.lock().await.end().await;
    }

    /// Leaves the namespaces, which ends them, and removes the cgroup.
    pub(super) async fn delete(&self) -> Result<()> {
        self.end().await;
        // Whoever enters after this one has left may already have a cgroup of their own here.
        let cgroup = self.cgroup();
        self.holder.leave().await.doing(|| "cannot leave the namespaces of the pod".into())?;
        match cgroup {
            Some(cgroup) => remove(cgroup).await,
            None => Ok(()),
        }
    }

    /// Its cgroup, if it was made with one.
    pub(super) fn cgroup(&self) -> Option<Cgroup> {
        self.held_cgroup().clone()
    }

    /// The code that it exits with at `signal`, as the pause program would, whose place it has: that one ends well when it is
    /// asked to. `None` for a signal that only asks whether it is there.
    pub(super) fn exit_code(signal: i32) -> Option<i32> {
        match signal {
            0 => None,
            libc::SIGTERM | libc::SIGINT => Some(0),
            other => Some(exit_code_of_signal(other)),
        }
    }

    /// The path of the pid namespace that the pod's containers share. It is made for the first of them, and `at_the_end` is done
    /// when it has ended.
    pub(super) async fn pids(&self, at_the_end: impl Future<Output = ()> + Send + 'static) -> Result<String> {
        let mut pids = self.pids.lock().await;
        let pids = match pids.take() {
            Some(there) => pids.insert(there),
            None => pids.insert(SharedPids::start(at_the_end).await?),
        };
        Ok(pids.path())
    }

    /// Ends the shared pid namespace, with every process in it.
    pub(super) async fn end_pids(&self) -> Result<()> {
        let pids = self.pids.lock().await.take();
        match pids {
            Some(pids) => pids.end().await,
            None => Ok(()),
        }
    }

    /// Forgets the shared pid namespace, which has ended: the next container gets a new one.
    pub(super) async fn forget_pids(&self) {
        drop(self.pids.lock().await.take());
    }

    fn held_cgroup(&self) -> MutexGuard<'_, Option<Cgroup>> {
        self.cgroup.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the cgroup of a sandbox; the kernel may need a moment to see that it is empty.
async fn remove(cgroup: Cgroup) -> Result<()> {
    let removed = tokio::task::spawn_blocking(move || cgroup.remove()).await;
    removed.map_err(std::io::Error::other).flatten().doing(|| "cannot remove the cgroup of the sandbox".into())
}

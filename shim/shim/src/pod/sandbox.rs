//! The sandbox of a pod: what its containers share. No process of its own holds it. The Task API sees it as a container.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_linux::cgroup::Cgroup;
use skiff_protocol::exit_code_of_signal;

use crate::error::{Context, Result, chain};
use crate::host::namespaces::Holder;
use crate::host::reader::blocking;
use crate::host::sandbox_files::SandboxFiles;
use crate::pod::shared_pids::SharedPids;
use crate::pod::standin::StandIn;
use crate::spec::pod_files::PodFiles;
use crate::spec::sandbox::SandboxNamespaces;

/// The sandbox of a pod, whether it was made or not.
pub(crate) struct Sandbox {
    /// Held for as long as the pod is: the main thread serves until the last holder is gone.
    holder: Holder,
    made: Mutex<Made>,
    /// Shows the pod's network namespace in the cgroup.
    stand_in: tokio::sync::Mutex<StandIn>,
    /// The pid namespace that containers of the pod share, once one does. Its drop ends nothing; [`Sandbox::end_pids`] does.
    pids: tokio::sync::Mutex<Option<SharedPids>>,
}

/// What was made of a sandbox.
#[derive(Default)]
struct Made {
    cgroup: Option<Cgroup>,
    /// The files of the pod, if they are not containerd's.
    files: Option<SandboxFiles>,
    /// Containers that name the pod's pid namespace mean the node's.
    has_nodes_pids: bool,
}

impl Sandbox {
    /// A sandbox that is not made yet; `holder` reaches the thread that will hold its namespaces.
    pub(super) fn new(holder: Holder) -> Self {
        Self {
            holder,
            made: Mutex::default(),
            stand_in: tokio::sync::Mutex::new(StandIn::Unwanted),
            pids: tokio::sync::Mutex::default(),
        }
    }

    /// Makes the sandbox: an empty cgroup, and the `namespaces`. Nothing is left behind when that fails, not even of the `files`
    /// that were made for it.
    pub(super) async fn create(
        &self,
        namespaces: SandboxNamespaces,
        cgroup: Option<Cgroup>,
        files: Option<SandboxFiles>,
    ) -> Result<()> {
        if let Some(cgroup) = &cgroup {
            cgroup.create_empty().doing(|| "cannot make the cgroup of the sandbox".into())?;
        }
        let (has_own_network, has_nodes_pids) = (namespaces.network.is_some(), namespaces.nodes_pids);
        let entered = self.holder.enter(namespaces).await.doing(|| "cannot enter the namespaces of the pod".into());
        if entered.is_ok() {
            // On the node's network there is nothing to find.
            if has_own_network {
                *self.stand_in.lock().await = StandIn::Expected;
            }
            *self.made() = Made { cgroup, files, has_nodes_pids };
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

    /// Leaves the namespaces, which ends them unless a container is still in them.
    pub(super) async fn leave(&self) -> Result<()> {
        self.end().await;
        self.holder.leave().await.doing(|| "cannot leave the namespaces of the pod".into())
    }

    /// Leaves the namespaces, and removes the files and the cgroup.
    pub(super) async fn delete(&self) -> Result<()> {
        // Whoever enters after this one has left may already have a cgroup of their own here.
        let cgroup = self.cgroup();
        let files = self.made().files.take();
        self.leave().await?;
        if let Some(files) = files {
            blocking(move || files.remove()).await?;
        }
        match cgroup {
            Some(cgroup) => remove(cgroup).await,
            None => Ok(()),
        }
    }

    /// Its cgroup, if it was made with one.
    pub(super) fn cgroup(&self) -> Option<Cgroup> {
        self.made().cgroup.clone()
    }

    /// The files of the pod that containers get, if they are not containerd's.
    pub(super) fn files(&self) -> Option<PodFiles> {
        self.made().files.as_ref().map(|files| files.places.clone())
    }

    /// Whether containers that name the pod's pid namespace mean the node's.
    pub(super) fn has_nodes_pids(&self) -> bool {
        self.made().has_nodes_pids
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

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the cgroup of a sandbox; the kernel may need a moment to see that it is empty.
async fn remove(cgroup: Cgroup) -> Result<()> {
    let removed = tokio::task::spawn_blocking(move || cgroup.remove()).await;
    removed.map_err(std::io::Error::other).flatten().doing(|| "cannot remove the cgroup of the sandbox".into())
}

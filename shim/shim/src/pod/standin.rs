//! The process that stands in the sandbox's cgroup and namespaces, for whoever looks for the pod there: agents of meshes and
//! networks find a pod's network namespace by a process in its cgroup. Nothing depends on it.

use std::sync::Arc;

use skiff_linux::cgroup::Cgroup;
use skiff_protocol::exit_code_of_signal;
use tokio::task::JoinHandle;

use crate::error::{Context, Result, chain};
use crate::host::namespaces::Holder;
use crate::host::process::Child;

/// Its exit code after SIGKILL.
const KILLED: i32 = exit_code_of_signal(libc::SIGKILL);

/// What has become of the stand-in.
pub(super) enum StandIn {
    /// Wanted once the sandbox is started.
    Expected,
    /// There.
    There(Arc<Child>, JoinHandle<()>),
    /// Not wanted, or not any more.
    Unwanted,
}

impl StandIn {
    /// Starts it in the namespaces of `holder` and moves it into `cgroup`, if it is expected. A pod without one only cannot be
    /// found, so a failure is logged.
    pub(super) async fn start(&mut self, holder: &Holder, cgroup: Cgroup) {
        if !matches!(self, Self::Expected) {
            return;
        }
        match start(holder, cgroup).await {
            Ok(child) => {
                let child = Arc::new(child);
                let awaited = child.clone();
                let watch = tokio::spawn(async move {
                    match awaited.wait().await {
                        // As its end is wanted.
                        Ok(KILLED) => {}
                        // Its program was not executed, or somebody ended it.
                        Ok(code) => {
                            log::warn!("the sandbox's process ended with {code}: the pod cannot be found by its cgroup")
                        }
                        Err(error) => log::warn!("cannot wait for the sandbox's process: {error}"),
                    }
                });
                *self = Self::There(child, watch);
            }
            Err(error) => log::warn!("the pod cannot be found by its cgroup: {}", chain(&error)),
        }
    }

    /// Ends it. None is started after that.
    pub(super) async fn end(&mut self) {
        if let Self::There(child, watch) = std::mem::replace(self, Self::Unwanted) {
            match child.signal(libc::SIGKILL) {
                // Its end is certain, and with it the end of the watch.
                Ok(_) => drop(watch.await),
                Err(error) => log::warn!("cannot end the sandbox's process: {error}"),
            }
        }
    }
}

async fn start(holder: &Holder, cgroup: Cgroup) -> Result<Child> {
    let pid = holder.stand_in().await.doing(|| "cannot start a process in the sandbox".into())?;
    let child = Child::of_child(pid).doing(|| "cannot watch the sandbox's process".into())?;
    // The kernel may take several milliseconds.
    let joined = tokio::task::spawn_blocking(move || cgroup.join(pid.cast_unsigned())).await;
    if let Err(error) = joined.map_err(std::io::Error::other).flatten() {
        child.end().await;
        return Err(error).doing(|| "cannot move a process into the sandbox's cgroup".into());
    }
    Ok(child)
}

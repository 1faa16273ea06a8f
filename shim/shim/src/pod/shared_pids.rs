//! The pid namespace that the containers of a pod share, with its first process.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::error::{Context, Result};
use crate::host::pid_namespace;
use crate::host::process::Process;
use crate::pod::Pod;

/// A shared pid namespace.
pub(super) struct SharedPids {
    init: Arc<Process>,
    watch: JoinHandle<()>,
}

impl SharedPids {
    /// Makes one, whose end is told to `pod`.
    pub(super) fn start(pod: &Arc<Pod>) -> Result<Self> {
        let init = pid_namespace::start_init().and_then(Process::of_child);
        let init = Arc::new(init.doing(|| "could not make a pid namespace for the pod".into())?);
        let (pod, awaited) = (Arc::downgrade(pod), init.clone());
        let watch = tokio::spawn(async move {
            let ended = awaited.wait().await;
            if let Some(pod) = pod.upgrade() {
                log::info!("the first process of the pod's pid namespace has ended: {ended:?}");
                pod.shared_pids_ended().await;
            }
        });
        Ok(Self { init, watch })
    }

    /// Where containers join it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/ns/pid", self.init.pid())
    }

    /// Ends it, with every process in it.
    pub(super) async fn end(self) -> Result<()> {
        let ending = || "could not end the pid namespace of the pod".into();
        self.init.signal(libc::SIGKILL).doing(ending)?;
        self.watch.await.doing(ending)
    }
}

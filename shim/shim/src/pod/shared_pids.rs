//! The pid namespace that the containers of a pod share, with its first process.

use std::io::{self, PipeReader};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

use crate::error::{Context, Result};
use crate::host::pid_namespace;
use crate::host::process::Child;

/// How long the first process may take to be confined.
const CONFINED_WITHIN: Duration = Duration::from_secs(10);

/// A shared pid namespace.
pub(super) struct SharedPids {
    init: Arc<Child>,
    watch: JoinHandle<()>,
}

impl SharedPids {
    /// Makes one, and does `at_the_end` when it has ended. Nobody can join it before its first process is confined.
    pub(super) async fn start(at_the_end: impl Future<Output = ()> + Send + 'static) -> Result<Self> {
        let making = || "cannot make a pid namespace for the pod".into();
        let (pid, confined) = pid_namespace::start_init().doing(making)?;
        let starting = Starting(Some(Arc::new(Child::of_child(pid).doing(making)?)));
        wait_until(confined).await.doing(making)?;
        let init = starting.confined().doing(making)?;
        let awaited = init.clone();
        let watch = tokio::spawn(async move {
            let ended = awaited.wait().await;
            log::info!("the first process of the pod's pid namespace has ended: {ended:?}");
            at_the_end.await;
        });
        Ok(Self { init, watch })
    }

    /// Where containers join it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/ns/pid", self.init.pid())
    }

    /// Ends it, with every process in it.
    pub(super) async fn end(self) -> Result<()> {
        let ending = || "cannot end the pid namespace of the pod".into();
        self.init.signal(libc::SIGKILL).doing(ending)?;
        self.watch.await.doing(ending)
    }
}

/// A first process that is not confined yet; it is killed when nobody waits for that any more, and then reaped as an orphan.
struct Starting(Option<Arc<Child>>);

impl Starting {
    fn confined(mut self) -> io::Result<Arc<Child>> {
        self.0.take().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(init) = &self.0
            && let Err(error) = init.signal(libc::SIGKILL)
        {
            log::warn!("cannot end process {}: {error}", init.pid());
        }
    }
}

/// Waits until the first process says that it is confined.
async fn wait_until(confined: PipeReader) -> io::Result<()> {
    let mut confined = Receiver::from_owned_fd(confined.into())?;
    let said = tokio::time::timeout(CONFINED_WITHIN, confined.read_u8()).await;
    said.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(drop)
}

//! What native and wasm containers have in common: processes that a launcher made, in a cgroup, on a root file system.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::Process as ProcessSpec;
use skiff_linux::cgroup::Cgroup;
use skiff_protocol::exit_code_of_signal;

use crate::error::{Context, Result, chain};
use crate::events::Exit;
use crate::host::logging_program::Owner;
use crate::host::process::Child;
use crate::host::rootfs::Rootfs;
use crate::launch::Launcher;
use crate::pod::places::Place;
use crate::pod::process::Process;
use crate::pod::streams::{Attached, attachment_for};
use crate::request::CreateRequest;
use crate::spec::config::Config;
use crate::spec::sandbox::has_own_pids;

/// What a container with processes is made from.
pub(super) struct Parts<'a> {
    pub(super) request: &'a CreateRequest,
    pub(super) owner: Owner,
    pub(super) config: Arc<Config>,
    pub(super) rootfs: Rootfs,
    pub(super) launcher: Arc<dyn Launcher>,
}

/// A container of some kind that was made, with its first process.
pub(super) struct Created<K> {
    pub(super) first: Process,
    pub(super) kind: K,
}

/// A further process with the shim's ends of its streams.
pub(super) struct Connected {
    pub(super) child: Child,
    pub(super) attached: Attached,
    /// What is kept for it until it has ended.
    pub(super) place: Option<Place>,
}

/// A container that a launcher made.
pub(super) struct LaunchedContainer {
    pub(super) launcher: Arc<dyn Launcher>,
    /// Identifies the container to its logging program.
    pub(super) owner: Owner,
    /// Held for its drop, which unmounts it: with the container's deletion, or with the last reference to the container.
    rootfs: Mutex<Option<Rootfs>>,
    pub(super) cgroup: Cgroup,
    /// How many OOM kills the cgroup above had counted when the container was made.
    oom_kills_before: Option<u64>,
    /// The kernel ends all processes of the container with the first one.
    own_pids: bool,
}

impl LaunchedContainer {
    /// The container that `parts` were made into, whose processes are in `cgroup`.
    pub(super) fn new(parts: Parts<'_>, cgroup: Cgroup) -> Self {
        Self {
            launcher: parts.launcher,
            owner: parts.owner,
            rootfs: Mutex::new(Some(parts.rootfs)),
            oom_kills_before: cgroup.oom_kills_above(),
            cgroup,
            own_pids: has_own_pids(&parts.config),
        }
    }

    /// Starts a further process, which gets `preserved` as descriptors 3, 4, ….
    pub(super) async fn exec(
        &self,
        process: &Process,
        spec: &ProcessSpec,
        preserved: Vec<OwnedFd>,
    ) -> Result<Connected> {
        let (attachment, pending) = attachment_for(&process.stdio, &self.owner).await?;
        let child = self.launcher.exec(spec, attachment, &process.exec_id, preserved).await?;
        match pending.complete(&process.stdio).await {
            Ok(attached) => Ok(Connected { child, attached, place: None }),
            Err(error) => {
                // It runs, but nobody would wait for it.
                child.end().await;
                Err(error)
            }
        }
    }

    /// Signals every process of the container, on a thread of its own: it may make new ones faster than they are found.
    pub(super) async fn signal_all(&self, signal: i32) -> Result<()> {
        let cgroup = self.cgroup.clone();
        let signalled = tokio::task::spawn_blocking(move || match signal {
            libc::SIGKILL => cgroup.kill_all(),
            other => cgroup.signal_all(other),
        });
        let signalled = signalled.await.map_err(std::io::Error::other).flatten();
        signalled.doing(|| format!("cannot send signal {signal} to container `{}`", self.owner.container))
    }

    /// Ends what the `first` process has left behind. Returns whether the kernel killed a process of the container because
    /// memory ran out.
    pub(super) async fn ended(&self, first: &Process, exit: Exit) -> bool {
        if !self.own_pids
            && let Err(error) = self.signal_all(libc::SIGKILL).await
        {
            log::warn!("{}", chain(&error));
        }
        self.is_oom_killed(exit.code == exit_code_of_signal(libc::SIGKILL) && !first.is_killed())
    }

    /// `unasked`: a process was killed, and not by the shim.
    fn is_oom_killed(&self, unasked: bool) -> bool {
        match self.cgroup.oom_kills() {
            Some(count) => count > 0,
            // systemd removes the cgroup of a scope that has ended, maybe before this.
            None => unasked && self.cgroup.oom_kills_above() > self.oom_kills_before,
        }
    }

    /// Removes the container, whose `first` process has ended.
    pub(super) async fn delete(&self, first: &Process) -> Result<()> {
        self.launcher.delete().await?;
        first.detach().await;
        let rootfs = self.rootfs.lock().unwrap_or_else(PoisonError::into_inner).take();
        tokio::task::spawn_blocking(move || drop(rootfs)).await.doing(|| "cannot unmount".into())
    }
}

//! The life of a sandbox that containerd makes through the Sandbox API, without a container for it. The Task API sees it as a
//! container all the same: containerd connects to it after its own restart.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Context, Kind as ErrorKind, Result};
use crate::events::Unpublished;
use crate::host::reader::blocking;
use crate::host::sandbox_files::SandboxFiles;
use crate::host::shim_log;
use crate::pod::container::Container;
use crate::pod::kind::Kind;
use crate::pod::{Pod, not_found};
use crate::request::CreateRequest;
use crate::spec::pod::PodConfig;

impl Pod {
    /// Makes the sandbox `id` of the pod that `config` describes, in the network namespace at the path `network`, which is empty on
    /// the node's network. Nothing is left behind when that fails, or when the sandbox is removed meanwhile.
    pub(crate) async fn make_sandbox(
        &self,
        id: String,
        bundle: PathBuf,
        network: PathBuf,
        config: PodConfig,
    ) -> Result<()> {
        let request = CreateRequest { id, bundle, ..CreateRequest::default() };
        let reservation = self.slots.reserve(&request.id)?;
        shim_log::name_pod(|| format!("{}/{}", config.namespace, config.name));
        let namespaces = config.namespaces(&network)?;
        let record = self.record_of(&request, config.cgroups_path(&request.id), None);
        record.save(&request.bundle).doing(|| "cannot write the record of the sandbox".into())?;
        let directory = request.bundle.clone();
        let files = blocking(move || SandboxFiles::make(&directory, &config)).await?;
        let created = self.create_sandbox(&request, &record, namespaces, Some(files)).await?;
        let container = Container::new(&request, created, Arc::new(Unpublished), true);
        self.announce(Arc::new(container), reservation, &request).await.map(drop)
    }

    /// The sandbox `id`.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Container>> {
        let sandbox = self.container(id)?;
        match sandbox.kind {
            Kind::Sandbox(_) => Ok(sandbox),
            Kind::Native(_) | Kind::Wasm(_) => Err(not_found(id)),
        }
    }

    /// Ends the sandbox `id`, and lets nothing more be made in the pod: it would come up in the namespaces that the shim goes back
    /// to, which are the node's. Containers that are still there keep the pod's.
    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let sandbox = self.sandbox(id)?;
        self.slots.close().await;
        match sandbox.kill(&sandbox.init, libc::SIGTERM, false).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ended => {}
        }
        self.sandbox.end_pids().await?;
        self.sandbox.leave().await
    }

    /// Removes the sandbox `id`, whether it is there, still being made, or was never made in this pod.
    ///
    /// # Errors
    /// `NotFound` if the pod has something else.
    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let removed = match self.stop_sandbox(id).await {
            Ok(()) => self.delete(id, "").await.map(drop),
            Err(error) => Err(error),
        };
        match removed {
            // It was never made, or removed before.
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_over(id).await => Ok(()),
            removed => removed,
        }
    }
}

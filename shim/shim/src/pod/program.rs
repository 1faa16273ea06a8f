//! What a container runs: found among the tenant's files, or in the image's wasm layers, and compiled.

use std::fs::File;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::containerd::layers;
use crate::error::{Context, Error, Kind, Result};
use crate::host::mounts::Rootfs;
use crate::host::rootfs::FileKind;
use crate::pod::config::{Config, Found};
use crate::pod::guest::{Module, Tenant};
use crate::pod::{CreateRequest, Pod};
use crate::settings::Settings;
use crate::task::entrypoint::split_function;
use crate::task::sandbox::{SANDBOX_NAMESPACE, pod_of};

/// The program of a container.
pub(super) enum Program {
    Native,
    Wasm { module: Box<Module>, name: String, function: Option<String> },
}

impl Pod {
    /// Finds what the container runs: a file that the container will see, told by its content, or else a wasm layer of
    /// its image.
    pub(super) async fn find_program(
        &self,
        request: &CreateRequest,
        config: &Arc<Config>,
        rootfs: &Rootfs,
        settings: &Settings,
        unwanted: &CancellationToken,
    ) -> Result<Program> {
        let Some(entrypoint) = config.entrypoint() else { return Ok(Program::Native) };
        let found = {
            let (config, path) = (config.clone(), rootfs.path().to_path_buf());
            self.read_files(move || config.find_file(&path)).await?
        };
        let (name, function, wasm, digest) = match found {
            Some(Found { kind: FileKind::Native, .. }) => return Ok(Program::Native),
            Some(Found { kind: FileKind::Wasm, name, function, file }) => (name, function, file, None),
            None => {
                let (name, function) = split_function(&entrypoint);
                let Some(layer) = layers::find(&self.identity, &request.id, name).await? else {
                    return Ok(Program::Native);
                };
                let file = File::open(&layer.path).doing(|| format!("could not read the wasm layer of `{name}`"))?;
                (name.to_string(), function.map(str::to_string), file, Some(layer.digest))
            }
        };
        if !request.checkpoint.is_empty() {
            return Err(Error::new(
                Kind::Unsupported,
                format!("restore is not implemented for a wasm container (`{name}`)"),
            ));
        }
        if request.stdio.terminal {
            return Err(Error::new(
                Kind::Unsupported,
                format!("terminal is not implemented for a wasm container (`{name}`)"),
            ));
        }
        let (settings, tenant, unwanted) = (settings.clone(), self.tenant_of(request, config), unwanted.clone());
        let (module, name) = self
            .read_files(move || {
                let module = Module::load(&name, wasm, digest.as_deref(), &settings, tenant, &unwanted)?;
                Ok((Box::new(module), name))
            })
            .await?;
        Ok(Program::Wasm { module, name, function })
    }

    /// For whom a container's guest is compiled.
    fn tenant_of(&self, request: &CreateRequest, config: &Config) -> Tenant {
        let annotations = config.spec.annotations().as_ref();
        let namespace = annotations.and_then(|all| all.get(SANDBOX_NAMESPACE)).unwrap_or(&self.identity.namespace);
        let pod = pod_of(annotations).unwrap_or(&request.id);
        Tenant { namespace: namespace.clone(), pod: pod.into() }
    }

    /// Does what may have to wait for a tenant's files, on a thread of its own: a volume that does not answer holds up
    /// nothing but its own container, and only so many threads.
    pub(super) async fn read_files<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Ok(permit) = self.readers.clone().try_acquire_owned() else {
            return Err(Error::new(Kind::Host, "too many files of the pod's volumes do not answer"));
        };
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.doing(|| "a task of the shim ended early".into())?
    }
}

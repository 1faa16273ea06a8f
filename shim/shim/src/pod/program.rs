//! What a container runs: found among the tenant's files, or in the image's wasm layers, and compiled.

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::containerd::layers::{self, Found as Layer};
use crate::error::{Context, Error, Kind, Result};
use crate::host::module::{Source, apart};
use crate::host::rootfs::Rootfs;
use crate::pod::config::{Config, Found, cannot_read};
use crate::pod::guest::{Module, Tenant};
use crate::pod::{CreateRequest, Pod};
use crate::settings::Settings;
use crate::spec::entrypoint::split_function;
use crate::spec::sandbox::{SANDBOX_NAMESPACE, pod_of};

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
            let (config, path, unwanted) = (config.clone(), rootfs.path().to_path_buf(), unwanted.clone());
            read_apart(move || config.find(&path, &unwanted)).await?
        };
        let (name, function, source, digest) = match found {
            Found::Native => return Ok(Program::Native),
            Found::Wasm { name, function, source, digest } => (name, function, source, digest),
            Found::Nothing => {
                let (name, function) = split_function(&entrypoint);
                let Some(layer) = layers::find(&self.identity, &request.id, name).await? else {
                    return Ok(Program::Native);
                };
                let (source, digest) = read_layer(name, layer, unwanted).await?;
                (name.to_string(), function.map(str::to_string), source, digest)
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
        let load = move || {
            let module = Module::load(&name, source, digest, &settings, tenant, &unwanted)?;
            Ok((Box::new(module), name))
        };
        let (module, name) = blocking(load).await?;
        Ok(Program::Wasm { module, name, function })
    }

    /// For whom a container's guest is compiled.
    fn tenant_of(&self, request: &CreateRequest, config: &Config) -> Tenant {
        let annotations = config.spec.annotations().as_ref();
        let namespace = annotations.and_then(|all| all.get(SANDBOX_NAMESPACE)).unwrap_or(&self.identity.namespace);
        let pod = pod_of(annotations).unwrap_or(&request.id);
        Tenant { namespace: namespace.clone(), pod: pod.into() }
    }
}

/// Makes sure that a layer in containerd's store is what the image says.
async fn read_layer(name: &str, layer: Layer, unwanted: &CancellationToken) -> Result<(Source, String)> {
    let (name, unwanted) = (name.to_string(), unwanted.clone());
    let read = move || {
        let source = Source::Store(layer.path);
        let digest = source.digest(&|| unwanted.is_cancelled()).map_err(|error| cannot_read(&name, error))?;
        if digest != layer.digest {
            let expected = layer.digest;
            return Err(Error::invalid(format!(
                "the layer of `{name}` has the digest {digest}, but the image says {expected}"
            )));
        }
        Ok((source, digest))
    };
    read_apart(read).await
}

/// Does what may have to wait for a tenant's files on a thread with a file table of its own; see [`crate::host::module`]. A
/// volume that does not answer holds up nothing but its own container.
pub(super) async fn read_apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let answer = apart(move || Ok(work())).doing(|| "cannot start a reader".into())?;
    blocking(move || answer.recv().map_err(io::Error::other).flatten().doing(|| "a reader ended early".into())?).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing(|| "a task of the shim ended early".into())?
}

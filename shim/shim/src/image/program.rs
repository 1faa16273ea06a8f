//! Looking for the program of a container.

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Result};
use crate::host::lookup::{FileKind, kind_of, open_file};
use crate::host::module::{Source, digest_of};
use crate::host::reader::read_apart;
use crate::identity::Identity;
use crate::image::layers::{self, Layer};
use crate::spec::config::Config;
use crate::spec::entrypoint::{candidates, split_function};

/// The program of a container.
pub(crate) enum Program {
    Native,
    Wasm(Module),
}

/// A module, and what to run of it.
pub(crate) struct Module {
    /// Its name in messages.
    pub(crate) name: String,
    /// The export to run.
    pub(crate) function: Option<String>,
    pub(crate) source: Source,
    /// Its sha256, lower-case hexadecimal.
    pub(crate) digest: String,
}

/// Finds what the container `id` of `config` runs. Its root file system must be mounted.
///
/// # Errors
/// `Invalid` for what is not a file, or for a module that is too large; the host's, when it cannot be read.
pub(crate) async fn find(
    identity: &Identity,
    id: &str,
    config: &Arc<Config>,
    unwanted: &CancellationToken,
) -> Result<Program> {
    let Some(entrypoint) = config.entrypoint() else { return Ok(Program::Native) };
    let found = {
        let (config, unwanted) = (config.clone(), unwanted.clone());
        read_apart(move || find_file(&config, &unwanted)).await?
    };
    if let Some(program) = found {
        return Ok(program);
    }
    let (name, function) = split_function(entrypoint);
    let Some(layer) = layers::find(identity, id, name).await? else { return Ok(Program::Native) };
    let (source, digest) = read_layer(name, layer, unwanted).await?;
    Ok(Program::Wasm(Module { name: name.into(), function: function.map(str::to_string), source, digest }))
}

/// The file that the entry point means, hashed if it is a module. For a thread with a file table of its own; it waits for as
/// long as the volumes do.
fn find_file(config: &Config, unwanted: &CancellationToken) -> Result<Option<Program>> {
    let (Some(process), Some(entrypoint)) = (&config.process, config.entrypoint()) else { return Ok(None) };
    let (rootfs, mounts) = (&config.root.path, &config.mounts);
    for candidate in candidates(entrypoint, &process.cwd, &process.env) {
        let name = candidate.path.to_string_lossy();
        let file = open_file(rootfs, mounts, &candidate.path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Error::invalid(error.to_string()),
            _ => Error::host(format!("cannot look for `{name}`"), error),
        })?;
        let Some(file) = file else { continue };
        return match kind_of(&file).doing(|| format!("cannot read `{name}`"))? {
            FileKind::Native => Ok(Some(Program::Native)),
            FileKind::Wasm => Ok(Some(Program::Wasm(Module {
                digest: digest_of(&file, &|| unwanted.is_cancelled()).map_err(|error| cannot_read(&name, error))?,
                source: Source::Container {
                    rootfs: rootfs.clone(),
                    mounts: mounts.clone(),
                    path: candidate.path.clone(),
                },
                function: candidate.function,
                name: name.into_owned(),
            }))),
        };
    }
    Ok(None)
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
                "the layer of `{name}` has the digest {digest}, but the image's manifest has {expected}"
            )));
        }
        Ok((source, digest))
    };
    read_apart(read).await
}

/// Why a module cannot be read.
fn cannot_read(name: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::FileTooLarge => Error::invalid(format!("`{name}` is too big: {error}")),
        _ => Error::host(format!("cannot read `{name}`"), error),
    }
}

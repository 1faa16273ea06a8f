//! The specification of a container: read once, and asked for what a create needs.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::Spec;
use serde_json::Value;
use skiff_protocol::EnginePlan;
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Result};
use crate::host::kernel_files::KernelFiles;
use crate::host::lookup::{FileKind, kind_of, open_file, resolve};
use crate::host::module::{Source, digest_of};
use crate::spec::entrypoint::candidates;
use crate::spec::wasm;

/// The specification of a container, parsed and as it was written: what `Spec` does not know is kept.
pub(super) struct Config {
    pub(super) spec: Spec,
    pub(super) text: Value,
    /// `text` is no longer what stands in the bundle.
    pub(super) is_rewritten: bool,
}

/// What an entry point means among the files that the container will see.
pub(super) enum Found {
    Nothing,
    Native,
    Wasm {
        name: String,
        /// The export to run.
        function: Option<String>,
        source: Source,
        digest: String,
    },
}

impl Config {
    /// Reads the specification in `bundle`.
    ///
    /// # Errors
    /// `Invalid` for what is no specification.
    pub(super) fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let text = fs::read(&path).doing(|| format!("cannot read `{}`", path.display()))?;
        let wrong = |error: serde_json::Error| {
            Error::invalid(format!("`{}` is not an OCI specification: {error}", path.display()))
        };
        let spec = serde_json::from_slice(&text).map_err(wrong)?;
        Ok(Self { spec, text: serde_json::from_slice(&text).map_err(wrong)?, is_rewritten: false })
    }

    /// The first word of what the container runs.
    pub(super) fn entrypoint(&self) -> Option<String> {
        self.spec.process().as_ref()?.args().as_ref()?.first().cloned()
    }

    pub(super) fn cgroups_path(&self) -> Option<String> {
        let path = self.spec.linux().as_ref()?.cgroups_path().as_ref()?;
        Some(path.to_string_lossy().into_owned())
    }

    /// The file that the entry point means, hashed if it is a module. For a thread with a file table of its own; it waits for as
    /// long as the volumes do.
    ///
    /// # Errors
    /// `Invalid` for what is no file, or too large a module; the host's, when it cannot be read.
    pub(super) fn find(&self, rootfs: &Path, unwanted: &CancellationToken) -> Result<Found> {
        let (Some(process), Some(entrypoint)) = (self.spec.process(), self.entrypoint()) else {
            return Ok(Found::Nothing);
        };
        let env = process.env().clone().unwrap_or_default();
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        for candidate in candidates(&entrypoint, process.cwd(), &env) {
            let name = candidate.path.to_string_lossy();
            let file = open_file(rootfs, mounts, &candidate.path).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput => Error::invalid(error.to_string()),
                _ => Error::host(format!("cannot look for `{name}`"), error),
            })?;
            let Some(file) = file else { continue };
            return match kind_of(&file).doing(|| format!("cannot read `{name}`"))? {
                FileKind::Native => Ok(Found::Native),
                FileKind::Wasm => Ok(Found::Wasm {
                    digest: digest_of(&file, &|| unwanted.is_cancelled()).map_err(|error| cannot_read(&name, error))?,
                    source: Source::Container {
                        rootfs: rootfs.into(),
                        mounts: mounts.to_vec(),
                        path: candidate.path.clone(),
                    },
                    function: candidate.function,
                    name: name.into_owned(),
                }),
            };
        }
        Ok(Found::Nothing)
    }

    /// The specification for the engine, and its plan. Blocks for as long as the volumes do.
    ///
    /// # Errors
    /// Those of [`wasm::for_engine`].
    pub(super) fn for_engine(
        &self,
        rootfs: &Path,
        module: &str,
        function: Option<&str>,
    ) -> Result<(Value, EnginePlan)> {
        let kernel = KernelFiles::of_the_node().doing(|| "cannot look at the node's mounts".into())?;
        let node =
            wasm::Node { rootfs, resolve: &|path| resolve(rootfs, path), shown_by: &|source| kernel.shown_by(source) };
        wasm::for_engine(&self.text, &wasm::Guest { module, function }, &node)
    }
}

/// Why a module cannot be read.
pub(super) fn cannot_read(name: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::FileTooLarge => Error::invalid(format!("`{name}` is too big: {error}")),
        _ => Error::host(format!("cannot read `{name}`"), error),
    }
}

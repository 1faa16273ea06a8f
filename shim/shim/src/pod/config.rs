//! The specification of a container: read once, and asked for what a create needs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use oci_spec::runtime::Spec;
use serde_json::Value;
use skiff_plan::EnginePlan;

use crate::error::{Context, Error, Result};
use crate::host::kernel_files::KernelFiles;
use crate::host::rootfs::{FileKind, kind_of, open_file, resolve};
use crate::task::entrypoint::candidates;
use crate::task::wasm;

/// The specification of a container, parsed and as it was written: what `Spec` does not know is kept.
pub(super) struct Config {
    pub(super) spec: Spec,
    pub(super) text: Value,
    /// `text` is no longer what stands in the bundle.
    pub(super) is_rewritten: bool,
}

/// The file that an entry point means.
pub(super) struct Found {
    pub(super) name: String,
    /// The export to run.
    pub(super) function: Option<String>,
    pub(super) file: File,
    pub(super) kind: FileKind,
}

impl Config {
    /// Reads the specification in `bundle`.
    ///
    /// # Errors
    /// `Invalid` for what is no specification.
    pub(super) fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let text = fs::read(&path).doing(|| format!("could not read `{}`", path.display()))?;
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

    /// The file that the entry point means. Blocks for as long as the volumes do.
    ///
    /// # Errors
    /// `Invalid` for what is no file; the host's, when it cannot be read.
    pub(super) fn find_file(&self, rootfs: &Path) -> Result<Option<Found>> {
        let (Some(process), Some(entrypoint)) = (self.spec.process(), self.entrypoint()) else { return Ok(None) };
        let env = process.env().clone().unwrap_or_default();
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        for candidate in candidates(&entrypoint, process.cwd(), &env) {
            let name = candidate.path.to_string_lossy();
            let file = open_file(rootfs, mounts, &candidate.path).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput => Error::invalid(error.to_string()),
                _ => Error::host(format!("could not look for `{name}`"), error),
            })?;
            if let Some(file) = file {
                let kind = kind_of(&file).doing(|| format!("could not read `{name}`"))?;
                return Ok(Some(Found { name: name.into_owned(), function: candidate.function, file, kind }));
            }
        }
        Ok(None)
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
        let kernel = KernelFiles::of_the_node().doing(|| "could not look at the node's mounts".into())?;
        let node =
            wasm::Node { rootfs, resolve: &|path| resolve(rootfs, path), shown_by: &|source| kernel.shown_by(source) };
        wasm::for_engine(&self.text, &wasm::Guest { module, function }, &node)
    }
}

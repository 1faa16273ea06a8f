//! Looking for the program of a container.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_protocol::Content;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Kind, Result};
use crate::host::layers::Layers;
use crate::host::lookup::{content_of, open_file};
use crate::host::module::{Source, digest_of};
use crate::host::reader::{read_apart, read_in_turn};
use crate::identity::Identity;
use crate::image::layers::{self, Layer};
use crate::spec::config::Config;
use crate::spec::config::Mount;
use crate::spec::entrypoint::{Candidate, candidates, candidates_in_wasm, split_function};

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

/// Finds what the container `id` of `config` runs. Its root file system, of these `layers`, must be mounted.
///
/// # Errors
/// `Invalid` for what is not a file, or for a module that is too large; the host's, when it cannot be read.
pub(crate) async fn find(
    identity: &Identity,
    id: &str,
    config: &Arc<Config>,
    layers: Option<Layers>,
    unwanted: &CancellationToken,
) -> Result<Program> {
    let Some(entrypoint) = config.entrypoint() else { return Ok(Program::Native) };
    let found = {
        let (config, unwanted) = (config.clone(), unwanted.clone());
        read_apart(move || find_file(&config, layers.as_ref(), &unwanted)).await?
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
fn find_file(config: &Config, layers: Option<&Layers>, unwanted: &CancellationToken) -> Result<Option<Program>> {
    let (Some(process), Some(entrypoint)) = (&config.process, config.entrypoint()) else { return Ok(None) };
    let candidates = candidates(entrypoint, &process.cwd, &process.env);
    choose(&config.root.path, &config.mounts, layers, candidates, unwanted)
}

/// What a further process of a wasm container runs.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Its first argument.
    pub(crate) argument: String,
    pub(crate) cwd: PathBuf,
    pub(crate) env: Vec<String>,
}

/// Finds what a further process runs: a file in the directory `root`, which is what the container's processes see as their root.
/// Returns `None` when there is no such file. The `turn` is dropped when the reader has ended, which may be long after the caller
/// has given up.
///
/// # Errors
/// Those of [`find`].
pub(crate) async fn find_in(
    root: PathBuf,
    wanted: Wanted,
    turn: OwnedSemaphorePermit,
    unwanted: &CancellationToken,
) -> Result<Option<Program>> {
    let unwanted = unwanted.clone();
    let look = move || {
        let candidates = candidates_in_wasm(&wanted.argument, &wanted.cwd, &wanted.env);
        choose(&root, &[], None, candidates, &unwanted)
    };
    read_in_turn(turn, look).await
}

/// The first of `candidates` that can be run, hashed if it is a module.
fn choose(
    rootfs: &Path,
    mounts: &[Mount],
    layers: Option<&Layers>,
    candidates: impl Iterator<Item = Candidate>,
    unwanted: &CancellationToken,
) -> Result<Option<Program>> {
    // The first file that can be run neither way: a later one of the `PATH` may be the right one.
    let mut refused = None;
    for candidate in candidates {
        if unwanted.is_cancelled() {
            return Err(Error::new(Kind::Conflict, "the program is no longer looked for"));
        }
        let name = candidate.path.to_string_lossy();
        let file = open_file(rootfs, mounts, &candidate.path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Error::invalid(error.to_string()),
            _ => Error::host(format!("cannot look for `{name}`"), error),
        })?;
        let Some(file) = file else { continue };
        let reading = || format!("cannot read `{name}`");
        let content = content_of(&file).doing(reading)?;
        if content == Content::Wasm {
            let hash = || digest_of(&file, &|| unwanted.is_cancelled());
            let digest = layers.map_or_else(hash, |layers| layers.digest_of(rootfs, &file, hash));
            return Ok(Some(Program::Wasm(Module {
                digest: digest.map_err(|error| cannot_read(&name, error))?,
                source: Source::Container {
                    rootfs: rootfs.to_path_buf(),
                    mounts: mounts.to_vec(),
                    path: candidate.path.clone(),
                },
                function: candidate.function,
                name: name.into_owned(),
            })));
        }
        match why_not_native(content, file.metadata().doing(reading)?.mode(), &candidate.path) {
            None if candidate.only_wasm => {}
            None => return Ok(Some(Program::Native)),
            Some(why) => refused = refused.or_else(|| Some(Error::invalid(format!("`{name}` {why}")))),
        }
    }
    refused.map_or(Ok(None), Err)
}

/// Why a file that is not wasm is not left to the OCI runtime either: it was meant to be wasm, or nothing can execute it. Then
/// the runtime's own words would be `permission denied` or `exec format error`.
fn why_not_native(content: Content, mode: u32, path: &Path) -> Option<String> {
    let fault = content.fault()?;
    let is_executable = mode & 0o111 != 0;
    let is_named_wasm = path.extension().is_some_and(|extension| extension == "wasm");
    match content {
        Content::Elf | Content::Script if is_executable => None,
        // What the kernel has a handler for (binfmt_misc) runs natively, unless it was meant to be wasm.
        Content::Compiled | Content::Pe | Content::MachO | Content::Other if is_executable && !is_named_wasm => None,
        Content::Wasm => None,
        Content::Empty | Content::Text | Content::Gzip => Some(fault.into()),
        _ if is_named_wasm => Some(fault.into()),
        Content::Compiled | Content::Elf | Content::MachO | Content::Other | Content::Pe | Content::Script => {
            Some(format!("is neither wasm nor executable: its mode is {:04o}", mode & 0o7777))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_executed_is_left_to_the_oci_runtime() {
        let check = |content, mode, path, expected: Option<&str>| {
            assert_eq!(
                why_not_native(content, mode, Path::new(path)).as_deref(),
                expected,
                "{content:?} {mode:o} {path}"
            );
        };
        for content in [Content::Elf, Content::Script] {
            check(content, 0o100_755, "/app", None);
            check(content, 0o100_755, "/app.wasm", None);
            check(content, 0o100_644, "/app", Some("is neither wasm nor executable: its mode is 0644"));
            check(content, 0o100_644, "/app.wasm", content.fault());
        }
        for content in [Content::Compiled, Content::Pe, Content::MachO, Content::Other] {
            check(content, 0o100_711, "/app", None);
            check(content, 0o100_711, "/app.wasm", content.fault());
            check(content, 0o104_600, "/app", Some("is neither wasm nor executable: its mode is 4600"));
        }
        for content in [Content::Empty, Content::Text, Content::Gzip] {
            check(content, 0o100_755, "/app", content.fault());
            check(content, 0o100_644, "/app.wasm", content.fault());
        }
    }

    #[test]
    fn a_file_that_cannot_be_run_does_not_hide_one_of_the_path_that_can() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        put("first/app", b"notes");
        let config: Config = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.0",
            "root": {"path": root.path()},
            "process": {"args": ["app"], "cwd": "/", "env": ["PATH=/first:/second"]},
        }))
        .unwrap();
        let find = || find_file(&config, None, &CancellationToken::new());
        let Err(error) = find() else { panic!("it is refused") };
        assert_eq!(error.to_string(), "`/first/app` is neither wasm nor executable: its mode is 0644");
        put("second/app", b"\0asm\x01\0\0\0");
        let Ok(Some(Program::Wasm(module))) = find() else { panic!("it is a module") };
        assert_eq!(module.name, "/second/app");
    }
}

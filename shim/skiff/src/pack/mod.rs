//! `skiff pack`: makes an image of a wasm binary, as a tar archive of an OCI image layout. Equal input gives an equal
//! archive, byte by byte.

mod entry;
mod image;
mod layout;
mod reference;
mod rootfs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use self::image::{Image, Process};
use self::reference::Reference;
use self::rootfs::Rootfs;
use crate::error::{Context, Error, Result};
use crate::guest::Guest;
use crate::regular::read_module;
use crate::support::{missing, missing_for};

/// What to pack, and how.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The wasm module or component.
    wasm: PathBuf,
    /// The archive to write.
    #[arg(short, long)]
    output: PathBuf,
    /// The image's name; without a registry it is completed with `docker.io` [default: from the file's name].
    #[arg(long)]
    name: Option<String>,
    /// What kind of image to make.
    #[arg(long, value_enum, default_value_t = Form::Image)]
    kind: Form,
    /// An argument of the entrypoint; repeat it for each, in order [default: the wasm file].
    #[arg(long)]
    entrypoint: Vec<String>,
    /// The user that the container runs as, `UID` or `UID:GID` [default: root].
    #[arg(long, value_parser = user)]
    user: Option<String>,
    /// An environment variable, `NAME=VALUE`.
    #[arg(long, value_parser = variable)]
    env: Vec<String>,
    /// The platform of an ordinary image, `OS/ARCHITECTURE` [default: linux and this machine's].
    #[arg(long, value_parser = platform)]
    platform: Option<(String, String)>,
    /// A file or directory to put into an ordinary image, `SOURCE:DESTINATION`.
    #[arg(long, value_parser = addition)]
    add: Vec<(PathBuf, PathBuf)>,
    /// Pack what skiff does not run, and an entrypoint that is not in the image.
    #[arg(long)]
    force: bool,
}

/// The kinds of images that carry wasm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// An ordinary image with one layer; every registry, builder and runtime supports it.
    Image,
    /// A wasm OCI artifact: <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>.
    Artifact,
    /// An ordinary image's configuration with the wasm binary itself as its layer.
    Layer,
}

/// Packs and returns the image's reference with its digest.
///
/// # Errors
/// If the file is not valid wasm, skiff does not run it, an option does not apply to the kind, or the archive cannot be written.
pub(crate) fn pack(arguments: &Arguments) -> Result<String> {
    refuse_unfit_options(arguments)?;
    let path = arguments.wasm.display().to_string();
    let bytes = read_module(&arguments.wasm)?;
    let guest = Guest::read(&bytes, &path)?;
    let file_name = file_name(&arguments.wasm)?;
    let reference = match &arguments.name {
        Some(name) => Reference::parse(name)?,
        None => Reference::of_file(&file_name)?,
    };
    let image = make(arguments, &guest, &file_name, bytes)?;
    let manifest = write(&arguments.output, &image, &reference)?;
    Ok(format!("{reference}@{manifest}"))
}

fn make(arguments: &Arguments, guest: &Guest, file_name: &str, bytes: Vec<u8>) -> Result<Image> {
    let entrypoint = match arguments.entrypoint.as_slice() {
        [] => vec![format!("/{file_name}")],
        entrypoint => entrypoint.to_vec(),
    };
    let process = Process { entrypoint, env: arguments.env.clone(), user: arguments.user.clone() };
    match arguments.kind {
        Form::Image => {
            let mut rootfs = Rootfs::default();
            rootfs.add_file(Path::new(file_name), bytes, true)?;
            for (source, destination) in &arguments.add {
                rootfs.add(source, destination)?;
            }
            let find = |argument: &str| entry::find(&rootfs, argument, &process.env, Path::new(file_name));
            check(arguments, guest, process.entrypoint.first(), find)?;
            image::ordinary(&rootfs.into_tar()?, process, arguments.platform.clone())
        }
        Form::Artifact => {
            refuse(arguments, &missing(guest))?;
            image::artifact(guest, file_name, bytes)
        }
        Form::Layer => {
            check(arguments, guest, process.entrypoint.first(), |argument| entry::find_layer(file_name, argument))?;
            image::layer(guest, file_name, bytes, process)
        }
    }
}

/// Refuses an image whose entry point is not there, or a guest that skiff does not run from it, unless that is asked for.
fn check(
    arguments: &Arguments,
    guest: &Guest,
    entrypoint: Option<&String>,
    find: impl FnOnce(&str) -> entry::Found,
) -> Result<()> {
    let argument = entrypoint.map_or("", String::as_str);
    match find(argument) {
        entry::Found::Guest { function } => refuse(arguments, &missing_for(guest, function.as_deref())),
        entry::Found::Other => refuse(arguments, &missing(guest)),
        entry::Found::Nothing { there } if !arguments.force => Err(Error::guest(format!(
            "there is no `{argument}` in the image, only {there}: correct `--entrypoint`; `--force` packs it anyway"
        ))),
        entry::Found::Nothing { .. } => Ok(()),
    }
}

fn refuse(arguments: &Arguments, missing: &[String]) -> Result<()> {
    if missing.is_empty() || arguments.force {
        return Ok(());
    }
    let name = arguments.wasm.display();
    Err(Error::guest(format!("skiff does not run `{name}`: {}; `--force` packs it anyway", missing.join(", "))))
}

fn refuse_unfit_options(arguments: &Arguments) -> Result<()> {
    let is_image = arguments.kind == Form::Image;
    let is_artifact = arguments.kind == Form::Artifact;
    for (option, is_unfit) in [
        ("--platform", !is_image && arguments.platform.is_some()),
        ("--add", !is_image && !arguments.add.is_empty()),
        ("--entrypoint", is_artifact && !arguments.entrypoint.is_empty()),
        ("--env", is_artifact && !arguments.env.is_empty()),
        ("--user", is_artifact && arguments.user.is_some()),
    ] {
        if is_unfit {
            return Err(Error::guest(format!(
                "`{option}` does not apply to this kind of image: leave it out or choose another `--kind`"
            )));
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| Error::guest(format!("`{}` does not end with a file name in UTF-8", path.display())))
}

/// Writes the archive; one that cannot be finished is removed.
fn write(output: &Path, image: &Image, reference: &Reference) -> Result<String> {
    let writing = || format!("cannot write `{}`", output.display());
    let file = File::create(output).or_host(writing())?;
    let written = layout::write(file, image, reference).or_host(writing());
    if written.is_err() {
        fs::remove_file(output).or_host(writing())?;
    }
    written
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.into()),
        _ => Err("write an environment variable as `NAME=VALUE`".into()),
    }
}

/// A numeric user: the kubelet checks `runAsNonRoot` by it, and an image of one file has no `/etc/passwd` for names.
fn user(text: &str) -> Result<String, String> {
    let is_id = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u32>().is_ok();
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    if is_id(user) && is_id(group) { Ok(text.into()) } else { Err("write a user as `UID` or `UID:GID`".into()) }
}

fn platform(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((os, architecture)) if !os.is_empty() && !architecture.is_empty() && !architecture.contains('/') => {
            Ok((os.into(), architecture.into()))
        }
        _ => Err("write a platform as `OS/ARCHITECTURE`".into()),
    }
}

fn addition(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.rsplit_once(':') {
        Some((source, destination)) if !source.is_empty() && !destination.is_empty() => {
            Ok((source.into(), destination.into()))
        }
        _ => Err("write an addition as `SOURCE:DESTINATION`".into()),
    }
}

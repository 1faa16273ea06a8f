//! `skiff stats`: what the engines of running containers report about the memory of their guests, exactly.

use std::path::{Path, PathBuf};

use clap::Args;
use skiff_protocol::{ACCOUNT_FILE, Figures};

use crate::containers::{self, Container};
use crate::error::{Context, Error, Result};
use crate::output::{self, shown};

/// The most that is shown of a name, in characters.
const NAME_CHARACTERS: usize = 63;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A pod or a container by its name, a container by its id or the beginning of it, or by its bundle's path
    /// [default: all wasm containers of this node].
    #[arg(value_name = "POD|CONTAINER|ID")]
    names: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the figures of the containers that are asked for.
///
/// # Errors
/// When there is no such wasm container, or its release of skiff is another one.
pub(crate) fn stats(arguments: &Arguments) -> Result<()> {
    let (bundles, names): (Vec<String>, Vec<String>) =
        arguments.names.iter().cloned().partition(|name| name.contains('/'));
    let mut containers = Vec::new();
    if bundles.is_empty() || !names.is_empty() {
        containers = containers::chosen(containers::all(Path::new(containers::PROC))?, &names)?;
    }
    let is_asked_for = !names.is_empty();
    for bundle in bundles {
        containers.push(of_bundle(&bundle)?);
    }
    if let Some(Container { name, fault: Some(fault), .. }) =
        containers.iter().find(|container| is_asked_for && container.fault.is_some())
    {
        return Err(Error::host(format!("cannot read the figures of `{name}`: {fault}")));
    }
    if arguments.json {
        return output::print_json(&containers);
    }
    let head = ["NAMESPACE", "POD", "CONTAINER", "ID", "MEMORY", "PEAK", "LIMIT", "REFUSED", "RAN OUT"];
    output::print_table(&head, &containers.iter().map(row).collect::<Vec<_>>())
}

/// The container of a bundle, wherever it is: its figures, and what the path says.
fn of_bundle(bundle: &str) -> Result<Container> {
    let bundle = PathBuf::from(bundle);
    let path = bundle.join(ACCOUNT_FILE);
    let failed = format!("cannot read `{}` (is this the bundle of a running wasm container?)", path.display());
    let figures = containers::figures(&path).or_host(failed)?;
    Ok(Container::of_bundle(&bundle, figures))
}

fn row(container: &Container) -> [String; 9] {
    let name = |text: &str| shown(text, NAME_CHARACTERS);
    let figure = |of: fn(&Figures) -> String| container.figures.as_ref().map_or("?".into(), of);
    [
        name(&container.namespace),
        container.pod.as_deref().map_or("-".into(), name),
        name(&container.name),
        name(&container.id),
        figure(|figures| figures.linear_memory_bytes.to_string()),
        figure(|figures| figures.peak_bytes.to_string()),
        figure(|figures| figures.limit_bytes.map_or("none".into(), |bytes| bytes.to_string())),
        figure(|figures| figures.refusals.to_string()),
        figure(|figures| if figures.ran_out { "yes" } else { "no" }.into()),
    ]
}

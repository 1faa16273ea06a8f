//! `skiff ps`: the wasm containers of this node, one line each.

use std::path::Path;

use clap::Args;

use crate::containers::{self, Container};
use crate::error::Result;
use crate::output::{self, mebibytes, period, shown};

/// The most that is shown of a name, in characters.
const NAME_CHARACTERS: usize = 63;
/// The most that is shown of an id: more than it takes to tell them apart.
const ID_CHARACTERS: usize = 13;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the containers.
///
/// # Errors
/// If this user may not look at them, or nothing can be printed.
pub(crate) fn ps(arguments: &Arguments) -> Result<()> {
    let containers = containers::all(Path::new(containers::PROC))?;
    if arguments.json {
        return output::print_json(&containers);
    }
    let head =
        ["NAMESPACE", "POD", "CONTAINER", "ID", "IMAGE", "MODULE", "PID", "MEMORY", "LIMIT", "PEAK", "REFUSED", "AGE"];
    output::print_table(&head, &containers.iter().map(row).collect::<Vec<_>>())
}

fn row(container: &Container) -> [String; 12] {
    let name = |text: &str| shown(text, NAME_CHARACTERS);
    let optional = |text: Option<&String>| text.map_or("-".into(), |text| name(text));
    let figure = |figure: Option<u64>| figure.map_or("?".into(), mebibytes);
    let limit = container.figures.map_or("?".into(), |figures| figures.limit_bytes.map_or("none".into(), mebibytes));
    let refusals = container.figures.map_or("?".into(), |figures| figures.refusals.to_string());
    let shortened =
        if container.name == container.id { shown(&container.id, ID_CHARACTERS) } else { name(&container.name) };
    [
        name(&container.namespace),
        optional(container.pod.as_ref()),
        shortened,
        container.id.chars().take(ID_CHARACTERS).collect(),
        optional(container.image.as_ref()),
        name(&container.module),
        container.pid.map_or("-".into(), |pid| pid.to_string()),
        figure(container.figures.map(|figures| figures.linear_memory_bytes)),
        limit,
        figure(container.figures.map(|figures| figures.peak_bytes)),
        refusals,
        period(container.age_seconds),
    ]
}

//! What the limiter costs a guest that allocates memory, beside `wasmtime run`, which has no limit.
//!
//! Both run in containers of the same limit. The guests time themselves, so that the start of a container does not count.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::container::{Plan, prepare};
use crate::containerd::Containerd;
use crate::image::{Form, Image};
use crate::programs::Programs;
use crate::report::{Goal, LimitsRow, Report};
use crate::stats::Summary;
use crate::target::Target;

const LIMIT_BYTES: u64 = 1 << 30;
/// Twice 250 MiB: once without and once with a write to every page.
const GROW: [&str; 3] = ["c-growcost.wasm", "cost", "4000"];
/// 128 MiB.
const TREES: [&str; 2] = ["c-trees.wasm", "20"];
/// With a timeout the code is compiled with epoch interruption, as skiff's is.
const RUN: [&str; 3] = ["run", "-W", "timeout=3600s"];
/// Where the libraries of `wasmtime` may be.
const LIBRARIES: [&str; 3] = ["/lib", "/lib64", "/usr/lib"];

/// One row of the table.
struct Contender<'a> {
    name: &'static str,
    grow: Plan<'a>,
    trees: Plan<'a>,
    grow_ns: Vec<f64>,
    grow_and_touch_ns: Vec<f64>,
    trees_ms: Vec<f64>,
}

/// The time of single growths, and of a program that allocates.
///
/// # Errors
/// When a guest fails or prints no figures.
pub(crate) async fn cost(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let wasmtime = containerd.image_of(&programs.tool("wasmtime"), Form::File).await?;
    let growcost = containerd.image_of(&programs.guest(GROW[0]), Form::File).await?;
    let trees = containerd.image_of(&programs.guest(TREES[0]), Form::File).await?;
    let in_wasmtime = |command: &[&str]| under_wasmtime(&wasmtime, programs, command);
    let mut contenders = [
        Contender::new("`wasmtime run`", in_wasmtime(&GROW)?, in_wasmtime(&TREES)?),
        Contender::new("skiff", under_skiff(&growcost, &GROW), under_skiff(&trees, &TREES)),
    ];
    // The round before the first fills the caches: skiff's own and the kernel's.
    for round in 0..=rounds {
        for (index, contender) in contenders.iter_mut().enumerate() {
            let id = containerd.id(&format!("limits-{index}-{round}"));
            let measured = contender.measure(containerd, &id, round > 0).await;
            measured.with_context(|| format!("{} failed in round {round}", contender.name))?;
        }
    }
    let rows = contenders.map(Contender::row);
    let ratio = rows[1].trees_ms.median / rows[0].trees_ms.median;
    report.goal(Goal::at_most("a program that allocates 128 MiB, × `wasmtime run`", ratio, 1.01));
    report.limits(rows.into());
    Ok(())
}

impl<'a> Contender<'a> {
    fn new(name: &'static str, grow: Plan<'a>, trees: Plan<'a>) -> Self {
        Self { name, grow, trees, grow_ns: Vec::new(), grow_and_touch_ns: Vec::new(), trees_ms: Vec::new() }
    }

    async fn measure(&mut self, containerd: &Containerd, id: &str, counts: bool) -> Result<()> {
        let [grow_ns, grow_and_touch_ns] = figures(containerd, format!("{id}-grow"), &self.grow).await?;
        let [trees_ms] = figures(containerd, format!("{id}-trees"), &self.trees).await?;
        if counts {
            self.grow_ns.push(grow_ns);
            self.grow_and_touch_ns.push(grow_and_touch_ns);
            self.trees_ms.push(trees_ms);
        }
        Ok(())
    }

    fn row(self) -> LimitsRow {
        LimitsRow {
            name: self.name,
            grow_ns: Summary::of(&self.grow_ns),
            grow_and_touch_ns: Summary::of(&self.grow_and_touch_ns),
            trees_ms: Summary::of(&self.trees_ms),
        }
    }
}

fn under_skiff<'a>(image: &'a Image, command: &[&str]) -> Plan<'a> {
    Plan { arguments: words(&command[1..]), limit_bytes: Some(LIMIT_BYTES), ..Plan::new(Target::Skiff, image) }
}

/// In a native container, which sees the host's libraries and guests.
fn under_wasmtime<'a>(image: &'a Image, programs: &Programs, command: &[&str]) -> Result<Plan<'a>> {
    let guest = programs.guest(command[0]).canonicalize().context("there is no such guest")?;
    let guests = guest.parent().context("the guest is in no directory")?.to_path_buf();
    let mut arguments = words(&RUN);
    arguments.push(guest.display().to_string());
    arguments.extend(words(&command[1..]));
    let libraries = LIBRARIES.iter().map(PathBuf::from).filter(|folder| folder.exists());
    Ok(Plan {
        arguments,
        limit_bytes: Some(LIMIT_BYTES),
        folders: libraries.chain([guests]).collect(),
        ..Plan::new(Target::Runc, image)
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// The figures that the guest prints.
async fn figures<const N: usize>(containerd: &Containerd, id: String, plan: &Plan<'_>) -> Result<[f64; N]> {
    let said = prepare(containerd, id, plan).await?.output().await?;
    numbers(&said).with_context(|| format!("the guest says `{said}`"))
}

fn numbers<const N: usize>(text: &str) -> Option<[f64; N]> {
    let numbers: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
    numbers.ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_says_as_many_figures_as_are_due() {
        assert_eq!(numbers("1056.4 63568.0\n"), Some([1056.4, 63568.0]));
        assert_eq!(numbers("873.218\n"), Some([873.218]));
        assert_eq!(numbers::<2>("873.218\n"), None);
        assert_eq!(numbers::<1>("fast\n"), None);
    }
}

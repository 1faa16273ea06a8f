//! What one more sleeping container costs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::container::{Plan, prepare};
use crate::containerd::Containerd;
use crate::image::Form;
use crate::processes::{Usage, usage};
use crate::programs::Programs;
use crate::report::{Goal, MemoryRow, Report};
use crate::target::Target;

/// Time for what a start leaves to the background: freeing memory, helpers that end.
const SETTLING: Duration = Duration::from_secs(1);

struct Sleeper {
    name: &'static str,
    target: Target,
    program: PathBuf,
    says: &'static str,
}

/// The proportional set size of all processes of the containers, from the `few`th to the `many`th.
///
/// # Errors
/// When a container does not start.
pub(crate) async fn marginal(
    containerd: &Containerd,
    programs: &Programs,
    few: usize,
    many: usize,
    report: &mut Report,
) -> Result<()> {
    let sleep = || programs.guest("c-sleep.wasm");
    let sleepers = [
        Sleeper { name: "runc, static native pause", target: Target::Runc, program: programs.tool("pause"), says: "" },
        Sleeper { name: "baseline, C sleep as a file", target: Target::Baseline, program: sleep(), says: "sleeping\n" },
        Sleeper { name: "skiff, C sleep, cached", target: Target::Skiff, program: sleep(), says: "sleeping\n" },
    ];
    let mut rows = Vec::new();
    for sleeper in &sleepers {
        let row = grow(containerd, sleeper, few, many).await;
        rows.push(row.with_context(|| format!("{} failed", sleeper.name))?);
    }
    let skiff = rows.last().map(|row| row.marginal_mb).unwrap_or_default();
    report.goal(Goal::at_most("marginal PSS of a container, MB", skiff, 2.5));
    report.memory(few, many, rows);
    Ok(())
}

async fn grow(containerd: &Containerd, sleeper: &Sleeper, few: usize, many: usize) -> Result<MemoryRow> {
    let image = containerd.image_of(&sleeper.program, Form::File).await?;
    let word = containerd.id(&format!("sleep-{}", sleeper.target.word()));
    let plan = Plan::new(sleeper.target, &image);
    let mut running = Vec::new();
    let mut at_few = Usage::default();
    for number in 1..=many {
        let prepared = prepare(containerd, format!("{word}-{number}"), &plan).await?;
        running.push(prepared.begin(sleeper.says).await?);
        if number == few {
            tokio::time::sleep(SETTLING).await;
            at_few = usage(&word)?;
        }
    }
    tokio::time::sleep(SETTLING).await;
    let at_many = usage(&word)?;
    for container in running {
        container.end().await?;
    }
    Ok(row(sleeper.name, (few, at_few), (many, at_many)))
}

fn row(name: &'static str, (few, at_few): (usize, Usage), (many, at_many): (usize, Usage)) -> MemoryRow {
    let more = exact(many - few);
    MemoryRow {
        name,
        marginal_mb: (megabytes(at_many) - megabytes(at_few)) / more,
        total_mb: megabytes(at_many),
        processes: (exact(at_many.processes) - exact(at_few.processes)) / more,
        threads: (exact(at_many.threads) - exact(at_few.threads)) / more,
    }
}

fn megabytes(usage: Usage) -> f64 {
    // Kilobytes of all processes together fit.
    f64::from(u32::try_from(usage.pss_bytes / 1024).unwrap_or(u32::MAX)) * 1024.0 / 1e6
}

fn exact(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

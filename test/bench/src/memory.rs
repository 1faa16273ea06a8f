//! What one more sleeping container costs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::container::{Plan, prepare};
use crate::containerd::Containerd;
use crate::image::Form;
use crate::processes::{Usage, sleeps, usage};
use crate::programs::Programs;
use crate::report::{Goal, MemoryRow, Report};
use crate::stats::{exact, megabytes};
use crate::target::Target;

/// Time for what a start leaves to the background: freeing memory, helpers that end.
const SETTLING: Duration = Duration::from_secs(1);

/// How long wake-ups are counted, and how long a thread without work lives at most.
const IDLE: Duration = Duration::from_secs(12);

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
    if let Some(skiff) = rows.last() {
        report.goal(Goal::at_most("wake-ups a second of a sleeping container", skiff.wake_ups, 0.1));
    }
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
    let wake_ups = wake_ups(&word).await / exact(many);
    for container in running {
        container.end().await?;
    }
    Ok(row(sleeper.name, (few, at_few), (many, at_many), wake_ups))
}

/// How often a second the threads of all of them are woken up. What a start has left behind ends first.
async fn wake_ups(word: &str) -> f64 {
    tokio::time::sleep(IDLE).await;
    let before = sleeps(word);
    tokio::time::sleep(IDLE).await;
    // A thread that has ended meanwhile is gone with its count.
    let more = |(thread, count): (&PathBuf, &u64)| count - before.get(thread).unwrap_or(&0);
    let all: u64 = sleeps(word).iter().map(more).sum();
    exact(usize::try_from(all).unwrap_or(usize::MAX)) / IDLE.as_secs_f64()
}

fn row(name: &'static str, (few, at_few): (usize, Usage), (many, at_many): (usize, Usage), wake_ups: f64) -> MemoryRow {
    let more = exact(many - few);
    MemoryRow {
        name,
        marginal_mb: (megabytes(at_many.pss_bytes) - megabytes(at_few.pss_bytes)) / more,
        total_mb: megabytes(at_many.pss_bytes),
        processes: (exact(at_many.processes) - exact(at_few.processes)) / more,
        threads: (exact(at_many.threads) - exact(at_few.threads)) / more,
        wake_ups,
    }
}

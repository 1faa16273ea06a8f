//! Calls of a function of a running guest through one exec: how many in a second, and how long one takes that nobody waits behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::container::{Plan, milliseconds, prepare};
use crate::containerd::Containerd;
use crate::exec::Exec;
use crate::image::Form;
use crate::programs::Programs;
use crate::report::{CallsRow, Goal, Report};
use crate::stats::Summary;
use crate::target::Target;

/// How many calls are sent without waiting for results.
const TOGETHER: u32 = 100_000;
/// How many calls each wait for the result of the one before.
const ALONE: u32 = 1_000;
/// A function that does next to nothing, so that all of the time is the call's.
const CALL: &[u8] = b"add(1, 2)\n";
const RESULT: &[u8] = b"3\n";
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls of the live instance of a core module, and of a component.
///
/// # Errors
/// When a guest does not start, or a result is not what it should be.
pub(crate) async fn calls(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let mut rows = Vec::new();
    for (name, guest) in [("core module", "rust-reactor"), ("component", "rust-values")] {
        let row = row(containerd, programs, (name, guest), rounds).await;
        let row = row.with_context(|| format!("calls of {guest} failed"))?;
        report.goal(Goal::at_least(format!("calls a second, {name}"), row.per_second.median, 20_000.0));
        report.goal(Goal::at_most(format!("one call alone, {name}, ms"), row.alone_ms.median, 1.0));
        rows.push(row);
    }
    report.calls(rows);
    Ok(())
}

async fn row(
    containerd: &Containerd,
    programs: &Programs,
    (name, guest): (&'static str, &str),
    rounds: usize,
) -> Result<CallsRow> {
    let image = containerd.image_of(&programs.guest(&format!("{guest}.wasm")), Form::File).await?;
    let id = containerd.id(&format!("calls-{guest}"));
    let running = prepare(containerd, id, &Plan::new(Target::Skiff, &image)).await?.begin("").await?;
    let (mut per_second, mut alone_ms) = (Vec::new(), Vec::new());
    // The round before the first fills the caches.
    for round in 0..=rounds {
        let mut exec = Exec::start(containerd, running.id(), &format!("{guest}-{round}"), &["invoke"]).await?;
        // Until it is there, the time is that of the exec.
        evaluate(&mut exec, 1).await?;
        let begun = Instant::now();
        for _ in 0..ALONE {
            evaluate(&mut exec, 1).await?;
        }
        let alone = milliseconds(begun.elapsed()) / f64::from(ALONE);
        let begun = Instant::now();
        evaluate(&mut exec, TOGETHER).await?;
        let together = f64::from(TOGETHER) / begun.elapsed().as_secs_f64();
        exec.end().await?;
        if round > 0 {
            alone_ms.push(alone);
            per_second.push(together);
        }
    }
    running.end().await?;
    Ok(CallsRow { name, per_second: Summary::of(&per_second), alone_ms: Summary::of(&alone_ms) })
}

/// Has so many calls made, and takes their results.
async fn evaluate(exec: &mut Exec<'_>, count: u32) -> Result<()> {
    let count = usize::try_from(count)?;
    let expressions = CALL.repeat(count);
    let mut results = vec![0; RESULT.len() * count];
    let both = async { tokio::try_join!(exec.stdin.write_all(&expressions), exec.stdout.read_exact(&mut results)) };
    tokio::time::timeout(PATIENCE, both).await.context("there are no results")??;
    ensure!(results == RESULT.repeat(count), "a result is wrong");
    Ok(())
}

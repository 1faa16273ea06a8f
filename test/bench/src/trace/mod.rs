//! Where the time of a container's life goes: each step from the request of Create to the reply to Delete, with its time and
//! the processor time of every program that takes part. The steps are found in a trace of the kernel, so nothing in skiff
//! has to tell them.

mod event;
mod kernel;
mod steps;
mod work;

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

use self::event::Event;
use self::kernel::{Kernel, threads_of};
use self::steps::{Maker, Requests, Step, steps};
use crate::container::{Moments, Plan, milliseconds, prepare};
use crate::containerd::Containerd;
use crate::image::Form;
use crate::programs::Programs;
use crate::stats::Summary;
use crate::target::Target;

/// What every program here prints.
const SAYS: &str = "hello\n";
/// How long the machine is left alone before a life: what containers leave to the background ends, and moves into cgroups are
/// as slow as on a quiet node.
const QUIET: Duration = Duration::from_millis(300);
/// The width of the waterfall.
const COLUMNS: u32 = 60;

/// Traces some lives of a cached hello under skiff, and of a native one under runc, in turns.
///
/// # Errors
/// When a container does not do what it should, or the kernel has no tracing.
pub(crate) async fn waterfalls(containerd: &Containerd, programs: &Programs, rounds: usize) -> Result<String> {
    let kernel = Kernel::prepare(containerd.directory())?;
    let contenders = [
        ("skiff, C hello, cached", Target::Skiff, programs.guest("c-hello.wasm")),
        ("runc, static native hello", Target::Runc, programs.tool("hello")),
    ];
    let mut text = String::new();
    let mut images = Vec::new();
    for (_, _, program) in &contenders {
        images.push(containerd.image_of(program, Form::File).await?);
    }
    let mut lives: Vec<Vec<Vec<Step>>> = contenders.iter().map(|_| Vec::new()).collect();
    // The round before the first fills the caches.
    for round in 0..=rounds {
        for (index, (name, target, _)) in contenders.iter().enumerate() {
            let id = containerd.id(&format!("trace-{index}-{round}"));
            let life = once(&kernel, containerd, &Plan::new(*target, &images[index]), id).await;
            let life = life.with_context(|| format!("{name} failed in round {round}"))?;
            if round > 0 {
                lives[index].push(life);
            }
        }
    }
    for ((name, _, _), lives) in contenders.iter().zip(&lives) {
        waterfall(&mut text, name, lives)?;
    }
    Ok(text)
}

async fn once(kernel: &Kernel, containerd: &Containerd, plan: &Plan<'_>, id: String) -> Result<Vec<Step>> {
    let prepared = prepare(containerd, id, plan).await?;
    tokio::time::sleep(QUIET).await;
    let pid = containerd.pid()?;
    let threads = threads_of(pid)?;
    kernel.begin(pid)?;
    let moments = prepared.run(SAYS).await;
    let trace = kernel.end()?;
    let moments = moments?;
    let events = Event::parse_all(&trace);
    let (deeds, slices) = work::of(&events, &threads, moments.pid);
    let maker = if plan.target == Target::Skiff { Maker::Shim } else { Maker::Runtime };
    steps(maker, &deeds, &slices, requests(&moments)?)
}

/// The moments on the kernel's clock.
fn requests(moments: &Moments) -> Result<Requests> {
    let (now, kernels) = (Instant::now(), clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let kernels = milliseconds(Duration::from(kernels));
    let on = |moment: Instant| kernels - milliseconds(now - moment);
    Ok(Requests {
        begun: on(moments.begun),
        created: on(moments.created),
        spoke: on(moments.spoke),
        ended: on(moments.ended),
        deleted: on(moments.deleted),
    })
}

/// One line for each step: medians, and a bar from where it begins to where it ends.
fn waterfall(text: &mut String, name: &str, lives: &[Vec<Step>]) -> Result<()> {
    let Some(first) = lives.first() else { return Ok(()) };
    let median = |of: &dyn Fn(&Vec<Step>) -> f64| Summary::of(&lives.iter().map(of).collect::<Vec<_>>());
    let rows: Vec<_> = (0..first.len())
        .map(|number| {
            let used = |role: usize| median(&|life| life[number].processor_ms[role]).median;
            (first[number].name, median(&|life| life[number].ms), [used(0), used(1), used(2), used(3)])
        })
        .collect();
    let all: f64 = rows.iter().map(|(_, ms, _)| ms.median).sum();
    writeln!(text, "\n### {name}: {} lives, medians in milliseconds\n", lives.len())?;
    let processor_ms = [0, 1, 2, 3].map(|role| rows.iter().map(|(_, _, used)| used[role]).sum::<f64>());
    writeln!(text, "| step | time | minimum | containerd | shim | runc | program | |\n|{}", " --- |".repeat(8))?;
    let mut at = 0.0;
    for (name, ms, [containerd, shim, runtime, program]) in rows {
        let bar = bar(at / all, (at + ms.median) / all);
        at += ms.median;
        let (time, minimum) = (ms.median, ms.min);
        writeln!(
            text,
            "| {name} | {time:.2} | {minimum:.2} | {containerd:.2} | {shim:.2} | {runtime:.2} | {program:.2} | `{bar}` |"
        )?;
    }
    let [containerd, shim, runtime, program] = processor_ms;
    writeln!(text, "| all | {all:.2} | | {containerd:.2} | {shim:.2} | {runtime:.2} | {program:.2} | |")?;
    Ok(())
}

/// Marks the columns that a step touches; both ends are parts of the whole.
fn bar(from: f64, to: f64) -> String {
    let edge = |column: u32| f64::from(column) / f64::from(COLUMNS);
    (0..COLUMNS).map(|column| if edge(column) < to && edge(column + 1) > from { '=' } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_marks_every_column_that_a_step_touches() {
        let check = |from, to, marked| assert_eq!(bar(from, to).matches('=').count(), marked, "{from} to {to}");
        check(0.0, 1.0, 60);
        check(0.5, 0.75, 15);
        check(0.501, 0.502, 1);
        assert!(bar(0.5, 1.0).starts_with(&" ".repeat(30)));
    }
}

//! How long create, start and exit take.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cgroup;
use crate::container::{Moments, Plan, milliseconds, prepare};
use crate::containerd::Containerd;
use crate::image::{Form, Image};
use crate::programs::Programs;
use crate::report::{Goal, Report, StartRow};
use crate::stats::Summary;
use crate::target::Target;

/// One row of the table.
struct Contender {
    name: &'static str,
    target: Target,
    form: Form,
    program: PathBuf,
}

/// What every program here prints.
const SAYS: &str = "hello\n";

/// The smallest guest, cached by skiff, beside runc with a static native program.
///
/// # Errors
/// When a container does not do what it should.
pub(crate) async fn hello(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let contenders = contenders(programs, "c-hello.wasm");
    let rows = race(containerd, &contenders, "C hello", rounds).await?;
    let ratio = |of: fn(&StartRow) -> &Summary| of(&rows[3]).median / of(&rows[0]).median;
    // A move into a cgroup of version 1 takes longer.
    let total_max = if cgroup::is_version_1() { 0.30 } else { 0.20 };
    report.goal(Goal::at_most("create + start + exit of a cached hello, × runc", ratio(|row| &row.total), total_max));
    report.goal(Goal::at_most("processor time of a cached hello's life, × runc", ratio(|row| &row.processor), 0.25));
    report.goal(Goal::at_most("first byte of a cached hello after Start, ms", rows[3].speech.median, 0.7));
    report.goal(Goal::at_most("delete of a cached hello, × runc", ratio(|row| &row.delete), 0.20));
    report.starts("C hello", rows);
    Ok(())
}

/// A real guest of some megabytes.
///
/// # Errors
/// When a container does not do what it should.
pub(crate) async fn go(containerd: &Containerd, programs: &Programs, rounds: usize, report: &mut Report) -> Result<()> {
    let contenders = contenders(programs, "go-hello.wasm");
    let rows = race(containerd, &contenders, "Go hello", rounds).await?;
    let ratio = rows[3].total.median / rows[0].total.median;
    report.goal(Goal::at_most("create + start + exit of a Go guest, × runc", ratio, 0.33));
    report.starts("Go hello", rows);
    Ok(())
}

fn contenders(programs: &Programs, guest: &str) -> [Contender; 4] {
    let guest = || programs.guest(guest);
    let (runc, baseline, skiff) = (Target::Runc, Target::Baseline, Target::Skiff);
    let hello = programs.tool("hello");
    [
        Contender { name: "runc, static native hello", target: runc, form: Form::File, program: hello },
        Contender { name: "baseline, guest as a file", target: baseline, form: Form::File, program: guest() },
        Contender { name: "baseline, guest as a layer", target: baseline, form: Form::WasmLayer, program: guest() },
        Contender { name: "skiff, guest as a file", target: skiff, form: Form::File, program: guest() },
    ]
}

/// A row for each of the contenders.
async fn race(
    containerd: &Containerd,
    contenders: &[Contender],
    name: &'static str,
    rounds: usize,
) -> Result<Vec<StartRow>> {
    let mut images = Vec::new();
    for contender in contenders {
        images.push(containerd.image_of(&contender.program, contender.form).await?);
    }
    let mut lives: Vec<Vec<Life>> = contenders.iter().map(|_| Vec::new()).collect();
    // The round before the first fills the caches: skiff's own and the kernel's.
    for round in 0..=rounds {
        for (index, contender) in contenders.iter().enumerate() {
            let id = containerd.id(&format!("{}-{index}-{round}", name.replace(' ', "-")));
            let measured = once(containerd, contender, &images[index], id).await;
            let measured = measured.with_context(|| format!("{} failed in round {round}", contender.name))?;
            if round > 0 {
                lives[index].push(measured);
            }
        }
    }
    Ok(contenders.iter().zip(&lives).map(|(contender, lives)| row(contender.name, lives)).collect())
}

/// What is known of one container.
struct Life {
    moments: Moments,
    /// What all processes used until it was deleted, in milliseconds.
    processor_ms: f64,
}

async fn once(containerd: &Containerd, contender: &Contender, image: &Image, id: String) -> Result<Life> {
    let plan = Plan::new(contender.target, image);
    let prepared = prepare(containerd, id, &plan).await?;
    let before = containerd.group().processor_time()?;
    let moments = prepared.run(SAYS).await?;
    let used = containerd.group().processor_time()? - before;
    Ok(Life { moments, processor_ms: milliseconds(used) })
}

fn row(name: &'static str, lives: &[Life]) -> StartRow {
    let of = |step: fn(&Moments) -> Duration| {
        Summary::of(&lives.iter().map(|life| milliseconds(step(&life.moments))).collect::<Vec<_>>())
    };
    StartRow {
        name,
        create: of(|at| at.created - at.begun),
        start: of(|at| at.started - at.created),
        speech: of(|at| at.spoke - at.created),
        run: of(|at| at.ended - at.created),
        total: of(|at| at.ended - at.begun),
        delete: of(|at| at.deleted - at.ended),
        processor: Summary::of(&lives.iter().map(|life| life.processor_ms).collect::<Vec<_>>()),
    }
}

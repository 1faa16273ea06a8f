//! How long create, start and exit take.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::container::{Plan, Times, prepare};
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
    let medians = race(containerd, &contenders, "C hello", rounds, report).await?;
    report.goal(Goal::at_most("create + start + exit of a cached hello, × runc", medians[3] / medians[0], 1.15));
    Ok(())
}

/// A real guest of some megabytes.
///
/// # Errors
/// When a container does not do what it should.
pub(crate) async fn go(containerd: &Containerd, programs: &Programs, rounds: usize, report: &mut Report) -> Result<()> {
    let contenders = contenders(programs, "go-hello.wasm");
    let medians = race(containerd, &contenders, "Go hello", rounds, report).await?;
    report.goal(Goal::at_most("the same of a Go guest, × baseline from a file", medians[3] / medians[1], 0.7));
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

/// The medians of the sum, in the order of the contenders.
async fn race(
    containerd: &Containerd,
    contenders: &[Contender],
    name: &'static str,
    rounds: usize,
    report: &mut Report,
) -> Result<Vec<f64>> {
    let mut images = Vec::new();
    for contender in contenders {
        images.push(containerd.image_of(&contender.program, contender.form).await?);
    }
    let mut times: Vec<Vec<Times>> = contenders.iter().map(|_| Vec::new()).collect();
    // The round before the first fills the caches: skiff's own and the kernel's.
    for round in 0..=rounds {
        for (index, contender) in contenders.iter().enumerate() {
            let id = containerd.id(&format!("{}-{index}-{round}", name.replace(' ', "-")));
            let measured = once(containerd, contender, &images[index], id).await;
            let measured = measured.with_context(|| format!("{} failed in round {round}", contender.name))?;
            if round > 0 {
                times[index].push(measured);
            }
        }
    }
    let rows: Vec<_> = contenders.iter().zip(&times).map(|(contender, times)| row(contender.name, times)).collect();
    let medians = rows.iter().map(|row| row.total.median).collect();
    report.starts(name, rows);
    Ok(medians)
}

async fn once(containerd: &Containerd, contender: &Contender, image: &Image, id: String) -> Result<Times> {
    let plan = Plan::new(contender.target, image);
    prepare(containerd, id, &plan).await?.run(SAYS).await
}

fn row(name: &'static str, times: &[Times]) -> StartRow {
    let of = |step: fn(&Times) -> f64| Summary::of(&times.iter().map(step).collect::<Vec<_>>());
    StartRow {
        name,
        create: of(|times| times.create),
        start: of(|times| times.start),
        run: of(|times| times.run),
        total: of(|times| times.create + times.run),
        delete: of(|times| times.delete),
    }
}

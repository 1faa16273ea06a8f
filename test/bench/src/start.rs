//! How long create, start and exit take.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::container::{Plan, Times, prepare};
use crate::containerd::Containerd;
use crate::image::Image;
use crate::programs::Programs;
use crate::report::{Goal, Report, StartRow};
use crate::spec::Network;
use crate::stats::Summary;
use crate::target::Target;

/// One row of the table.
struct Contender {
    name: &'static str,
    target: Target,
    program: PathBuf,
    says: &'static str,
}

/// The smallest guest, cached by skiff, beside runc with a static native program.
///
/// # Errors
/// When a container does not do what is due.
pub(crate) async fn hello(containerd: &Containerd, programs: &Programs, rounds: usize, report: &mut Report) -> Result<()> {
    let contenders = [
        native(programs),
        Contender {
            name: "baseline, C hello as a file",
            target: Target::Baseline,
            program: programs.guest("c-hello.wasm"),
            says: "hello\n",
        },
        Contender {
            name: "skiff, C hello, cached",
            target: Target::Skiff,
            program: programs.guest("c-hello.wasm"),
            says: "hello\n",
        },
    ];
    let medians = race(containerd, &contenders, "hello", rounds, report).await?;
    report.goal(Goal::at_most("create + start + exit of a cached hello, × runc", medians[2] / medians[0], 1.15));
    Ok(())
}

/// A real guest of some megabytes.
///
/// # Errors
/// When a container does not do what is due.
pub(crate) async fn go(containerd: &Containerd, programs: &Programs, rounds: usize, report: &mut Report) -> Result<()> {
    let go = || programs.guest("go-hello.wasm");
    let contenders = [
        native(programs),
        Contender { name: "baseline, Go hello as a file", target: Target::Baseline, program: go(), says: "hello\n" },
        Contender { name: "skiff, Go hello, cached", target: Target::Skiff, program: go(), says: "hello\n" },
    ];
    let medians = race(containerd, &contenders, "go", rounds, report).await?;
    report.goal(Goal::at_most("the same of a Go guest, × baseline from a file", medians[2] / medians[1], 0.7));
    Ok(())
}

fn native(programs: &Programs) -> Contender {
    Contender {
        name: "runc, static native hello",
        target: Target::Runc,
        program: programs.tool("hello"),
        says: "hello\n",
    }
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
        images.push(containerd.image_of(&contender.program).await?);
    }
    let mut times: Vec<Vec<Times>> = contenders.iter().map(|_| Vec::new()).collect();
    // The round before the first fills the caches: skiff's own and the kernel's.
    for round in 0..=rounds {
        for (index, contender) in contenders.iter().enumerate() {
            let id = containerd.id(&format!("{name}-{}-{round}", contender.target.word()));
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
    let plan = Plan {
        target: contender.target,
        image,
        arguments: Vec::new(),
        environment: Vec::new(),
        network: Network::Own,
    };
    prepare(containerd, id, &plan).await?.run(contender.says).await
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

//! How long a command takes that is executed in a running container.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::container::{Plan, Running, milliseconds, prepare};
use crate::containerd::Containerd;
use crate::exec::Exec;
use crate::image::{Form, Image};
use crate::programs::Programs;
use crate::report::{ExecRow, Goal, Report};
use crate::stats::Summary;
use crate::target::Target;

/// A native program under runc, and a module and a question under skiff, in turns.
///
/// # Errors
/// When a container does not do what it should.
pub(crate) async fn hello(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    // Tools and guests are links, which lead nowhere in a container.
    let hello = programs.tool("hello").canonicalize()?;
    let module = programs.guest("c-hello.wasm").canonicalize()?;
    let folders: Vec<PathBuf> = [&hello, &module].into_iter().filter_map(|file| Some(file.parent()?.into())).collect();
    let native = containerd.image_of(&programs.tool("pause"), Form::File).await?;
    let wasm = containerd.image_of(&programs.guest("c-sleep.wasm"), Form::File).await?;
    let begin = async |target: Target, image: &Image, first_line: &str| -> Result<Running<'_>> {
        let plan = Plan { folders: folders.clone(), ..Plan::new(target, image) };
        prepare(containerd, containerd.id(&format!("exec-{}", target.word())), &plan).await?.begin(first_line).await
    };
    let runc = begin(Target::Runc, &native, "").await?;
    let skiff = begin(Target::Skiff, &wasm, "sleeping").await?;
    let (hello, module) = (hello.display().to_string(), module.display().to_string());
    let contenders = [
        ("runc: a static native hello", &runc, vec![hello.as_str()]),
        ("skiff: the same native hello", &skiff, vec![hello.as_str()]),
        ("skiff: a C hello in wasm, cached", &skiff, vec![module.as_str()]),
        ("skiff: `skiff ps`", &skiff, vec!["skiff", "ps"]),
    ];
    let mut times = contenders.each_ref().map(|_| Vec::new());
    // The round before the first fills the caches.
    for round in 0..=rounds {
        for ((_, running, args), times) in contenders.iter().zip(&mut times) {
            let begun = Instant::now();
            Exec::start(containerd, running.id(), &format!("exec-{round}"), args).await?.end().await?;
            let took = milliseconds(begun.elapsed());
            if round > 0 {
                times.push(took);
            }
        }
    }
    let beyond =
        times.each_ref().map(|series| series.iter().zip(&times[0]).map(|(one, first)| one - first).collect::<Vec<_>>());
    let rows = contenders.iter().zip(times.iter().zip(&beyond)).map(|((name, ..), (times, beyond))| ExecRow {
        name,
        ms: Summary::of(times),
        beyond_ms: Summary::of(beyond),
    });
    report.execs(rows.collect());
    let ratio = Summary::of(&times[2]).median / Summary::of(&times[0]).median;
    report.goal(Goal::at_most("exec of a small module, × runc's exec", ratio, 0.3));
    runc.end().await?;
    skiff.end().await
}

//! How long a big HTTP component takes from the request of Create to its first answer, and what memory it has to itself then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::container::{Plan, milliseconds, prepare};
use crate::containerd::Containerd;
use crate::http::{answers, free_port};
use crate::image::Form;
use crate::processes::private_bytes;
use crate::programs::Programs;
use crate::report::{AnswerRow, Goal, Report};
use crate::spec::Network;
use crate::stats::Summary;
use crate::target::Target;

/// How often the server is asked until it answers.
const OFTEN: Duration = Duration::from_millis(1);

/// A JavaScript component, whose code is in the cache.
///
/// # Errors
/// When it does not answer.
pub(crate) async fn first(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let image = containerd.image_of(&programs.guest("js-http.wasm"), Form::File).await?;
    let (mut times, mut private) = (Vec::new(), Vec::new());
    // The round before the first compiles.
    for round in 0..=rounds {
        let port = free_port()?;
        let environment = vec![format!("PORT={port}")];
        let plan = Plan { environment, network: Network::Host, ..Plan::new(Target::Skiff, &image) };
        let prepared = prepare(containerd, containerd.id(&format!("answer-{round}")), &plan).await?;
        let begun = Instant::now();
        let running = prepared.begin("").await?;
        answers(port, OFTEN).await.context("the JavaScript component does not answer")?;
        let answered = Instant::now();
        if round > 0 {
            times.push(milliseconds(answered - begun));
            private.push(megabytes(private_bytes(running.process().await?)?));
        }
        running.end().await?;
    }
    let row =
        AnswerRow { name: "skiff, JavaScript, cached", ms: Summary::of(&times), private_mb: Summary::of(&private) };
    report.goal(Goal::at_most("create to first answer of a JavaScript component, ms", row.ms.median, 80.0));
    report.goal(Goal::at_most("its engine's private memory, MB", row.private_mb.median, 5.0));
    report.answer(row);
    Ok(())
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / 1e6
}

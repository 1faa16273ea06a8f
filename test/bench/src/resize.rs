//! How soon a guest that was refused memory can grow after its container's limit was raised.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::container::{Plan, Running, milliseconds, prepare};
use crate::containerd::Containerd;
use crate::image::{Form, Image};
use crate::programs::Programs;
use crate::report::{Report, ResizeRow};
use crate::stats::Summary;
use crate::target::Target;

const LOW_BYTES: u64 = 32 << 20;
const HIGH_BYTES: u64 = 64 << 20;

/// Measures from a write to the cgroup's file, and from the request of Update, to the guest's next growth.
///
/// # Errors
/// When the guest is not refused, or not granted its growth afterwards.
pub(crate) async fn delay(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let image = containerd.image_of(&programs.guest("c-growcost.wasm"), Form::File).await?;
    let (mut written, mut updated, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    // The round before the first fills the caches.
    for round in 0..=rounds {
        let by_file = by_file(refused(containerd, &image, &format!("file-{round}")).await?).await?;
        let (by_update, answer) = by_update(refused(containerd, &image, &format!("update-{round}")).await?).await?;
        if round > 0 {
            written.push(by_file);
            updated.push(by_update);
            answered.push(answer);
        }
    }
    report.resizes(vec![
        ResizeRow { name: "write to the cgroup's file, growth", ms: Summary::of(&written) },
        ResizeRow { name: "request of Update, growth", ms: Summary::of(&updated) },
        ResizeRow { name: "request of Update, its answer", ms: Summary::of(&answered) },
    ]);
    Ok(())
}

/// A guest that has used up its limit and keeps asking for more.
async fn refused<'a>(containerd: &'a Containerd, image: &Image, words: &str) -> Result<Running<'a>> {
    let plan = Plan { arguments: vec!["wait".into()], limit_bytes: Some(LOW_BYTES), ..Plan::new(Target::Skiff, image) };
    let id = containerd.id(&format!("resize-{words}"));
    prepare(containerd, id, &plan).await?.begin("refused").await
}

/// Milliseconds from the write to the growth.
async fn by_file(running: Running<'_>) -> Result<f64> {
    let file = running.memory_limit_file();
    let write = async {
        let begun = Instant::now();
        std::fs::write(&file, HIGH_BYTES.to_string()).map(|()| begun)
    };
    let (granted, begun) = tokio::join!(running.speaks(), write);
    let begun = begun.with_context(|| format!("cannot write `{}`", file.display()))?;
    let delay = milliseconds(granted? - begun);
    running.end().await?;
    Ok(delay)
}

/// Milliseconds from the request of Update to the growth, and to the reply.
async fn by_update(running: Running<'_>) -> Result<(f64, f64)> {
    let update = async {
        let begun = Instant::now();
        running.update(HIGH_BYTES).await.map(|()| (begun, Instant::now()))
    };
    let (granted, answered) = tokio::join!(running.speaks(), update);
    let (begun, answered) = answered?;
    let delays = (milliseconds(granted? - begun), milliseconds(answered - begun));
    running.end().await?;
    Ok(delays)
}

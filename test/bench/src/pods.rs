//! Pods through the Kubernetes Container Runtime Interface: how fast they start, what they cost, and what becomes of that when
//! there are many.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::Effort;
use crate::container::milliseconds;
use crate::containerd::Containerd;
use crate::cri::{Cri, Inside};
use crate::http::free_port;
use crate::image::Image;
use crate::machine::Memory;
use crate::processes::{private_bytes_of_shims, usage};
use crate::programs::Programs;
use crate::report::{Figures, Goal, Report};
use crate::stats::{Summary, exact, megabytes};

/// How many pods are made, or removed, at a time.
const AT_A_TIME: usize = 10;
/// How many pods of one new image begin together.
const OF_ONE_IMAGE: usize = 20;
/// How many pods are made between two looks at the machine.
const STEP: usize = 50;
/// Time for what a start leaves to the background; a thread without work ends after 10 s.
const SETTLING: Duration = Duration::from_secs(12);

/// How the titles of the tables begin that are drawn.
pub(crate) const PLOTTED: [&str; 3] = [MANY_PODS, MANY_CONTAINERS, MANY_MOUNTS];
const MANY_PODS: &str = "many sleeping pods: ";
const MANY_CONTAINERS: &str = "containers in a pod: ";
const MANY_MOUNTS: &str = "mounts of a container: ";

/// What pods are made of.
struct Contender {
    name: &'static str,
    handler: &'static str,
    image: Image,
    containers: usize,
    mounts: usize,
}

impl Contender {
    async fn new(containerd: &Containerd, name: &'static str, handler: &'static str, program: &Path) -> Result<Self> {
        let image = containerd.pod_image(program).await?;
        Ok(Self { name, handler, image, containers: 1, mounts: 0 })
    }
}

/// A number of pods that are there.
#[derive(Default)]
struct Pods {
    ids: Vec<String>,
}

/// All that is measured of pods.
///
/// # Errors
/// When a pod does not do what it should.
pub(crate) async fn pods(
    containerd: &Containerd,
    programs: &Programs,
    effort: &Effort,
    report: &mut Report,
) -> Result<()> {
    let mut contenders = [
        Contender::new(containerd, "runc, static native pause", "runc", &programs.tool("pause")).await?,
        Contender::new(containerd, "skiff, C sleep, cached", "skiff", &programs.guest("c-sleep.wasm")).await?,
    ];
    race(containerd, &contenders, effort, report).await?;
    memory(containerd, &contenders, effort, report).await?;
    density(containerd, &contenders, effort, report).await?;
    for contender in &mut contenders {
        large(containerd, contender, effort.rounds, report).await?;
    }
    new_image(containerd, programs, report).await
}

/// How long it takes until all of some pods run.
async fn race(containerd: &Containerd, contenders: &[Contender], effort: &Effort, report: &mut Report) -> Result<()> {
    let mut times = contenders.iter().map(|_| Vec::new()).collect::<Vec<_>>();
    // The round before the first fills the caches.
    for round in 0..=effort.pod_rounds {
        for (contender, times) in contenders.iter().zip(&mut times) {
            let mut pods = Pods::default();
            let begun = Instant::now();
            pods.add(containerd, contender, effort.many_containers).await?;
            let took = milliseconds(begun.elapsed());
            pods.end(containerd).await?;
            if round > 0 {
                times.push(took);
            }
        }
    }
    let all = times.iter().map(|series| Summary::of(series)).collect::<Vec<_>>();
    let title = format!("{} pods, {AT_A_TIME} at a time, until all run (ms)", effort.many_containers);
    let ratio = all[1].median / all[0].median;
    report.goal(Goal::at_most(format!("{title}, × runc"), ratio, 0.40));
    let mut figures = Figures::new(title, &["median", "min", "p90"]);
    for (contender, Summary { median, min, p90 }) in contenders.iter().zip(all) {
        figures.row(contender.name, vec![median, min, p90]);
    }
    report.figures(figures);
    Ok(())
}

/// What one more sleeping pod takes of memory, and of the kernel's own.
async fn memory(containerd: &Containerd, contenders: &[Contender], effort: &Effort, report: &mut Report) -> Result<()> {
    let (few, many) = (effort.few_containers, effort.many_containers);
    let title = format!("a sleeping pod, from the {few}th to the {many}th (MB)");
    let mut figures = Figures::new(title, &["PSS", "kernel memory on top"]);
    for contender in contenders {
        let mut pods = Pods::default();
        pods.add(containerd, contender, few).await?;
        let before = taken(containerd).await?;
        pods.add(containerd, contender, many - few).await?;
        let after = taken(containerd).await?;
        pods.end(containerd).await?;
        let each = |after: f64, before: f64| (after - before) / exact(many - few);
        let (pss, kernel) = (each(after.0, before.0), each(after.1, before.1));
        if contender.handler == "skiff" {
            report.goal(Goal::at_most("PSS of a sleeping pod, MB", pss, 1.0));
            report.goal(Goal::at_most("kernel memory of a sleeping pod on top, MB", kernel, 0.5));
        }
        figures.row(contender.name, vec![pss, kernel]);
    }
    report.figures(figures);
    Ok(())
}

/// The proportional set size of all pods, and the kernel's memory, once nothing changes any more; in megabytes.
async fn taken(containerd: &Containerd) -> Result<(f64, f64)> {
    tokio::time::sleep(SETTLING).await;
    let pss = megabytes(usage(&containerd.shims())?.pss_bytes);
    Ok((pss, megabytes(Memory::now()?.kernel_bytes)))
}

/// What becomes of all that when there are many pods.
async fn density(
    containerd: &Containerd,
    contenders: &[Contender],
    effort: &Effort,
    report: &mut Report,
) -> Result<()> {
    for contender in contenders {
        let columns = [
            "start of the last 50 (ms each)",
            "processor time of their starts (ms each)",
            "memory of the machine (MB a pod)",
            "private memory of a shim (MB)",
        ];
        let mut figures = Figures::new(format!("{MANY_PODS}{}", contender.name), &columns);
        let mut pods = Pods::default();
        tokio::time::sleep(SETTLING).await;
        let before = Memory::now()?;
        let mut steps = Vec::new();
        while pods.ids.len() < effort.dense_pods {
            let (begun, used) = (Instant::now(), containerd.group().processor_time()?);
            pods.add(containerd, contender, STEP).await?;
            let start_ms = milliseconds(begun.elapsed()) / exact(STEP);
            let processor_ms = milliseconds(containerd.group().processor_time()? - used) / exact(STEP);
            tokio::time::sleep(SETTLING).await;
            let count = exact(pods.ids.len());
            let fallen = before.available_bytes.saturating_sub(Memory::now()?.available_bytes);
            let machine_mb = megabytes(fallen) / count;
            let shim_mb = megabytes(private_bytes_of_shims(&containerd.shims())) / count;
            steps.push([start_ms, machine_mb, shim_mb]);
            figures.row(format!("{count} pods"), vec![start_ms, processor_ms, machine_mb, shim_mb]);
        }
        pods.end(containerd).await?;
        if let (true, [first, .., last]) = (contender.handler == "skiff", &steps[..]) {
            let count = effort.dense_pods;
            report.goal(Goal::at_most(
                format!("start of the last {STEP} of {count} pods, × the first"),
                last[0] / first[0],
                1.2,
            ));
            report.goal(Goal::at_most(format!("memory of the machine for each of {count} pods, MB"), last[1], 2.0));
            report.goal(Goal::at_most(
                format!("private memory of a shim with {count} pods, × with {STEP}"),
                last[2] / first[2],
                1.02,
            ));
        }
        report.figures(figures);
    }
    Ok(())
}

/// What becomes of one pod that has many containers, or of one container that has many mounts.
async fn large(containerd: &Containerd, contender: &mut Contender, rounds: usize, report: &mut Report) -> Result<()> {
    let columns = ["start (ms)", "processor time (ms)", "PSS (MB)"];
    let mut figures = Figures::new(format!("{MANY_CONTAINERS}{}", contender.name), &columns);
    for count in [1, 2, 5, 10] {
        contender.containers = count;
        figures.row(format!("{count} containers"), one(containerd, contender, rounds).await?);
    }
    contender.containers = 1;
    report.figures(figures);
    let mut figures = Figures::new(format!("{MANY_MOUNTS}{}", contender.name), &columns);
    for count in [0, 10, 30, 100] {
        contender.mounts = count;
        figures.row(format!("{count} mounts"), one(containerd, contender, rounds).await?);
    }
    contender.mounts = 0;
    report.figures(figures);
    Ok(())
}

/// The time, the processor time and the memory of one pod: medians.
async fn one(containerd: &Containerd, contender: &Contender, rounds: usize) -> Result<Vec<f64>> {
    let mut series = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        let mut pods = Pods::default();
        let (begun, used) = (Instant::now(), containerd.group().processor_time()?);
        pods.add(containerd, contender, 1).await?;
        series[0].push(milliseconds(begun.elapsed()));
        series[1].push(milliseconds(containerd.group().processor_time()? - used));
        series[2].push(megabytes(usage(&containerd.shims())?.pss_bytes));
        pods.end(containerd).await?;
    }
    Ok(series.iter().map(|series| Summary::of(series).median).collect())
}

/// How long pods of one image take that begin together, when its module has never been compiled.
async fn new_image(containerd: &Containerd, programs: &Programs, report: &mut Report) -> Result<()> {
    let alone = together(containerd, programs, 1).await?;
    let all = together(containerd, programs, OF_ONE_IMAGE).await?;
    let title = "pods of one image that is new to the node, JavaScript of 12 MB, until all run (ms)";
    let mut figures = Figures::new(title, &["time"]);
    figures.row("one pod", vec![alone]);
    figures.row(format!("{OF_ONE_IMAGE} at once"), vec![all]);
    report.figures(figures);
    report.goal(Goal::at_most(format!("{OF_ONE_IMAGE} pods of one new image at once, × one pod"), all / alone, 1.3));
    Ok(())
}

/// Starts `count` pods of a new image at once. Returns the milliseconds until all run.
async fn together(containerd: &Containerd, programs: &Programs, count: usize) -> Result<f64> {
    let program = never_seen(&programs.guest("js-http.wasm"), containerd.directory(), count)?;
    let image = containerd.pod_image(&program).await?;
    let contender = Contender { name: "", handler: "skiff", image, containers: 1, mounts: 0 };
    let mut ports = HashSet::new();
    while ports.len() < count {
        ports.insert(free_port()?);
    }
    let environments = ports.iter().map(|port| vec![("PORT", port.to_string())]);
    let mut pods = Pods::default();
    let begun = Instant::now();
    pods.add_with(containerd, &contender, environments, count).await?;
    let took = milliseconds(begun.elapsed());
    pods.end(containerd).await?;
    Ok(took)
}

/// A copy of a module that no cache knows: with a custom section of its own.
fn never_seen(module: &Path, directory: &Path, number: usize) -> Result<PathBuf> {
    let mut bytes = std::fs::read(module).with_context(|| format!("cannot read `{}`", module.display()))?;
    let name = format!("bench-{}-{number}", std::process::id());
    let length = u8::try_from(name.len())?;
    // A section of kind 0: its size, and its name with the size of that. A single byte holds sizes below 128.
    bytes.extend([0, length + 1, length]);
    bytes.extend(name.as_bytes());
    let path = directory.join(format!("new-{number}.wasm"));
    std::fs::write(&path, bytes)?;
    Ok(path)
}

impl Pods {
    /// Starts `more` pods, some at a time.
    async fn add(&mut self, containerd: &Containerd, contender: &Contender, more: usize) -> Result<()> {
        self.add_with(containerd, contender, (0..more).map(|_| Vec::new()), AT_A_TIME).await
    }

    /// Starts a pod with each of these environments, `at_a_time` of them.
    async fn add_with(
        &mut self,
        containerd: &Containerd,
        contender: &Contender,
        environments: impl IntoIterator<Item = Vec<(&'static str, String)>>,
        at_a_time: usize,
    ) -> Result<()> {
        let mut under_way = JoinSet::new();
        for (number, environment) in environments.into_iter().enumerate() {
            if under_way.len() == at_a_time {
                self.take(&mut under_way).await?;
            }
            let name = containerd.id(&format!("pod-{}-{}-{number}", contender.handler, self.ids.len()));
            let logs = containerd.directory().join("logs").join(&name);
            std::fs::create_dir_all(&logs)?;
            let pod = Cri::pod(&name, &containerd.group().path_of(&name), &logs);
            let (cri, image) = (containerd.cri().clone(), contender.image.name.clone());
            let Contender { handler, containers, mounts, .. } = *contender;
            under_way.spawn(async move {
                let inside = Inside { handler, image: &image, environment: &environment, containers, mounts };
                cri.run(&pod, inside).await
            });
        }
        while !under_way.is_empty() {
            self.take(&mut under_way).await?;
        }
        Ok(())
    }

    async fn take(&mut self, under_way: &mut JoinSet<Result<String>>) -> Result<()> {
        if let Some(pod) = under_way.join_next().await {
            self.ids.push(pod??);
        }
        Ok(())
    }

    async fn end(self, containerd: &Containerd) -> Result<()> {
        let mut under_way = JoinSet::new();
        for id in self.ids {
            if under_way.len() == AT_A_TIME {
                under_way.join_next().await.transpose()?.transpose()?;
            }
            let cri = containerd.cri().clone();
            under_way.spawn(async move { cri.remove(id).await });
        }
        while under_way.join_next().await.transpose()?.transpose()?.is_some() {}
        Ok(())
    }
}

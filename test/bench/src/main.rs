//! The benchmark: skiff beside runc, beside a shim of the usual kind, and beside `wasmtime serve`, all in one run.
//!
//! The targets take turns in every round, so that other load on the machine affects all of them alike. It makes a private
//! containerd in a temporary directory and leaves nothing behind. docs/benchmark.md explains the figures.

mod answer;
mod calls;
mod cgroup;
mod container;
mod containerd;
mod cri;
mod exec;
mod execs;
mod http;
mod image;
mod limits;
mod machine;
mod memory;
mod plot;
mod pods;
mod processes;
mod programs;
mod regression;
mod report;
mod resize;
mod sizes;
mod spec;
mod start;
mod stats;
mod target;
mod trace;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::containerd::{Containerd, Serves};
use crate::programs::Programs;
use crate::report::Report;

/// What to measure and what to do with the figures.
#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// Three rounds of everything: whether the benchmark works, not what the figures are.
    #[arg(long)]
    quick: bool,
    /// Shows where the time of a start and of a delete goes, step by step, and measures nothing else.
    #[arg(long, conflicts_with_all = ["check", "json", "only", "against", "plot"])]
    trace: bool,
    /// Ends with status 1 when a figure misses its target, or is worse than an earlier one.
    #[arg(long)]
    check: bool,
    /// Compares the ratios with those in this file, which `--json` has written.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Also writes the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws how starts, processor time and memory depend on the number of pods, containers and mounts into this file, as an SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Measures these parts only: `start`, `memory`, `http`, `limits`, `calls`, `exec`, `pods`, `sizes`.
    #[arg(long, value_delimiter = ',', default_value = "start,memory,http,limits,calls,exec,pods,sizes")]
    only: Vec<String>,
}

const PARTS: [&str; 8] = ["start", "memory", "http", "limits", "calls", "exec", "pods", "sizes"];

/// How often and how much.
struct Effort {
    rounds: usize,
    few_containers: usize,
    many_containers: usize,
    http_rounds: usize,
    http_seconds: u32,
    pod_rounds: usize,
    dense_pods: usize,
}

const FULL: Effort = Effort {
    rounds: 21,
    few_containers: 10,
    many_containers: 50,
    http_rounds: 5,
    http_seconds: 3,
    pod_rounds: 5,
    dense_pods: 500,
};
const QUICK: Effort = Effort {
    rounds: 3,
    few_containers: 2,
    many_containers: 5,
    http_rounds: 1,
    http_seconds: 1,
    pod_rounds: 1,
    dense_pods: 100,
};

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            writeln!(std::io::stderr(), "skiff-bench: {error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(part) = arguments.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        bail!("there is no part `{part}`");
    }
    // Before there are other threads. The paths go only into the environments of children.
    let programs = Programs::find()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let effort = if arguments.quick { &QUICK } else { &FULL };
    let mut out = std::io::stdout().lock();
    if arguments.trace {
        let traced = with_containerd(&programs, Serves::Containers, async |containerd| {
            trace::waterfalls(containerd, &programs, effort.rounds).await
        });
        write!(out, "{}", runtime.block_on(traced)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut report = runtime.block_on(all_parts(&arguments.only, effort, &programs))?;
    let worse = match &arguments.against {
        Some(earlier) => regression::compare(&mut report, earlier)?,
        None => Vec::new(),
    };
    write!(out, "{}", report.markdown())?;
    for what in &worse {
        writeln!(out, "\nworse than in the earlier run: {what}")?;
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if let Some(path) = &arguments.plot {
        let groups = pods::PLOTTED.map(|words| report.tables_of(words));
        std::fs::write(path, plot::svg(&groups)).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(if arguments.check && !(report.all_met() && worse.is_empty()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Does the work with a containerd of its own, which it ends, also when it is interrupted.
async fn with_containerd<T>(
    programs: &Programs,
    serves: Serves,
    work: impl AsyncFnOnce(&Containerd) -> Result<T>,
) -> Result<T> {
    let containerd = Containerd::start(programs, serves).await?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let result = tokio::select! {
        result = work(&containerd) => result,
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
    };
    let result = result.map_err(|error| anyhow!("{error:#}\ncontainerd's log ends with:\n{}", containerd.log_tail()));
    containerd.stop().await?;
    result
}

async fn all_parts(only: &[String], effort: &Effort, programs: &Programs) -> Result<Report> {
    let wanted = |part: &str| only.iter().any(|name| name == part);
    let mut report = Report::new(effort.rounds);
    with_containerd(programs, Serves::Containers, async |containerd| {
        if wanted("start") {
            start::hello(containerd, programs, effort.rounds, &mut report).await?;
            start::go(containerd, programs, effort.rounds, &mut report).await?;
            answer::first(containerd, programs, effort.rounds, &mut report).await?;
        }
        if wanted("memory") {
            let (few, many) = (effort.few_containers, effort.many_containers);
            memory::marginal(containerd, programs, few, many, &mut report).await?;
        }
        if wanted("http") {
            http::requests(containerd, programs, effort.http_rounds, effort.http_seconds, &mut report).await?;
        }
        if wanted("limits") {
            limits::cost(containerd, programs, effort.rounds, &mut report).await?;
            resize::delay(containerd, programs, effort.rounds, &mut report).await?;
        }
        if wanted("calls") {
            calls::calls(containerd, programs, effort.rounds, &mut report).await?;
        }
        if wanted("exec") {
            execs::hello(containerd, programs, effort.rounds, &mut report).await?;
        }
        Ok(())
    })
    .await?;
    if wanted("pods") {
        let measured = async |containerd: &Containerd| pods::pods(containerd, programs, effort, &mut report).await;
        with_containerd(programs, Serves::Pods, measured).await?;
    }
    if wanted("sizes") {
        sizes::sizes(programs, &mut report)?;
    }
    Ok(report)
}

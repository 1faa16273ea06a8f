//! `skiff-node`: puts skiff on a node of a cluster, keeps it there, and takes it away.
//!
//! It runs in a container that has the node's root directory mounted, or on the node itself.

mod api;
mod change;
mod command;
mod containerd;
mod cri;
mod dump;
mod error;
mod host;
mod install;
mod keep;
mod label;
mod layout;
mod node;
mod plan;
mod programs;
mod record;
mod remove;
mod restart;
mod restraint;
mod seen;
mod status;
mod text;
mod trust;
mod uninstall;
mod xattr;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nix::sys::stat::{Mode, umask};

use crate::api::Api;
use crate::error::{Context, Error, Result};
use crate::install::Done;
use crate::keep::{Keeper, Wanted};
use crate::label::{LABEL, Label, Labels};
use crate::node::{Node, Options};
use crate::programs::Source;
use crate::seen::Seen;
use crate::status::Status;
use crate::uninstall::{DaemonSet, VARIABLE};

/// Puts skiff on a node of a cluster, keeps it there, and takes it away.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install skiff, or bring it up to date.
    Install(InstallArguments),
    /// Stay, and install or remove skiff whenever the node is not as it is wanted.
    Keep {
        #[command(flatten)]
        install: InstallArguments,
        #[command(flatten)]
        wanted: WantedArgument,
        /// How many seconds lie between two looks.
        #[arg(long, default_value_t = 60)]
        interval: u64,
    },
    /// End with 0 when the node was as it is wanted when `keep` looked last; else say what was wrong. It runs nothing.
    Ready,
    /// End with 0 when the node is as it is wanted; else say what is wrong.
    Verify {
        #[command(flatten)]
        wanted: WantedArgument,
        /// The directory with the programs that are to be installed; by default any will do.
        #[arg(long)]
        programs: Option<PathBuf>,
        /// Where on the node they are to live; by default anywhere.
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Take skiff away; containerd's configuration is what it was before.
    Remove {
        /// How many seconds to wait for the end of running wasm pods.
        #[arg(long, default_value_t = 0)]
        wait: u64,
    },
    /// Say what is installed.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take skiff away from every node that a DaemonSet keeps, or from none; for a pod that may change the DaemonSet.
    Uninstall {
        /// The DaemonSet's namespace.
        #[arg(long)]
        namespace: String,
        /// The DaemonSet's name.
        #[arg(long)]
        daemon_set: String,
        /// How many seconds to wait for all nodes.
        #[arg(long, default_value_t = 240)]
        wait: u64,
    },
}

#[derive(Debug, Args)]
struct InstallArguments {
    /// The directory with the three programs; by default that of this program.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where on the node the programs are to live; by default the first place that is fit.
    #[arg(long)]
    to: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct WantedArgument {
    /// What the node is to be.
    #[arg(long, env = VARIABLE, value_enum, default_value = "installed")]
    wanted: Wanted,
}

#[derive(Debug, Args)]
struct NodeArguments {
    /// Where the node's root directory is mounted.
    #[arg(long, default_value = "/", global = true)]
    host: PathBuf,
    /// containerd's program on the node.
    #[arg(long, global = true)]
    containerd: Option<PathBuf>,
    /// The file that containerd is started with.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// containerd's socket on the node.
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
    /// The systemd unit that runs containerd.
    #[arg(long, global = true)]
    unit: Option<String>,
    /// A line for the node's shell that restarts containerd.
    #[arg(long, global = true, conflicts_with = "unit")]
    restart_command: Option<String>,
    /// End containerd with SIGTERM; something else starts it again. Needs the node's pid namespace.
    #[arg(long, global = true, conflicts_with_all = ["unit", "restart_command"])]
    restart_by_signal: bool,
    /// How many seconds containerd may take to restart, and again to report the handler.
    #[arg(long, default_value_t = 120, global = true)]
    timeout: u64,
    /// The node's name in Kubernetes; it is labelled when this is given.
    #[arg(long, env = "NODE_NAME", global = true)]
    node_name: Option<String>,
    /// Where `keep` writes what it sees, for `ready` and `status`: a file of this process's own root directory.
    #[arg(long, default_value = "/run/skiff-node/seen.json", global = true)]
    seen: PathBuf,
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true, global = true)]
    api_host: Option<String>,
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", hide = true, default_value_t = 443, global = true)]
    api_port: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    umask(Mode::from_bits_truncate(0o022));
    let Arguments { command, node } = Arguments::parse();
    match run(command, node).await {
        Ok(code) => code,
        Err(error) => {
            say(&error.to_string());
            error.exit_code()
        }
    }
}

async fn run(command: Command, arguments: NodeArguments) -> Result<ExitCode> {
    let node = || Node::find(options(&arguments));
    match command {
        Command::Install(install) => drop(job(install, &arguments)?.install(&node()?).await?),
        Command::Keep { install, wanted, interval } => {
            let (job, interval) = (job(install, &arguments)?, Duration::from_secs(interval));
            keep::keep(Keeper::new(&job, wanted.wanted, interval, &arguments.seen), node).await?;
        }
        Command::Ready => {
            let faults = Seen::faults(&arguments.seen)?;
            faults.iter().for_each(|fault| say(fault));
            return Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Verify { wanted, programs, to } => {
            let source = programs.as_deref().map(Source::read).transpose()?;
            let id = source.as_ref().map(|source| source.id.as_str());
            let status = Status::of(&node()?, id, to.as_deref()).await;
            return Ok(verify(&status, wanted.wanted));
        }
        Command::Remove { wait } => {
            take_away(&node()?, labels(&arguments)?.as_ref(), Duration::from_secs(wait)).await?;
        }
        Command::Status { json } => {
            let status = Status::of(&node()?, None, None).await;
            let status = match Seen::read(&arguments.seen)? {
                Some((seen, _)) => status.with_mends_of(&seen),
                None => status,
            };
            let text =
                if json { serde_json::to_string(&status).or_host("cannot write JSON")? + "\n" } else { status.text() };
            io::stdout().lock().write_all(text.as_bytes()).or_host("cannot write to standard output")?;
        }
        Command::Uninstall { namespace, daemon_set, wait } => {
            let set = DaemonSet { api: api(&arguments)?, namespace, name: daemon_set };
            uninstall::uninstall(&set, Duration::from_secs(wait)).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(status: &Status, wanted: Wanted) -> ExitCode {
    let is_right = match wanted {
        Wanted::Installed => status.ready,
        Wanted::Removed => status.is_removed(),
    };
    if is_right {
        return ExitCode::SUCCESS;
    }
    status.reasons.iter().for_each(|reason| say(reason));
    if status.reasons.is_empty() {
        say("skiff is installed");
    }
    ExitCode::FAILURE
}

/// What is needed to install.
struct Job {
    source: Source,
    to: Option<PathBuf>,
    labels: Option<Labels>,
}

fn job(install: InstallArguments, arguments: &NodeArguments) -> Result<Job> {
    let programs = match install.programs {
        Some(programs) => programs,
        None => own_directory()?,
    };
    Ok(Job { source: Source::read(&programs)?, to: install.to, labels: labels(arguments)? })
}

impl Job {
    async fn install(&self, node: &Node) -> Result<Done> {
        let _lock = node.lock()?;
        let done = install::install(node, &self.source, self.to.as_deref()).await?;
        let id = &self.source.id;
        say(&match done {
            Done::Unchanged => format!("{id} is installed already"),
            Done::Programs => format!("installed {id} for new pods; containerd goes on"),
            Done::Restarted => format!("installed {id}; containerd reports the handler"),
        });
        // Last, so that no pod is sent here before it can start.
        if let Some(labels) = &self.labels {
            labels.set(Label::Present)?;
            say(&format!("the node has the label `{LABEL}`"));
        }
        Ok(done)
    }
}

/// Removes skiff from the node; wasm pods are waited for as long as `patience` says.
async fn take_away(node: &Node, labels: Option<&Labels>, patience: Duration) -> Result<()> {
    let _lock = node.lock()?;
    // First, so that no pod is sent here any more.
    labels.map_or(Ok(()), |labels| labels.set(Label::Absent))?;
    let was_there = remove::remove(node, patience).await?;
    say(if was_there { "removed" } else { "there is nothing to remove" });
    Ok(())
}

fn labels(arguments: &NodeArguments) -> Result<Option<Labels>> {
    let Some(node) = arguments.node_name.clone() else { return Ok(None) };
    Ok(Some(Labels { api: api(arguments)?, node }))
}

fn api(arguments: &NodeArguments) -> Result<Api> {
    let host = arguments.api_host.clone();
    let host = host.ok_or_else(|| Error::refused("`KUBERNETES_SERVICE_HOST` is not there: this is no pod"))?;
    Ok(Api::in_cluster(host, arguments.api_port))
}

fn options(arguments: &NodeArguments) -> Options {
    Options {
        host: arguments.host.clone(),
        containerd: arguments.containerd.clone(),
        config: arguments.config.clone(),
        socket: arguments.socket.clone(),
        unit: arguments.unit.clone(),
        restart_command: arguments.restart_command.clone(),
        restart_by_signal: arguments.restart_by_signal,
        limit: Duration::from_secs(arguments.timeout),
    }
}

fn own_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().or_host("cannot find the own program")?;
    own.parent().map(PathBuf::from).ok_or_else(|| Error::host("the own program has no directory"))
}

/// One line of the log.
fn say(line: &str) {
    // Nobody is left to be told when standard error is gone.
    drop(writeln!(io::stderr().lock(), "skiff-node: {line}"));
}

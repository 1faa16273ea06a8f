//! `skiff-node`: puts skiff on a node of a cluster, keeps it there, and takes it away.
//!
//! It runs in a container that has the node's root directory mounted, or on the node itself.

mod change;
mod command;
mod containerd;
mod cri;
mod dump;
mod error;
mod host;
mod install;
mod label;
mod layout;
mod node;
mod plan;
mod programs;
mod record;
mod remove;
mod restart;
mod status;
mod text;
mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nix::sys::stat::{Mode, umask};

use crate::error::{Context, Error, Result};
use crate::install::Done;
use crate::label::{LABEL, Labels, Wanted};
use crate::node::{Node, Options};
use crate::programs::Source;
use crate::status::Status;

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
    /// End with 0 when skiff is installed as it should be; else say what is wrong.
    Verify,
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
}

#[derive(Debug, Args)]
struct InstallArguments {
    /// The directory with the three programs; by default that of this program.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where on the node the programs are to live; by default the first place that is fit.
    #[arg(long)]
    to: Option<PathBuf>,
    /// Stay, and install again whenever something takes it away.
    #[arg(long)]
    watch: bool,
    /// How many seconds lie between two looks.
    #[arg(long, default_value_t = 60, requires = "watch")]
    interval: u64,
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
    let labels = labels(&arguments)?;
    let node = || Node::find(options(&arguments));
    match command {
        Command::Install(arguments) => {
            let programs = match arguments.programs {
                Some(programs) => programs,
                None => own_directory()?,
            };
            let job = Job { source: Source::read(&programs)?, to: arguments.to, labels };
            if arguments.watch {
                watch::watch(&job, node, Duration::from_secs(arguments.interval)).await?;
            } else {
                job.install(&node()?).await?;
            }
        }
        Command::Verify => {
            let status = Status::of(&node()?).await;
            status.reasons.iter().for_each(|reason| say(reason));
            return Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Remove { wait } => {
            let node = node()?;
            let _lock = node.lock()?;
            // First, so that no pod is sent here any more.
            label(labels.as_ref(), Wanted::Absent)?;
            let was_there = remove::remove(&node, Duration::from_secs(wait)).await?;
            say(if was_there { "removed" } else { "there is nothing to remove" });
        }
        Command::Status { json } => {
            let status = Status::of(&node()?).await;
            let text =
                if json { serde_json::to_string(&status).or_host("cannot write JSON")? + "\n" } else { status.text() };
            io::stdout().lock().write_all(text.as_bytes()).or_host("cannot write to standard output")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `install` was asked for.
struct Job {
    source: Source,
    to: Option<PathBuf>,
    labels: Option<Labels>,
}

impl Job {
    async fn install(&self, node: &Node) -> Result<()> {
        let _lock = node.lock()?;
        let done = install::install(node, &self.source, self.to.as_deref()).await?;
        let id = &self.source.id;
        say(&match done {
            Done::Unchanged => format!("{id} is installed already"),
            Done::Programs => format!("installed {id} for new pods; containerd goes on"),
            Done::Restarted => format!("installed {id}; containerd reports the handler"),
        });
        // Last, so that no pod is sent here before it can start.
        label(self.labels.as_ref(), Wanted::Present)
    }
}

fn label(labels: Option<&Labels>, wanted: Wanted) -> Result<()> {
    let Some(labels) = labels else { return Ok(()) };
    labels.set(wanted)?;
    say(&match wanted {
        Wanted::Present => format!("the node has the label `{LABEL}`"),
        Wanted::Absent => format!("the node does not have the label `{LABEL}`"),
    });
    Ok(())
}

fn labels(arguments: &NodeArguments) -> Result<Option<Labels>> {
    let Some(name) = arguments.node_name.clone() else { return Ok(None) };
    let host = arguments.api_host.clone().ok_or_else(|| {
        Error::refused("a node's name is given, but `KUBERNETES_SERVICE_HOST` is not: this is no pod")
    })?;
    Ok(Some(Labels::in_cluster(name, host, arguments.api_port)))
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

//! `skiff-node`: puts skiff on a node of a cluster, keeps it there, and takes it away. It runs in a container that has the node's
//! root directory mounted, or on the node itself.
//!
//! Each depth has its own verbs:
//!
//! | depth | forward | back | only looks |
//! | --- | --- | --- | --- |
//! | every node of a cluster, by its DaemonSet | | `uninstall` | |
//! | one node, for as long as this process runs | `keep` | `keep` | `ready` (what `keep` saw last), `metrics` |
//! | one node, under its lock, with its label (`job`) | `install_and_label` | `unlabel_and_remove` | `verify`, `status` |
//! | one node, or everything is put back | `install` | `remove` | |
//! | the files of one record (`journal::change`) | `apply` | `put_back`; with a restart `roll_back` | |
//! | what an interrupted run left (`journal::change`) | `finish` | `recover` | |
//!
//! Decisions are made in `config`, which takes values and returns values. `node` and `kube` do the I/O, `journal` remembers what
//! was changed, and the verbs bring them together.

mod arguments;
mod config;
mod error;
mod install;
mod job;
mod journal;
mod keep;
mod kube;
mod metrics;
mod node;
mod ready;
mod remove;
mod say;
mod signals;
mod status;
mod uninstall;
mod verify;
mod wanted;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::sys::stat::{Mode, umask};

use crate::arguments::{Arguments, NodeArguments, Verb};
use crate::error::{Context, Result};
use crate::job::unlabel_and_remove;
use crate::journal::programs::Source;
use crate::keep::Keeper;
use crate::kube::daemon_set::DaemonSet;
use crate::metrics::server::Server;
use crate::node::Node;
use crate::node::seen::Seen;
use crate::say::say;
use crate::status::Status;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    umask(Mode::from_bits_truncate(0o022));
    let Arguments { verb, node } = Arguments::parse();
    match run(verb, &node).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&error.to_string());
            error.exit_code()
        }
    }
}

/// Returns whether the node was found as wanted.
async fn run(verb: Verb, arguments: &NodeArguments) -> Result<bool> {
    let node = || Node::find(arguments.options());
    match verb {
        Verb::Install(install) => drop(install.job(arguments)?.install_and_label(&node()?).await?),
        Verb::Keep { install, wanted, interval, metrics, metrics_port } => {
            let (job, interval) = (install.job(arguments)?, Duration::from_secs(interval));
            if let Some(port) = metrics_port {
                drop(tokio::spawn(Server::bind(port).await?.serve(metrics.of(arguments))));
            }
            keep::keep(Keeper::new(&job, wanted.wanted, interval, &arguments.seen), node).await?;
        }
        Verb::Metrics(metrics) => print(metrics.of(arguments).text().await?)?,
        Verb::Ready => return ready::ready(&arguments.seen),
        Verb::Verify { wanted, programs, to } => {
            let source = programs.as_deref().map(Source::read).transpose()?;
            let id = source.as_ref().map(|source| source.id.as_str());
            return Ok(verify::verify(&Status::of(&node()?, id, to.as_deref()).await, wanted.wanted));
        }
        Verb::Remove { wait } => {
            unlabel_and_remove(&node()?, arguments.labels()?.as_ref(), Duration::from_secs(wait)).await?;
        }
        Verb::Status { json } => {
            let status = Status::of(&node()?, None, None).await;
            let status = match Seen::read(&arguments.seen)? {
                Some((seen, _)) => status.with_mends_of(&seen),
                None => status,
            };
            print(if json { status.json()? } else { status.text() })?;
        }
        Verb::Uninstall { namespace, daemon_set, wait } => {
            let set = DaemonSet { api: arguments.api()?, namespace, name: daemon_set };
            uninstall::uninstall(&set, Duration::from_secs(wait)).await?;
        }
    }
    Ok(true)
}

fn print(text: impl AsRef<[u8]>) -> Result<()> {
    io::stdout().lock().write_all(text.as_ref()).or_host("cannot write to standard output")
}

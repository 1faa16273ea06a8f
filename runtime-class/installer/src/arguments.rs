//! The command line, and the values that the verbs take made from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use skiff_protocol::names::CACHE_DIR;

use crate::config::entry::Sandboxer;
use crate::error::{Context, Error, Result};
use crate::job::Job;
use crate::journal::programs::Source;
use crate::kube::api::Api;
use crate::kube::label::Labels;
use crate::metrics::Metrics;
use crate::node::Options;
use crate::wanted::{VARIABLE, Wanted};

/// Puts skiff on a node of a cluster, keeps it there, and takes it away.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) node: NodeArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Install skiff, or bring it up to date.
    Install(InstallArguments),
    /// Keep running, and install or remove skiff whenever the node is not as wanted.
    Keep {
        #[command(flatten)]
        install: InstallArguments,
        #[command(flatten)]
        wanted: WantedArgument,
        /// The time between two looks at the node, in seconds.
        #[arg(long, default_value_t = 60)]
        interval: u64,
        #[command(flatten)]
        metrics: MetricsArguments,
        /// Serve metrics for Prometheus at this port, under `/metrics`; by default they are not served.
        #[arg(long)]
        metrics_port: Option<u16>,
    },
    /// Print the metrics of the node and its wasm containers, in the text format of Prometheus.
    Metrics(MetricsArguments),
    /// Exit with 0 if the node was as wanted when `keep` looked last; otherwise report what was wrong. Runs nothing.
    Ready,
    /// Exit with 0 if the node is as wanted; otherwise report what is wrong.
    Verify {
        #[command(flatten)]
        wanted: WantedArgument,
        /// The directory with the programs that should be installed; any will do by default.
        #[arg(long)]
        programs: Option<PathBuf>,
        /// Where on the node they should be; anywhere by default.
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Remove skiff, and make containerd's configuration what it was before.
    Remove {
        /// How many seconds to wait for running wasm pods to end.
        #[arg(long, default_value_t = 0)]
        wait: u64,
    },
    /// Show what is installed.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove skiff from every node that a DaemonSet keeps, or from none; for a pod that may change the DaemonSet.
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
pub(crate) struct InstallArguments {
    /// The directory with the three programs; by default that of this program.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where on the node the programs should be; by default the first suitable place.
    #[arg(long)]
    to: Option<PathBuf>,
    /// Who makes the sandboxes of pods.
    #[arg(long, value_enum, default_value = "podsandbox")]
    sandboxer: Sandboxer,
}

#[derive(Debug, Args)]
pub(crate) struct MetricsArguments {
    /// containerd's state directory on the node, in which the containers are found; by default what its configuration says.
    #[arg(long)]
    state: Option<PathBuf>,
    /// The cache of compiled code on the node.
    #[arg(long, default_value = CACHE_DIR)]
    cache: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WantedArgument {
    /// What the node should be.
    #[arg(long, env = VARIABLE, value_enum, default_value = "installed")]
    pub(crate) wanted: Wanted,
}

/// What all verbs need to know of the node. Each has a variable, so that a command in the DaemonSet's pod (`kubectl exec`) knows the
/// same as `keep`.
#[derive(Debug, Args)]
pub(crate) struct NodeArguments {
    /// Where the node's root directory is mounted.
    #[arg(long, env = "SKIFF_NODE_HOST", default_value = "/", global = true)]
    host: PathBuf,
    /// containerd's program on the node.
    #[arg(long, env = "SKIFF_NODE_CONTAINERD", global = true)]
    containerd: Option<PathBuf>,
    /// The file that containerd is started with.
    #[arg(long, env = "SKIFF_NODE_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// containerd's socket on the node.
    #[arg(long, env = "SKIFF_NODE_SOCKET", global = true)]
    socket: Option<PathBuf>,
    /// The systemd unit that runs containerd.
    #[arg(long, env = "SKIFF_NODE_UNIT", global = true)]
    unit: Option<String>,
    /// A line for the node's shell that restarts containerd.
    #[arg(long, env = "SKIFF_NODE_RESTART_COMMAND", global = true, conflicts_with = "unit")]
    restart_command: Option<String>,
    /// End containerd with SIGTERM; something else starts it again. Needs the node's pid namespace.
    #[arg(long, env = "SKIFF_NODE_RESTART_BY_SIGNAL", global = true, conflicts_with_all = ["unit", "restart_command"])]
    restart_by_signal: bool,
    /// How many seconds containerd may take to restart, and again to report the handler.
    #[arg(long, env = "SKIFF_NODE_TIMEOUT", default_value_t = 120, global = true)]
    timeout: u64,
    /// The node's name in Kubernetes; the node is labelled if this is given.
    #[arg(long, env = "NODE_NAME", global = true)]
    node_name: Option<String>,
    /// Where `keep` writes what it sees, for `ready` and `status`: a file in this process's own root directory.
    #[arg(long, default_value = "/run/skiff-node/seen.json", global = true)]
    pub(crate) seen: PathBuf,
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true, global = true)]
    api_host: Option<String>,
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", hide = true, default_value_t = 443, global = true)]
    api_port: u16,
}

impl InstallArguments {
    /// Reads the programs to install.
    pub(crate) fn job(self, node: &NodeArguments) -> Result<Job> {
        let programs = match self.programs {
            Some(programs) => programs,
            None => own_directory()?,
        };
        let (to, sandboxer) = (self.to, self.sandboxer);
        Ok(Job { source: Source::read(&programs)?, to, sandboxer, labels: node.labels()? })
    }
}

impl MetricsArguments {
    pub(crate) fn of(self, node: &NodeArguments) -> Metrics {
        Metrics::new(node.options(), self.state, self.cache)
    }
}

impl NodeArguments {
    pub(crate) fn options(&self) -> Options {
        Options {
            host: self.host.clone(),
            containerd: self.containerd.clone(),
            config: self.config.clone(),
            socket: self.socket.clone(),
            unit: self.unit.clone(),
            restart_command: self.restart_command.clone(),
            restart_by_signal: self.restart_by_signal,
            limit: Duration::from_secs(self.timeout),
        }
    }

    /// The node's label; `None` when the node's name is not given.
    pub(crate) fn labels(&self) -> Result<Option<Labels>> {
        let Some(node) = self.node_name.clone() else { return Ok(None) };
        Ok(Some(Labels { api: self.api()?, node }))
    }

    pub(crate) fn api(&self) -> Result<Api> {
        let host = self.api_host.clone();
        let host = host.ok_or_else(|| Error::refused("`KUBERNETES_SERVICE_HOST` is not set: this is not a pod"))?;
        Ok(Api::in_cluster(host, self.api_port))
    }
}

fn own_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().or_host("cannot find this program's own file")?;
    own.parent().map(PathBuf::from).ok_or_else(|| Error::host("this program's own file has no directory"))
}

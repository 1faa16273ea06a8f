//! From the plan to a WASI context: what a guest is given, and nothing else.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;

use skiff_plan::{Account, EnginePlan, Refusal};
use wasmtime_wasi::cli::stdin;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::stdio::{Output, Target, Writer, block_stdin};
use crate::store::{Budget, Denied, State};
use crate::{report, stdio};

/// What all instances of this process have in common.
pub(crate) struct Context {
    /// The container's plan.
    pub(crate) plan: EnginePlan,
    /// The container's memory.
    pub(crate) budget: Arc<Budget>,
    environment: Vec<(String, String)>,
}

impl Context {
    /// The context of `plan`, with this process's environment.
    pub(crate) fn new(plan: EnginePlan, memory_limits: Vec<File>, account: Account) -> Self {
        let variables = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        let environment = guest_environment(variables.collect(), &plan.cwd);
        if let Some(rate) = plan.limits.output_bytes_per_second {
            stdio::limit_rate(rate);
        }
        let budget = Budget::new(memory_limits, plan.memory_limit_bytes, account);
        Self { plan, budget, environment }
    }

    /// The state of a new instance. A command has the container's stdin, a server's instances have none.
    ///
    /// # Errors
    /// When a directory of the plan cannot be opened, or the guest's stack does not fit into its limits.
    pub(crate) fn state(&self, writer: Writer) -> Result<State, Refusal> {
        let mut builder = WasiCtxBuilder::new();
        // One guest alone may block the only thread; many must not block each other.
        builder.allow_blocking_current_thread(writer != Writer::Server);
        if writer != Writer::Server {
            block_stdin();
            builder.stdin(stdin());
        }
        builder
            .stdout(Output { target: Target::Stdout, writer })
            .stderr(Output { target: Target::Stderr, writer })
            .args(&self.plan.args)
            .envs(&self.environment)
            .initial_cwd(&self.plan.cwd)
            // The network namespace is the pod's own: the pod's rules bound it, as they bound a native process.
            .inherit_network()
            .allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true);
        for preopen in &self.plan.preopens {
            let permissions = if preopen.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder.preopened_dir(&preopen.host, &preopen.guest, permissions).map_err(|error| {
                Refusal::Host(format!("cannot open the directory `{}`: {}", preopen.guest, report::sentence(&error)))
            })?;
        }
        State::new(builder.build_p1(), &self.budget, &self.plan.limits).map_err(|denied| self.too_big(&denied))
    }

    /// The refusal of a guest that does not fit into its limits from the beginning.
    pub(crate) fn too_big(&self, denied: &Denied) -> Refusal {
        Refusal::Guest(format!("`{}` is too big to start: {denied}", self.plan.module))
    }
}

/// The guest's environment: of a name that is there twice the last value, and `PWD` where nothing else tells a guest
/// of WASI 0.1 its working directory.
fn guest_environment(mut variables: Vec<(String, String)>, cwd: &str) -> Vec<(String, String)> {
    let mut seen = HashSet::new();
    variables.reverse();
    variables.retain(|(name, _)| seen.insert(name.clone()));
    variables.reverse();
    if cwd != "/" && !seen.contains("PWD") {
        variables.push(("PWD".to_owned(), cwd.to_owned()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_wins() {
        let check = |variables: &[(&str, &str)], cwd: &str, expected: &[(&str, &str)]| {
            let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
            assert_eq!(guest_environment(owned(variables), cwd), owned(expected) as Vec<(String, String)>);
        };
        check(&[], "/", &[]);
        check(&[("A", "1"), ("B", "2"), ("A", "3")], "/", &[("B", "2"), ("A", "3")]);
        check(&[("A", "1")], "/work", &[("A", "1"), ("PWD", "/work")]);
        check(&[("PWD", "/here")], "/work", &[("PWD", "/here")]);
    }
}

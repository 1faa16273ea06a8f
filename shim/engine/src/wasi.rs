//! From the plan to a WASI context: what a guest is given, and nothing else.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;

use skiff_protocol::{Account, EnginePlan, Refusal};
use wasmtime_wasi::cli::stdin;
use wasmtime_wasi::{WasiCtxBuilder, WasiView};

use crate::directories::Directories;
use crate::names::Resolver;
use crate::server_output::ServerOutput;
use crate::stdio::{Output, Target, Writer, block_stdin};
use crate::store::{Budget, Denied, State};
use crate::wall::View;
use crate::{names, stdio, wall};

const HOME: &str = "HOME";
/// All files that the engine itself reads while a guest runs: those of names, and where libraries get chance from.
const FILES: [&str; 4] = [names::HOSTS, names::RESOLV_CONF, "/dev/random", "/dev/urandom"];

/// What all instances of this process have in common.
pub(crate) struct Context {
    /// The container's plan.
    pub(crate) plan: EnginePlan,
    /// The container's memory.
    pub(crate) budget: Arc<Budget>,
    environment: Vec<(String, String)>,
    directories: Directories,
    resolver: Arc<Resolver>,
}

impl Context {
    /// The context of `plan`. Of this process's own environment only `HOME` matters, which the container's runtime adds.
    pub(crate) fn new(mut plan: EnginePlan, memory_limits: Vec<File>, account: Account) -> Self {
        let home = std::env::var_os(HOME).map(|home| home.to_string_lossy().into_owned());
        let environment = guest_environment(std::mem::take(&mut plan.env), home, &plan.cwd);
        if let Some(rate) = plan.limits.output_bytes_per_second {
            stdio::limit_rate(rate);
        }
        let budget = Budget::new(memory_limits, plan.memory_limit_bytes, account);
        let directories = Directories::default();
        Self { plan, budget, environment, directories, resolver: Arc::new(Resolver::of_container()) }
    }

    /// Opens the directories of the plan for the instances of `writer`. Until then there are none.
    ///
    /// # Errors
    /// Those of [`Directories::open`].
    pub(crate) fn open_directories(&mut self, writer: Writer) -> Result<(), Refusal> {
        self.directories = Directories::open(&self.plan.preopens, writer)?;
        Ok(())
    }

    /// The state of a new instance. A command has the container's stdin, a server's instances have none.
    ///
    /// # Errors
    /// When the guest's stack does not fit into its limits.
    pub(crate) fn state(&self, writer: Writer) -> Result<State, Refusal> {
        let mut builder = WasiCtxBuilder::new();
        // One guest alone may block the only thread; many must not block each other.
        builder.allow_blocking_current_thread(writer != Writer::Server);
        match writer {
            Writer::Server => {
                builder.stdout(ServerOutput(Target::Stdout)).stderr(ServerOutput(Target::Stderr));
            }
            Writer::Module | Writer::Component => {
                block_stdin();
                builder.stdin(stdin());
                builder
                    .stdout(Output { target: Target::Stdout, writer })
                    .stderr(Output { target: Target::Stderr, writer });
            }
        }
        builder
            .args(&self.plan.args)
            .envs(&self.environment)
            .initial_cwd(&self.plan.cwd)
            // The network namespace is the pod's own: the pod's rules bound it, as they bound a native process.
            .inherit_network()
            .allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true);
        let mut wasi = builder.build_p1();
        *wasi.ctx().ctx.filesystem() = self.directories.filesystem();
        let state = State::new(wasi, &self.budget, &self.plan.limits, &self.resolver);
        state.map_err(|denied| self.too_big(&denied))
    }

    /// The value of a variable of the guest's environment.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    /// Gives up what this guest does not need.
    ///
    /// # Errors
    /// When a part that must hold does not.
    pub(crate) fn raise_wall(&mut self) -> Result<(), Refusal> {
        let directories = self.directories.take_places();
        wall::raise(&View { directories: &directories, files: &FILES }).map_err(Refusal::Host)
    }

    /// The refusal of a guest that does not fit into its limits from the beginning.
    pub(crate) fn too_big(&self, denied: &Denied) -> Refusal {
        Refusal::Guest(format!("`{}` is too big to start: {denied}", self.plan.module))
    }
}

/// The guest's environment from `NAME=value` pairs: of a name that is there twice the last value, `home` where there is no
/// `HOME`, and `PWD` where nothing else tells a guest of WASI 0.1 its working directory.
fn guest_environment(pairs: Vec<String>, home: Option<String>, cwd: &str) -> Vec<(String, String)> {
    let mut seen = HashSet::new();
    let mut variables: Vec<(String, String)> = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        if let Some((name, value)) = split(pair)
            && seen.insert(name)
        {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables.reverse();
    if let Some(home) = home.filter(|_| !seen.contains(HOME)) {
        variables.push((HOME.to_owned(), home));
    }
    if cwd != "/" && !seen.contains("PWD") {
        variables.push(("PWD".to_owned(), cwd.to_owned()));
    }
    variables
}

/// Name and value. A name has a character at least, which may be `=`; without a value it is no variable.
fn split(pair: &str) -> Option<(&str, &str)> {
    let first = pair.chars().next()?.len_utf8();
    let at = first + pair.get(first..)?.find('=')?;
    Some((pair.get(..at)?, pair.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[&str], home: Option<&str>, cwd: &str, expected: &[(&str, &str)]) {
        let pairs = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        let found = guest_environment(pairs, home.map(str::to_owned), cwd);
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_last_value_of_a_name_wins() {
        check(&[], None, "/", &[]);
        check(&["A=1", "B=2", "A=3"], None, "/", &[("B", "2"), ("A", "3")]);
        check(&["A=1"], None, "/work", &[("A", "1"), ("PWD", "/work")]);
        check(&["PWD=/here"], None, "/work", &[("PWD", "/here")]);
        check(&["A=", "B=x=y", "C", "=", "=D=1", ""], None, "/", &[("A", ""), ("B", "x=y"), ("=D", "1")]);
    }

    #[test]
    fn home_is_the_runtimes_where_the_container_has_none() {
        check(&["A=1"], Some("/root"), "/", &[("A", "1"), ("HOME", "/root")]);
        check(&["HOME=/mine"], Some("/root"), "/", &[("HOME", "/mine")]);
    }
}

//! What all instances of this process have in common: from the plan to what an instance is given, and nothing else.

use std::sync::{Arc, Mutex};

use skiff_protocol::{Account, EnginePlan, MemoryLimit, Refusal};
use wasmtime_wasi::WasiCtxBuilder;

use crate::environment::{HOME, guest_environment};
use crate::files::directories::Directories;
use crate::files::reader::Reader;
use crate::host::{cli, filesystem, sockets};
use crate::memory::budget::Budget;
use crate::memory::denied::Denied;
use crate::metrics::CountedCalls;
use crate::names::resolver::{HOSTS, RESOLV_CONF, Resolver};
use crate::outgoing::client::Client;
use crate::outgoing::settings::Settings;
use crate::report::Reporter;
use crate::role::Role;
use crate::stdio::streams::Streams;
use crate::store::{Glass, State};
use crate::wall;
use crate::wall::view::View;

/// All files that the engine itself reads while a guest runs: those for looking up names, and where libraries get
/// randomness.
const FILES: [&str; 4] = [HOSTS, RESOLV_CONF, "/dev/random", "/dev/urandom"];

/// What all instances have in common.
pub(crate) struct Shared {
    /// The container's plan.
    pub(crate) plan: EnginePlan,
    /// What the shim and others on the node see of the guest.
    pub(crate) account: Account,
    /// The container's memory.
    pub(crate) budget: Arc<Budget>,
    /// Where the guest's output goes.
    pub(crate) streams: Arc<Streams>,
    /// Where the engine's own messages go.
    pub(crate) reporter: Arc<Reporter>,
    /// How many instances the pool of a server has room for, if it has one.
    pub(crate) pool_instances: Option<u32>,
    /// Which functions have been called.
    pub(crate) called: CountedCalls,
    /// The exit code of a command that has trapped. Held while its core dump is written.
    pub(crate) trapped: Arc<Mutex<Option<i32>>>,
    /// What is under way, and who looks at it.
    pub(crate) glass: Glass,
    environment: Vec<(String, String)>,
    directories: Directories,
    reader: Arc<Reader>,
    resolver: Arc<Resolver>,
    client: Arc<Client>,
}

impl Shared {
    /// What the instances of `plan` share. Its directories are not open yet.
    pub(crate) fn new(
        mut plan: EnginePlan,
        memory_limits: Vec<MemoryLimit>,
        account: Account,
        reporter: &Arc<Reporter>,
    ) -> Self {
        let home = std::env::var_os(HOME).map(|home| home.to_string_lossy().into_owned());
        let environment = guest_environment(std::mem::take(&mut plan.env), home, &plan.cwd);
        let budget = Budget::new(memory_limits, plan.memory_limit_bytes, account);
        let resolver = Arc::new(Resolver::of_container());
        let client = client(&plan, &environment, &resolver, &budget, reporter, &Arc::default());
        Self {
            account,
            budget,
            streams: Arc::new(Streams::new(plan.limits.output_bytes_per_second)),
            reporter: Arc::clone(reporter),
            plan,
            pool_instances: None,
            called: CountedCalls::new(account),
            trapped: Arc::default(),
            glass: Glass::default(),
            environment,
            directories: Directories::default(),
            reader: Arc::default(),
            resolver,
            client,
        }
    }

    /// Opens the directories of the plan for instances of this role.
    ///
    /// # Errors
    /// Those of [`Directories::open`].
    pub(crate) fn open_directories(&mut self, role: Role) -> Result<(), Refusal> {
        self.directories = Directories::open(&self.plan.preopens, role)?;
        self.reader = Arc::new(self.directories.take_reader());
        let Self { plan, environment, reader, resolver, budget, reporter, .. } = &*self;
        if let Some(path) = &plan.termination_log {
            reporter.last_words().open(reader, path);
        }
        self.client = client(plan, environment, resolver, budget, reporter, reader);
        Ok(())
    }

    /// The state of a new instance.
    ///
    /// # Errors
    /// If the guest's stack does not fit into its limits.
    pub(crate) fn state(&self, role: Role) -> Result<State, Refusal> {
        let (mut builder, tail) = (WasiCtxBuilder::new(), Arc::default());
        cli::grant_streams(&mut builder, role, &self.streams, &tail);
        cli::grant(&mut builder, &self.plan, &self.environment);
        sockets::grant(&mut builder);
        let mut wasi = builder.build_p1();
        filesystem::grant(&mut wasi, &self.directories, role);
        let Self { budget, resolver, client, glass, .. } = self;
        let made = State::new(wasi, self.directories.tree(role), budget, &self.plan.limits, resolver, client, glass);
        let mut state = made.map_err(|denied| self.too_big(&denied))?;
        state.tail = tail;
        Ok(state)
    }

    /// The value of a variable of the guest's environment.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        variable(&self.environment, name)
    }

    /// The guest's environment, as names and values.
    pub(crate) fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// What follows the guest's paths for the engine itself.
    pub(crate) fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    /// Gives up what this guest does not need.
    ///
    /// # Errors
    /// If a part of the wall that must hold does not.
    pub(crate) fn raise_wall(&mut self) -> Result<(), Refusal> {
        let directories = self.directories.take_places();
        wall::raise(&View { directories: &directories, files: &FILES }).map_err(Refusal::Host)
    }

    /// The refusal of a guest that does not fit into its limits from the start.
    pub(crate) fn too_big(&self, denied: &Denied) -> Refusal {
        Refusal::Guest(format!("`{}` is too big to start: {denied}", self.plan.module))
    }
}

fn variable(environment: &[(String, String)], name: &str) -> Option<String> {
    environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

/// What sends the requests of all instances.
fn client(
    plan: &EnginePlan,
    environment: &[(String, String)],
    resolver: &Arc<Resolver>,
    budget: &Arc<Budget>,
    reporter: &Arc<Reporter>,
    reader: &Arc<Reader>,
) -> Arc<Client> {
    let settings = Settings::new(|name| variable(environment, name), &plan.cwd, &plan.http2_authorities);
    Arc::new(Client::new(settings, resolver, budget, reporter, Arc::clone(reader)))
}

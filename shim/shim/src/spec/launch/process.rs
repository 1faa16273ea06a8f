//! A process of a specification, as the steps by which it becomes what it is, in its container's namespaces and root.

use std::path::Path;

use serde_json::Value;
use skiff_protocol::launch::{Capabilities, FilterFlags, Identity, Limit, Stage, Step};

use super::reason::{Reason, is_clear};
use super::strict::{self, section, without_empty};

/// The kernel's capabilities in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a process has that its container's later ones have, too, unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub(crate) capabilities: Capabilities,
    /// Of the container; a later process cannot have another one.
    pub(crate) umask: Option<u32>,
    /// The AppArmor profile.
    pub(crate) confined_by: Option<String>,
}

/// A process that was understood.
#[derive(Debug)]
pub(super) struct Understood {
    pub(super) has_terminal: bool,
    pub(super) oom_score: i32,
    pub(super) limits: Vec<Limit>,
    pub(super) inherited: Inherited,
    pub(super) no_new_privileges: bool,
    pub(super) identity: Identity,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
}

/// Understands `process`, in a container whose first process has what is `inherited`, on a node that applies AppArmor profiles or
/// does not.
pub(super) fn understand(
    process: Value,
    inherited: Option<&Inherited>,
    has_apparmor: bool,
) -> Result<Understood, Reason> {
    // Without any capability is something else than without a word about them.
    let names_capabilities = process.get("capabilities").is_some_and(Value::is_object);
    let process: strict::Process = section("process", without_empty(process))?;
    let user: strict::User = section("process.user", process.user)?;
    let is_root = process.cwd.as_os_str() == "/";
    if process.args.is_empty() || !(is_root || is_clear(&process.cwd)) {
        return Err(Reason("`process`: no program, or no absolute working directory".into()));
    }
    let of_container = || inherited.and_then(|inherited| inherited.confined_by.clone());
    let confined_by = match process.apparmor_profile.or_else(of_container) {
        Some(profile) if profile == "unconfined" && !has_apparmor => None,
        // The OCI runtime says so, too.
        Some(profile) if !has_apparmor => {
            return Err(Reason(format!("`process.apparmorProfile`: `{profile}`, on a node without AppArmor")));
        }
        profile => profile,
    };
    let container = inherited.filter(|_| !names_capabilities).map(|inherited| inherited.capabilities);
    let capabilities = container.map_or_else(|| sets(process.capabilities), Ok)?;
    let limit = |limit: &strict::Rlimit| Limit { resource: limit.resource, soft: limit.soft, hard: limit.hard };
    let limits = process.rlimits.iter().map(limit).collect();
    let env = without_repetitions(process.env)?;
    let umask = inherited.map_or(user.umask, |inherited| inherited.umask);
    Ok(Understood {
        has_terminal: process.terminal,
        oom_score: process.oom_score_adj.unwrap_or(0),
        limits,
        inherited: Inherited { capabilities, umask, confined_by },
        no_new_privileges: process.no_new_privileges,
        identity: Identity {
            user: user.uid,
            group: user.gid,
            groups: user.additional_gids,
            capabilities,
            directory: process.cwd,
        },
        args: process.args,
        env,
    })
}

impl Understood {
    /// The step that confines what it executes. It is taken where the node's `/proc` still is in sight, which nobody else can hide.
    pub(super) fn confinement(&self) -> Option<Step> {
        self.inherited.confined_by.clone().map(Step::AppArmor)
    }

    /// The steps that it takes last, and what it executes then.
    pub(super) fn stage(
        self,
        mut steps: Vec<Step>,
        last: impl IntoIterator<Item = Step>,
        filter: Option<FilterFlags>,
    ) -> Stage {
        let filter = filter.map(Step::Filter);
        // Only a privileged process may install a filter otherwise.
        let (early, late) = if self.no_new_privileges { (None, filter) } else { (filter, None) };
        steps.extend(self.no_new_privileges.then_some(Step::NoNewPrivileges));
        steps.push(Step::Home);
        steps.extend(self.limits.into_iter().map(Step::Limit));
        steps.extend(early);
        steps.push(Step::Become(self.identity));
        steps.extend(last);
        steps.extend(late);
        Stage { steps, args: self.args, env: self.env, filter: Vec::new() }
    }
}

/// The variables of `env`, each with its last value.
fn without_repetitions(env: Vec<String>) -> Result<Vec<String>, Reason> {
    let mut last: Vec<String> = Vec::new();
    for variable in env.into_iter().rev() {
        let name = variable.split_once('=').map(|(name, _)| name).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Reason(format!("`process.env`: `{variable}`")))?;
        if !last.iter().any(|known| known.split_once('=').is_some_and(|(known, _)| known == name)) {
            last.push(variable);
        }
    }
    last.reverse();
    Ok(last)
}

fn sets(named: Value) -> Result<Capabilities, Reason> {
    let named: strict::Capabilities = section("process.capabilities", named)?;
    let sets = Capabilities {
        bounding: set(&named.bounding)?,
        effective: set(&named.effective)?,
        permitted: set(&named.permitted)?,
        inheritable: set(&named.inheritable)?,
        ambient: set(&named.ambient)?,
    };
    if sets.ambient & !(sets.permitted & sets.inheritable) != 0 {
        return Err(Reason("`process.capabilities`: an ambient one is not permitted and inheritable".into()));
    }
    Ok(sets)
}

fn set(names: &[String]) -> Result<u64, Reason> {
    names.iter().try_fold(0, |set, name| {
        let number = CAPABILITIES.iter().position(|known| known == name);
        let number =
            number.ok_or_else(|| Reason(format!("`process.capabilities`: `{name}` is not one of the kernel's")))?;
        Ok(set | 1 << number)
    })
}

/// Whether a process with these capabilities may read what any other one that it sees has.
pub(super) fn reads_others(capabilities: &Capabilities) -> bool {
    set(&["CAP_SYS_PTRACE".to_owned()]).is_ok_and(|ptrace| capabilities.bounding & ptrace != 0)
}

/// Whether the program of `args` is skiff's engine.
pub(super) fn is_engine(args: &[String]) -> bool {
    args.first().is_some_and(|program| Path::new(program) == Path::new(ENGINE))
}

/// The engine as a container's process executes it.
const ENGINE: &str = "/proc/self/fd/3";

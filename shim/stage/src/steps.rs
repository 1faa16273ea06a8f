//! Takes steps, one after the other.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use skiff_linux::{descriptors, keyring, names, network, seccomp};
use skiff_protocol::launch::{FilterFlags, JOINED_FD, Namespace, Stage, Step};

use crate::root::Root;
use crate::{become_user, devices, mounts, streams};

/// The AppArmor profile of what this process executes next. The older name may belong to another module of the kernel.
const NEXT_PROFILE: &str = "/proc/self/attr/apparmor/exec";

/// How the steps came to an end before the last one.
pub(crate) enum Taken {
    /// The shim is gone.
    Unwanted,
}

/// Takes the steps of `stage`. Returns the sentence about the first one that fails.
pub(crate) fn take(stage: &mut Stage, shim: &File) -> Result<Option<Taken>, String> {
    let Stage { steps, env, filter, .. } = stage;
    let mut walk = Walk { root: None, cgroups: open_cgroups(steps)?, env, filter, shim };
    let user = steps.iter().find_map(|step| if let Step::Become(identity) = step { Some(identity.user) } else { None });
    for step in &*steps {
        match walk.take(step, user.unwrap_or_default()) {
            Ok(None) => {}
            Ok(Some(taken)) => return Ok(Some(taken)),
            Err(error) => return Err(format!("cannot {}: {error}", doing(step))),
        }
    }
    Ok(None)
}

/// The files of all cgroups to join: the last ones are out of sight when their turn comes.
fn open_cgroups(steps: &[Step]) -> Result<HashMap<PathBuf, File>, String> {
    let tasks = steps.iter().filter_map(|step| if let Step::Cgroups(tasks) = step { Some(tasks) } else { None });
    let open = |tasks: &PathBuf| {
        let opened = File::options().write(true).open(tasks);
        let opened = opened.map_err(|error| format!("cannot open `{}`: {error}", tasks.display()))?;
        Ok((tasks.clone(), opened))
    };
    tasks.flatten().map(open).collect()
}

/// What steps leave for later ones.
struct Walk<'a> {
    root: Option<Root>,
    cgroups: HashMap<PathBuf, File>,
    env: &'a mut Vec<String>,
    filter: &'a [u64],
    shim: &'a File,
}

impl Walk<'_> {
    fn take(&mut self, step: &Step, user: u32) -> io::Result<Option<Taken>> {
        match step {
            Step::Keyring(name) => keyring::join_session(name)?,
            Step::Session => drop(nix::unistd::setsid()?),
            Step::Cgroups(tasks) => tasks.iter().try_for_each(|tasks| self.enter_cgroup(tasks))?,
            Step::Join(kind, path) => setns(File::open(path)?, flag(*kind))?,
            Step::JoinProcess(kinds) => {
                let process = descriptors::inherit(JOINED_FD)?;
                setns(process, kinds.iter().map(|kind| flag(*kind)).collect())?;
            }
            Step::New(kind) => unshare(flag(*kind))?,
            Step::Loopback => network::bring_up_loopback()?,
            Step::AppArmor(profile) => std::fs::write(NEXT_PROFILE, format!("exec {profile}"))?,
            Step::OomScore(score) => std::fs::write("/proc/self/oom_score_adj", score.to_string())?,
            Step::Root { path, propagation } => self.root = Some(mounts::begin(path, *propagation)?),
            Step::Mount(mount) => mounts::make(self.root()?, mount)?,
            Step::Remount(path, flags) => mounts::set_flags(self.root()?, path, *flags)?,
            Step::Device(device) => devices::make(self.root()?, device)?,
            Step::Link(link) => devices::link(self.root()?, link)?,
            Step::Directory(path) => drop(self.root()?.find_or_make(path, crate::root::Missing::Directory)?),
            Step::NullStreams => streams::replace_null(self.root()?)?,
            Step::ReadOnly(path) => mounts::make_read_only(self.root()?, path)?,
            Step::Mask(paths) => mounts::mask(self.root()?, paths)?,
            Step::Sysctl(name, value) => devices::set_sysctl(self.root()?, name, value)?,
            Step::Pivot => mounts::pivot(&self.root.take().ok_or_else(no_root)?)?,
            Step::HostName(name) => nix::unistd::sethostname(name)?,
            Step::DomainName(name) => names::set_domain_name(name)?,
            Step::Terminal => streams::open_terminal()?,
            Step::Umask(mask) => drop(umask(Mode::from_bits_truncate(*mask))),
            Step::Limit(limit) => become_user::limit(*limit)?,
            Step::NoNewPrivileges => prctl::set_no_new_privs()?,
            Step::Home => self.set_home(user),
            Step::Become(identity) => become_user::become_user(identity)?,
            Step::Filter(FilterFlags { logs, speculates }) => {
                if is_unwanted(self.shim) {
                    return Ok(Some(Taken::Unwanted));
                }
                seccomp::install_on_this_thread(self.filter, *logs, *speculates)?;
            }
        }
        Ok(None)
    }

    fn root(&self) -> io::Result<&Root> {
        self.root.as_ref().ok_or_else(no_root)
    }

    /// A process with one thread moves as a whole, and waits for nobody.
    fn enter_cgroup(&mut self, tasks: &Path) -> io::Result<()> {
        let mut file = self.cgroups.get(tasks).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        file.write_all(b"0")
    }

    fn set_home(&mut self, user: u32) {
        if !self.env.iter().any(|variable| variable.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
            self.env.retain(|variable| !variable.starts_with("HOME="));
            self.env.push(become_user::home_of(user, Path::new("/etc/passwd")));
        }
    }
}

/// Whether the shim is gone, after which nobody would end the program.
pub(crate) fn is_unwanted(shim: &File) -> bool {
    let mut polled = [PollFd::new(shim.as_fd(), PollFlags::POLLHUP)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn no_root() -> io::Error {
    io::Error::other("the container has no root yet, or is in it already")
}

fn flag(kind: Namespace) -> CloneFlags {
    match kind {
        Namespace::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        Namespace::Ipc => CloneFlags::CLONE_NEWIPC,
        Namespace::Mount => CloneFlags::CLONE_NEWNS,
        Namespace::Network => CloneFlags::CLONE_NEWNET,
        Namespace::Pid => CloneFlags::CLONE_NEWPID,
        Namespace::Uts => CloneFlags::CLONE_NEWUTS,
    }
}

/// What `step` does, for a sentence that says that it failed.
fn doing(step: &Step) -> String {
    match step {
        Step::Keyring(name) => format!("join the session keyring `{name}`"),
        Step::Session => "become the leader of a session".into(),
        Step::Cgroups(_) => "join the container's cgroups".into(),
        Step::Join(kind, path) => format!("join the {kind:?} namespace `{}`", path.display()),
        Step::JoinProcess(_) => "join the container's namespaces".into(),
        Step::New(kind) => format!("make a new {kind:?} namespace"),
        Step::Loopback => "bring up the loopback device".into(),
        Step::AppArmor(profile) => format!("apply the AppArmor profile `{profile}`"),
        Step::OomScore(score) => format!("set the OOM score to {score}"),
        Step::Root { path, .. } => format!("prepare the root file system at `{}`", path.display()),
        Step::Mount(mount) => format!("mount `{}` at `{}`", mount.source, mount.target.display()),
        Step::Remount(path, _) => format!("set the flags of the mount at `{}`", path.display()),
        Step::Device(device) => format!("make the device `{}`", device.path.display()),
        Step::Link(link) => format!("make the link `{}`", link.path.display()),
        Step::Directory(path) => format!("make the working directory `{}`", path.display()),
        Step::NullStreams => "open the container's `/dev/null`".into(),
        Step::ReadOnly(path) => format!("make `{}` read-only", path.display()),
        Step::Mask(_) => "mask paths of the kernel".into(),
        Step::Sysctl(name, _) => format!("set the sysctl `{name}`"),
        Step::Pivot => "enter the root file system".into(),
        Step::HostName(name) => format!("set the host name `{name}`"),
        Step::DomainName(name) => format!("set the domain name `{name}`"),
        Step::Terminal => "open a terminal".into(),
        Step::Umask(mask) => format!("set the mask {mask:o} for new files"),
        Step::Limit(limit) => format!("set the limit {:?}", limit.resource),
        Step::NoNewPrivileges => "rule out new privileges".into(),
        Step::Home => "find the user's directory".into(),
        Step::Become(identity) => {
            format!("become the user {} in `{}`", identity.user, identity.directory.display())
        }
        Step::Filter(_) => "install the filter of the seccomp profile".into(),
    }
}

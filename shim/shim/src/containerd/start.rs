//! The action `start`: makes the pod's shim, or finds it, and says where it listens.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;

use containerd_shim::{Flags, StartOpts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, setpgid};
use skiff_linux::cgroup::Cgroup;
use skiff_linux::process::fork_alone;

use crate::containerd::bootstrap::{self, Environment};
use crate::containerd::server::Serving;
use crate::containerd::{options, socket};
use crate::error::{Context, Error, Result};
use crate::host::record::Record;
use crate::identity::Identity;

/// Which of the two processes this is after the action.
pub(super) enum Started {
    /// The one that containerd has started, with its answer.
    Answer(Vec<u8>),
    /// The pod's shim, which is to serve.
    Shim(Serving),
}

/// Starts the pod's shim unless there is one.
pub(super) fn start(flags: &Flags) -> Result<Started> {
    let (params, protocol) = bootstrap::parse(&bootstrap::read_input()?, flags, Environment::of_process())?;
    let options = StartOpts::from(params);
    let bundle = std::env::current_dir().doing(|| "cannot find the bundle".into())?;
    let group = socket::group_of(&bundle, &options.id)?;
    let address = options.socket_address(&group);
    let path = socket::path_in(&address);
    if let Some(listener) = socket::listen(path)? {
        let started = match fork_alone() {
            Ok(ForkResult::Child) => return become_the_shim(options, address, listener).map(Started::Shim),
            Ok(ForkResult::Parent { child }) => place_or_end(child, &options),
            Err(error) => Err(Error::host("cannot start the shim", error)),
        };
        if started.is_err() {
            drop(fs::remove_file(path));
        }
        started?;
    }
    let record = Record { namespace: options.namespace, socket: address.clone(), ..Record::default() };
    record.save(&bundle).doing(|| "cannot write the record of the container".into())?;
    bootstrap::answer(&address, protocol).map(Started::Answer)
}

/// Leaves the streams, for whose end containerd waits, and the process group of the action.
fn become_the_shim(options: StartOpts, address: String, listener: UnixListener) -> Result<Serving> {
    let apart = || -> io::Result<()> {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        Ok(())
    };
    apart().doing(|| "cannot leave the process that containerd waits for".into())?;
    let identity = Identity { namespace: options.namespace, containerd: options.address, socket: address };
    Ok(Serving { listener, identity, events: options.ttrpc_address, debug: options.debug })
}

/// Places the shim, or ends it if that fails.
fn place_or_end(shim: Pid, options: &StartOpts) -> Result<()> {
    let settings = options::decode(options.extensions.iter().find(|any| any.type_url.ends_with("Options")));
    let placed = settings.and_then(|settings| {
        place(shim, &settings.shim_cgroup).doing(|| "cannot set the shim's cgroup or OOM score".into())
    });
    if placed.is_err() {
        // It may have ended by itself.
        let _killed = kill(shim, Signal::SIGKILL);
    }
    placed
}

/// Puts the shim `pid` into `cgroup`, unless that is empty, and lets the kernel kill it rather than its parent, containerd.
fn place(pid: Pid, cgroup: &str) -> io::Result<()> {
    const OOM_SCORE_MAX: i32 = 1000;
    if !cgroup.is_empty() {
        Cgroup::from_spec(&format!("/{}", cgroup.trim_start_matches('/')), false, "")?
            .join(pid.as_raw().cast_unsigned())?;
    }
    let parents = fs::read_to_string(format!("/proc/{}/oom_score_adj", std::os::unix::process::parent_id()))?;
    let score = parents.trim().parse::<i32>().map_err(io::Error::other)?.saturating_add(1).min(OOM_SCORE_MAX);
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

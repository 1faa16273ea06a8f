//! The action `start`: makes the pod's shim, or finds it, and says where it listens.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use containerd_shim::{Flags, StartOpts};
use skiff_linux::cgroup::Cgroup;

use crate::containerd::bootstrap::{self, Environment};
use crate::containerd::{options, socket};
use crate::error::{Context, Error, Result};
use crate::host::process::pass_descriptors;
use crate::host::record::Record;

/// Starts the pod's shim unless there is one, and returns the answer for containerd.
pub(super) fn start(flags: &Flags) -> Result<Vec<u8>> {
    let (params, protocol) = bootstrap::parse(&bootstrap::read_input()?, flags, Environment::of_process())?;
    let options = StartOpts::from(params);
    let bundle = std::env::current_dir().doing(|| "cannot find the bundle".into())?;
    let group = socket::group_of(&bundle, &options.id)?;
    let address = options.socket_address(&group);
    let path = socket::path_in(&address);
    if let Some(listener) = socket::listen(path)? {
        let spawned = spawn(&options, &address, &listener);
        if spawned.is_err() {
            drop(fs::remove_file(path));
        }
        spawned?;
    }
    let record = Record { namespace: options.namespace, socket: address.clone(), ..Record::default() };
    record.save(&bundle).doing(|| "cannot write the record of the container".into())?;
    bootstrap::answer(&address, protocol)
}

/// Starts the serving process. It shares no stream with containerd, which waits for the end of ours.
fn spawn(options: &StartOpts, address: &str, listener: &UnixListener) -> Result<()> {
    let settings = options::decode(options.extensions.iter().find(|any| any.type_url.ends_with("Options")))?;
    let own = std::env::current_exe().doing(|| "cannot find the shim's own file".into())?;
    let mut command = Command::new(own);
    command.args([
        "-namespace",
        &options.namespace,
        "-id",
        &options.id,
        "-address",
        &options.address,
        "-socket",
        address,
    ]);
    if options.debug {
        command.arg("-debug");
    }
    command.env("TTRPC_ADDRESS", &options.ttrpc_address);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let passed = listener.try_clone().doing(|| "cannot pass the socket to the shim".into())?;
    pass_descriptors(&mut command, vec![passed.into()]);
    let mut child = command.spawn().doing(|| "cannot start the shim".into())?;
    if let Err(error) = place(child.id(), &settings.shim_cgroup) {
        drop(child.kill());
        return Err(Error::host("cannot set the shim's cgroup or OOM score", error));
    }
    Ok(())
}

/// Puts the shim `pid` into `cgroup`, unless that is empty, and lets the kernel kill it rather than its parent, containerd.
fn place(pid: u32, cgroup: &str) -> io::Result<()> {
    const OOM_SCORE_MAX: i32 = 1000;
    if !cgroup.is_empty() {
        Cgroup::from_spec(&format!("/{}", cgroup.trim_start_matches('/')), false, "")?.join(pid)?;
    }
    let parents = fs::read_to_string(format!("/proc/{}/oom_score_adj", std::os::unix::process::parent_id()))?;
    let score = parents.trim().parse::<i32>().map_err(io::Error::other)?.saturating_add(1).min(OOM_SCORE_MAX);
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

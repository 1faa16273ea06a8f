//! The action `delete`: cleans up after a shim that is gone, by the record in the bundle.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim::protos::api::DeleteResponse;
use containerd_shim::{Flags, StartOpts};
use protobuf::Message;

use crate::containerd::socket;
use crate::containerd::wire::{timestamp, unsigned};
use crate::error::{Context, Result};
use crate::host::cache::Cache;
use crate::host::record::Record;
use crate::host::{console, rootfs, sandbox_files};
use crate::launch::{self, Launcher};

/// Removes whatever the shim had of the container `-id`, in the working directory, and returns the answer for containerd.
pub(super) fn delete(flags: &Flags) -> Result<Vec<u8>> {
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().doing(|| "cannot find the bundle".into())?,
        given => PathBuf::from(given),
    };
    let record = Record::load(&bundle).doing(|| "cannot read the record of the container".into())?;
    let record = match record {
        Some(record) => record,
        // The bundle may be gone already; the shim's socket lies elsewhere.
        None => Record { socket: address_of(flags, &bundle), ..Record::default() },
    };
    let pid = clean_up(&flags.id, &bundle, &record)?;
    let response = DeleteResponse {
        pid: unsigned(pid),
        exit_status: unsigned(skiff_protocol::exit_code_of_signal(libc::SIGKILL)),
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..DeleteResponse::default()
    };
    response.write_to_bytes().doing(|| "cannot encode the response".into())
}

/// Where the shim of a container listens that has left no record.
fn address_of(flags: &Flags, bundle: &Path) -> String {
    let options =
        StartOpts { address: flags.address.clone(), namespace: flags.namespace.clone(), ..StartOpts::default() };
    // Without a readable specification no shim was started for a pod.
    options.socket_address(&socket::group_of(bundle, &flags.id).unwrap_or_else(|_| flags.id.clone()))
}

/// Removes whatever there may be of a container, and returns the pid that its first process had, 0 without one. Every step is
/// tried, whatever became of the others; the first error is returned.
fn clean_up(id: &str, bundle: &Path, record: &Record) -> Result<i32> {
    let launcher = launch::recover(record, id, bundle);
    let pid = launcher.as_ref().ok().and_then(|launcher| launcher.as_ref()?.recorded_pid()).unwrap_or(0);
    let steps = [
        if record.launcher.is_some() { clean_cache(record) } else { Ok(()) },
        launcher.and_then(|launcher| launcher.map_or(Ok(()), |launcher| end_processes(&*launcher))),
        remove_cgroup(id, record),
        if record.launcher.is_none() { sandbox_files::remove(bundle) } else { Ok(()) },
        rootfs::unmount(&bundle.join("rootfs")).doing(|| "cannot unmount the root file system".into()),
        remove_sockets(record),
    ];
    steps.into_iter().collect::<Result<()>>().map(|()| pid)
}

/// Removes the sockets that a killed shim left, its own and those of its terminals. containerd also cleans up after each container of a
/// pod whose shim serves on: others of that pod may just be waiting for their terminals.
fn remove_sockets(record: &Record) -> Result<()> {
    // This waits for a shim that serves, so it is asked once.
    if socket::is_served(&record.socket) {
        return Ok(());
    }
    let terminals = console::remove_sockets_of(record.shim_pid).doing(|| "cannot remove terminal sockets".into());
    let own = socket::remove(&record.socket);
    terminals.and(own)
}

/// Removes what a compilation for the container has left, which ended with the shim.
fn clean_cache(record: &Record) -> Result<()> {
    match Cache::open(&record.settings.cache_dir, record.settings.cache_max_bytes) {
        Ok(cache) => cache.remove_unlocked().doing(|| "cannot clean the cache of compiled code".into()),
        Err(_) => Ok(()),
    }
}

fn end_processes(launcher: &dyn Launcher) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "cannot start".into())?;
    runtime.block_on(launcher.delete())
}

/// Also removes what the launcher never came to know of, because it was killed with the shim.
fn remove_cgroup(id: &str, record: &Record) -> Result<()> {
    let Some(cgroup) = record.cgroup(id).doing(|| "cannot find the container's cgroup".into())? else { return Ok(()) };
    cgroup.kill_all().and_then(|()| cgroup.remove()).doing(|| "cannot remove the container's cgroup".into())
}

//! The kernel's own tracing (tracefs) of containerd and everything that it starts. It costs nothing while it is off, and
//! needs nothing from what is traced.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What is recorded: processes and who has a processor, cgroups, and the system calls that mark a step.
const EVENTS: [&str; 12] = [
    "sched:sched_process_fork",
    "sched:sched_process_exec",
    "sched:sched_process_exit",
    "sched:sched_switch",
    "cgroup:cgroup_mkdir",
    "cgroup:cgroup_attach_task",
    "syscalls:sys_enter_mount",
    "syscalls:sys_exit_mount",
    "syscalls:sys_enter_pivot_root",
    "syscalls:sys_enter_umount",
    "syscalls:sys_exit_umount",
    "syscalls:sys_enter_seccomp",
];
/// Of each processor; a start fills a small part of it.
const BUFFER_KB: &str = "8192";

/// A trace of its own, beside others that the kernel may keep. Dropping it removes it.
pub(super) struct Kernel {
    mount: PathBuf,
    instance: PathBuf,
}

impl Kernel {
    /// Prepares a trace, with a mount of tracefs in `directory`.
    ///
    /// # Errors
    /// When the kernel has no tracing.
    pub(super) fn prepare(directory: &Path) -> Result<Self> {
        let at = directory.join("tracefs");
        fs::create_dir_all(&at)?;
        mount(Some("tracefs"), &at, Some("tracefs"), MsFlags::empty(), None::<&str>)
            .context("cannot mount tracefs: the trace needs a kernel with tracing")?;
        let instance = at.join("instances").join(format!("skiff-bench-{}", std::process::id()));
        let kernel = Self { mount: at, instance };
        fs::create_dir(&kernel.instance).context("cannot make a trace")?;
        kernel.set("tracing_on", "0")?;
        kernel.set("trace_clock", "mono")?;
        kernel.set("buffer_size_kb", BUFFER_KB)?;
        kernel.set("options/event-fork", "1")?;
        kernel.set("set_event", &EVENTS.join("\n"))?;
        Ok(kernel)
    }

    /// Begins to record the process `pid` and all that it starts.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn begin(&self, pid: u32) -> Result<()> {
        let threads = threads_of(pid)?.iter().map(u32::to_string).collect::<Vec<_>>();
        self.set("trace", "")?;
        self.set("set_event_pid", &threads.join(" "))?;
        self.set("tracing_on", "1")
    }

    /// Stops, and returns what was recorded since.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn end(&self) -> Result<String> {
        self.set("tracing_on", "0")?;
        fs::read_to_string(self.instance.join("trace")).context("cannot read the trace")
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.instance.join(file), value).with_context(|| format!("cannot set `{file}` of the trace"))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        fs::remove_dir(&self.instance).unwrap_or_default();
        umount2(&self.mount, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

/// The threads of the process.
///
/// # Errors
/// When it is gone.
pub(super) fn threads_of(pid: u32) -> Result<Vec<u32>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).collect())
}

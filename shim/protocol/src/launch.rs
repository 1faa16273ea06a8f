//! What the first stage of a container's process is told: the steps that it takes, in their order, until it executes the process's
//! program. Whoever wrote them has understood the container's specification; whoever takes them knows nothing of it.
//!
//! The shim sends one [`Stage`] as a line of JSON. The first stage replies with one, a string, if it cannot take a step: why, in a
//! sentence. Its end of the socket closes when the program is executed.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

/// Flags of `mount(2)`; steps carry their bits.
pub use nix::mount::MsFlags as MountFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The name under which the engine's program is the first stage. No process of a container is executed under it.
pub const FIRST_STAGE: &str = "skiff-first-stage";
/// The number of the descriptor through which the first stage hears what to do, and reports.
pub const STAGE_FD: i32 = 5;
/// The number of the descriptor of the process whose namespaces a further process joins.
pub const JOINED_FD: i32 = 6;
/// The number of the descriptor of the connection through which the first stage sends a terminal.
pub const CONSOLE_FD: i32 = 7;

/// The longest line, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// All that a first stage does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What it does, in this order.
    pub steps: Vec<Step>,
    /// What it executes in the end; a name without a slash is looked for in the `PATH` of `env`.
    pub args: Vec<String>,
    /// The environment of that.
    pub env: Vec<String>,
    /// The instructions that [`Step::Filter`] installs.
    #[serde(default)]
    pub filter: Vec<u64>,
}

/// One thing that the kernel is asked for, or a few that belong together. Paths of the container are absolute, and are looked up
/// below its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Joins the session keyring of this name, which is made if there is none.
    Keyring(String),
    /// Becomes the leader of a session.
    Session,
    /// Moves into cgroups by writing `0` to these files.
    Cgroups(Vec<PathBuf>),
    /// Joins the namespace of this kind at this path.
    Join(Namespace, PathBuf),
    /// Joins the namespaces of the process [`JOINED_FD`], and its root.
    JoinProcess(Vec<Namespace>),
    /// Makes a new namespace of this kind.
    New(Namespace),
    /// Brings up the loopback device of a new network namespace.
    Loopback,
    /// Applies the AppArmor profile of this name to what is executed.
    AppArmor(String),
    /// Sets the OOM score (proc_pid_oom_score_adj(5)).
    OomScore(i32),
    /// Keeps mounts from propagating to the node, and makes the directory `path` the container's root. The kernel's root stays as it
    /// is until [`Step::Pivot`].
    Root {
        /// Where the root file system is mounted.
        path: PathBuf,
        /// The [`MountFlags`] of propagation for all mounts.
        propagation: u64,
    },
    /// Mounts something; its mount point is made if there is none.
    Mount(Mount),
    /// Sets the flags of the mount at this path.
    Remount(PathBuf, u64),
    /// Makes a device node.
    Device(Device),
    /// Makes a symbolic link.
    Link(Link),
    /// Makes a directory with all directories above it.
    Directory(PathBuf),
    /// Replaces standard streams that are the node's `/dev/null` by the container's.
    NullStreams,
    /// Makes a mount of this path, if it is there, which cannot be written to.
    ReadOnly(PathBuf),
    /// Hides these paths, as far as they are there: files behind `/dev/null`, directories behind an empty one.
    Mask(Vec<PathBuf>),
    /// Sets this kernel parameter, named by its path below `/proc/sys` of the container.
    Sysctl(String, String),
    /// Makes the container's root the only root.
    Pivot,
    /// Sets the host's name.
    HostName(String),
    /// Sets the name of the host's domain.
    DomainName(String),
    /// Makes a terminal the standard streams, and sends its other end through [`CONSOLE_FD`].
    Terminal,
    /// Sets the mask for the modes of new files.
    Umask(u32),
    /// Sets a limit of the process.
    Limit(Limit),
    /// Rules out privileges that an executed file has.
    NoNewPrivileges,
    /// Sets `HOME` to the user's directory in the container's `/etc/passwd`, unless the environment has it.
    Home,
    /// Becomes the process's user in its working directory.
    Become(Identity),
    /// Installs the filter of system calls.
    Filter(FilterFlags),
}

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// Of cgroups.
    Cgroup,
    /// Of System V IPC and message queues.
    Ipc,
    /// Of mounts.
    Mount,
    /// Of network devices.
    Network,
    /// Of process ids.
    Pid,
    /// Of the host's name.
    Uts,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The type of the file system; [`BIND`] for one that is mounted elsewhere already.
    pub kind: String,
    /// What is mounted: a path of the node for a bind mount, otherwise a name.
    pub source: String,
    /// Where.
    pub target: PathBuf,
    /// With these [`MountFlags`].
    pub flags: u64,
    /// The options of the file system.
    pub data: String,
    /// The [`MountFlags`] of propagation that it gets, one after the other.
    pub propagation: Vec<u64>,
    /// The [`MountFlags`] that a bind mount gets once it is there.
    pub then: Option<u64>,
}

/// The kind of a bind mount.
pub const BIND: &str = "bind";

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is a block device instead of a character device.
    pub is_block: bool,
    /// Its major and minor number.
    pub number: (u32, u32),
    /// Its permissions.
    pub mode: u32,
    /// Its user and group.
    pub owner: (u32, u32),
}

/// A symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Where it is.
    pub path: PathBuf,
    /// What it names.
    pub target: PathBuf,
    /// Whether it takes the place of a file that is there. Otherwise such a file stays.
    pub replaces: bool,
}

/// A limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Of what.
    pub resource: Resource,
    /// The limit that applies.
    pub soft: u64,
    /// The limit that it may be raised to.
    pub hard: u64,
}

/// What a process's use of can be limited, under OCI's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "getrlimit(2) says what they are")]
pub enum Resource {
    #[serde(rename = "RLIMIT_AS")]
    As,
    #[serde(rename = "RLIMIT_CORE")]
    Core,
    #[serde(rename = "RLIMIT_CPU")]
    Cpu,
    #[serde(rename = "RLIMIT_DATA")]
    Data,
    #[serde(rename = "RLIMIT_FSIZE")]
    Fsize,
    #[serde(rename = "RLIMIT_LOCKS")]
    Locks,
    #[serde(rename = "RLIMIT_MEMLOCK")]
    Memlock,
    #[serde(rename = "RLIMIT_MSGQUEUE")]
    Msgqueue,
    #[serde(rename = "RLIMIT_NICE")]
    Nice,
    #[serde(rename = "RLIMIT_NOFILE")]
    Nofile,
    #[serde(rename = "RLIMIT_NPROC")]
    Nproc,
    #[serde(rename = "RLIMIT_RSS")]
    Rss,
    #[serde(rename = "RLIMIT_RTPRIO")]
    Rtprio,
    #[serde(rename = "RLIMIT_RTTIME")]
    Rttime,
    #[serde(rename = "RLIMIT_SIGPENDING")]
    Sigpending,
    #[serde(rename = "RLIMIT_STACK")]
    Stack,
}

/// As whom a process runs, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// The other groups.
    pub groups: Vec<u32>,
    /// What it may do beyond that.
    pub capabilities: Capabilities,
    /// The working directory.
    pub directory: PathBuf,
}

/// How a filter of system calls is installed (seccomp(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterFlags {
    /// The kernel logs what it refuses.
    pub logs: bool,
    /// The process need not do without the processor's guesses about memory.
    pub speculates: bool,
}

/// Sets of capabilities (capabilities(7)): the bit of each that is in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the sets are the kernel's")]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// Writes `value` as one line.
///
/// # Errors
/// Those of writing.
pub fn write_line(value: &impl Serialize, mut writer: impl Write) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// Reads what [`write_line`] wrote; `None` at the end.
///
/// # Errors
/// Those of reading; `InvalidData` for what is not such a value.
pub fn read_line<T: DeserializeOwned>(reader: impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let stage = Stage {
            steps: vec![Step::Session, Step::Join(Namespace::Uts, "/n".into())],
            args: vec!["/a\nb".into()],
            env: vec!["A=1".into()],
            filter: vec![6 << 48],
        };
        let mut text = Vec::new();
        write_line(&stage, &mut text).unwrap();
        write_line(&"no", &mut text).unwrap();
        let mut reader = text.as_slice();
        assert_eq!(read_line::<Stage>(&mut reader).unwrap(), Some(stage));
        assert_eq!(read_line::<String>(&mut reader).unwrap(), Some("no".into()));
        assert_eq!(read_line::<String>(&mut reader).unwrap(), None);
        assert!(read_line::<String>(&b"\"made"[..]).is_err());
    }
}

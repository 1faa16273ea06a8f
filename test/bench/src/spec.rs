//! The OCI specification that every target gets: what `ctr run` makes, no more and no less, but for a memory limit and
//! directories of the host where a plan asks for them.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::container::Plan;

/// The network that a container sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// A namespace of its own, without interfaces.
    Own,
    /// The host's.
    Host,
}

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The specification of the container `id`, as JSON.
pub(crate) fn spec(id: &str, plan: &Plan<'_>) -> Value {
    let mut command = vec![plan.image.entrypoint.clone()];
    command.extend_from_slice(&plan.arguments);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": command,
            "env": plan.environment,
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "mounts": mounts(&plan.folders),
        "linux": {
            "resources": resources(plan.limit_bytes),
            "cgroupsPath": format!("/{id}"),
            "namespaces": namespaces(plan.network),
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn resources(limit_bytes: Option<u64>) -> Value {
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(bytes) = limit_bytes {
        resources["memory"] = json!({ "limit": bytes });
    }
    resources
}

fn namespaces(network: Network) -> Vec<Value> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    if network == Network::Own {
        kinds.push("network");
    }
    kinds.into_iter().map(|kind| json!({ "type": kind })).collect()
}

fn mounts(folders: &[PathBuf]) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let own = [
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ];
    let bind =
        |folder: &PathBuf| json!({"destination": folder, "type": "bind", "source": folder, "options": ["rbind", "ro"]});
    own.into_iter().chain(folders.iter().map(bind)).collect()
}

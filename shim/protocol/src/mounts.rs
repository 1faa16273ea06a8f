//! The kernel's own file systems. Both the shim and the engine keep guests out of them.

/// File systems that control the kernel instead of holding files. Devices (`devtmpfs`) are not among them, because a pod
/// may choose to mount a single one.
pub const KERNEL_FILE_SYSTEMS: [&str; 22] = [
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];

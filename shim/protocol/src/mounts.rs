//! The kernel's own file systems, and how the kernel writes mount points down: the shim and the engine both look for them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// File systems that are the kernel's own controls and not somebody's files. Devices (`devtmpfs`) are not among them: a single
/// one may be somebody's choice.
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

/// A path as `/proc/PID/mountinfo` has it: space, tab, newline and backslash are `\` and three octal digits
/// (proc_pid_mountinfo(5)).
pub fn unescape_mount(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_read_as_the_kernel_writes_it() {
        for (text, expected) in [
            ("/a", "/a"),
            ("/a\\040b\\011c", "/a b\tc"),
            ("/back\\134slash", "/back\\slash"),
            ("/cut\\04", "/cut\\04"),
            ("/no\\999", "/no\\999"),
        ] {
            assert_eq!(unescape_mount(text), PathBuf::from(expected), "{text}");
        }
    }
}

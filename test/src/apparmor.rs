//! A profile of AppArmor for the suites.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::places::tools;

/// The name of the profile that [`load_apparmor_profile`] loads.
pub const APPARMOR_PROFILE: &str = "skiff-test";
/// To the kernel, a guest's files are below `/dev/.skiff/root`.
const TEXT: &str = "profile skiff-test flags=(attach_disconnected,mediate_deleted) {
  capability, network, mount, umount, ptrace, signal, file,
  deny /denied/** w,
  deny /dev/.skiff/root/denied/** w,
}
";

/// Whether the node's kernel applies profiles.
pub fn has_apparmor() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    Path::new("/sys/kernel/security/apparmor").exists() && enabled.is_ok_and(|text| text.starts_with('Y'))
}

/// Loads a profile into the kernel, once.
pub fn load_apparmor_profile() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        let mut parser = Command::new(tools().join("apparmor_parser"));
        let parser = parser.args(["--replace", "--skip-cache", "--quiet"]).stdin(Stdio::piped());
        let mut child = parser.spawn().expect("the parser of profiles can be started");
        let mut stdin = child.stdin.take().expect("its standard input is a pipe");
        stdin.write_all(TEXT.as_bytes()).expect("the parser reads the profile");
        drop(stdin);
        let ended = child.wait().expect("the parser ends");
        assert!(ended.success(), "the kernel has AppArmor and takes the profile");
    });
}

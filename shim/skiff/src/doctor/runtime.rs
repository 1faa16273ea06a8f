//! Is there an OCI runtime that is new enough?

use std::path::Path;
use std::process::Command;

use super::check::Check;

/// The first runc that has everything that skiff needs.
const RUNC_MIN: (u32, u32) = (1, 1);

pub(super) fn check(runtime: &Path) -> Check {
    const NAME: &str = "oci runtime";
    let shown = runtime.display();
    let install = "install runc 1.1 or newer, or name another runtime with the option `BinaryName`";
    let Ok(output) = Command::new(runtime).arg("--version").output() else {
        return Check::fail(NAME, format!("`{shown}` cannot be run"), install);
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(("runc", found)) if found < RUNC_MIN => {
            Check::fail(NAME, format!("`{shown}` has version {}.{}", found.0, found.1), install)
        }
        Some((program, found)) => Check::ok(NAME, format!("`{shown}` is {program} {}.{}", found.0, found.1)),
        None => Check::warn(NAME, format!("`{shown} --version` does not report a version"), install),
    }
}

/// The program's name and version in the first line of what `--version` prints.
fn version(text: &str) -> Option<(&str, (u32, u32))> {
    let (program, version) = text.lines().next()?.split_once(" version ")?;
    let mut numbers = version.trim().trim_start_matches('v').split(['.', '-', '+', '~']);
    Some((program, (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_tell_their_versions() {
        assert_eq!(version("runc version 1.4.0\ncommit: x\n"), Some(("runc", (1, 4))));
        assert_eq!(version("runc version 1.1.0-rc.1\n"), Some(("runc", (1, 1))));
        assert_eq!(version("crun version 1.14.4\n"), Some(("crun", (1, 14))));
        assert_eq!(version("busybox"), None);
    }
}

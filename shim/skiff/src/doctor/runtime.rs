//! Is there an OCI runtime that is new enough?

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::ask::{self, ask};
use super::check::Check;
use super::running::look_up;

/// The first runc that has everything that skiff needs.
const RUNC_MIN: (u32, u32) = (1, 1);

/// Checks the runtime, a name to be found in `path` or a path; `is_running` says whether that is the `PATH` of a running containerd.
pub(super) fn check(runtime: &Path, path: &OsStr, is_running: bool) -> Check {
    const NAME: &str = "oci runtime";
    let install = "install runc 1.1 or newer, or name another runtime with the option `BinaryName`";
    let Some(program) = look_up(runtime, path) else {
        let shown = runtime.display();
        if is_running {
            let found = format!("`{shown}` is not in the `PATH` of the containerd that runs: `{}`", path.display());
            return Check::fail(NAME, found, install);
        }
        let advice = format!("where containerd runs, look there; otherwise {install}");
        return Check::warn(
            NAME,
            format!("`{shown}` is not in the `PATH` of this shell, and no containerd runs here"),
            advice,
        );
    };
    let shown = program.display();
    let text = match ask(Command::new(&program).arg("--version"), ask::LIMIT) {
        Ok(text) => text,
        Err(error) => return Check::fail(NAME, format!("`{shown}` cannot be run: {error}"), install),
    };
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
    use crate::doctor::check::Status;

    #[test]
    fn a_runtime_that_is_not_in_the_shells_path_is_no_failure_of_the_node() {
        let status = |is_running| check(Path::new("runc"), OsStr::new("/no/such/place"), is_running).status;
        assert_eq!((status(false), status(true)), (Status::Warn, Status::Fail));
        let shell = check(Path::new("/bin/sh"), OsStr::new(""), true);
        assert_eq!(shell.status, Status::Warn, "it is there, but has no version of a runtime: {shell:?}");
    }

    #[test]
    fn runtimes_tell_their_versions() {
        assert_eq!(version("runc version 1.4.0\ncommit: x\n"), Some(("runc", (1, 4))));
        assert_eq!(version("runc version 1.1.0-rc.1\n"), Some(("runc", (1, 1))));
        assert_eq!(version("crun version 1.14.4\n"), Some(("crun", (1, 14))));
        assert_eq!(version("busybox"), None);
    }
}

//! Whether only root can change a directory of the node and every step on the way to it. It holds programs that root runs. The
//! cache of compiled code has the same rule.

use std::fs::Metadata;
use std::path::Path;

use skiff_linux::trust::{self, Distrust, Step};

use crate::node::files::Host;

/// Why somebody other than root could replace programs at `path`; `None` when only root can. Steps that do not exist yet will be
/// root's.
pub(crate) fn distrust(host: &Host, path: &Path) -> Option<String> {
    let steps = host.steps(path).ok()?;
    let last = steps.len().saturating_sub(1);
    steps.iter().enumerate().find_map(|(index, (step, metadata))| {
        let fault = fault(metadata, if index == last { Step::Last } else { Step::Way })?;
        Some(format!("cannot be trusted: `{}` {fault}", step.display()))
    })
}

fn fault(metadata: &Metadata, place: Step) -> Option<String> {
    Some(match trust::distrust(metadata, place, &[0])? {
        Distrust::Owner(owner) => format!("belongs to user {owner}"),
        Distrust::Writable(mode) => format!("can be written by users other than root (mode {mode:04o})"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn every_step_to_the_programs_must_be_roots_alone() {
        assert!(nix::unistd::geteuid().is_root(), "owners are changed: run the tests as root");
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(directory.path().into());
        let place = |path: &str| directory.path().join(path);
        fs::create_dir_all(place("opt/skiff/versions")).unwrap();
        fs::create_dir_all(place("data/skiff")).unwrap();
        symlink("../data", place("opt/link")).unwrap();
        let check = |path: &str, expected: Option<&str>| {
            let expected = expected.map(|fault| format!("cannot be trusted: {fault}"));
            assert_eq!(distrust(&host, Path::new(path)), expected, "{path}");
        };
        let mode = |path: &str, mode| fs::set_permissions(place(path), Permissions::from_mode(mode)).unwrap();
        check("/opt/skiff/versions", None);
        check("/opt/link/skiff/versions", None);
        mode("opt", 0o775);
        check("/opt/skiff/versions", Some("`/opt` can be written by users other than root (mode 0775)"));
        mode("opt", 0o1777);
        check("/opt/skiff/versions", None);
        check("/opt", Some("`/opt` can be written by users other than root (mode 1777)"));
        check("/opt/new/versions", Some("`/opt` can be written by users other than root (mode 1777)"));
        mode("opt", 0o755);
        mode("data", 0o757);
        check("/opt/link/skiff", Some("`/data` can be written by users other than root (mode 0757)"));
        mode("data", 0o755);
        chown(place("opt/skiff"), Some(1000), None).unwrap();
        check("/opt/skiff/versions", Some("`/opt/skiff` belongs to user 1000"));
        std::os::unix::fs::lchown(place("opt/link"), Some(1000), None).unwrap();
        check("/opt/link/skiff", Some("`/opt/link` belongs to user 1000"));
    }
}

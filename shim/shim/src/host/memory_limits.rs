//! The memory limits of a container, as files that its engine reads while the guest runs.

use std::fs::File;
use std::io::{self, ErrorKind};

use skiff_linux::cgroup::Cgroup;
use skiff_protocol::LIMIT_FILES_MAX;

use super::read_only;

/// Opens the memory limits that apply to the container and exist, nearest first, up to the number that a message to the
/// engine can carry. Nobody can write to them through the descriptors, not even an attacker who has taken over the engine.
///
/// # Errors
/// Those of opening them.
pub(crate) fn open(cgroup: &Cgroup) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    for (mountpoint, inside) in cgroup.memory_limits() {
        if files.len() == LIMIT_FILES_MAX {
            break;
        }
        match read_only::open(&mountpoint, &inside) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_cgroup_deeper_than_a_message_is_long_gives_its_nearest_limits() {
        let deep = format!("/skiff-test-{}-deep{}", std::process::id(), "/d".repeat(20));
        let cgroup = Cgroup::from_spec(&deep, false, "").unwrap();
        cgroup.create_empty().unwrap();
        let files = open(&cgroup);
        let top = |path: &str| path.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        Cgroup::from_spec(&top(&deep), false, "").unwrap().remove().unwrap();
        let mut files = files.unwrap();
        assert_eq!(files.len(), LIMIT_FILES_MAX);
        assert!(files[0].write_all(b"1").is_err(), "nobody writes through it");
    }
}

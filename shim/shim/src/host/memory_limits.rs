//! The memory limits of a container, as files that its engine reads while the guest runs.

use std::io::{self, ErrorKind};
use std::path::Path;

use skiff_linux::cgroup::Cgroup;
use skiff_protocol::{LIMIT_FILES_MAX, MemoryLimit};

use super::read_only;

/// Opens the memory limits that apply to the container and exist, nearest first, up to the number that a message to the
/// engine can carry. Nobody can write to them through the descriptors, not even an attacker who has taken over the engine.
///
/// # Errors
/// Those of opening them.
pub(crate) fn open(cgroup: &Cgroup) -> io::Result<Vec<MemoryLimit>> {
    let mut limits = Vec::new();
    for (mountpoint, inside) in cgroup.memory_limits() {
        if limits.len() == LIMIT_FILES_MAX {
            break;
        }
        let opened = |path: &Path| read_only::open(&mountpoint, path);
        match opened(&inside).and_then(|limit| Ok((limit, opened(&inside.with_file_name("memory.stat"))?))) {
            Ok((limit, stat)) => limits.push(MemoryLimit { limit, stat }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(limits)
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
        let limits = open(&cgroup);
        let top = |path: &str| path.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        Cgroup::from_spec(&top(&deep), false, "").unwrap().remove().unwrap();
        let mut limits = limits.unwrap();
        assert_eq!(limits.len(), LIMIT_FILES_MAX);
        assert!(limits[0].limit.write_all(b"1").is_err(), "nobody writes through it");
    }
}

//! The containerd that runs on this node: which program it is, which file configures it, and where it and its shims look for
//! programs. That is not where the shell of whoever runs the doctor looks.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::processes::is_trusted;

/// What the process is called, whoever brought the program: a package, k3s, RKE2, MicroK8s.
const NAME: &[u8] = b"containerd";

/// A running containerd.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) pid: u32,
    /// The kernel's link to its program, which leads there even if the file was replaced.
    pub(super) program: PathBuf,
    /// The file that its command line names.
    pub(super) config: Option<PathBuf>,
    /// Its `PATH`.
    pub(super) path: OsString,
}

/// Those of this node that root or this user has started, in the order of their pids: their programs are run, and look for others in
/// their `PATH`. The files of one inside a container of this node are other ones.
pub(super) fn find(proc: &Path) -> Vec<Running> {
    let mounts = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let own = mounts(&proc.join("self"));
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut found: Vec<Running> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let process = entry.path();
            let is_containerd = fs::read(process.join("comm")).ok()?.trim_ascii_end() == NAME;
            (is_containerd && mounts(&process) == own && is_trusted(proc, &process)).then(|| read(pid, &process))?
        })
        .collect();
    found.sort_by_key(|running| running.pid);
    found
}

fn read(pid: u32, process: &Path) -> Option<Running> {
    let words = |name: &str| -> Option<Vec<OsString>> {
        let bytes = fs::read(process.join(name)).ok()?;
        Some(bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect())
    };
    let config = config_of(&words("cmdline")?).map(|config| {
        // Relative to where the process is, if it is not absolute.
        fs::read_link(process.join("cwd")).unwrap_or_default().join(config)
    });
    let path = words("environ")?.iter().find_map(|variable| value_of(variable, b"PATH=")).unwrap_or_default();
    Some(Running { pid, program: process.join("exe"), config, path })
}

/// The value of the option `--config` or `-c`.
fn config_of(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.as_bytes() {
            b"-c" | b"-config" | b"--config" => return rest.next().map(PathBuf::from),
            _ => {
                let value =
                    [&b"--config="[..], b"-config=", b"-c="].iter().find_map(|option| value_of(argument, option));
                if let Some(value) = value {
                    return Some(value.into());
                }
            }
        }
    }
    None
}

fn value_of(word: &OsStr, prefix: &[u8]) -> Option<OsString> {
    word.as_bytes().strip_prefix(prefix).map(|value| OsStr::from_bytes(value).to_owned())
}

/// The file that `program` means for whoever has this `PATH`.
pub(super) fn look_up(program: &Path, path: &OsStr) -> Option<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return program.exists().then(|| program.to_path_buf());
    }
    std::env::split_paths(path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use nix::unistd::Uid;

    use super::*;

    #[test]
    fn a_running_containerd_shows_its_program_configuration_and_path() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, name: &str, arguments: &[u8], environment: &[u8], mounts: &str| {
            let process = proc.path().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::write(process.join("comm"), format!("{name}\n")).unwrap();
            fs::write(process.join("cmdline"), arguments).unwrap();
            fs::write(process.join("environ"), environment).unwrap();
            symlink("/var/lib", process.join("cwd")).unwrap();
            symlink(mounts, process.join("ns/mnt")).unwrap();
        };
        process("self", "skiff", b"skiff\0doctor\0", b"PATH=/bin\0", "mnt:[1]");
        process("20", "containerd", b"containerd\0-c\0/k3s/config.toml\0", b"A=b\0PATH=/k3s/bin:/bin\0", "mnt:[1]");
        process("3", "containerd", b"/usr/bin/containerd\0--config=c.toml\0", b"PATH=/usr/bin\0", "mnt:[1]");
        process("7", "containerd", b"containerd\0--log-level\0debug\0", b"", "mnt:[1]");
        process("8", "containerd", b"containerd\0", b"PATH=/inner\0", "mnt:[2]");
        process("9", "containerd-shim", b"containerd-shim\0", b"PATH=/bin\0", "mnt:[1]");
        let running = |pid: u32, config: Option<&str>, path: &str| Running {
            pid,
            program: proc.path().join(pid.to_string()).join("exe"),
            config: config.map(PathBuf::from),
            path: path.into(),
        };
        let expected = [
            running(3, Some("/var/lib/c.toml"), "/usr/bin"),
            running(7, None, ""),
            running(20, Some("/k3s/config.toml"), "/k3s/bin:/bin"),
        ];
        assert_eq!(find(proc.path()), expected);
        if Uid::effective().is_root() {
            process("2", "containerd", b"containerd\0", b"PATH=/tmp\0", "mnt:[1]");
            chown(proc.path().join("2"), Some(1000), None).unwrap();
            assert_eq!(find(proc.path()), expected, "one of another user");
        }
    }

    #[test]
    fn a_program_is_found_in_the_path_that_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let runc = directory.path().join("runc");
        fs::write(&runc, "").unwrap();
        let path = std::env::join_paths([Path::new("/no/such/place"), directory.path()]).unwrap();
        assert_eq!(look_up(Path::new("runc"), &path), Some(runc.clone()));
        assert_eq!(look_up(&runc, OsStr::new("")), Some(runc));
        assert_eq!(look_up(Path::new("crun"), &path), None);
        assert_eq!(look_up(Path::new("/no/such/runc"), &path), None);
    }
}

//! The files of a pod (`/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`) and its shared memory. They are what containerd makes for a
//! pause container.
//! <https://github.com/containerd/containerd/blob/v2.4.2/internal/cri/server/podsandbox/sandbox_run_linux.go> (`setupSandboxFiles`)

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::error::{Context, Result, chain};
use crate::host::rootfs::detach;
use crate::spec::pod::PodConfig;
use crate::spec::pod_files::PodFiles;

/// containerd's directory for a bundle on the node's disk, a link in the bundle. Containers can write to the files and must not
/// fill the file system in memory that bundles are on.
const ON_DISK: &str = "work";
const SHARED_MEMORY: &str = "shm";
/// 64 MiB, as for every container runtime.
const SHARED_MEMORY_OPTIONS: &str = "mode=1777,size=67108864";

/// The files of a pod; dropping it removes them.
#[derive(Debug)]
pub(crate) struct SandboxFiles {
    /// The bundle, also when containerd has given it another name in order to remove it; `None` once they are removed.
    bundle: Option<File>,
    /// Where they are.
    pub(crate) places: PodFiles,
}

impl SandboxFiles {
    /// Makes the files of `pod` in `bundle`. Blocks.
    pub(crate) fn make(bundle: &Path, pod: &PodConfig) -> Result<Self> {
        let directory = directory_of(bundle);
        let places = PodFiles {
            hostname: directory.join("hostname"),
            hosts: directory.join("hosts"),
            resolv_conf: directory.join("resolv.conf"),
            shared_memory: (!pod.has_nodes_ipc).then(|| bundle.join(SHARED_MEMORY)),
        };
        let handle = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(bundle);
        let handle = handle.doing(|| "cannot open the bundle of the sandbox".into())?;
        let files = Self { bundle: Some(handle), places };
        files.write(pod).doing(|| "cannot make the files of the pod".into())?;
        Ok(files)
    }

    fn write(&self, pod: &PodConfig) -> io::Result<()> {
        let hostname = match pod.hostname.as_str() {
            "" => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
            given => given.into(),
        };
        write_new(&self.places.hostname, format!("{hostname}\n").as_bytes())?;
        write_new(&self.places.hosts, &of_the_node("/etc/hosts")?)?;
        let resolver = match &pod.dns {
            Some(dns) => dns.to_text().into(),
            None => of_the_node("/etc/resolv.conf")?,
        };
        write_new(&self.places.resolv_conf, &resolver)?;
        let Some(place) = &self.places.shared_memory else { return Ok(()) };
        fs::DirBuilder::new().mode(0o700).create(place)?;
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("shm"), place, Some("tmpfs"), flags, Some(SHARED_MEMORY_OPTIONS))?;
        Ok(())
    }

    /// Removes them. Blocks.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.remove_now()
    }

    fn remove_now(&mut self) -> Result<()> {
        let Some(bundle) = self.bundle.take() else { return Ok(()) };
        remove(Path::new(&format!("/proc/self/fd/{}", bundle.as_raw_fd())))
    }
}

impl Drop for SandboxFiles {
    fn drop(&mut self) {
        if let Err(error) = self.remove_now() {
            log::error!("{}", chain(&error));
        }
    }
}

/// Where the files of the pod are whose sandbox has this bundle.
fn directory_of(bundle: &Path) -> PathBuf {
    fs::canonicalize(bundle.join(ON_DISK)).unwrap_or_else(|_| bundle.into())
}

/// Writes a file that only root can change.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(content)
}

fn of_the_node(path: &str) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("`{path}`: {error}")))
}

/// Removes what there is of the files of the pod whose sandbox has this `bundle`. The shared memory lives on in containers that have it
/// mounted. Blocks.
pub(crate) fn remove(bundle: &Path) -> Result<()> {
    let place = bundle.join(SHARED_MEMORY);
    detach(&place).doing(|| format!("cannot unmount `{}`", place.display()))?;
    let directory = directory_of(bundle);
    for name in ["hostname", "hosts", "resolv.conf"] {
        ignore_missing(fs::remove_file(directory.join(name))).doing(|| "cannot remove the files of the pod".into())?;
    }
    ignore_missing(fs::remove_dir(&place)).doing(|| format!("cannot remove `{}`", place.display()))
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::pod::Dns;

    fn is_mounted(place: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let expected = format!("shm {} tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k", place.display());
        mounts.lines().any(|line| line.starts_with(&expected))
    }

    #[test]
    fn the_files_are_there_until_they_are_dropped() {
        let bundle = tempfile::tempdir().unwrap();
        let dns = Dns { servers: vec!["10.0.0.1".into()], ..Dns::default() };
        let pod = PodConfig { hostname: "pod-1".into(), dns: Some(dns), ..PodConfig::default() };
        let files = SandboxFiles::make(bundle.path(), &pod).unwrap();
        let read = |name| fs::read_to_string(bundle.path().join(name)).unwrap();
        assert_eq!((read("hostname"), read("resolv.conf")), ("pod-1\n".into(), "nameserver 10.0.0.1\n".into()));
        assert_eq!(read("hosts"), fs::read_to_string("/etc/hosts").unwrap());
        let place = files.places.shared_memory.clone().unwrap();
        assert!(is_mounted(&place));
        fs::write(place.join("file"), "in use").unwrap();
        drop(files);
        assert!(!is_mounted(&place));
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
        remove(bundle.path()).unwrap();
    }

    #[test]
    fn the_shared_memory_of_a_bundle_that_was_renamed_is_unmounted() {
        let directory = tempfile::tempdir().unwrap();
        let [bundle, renamed] = ["bundle", ".bundle"].map(|name| directory.path().join(name));
        fs::create_dir(&bundle).unwrap();
        let files = SandboxFiles::make(&bundle, &PodConfig::default()).unwrap();
        fs::rename(&bundle, &renamed).unwrap();
        assert!(is_mounted(&renamed.join(SHARED_MEMORY)));
        files.remove().unwrap();
        assert!(!is_mounted(&renamed.join(SHARED_MEMORY)));
        assert_eq!(fs::read_dir(&renamed).unwrap().count(), 0);
    }

    #[test]
    fn files_that_containers_can_write_are_on_disk() {
        let (bundle, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(disk.path(), bundle.path().join(ON_DISK)).unwrap();
        let pod = PodConfig { has_nodes_ipc: true, ..PodConfig::default() };
        let files = SandboxFiles::make(bundle.path(), &pod).unwrap();
        assert_eq!(files.places.hosts, disk.path().canonicalize().unwrap().join("hosts"));
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 3);
        drop(files);
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_pod_on_the_node_has_the_nodes_names_and_memory() {
        let bundle = tempfile::tempdir().unwrap();
        let files =
            SandboxFiles::make(bundle.path(), &PodConfig { has_nodes_ipc: true, ..PodConfig::default() }).unwrap();
        assert_eq!(files.places.shared_memory, None);
        let read = |name| fs::read_to_string(bundle.path().join(name)).unwrap();
        assert_eq!(read("hostname").trim(), nix::unistd::gethostname().unwrap().to_string_lossy());
        assert_eq!(read("resolv.conf"), fs::read_to_string("/etc/resolv.conf").unwrap());
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join(SHARED_MEMORY), "in the way").unwrap();
        assert!(SandboxFiles::make(bundle.path(), &PodConfig::default()).is_err());
        let left: Vec<_> = fs::read_dir(bundle.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [SHARED_MEMORY], "only what was there before");
    }
}

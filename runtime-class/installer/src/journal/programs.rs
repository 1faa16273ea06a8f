//! The three programs on the node: `ROOT/versions/ID/NAME`, and the link `ROOT/current` to the version that new pods get.
//!
//! A pod's shim finds the other programs beside its own file, so a version stays for as long as a process runs from it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use skiff_protocol::names::{PROGRAMS, SHIM};

use crate::error::{Context, Error, Result};
use crate::node::files::Host;
use crate::node::trust::distrust;

/// Where they may be. The first place that is writable, allows execution and can be changed by root alone is taken. The last one
/// is where GKE's nodes allow execution.
const ROOTS: [&str; 4] =
    ["/opt/skiff", "/usr/local/lib/skiff", "/var/lib/skiff/programs", "/home/kubernetes/bin/skiff"];
const CURRENT: &str = "current";
const VERSIONS: &str = "versions";
/// The length of the hash in a version's name, in characters.
const HASH_LENGTH: usize = 12;

/// The programs to install.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    directory: PathBuf,
    hashes: Vec<String>,
    /// The name of this version: skiff's version and a hash of the programs.
    pub(crate) id: String,
}

impl Source {
    /// Reads the programs in `directory`, a path of this process.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let mut hashes = Vec::new();
        let mut all = Sha256::new();
        for name in PROGRAMS {
            let path = directory.join(name);
            let hash = hash(&path).or_refused(format!("cannot read the program `{}`", path.display()))?;
            all.update(&hash);
            hashes.push(hash);
        }
        let mut hash = hex(&all.finalize());
        hash.truncate(HASH_LENGTH);
        Ok(Self { directory: directory.into(), hashes, id: format!("{}-{hash}", env!("CARGO_PKG_VERSION")) })
    }

    /// Copies the programs below `root`, except those that are there already.
    pub(crate) fn copy(&self, host: &Host, root: &Path) -> Result<()> {
        let directory = version_directory(root, &self.id);
        host.make_directories(&directory, 0o755)?;
        for (index, name) in PROGRAMS.iter().enumerate() {
            if self.is_there(host, &directory, index) {
                continue;
            }
            let path = self.directory.join(name);
            let mut file = File::open(&path).or_host(format!("cannot read `{}`", path.display()))?;
            // Removed first, because a file that is replaced keeps its mode.
            host.remove(&directory.join(name))?;
            host.write(&directory.join(name), &mut file, 0o755)?;
        }
        Ok(())
    }

    fn is_there(&self, host: &Host, directory: &Path, index: usize) -> bool {
        let Ok(place) = host.place(&directory.join(PROGRAMS[index])) else { return false };
        let is_program = |metadata: fs::Metadata| {
            metadata.is_file() && metadata.uid() == 0 && metadata.permissions().mode() & 0o7777 == 0o755
        };
        fs::symlink_metadata(&place).is_ok_and(is_program) && hash(&place).is_ok_and(|hash| hash == self.hashes[index])
    }

    /// What is wrong with this version on the node.
    pub(crate) fn faults(&self, host: &Host, root: &Path) -> Vec<String> {
        let directory = version_directory(root, &self.id);
        let missing = (0..PROGRAMS.len()).filter(|&index| !self.is_there(host, &directory, index));
        let mut faults: Vec<_> = missing
            .map(|index| format!("`{}` is not the program it should be", directory.join(PROGRAMS[index]).display()))
            .collect();
        if current(host, root).as_deref() != Some(self.id.as_str()) {
            faults.push(format!("`{}` does not point to the version `{}`", root.join(CURRENT).display(), self.id));
        }
        faults
    }
}

/// The path of the shim in containerd's configuration.
pub(crate) fn shim(root: &Path) -> PathBuf {
    root.join(CURRENT).join(SHIM)
}

fn version_directory(root: &Path, id: &str) -> PathBuf {
    root.join(VERSIONS).join(id)
}

/// Where the programs should be: where they are now, otherwise the first suitable place.
pub(crate) fn choose_root(host: &Host, installed: Option<&Path>, named: Option<&Path>) -> Result<PathBuf> {
    let roots: Vec<_> = match named {
        Some(named) => vec![named],
        None => installed.into_iter().chain(ROOTS.iter().map(Path::new)).collect(),
    };
    let mut unfit = Vec::new();
    for root in roots {
        match host.unfit_for_programs(root).or_else(|| distrust(host, &root.join(VERSIONS))) {
            None => return Ok(root.into()),
            Some(reason) => unfit.push(format!("`{}` {reason}", root.display())),
        }
    }
    Err(Error::refused(format!("there is no place for programs: {}", unfit.join(", "))))
}

/// The version that new pods get.
pub(crate) fn current(host: &Host, root: &Path) -> Option<String> {
    let target = host.link_target(&root.join(CURRENT))?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// What is wrong with the programs that new pods get: missing ones, and a path to them that others could change.
pub(crate) fn wrong(host: &Host, root: &Path) -> Vec<String> {
    let paths = PROGRAMS.map(|name| root.join(CURRENT).join(name));
    let missing = paths.iter().filter(|path| !host.is_program(path));
    let missing = missing.map(|path| format!("`{}` is missing or not executable", path.display()));
    let distrust = distrust(host, &root.join(CURRENT)).map(|reason| format!("`{}` {reason}", root.display()));
    missing.chain(distrust).collect()
}

/// Makes `id` the version that new pods get; with `None` they get none.
pub(crate) fn switch(host: &Host, root: &Path, id: Option<&str>) -> Result<()> {
    match id {
        _ if current(host, root).as_deref() == id => Ok(()),
        Some(id) => host.link(&root.join(CURRENT), &Path::new(VERSIONS).join(id)),
        None => host.remove(&root.join(CURRENT)),
    }
}

/// The processes that run from a version below `root`, by version.
///
/// # Errors
/// When a process cannot be examined, because it may be one of them.
pub(crate) fn users(host: &Host, root: &Path) -> Result<Vec<(String, u32)>> {
    let mut files = Vec::new();
    for id in host.names(&root.join(VERSIONS))? {
        for name in PROGRAMS {
            let place = host.place(&version_directory(root, &id).join(name))?;
            files.extend(fs::metadata(place).map(|file| ((file.dev(), file.ino()), id.clone())));
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(host.processes()).or_host("cannot list the node's processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        match fs::metadata(entry.path().join("exe")) {
            Ok(program) => {
                let user = files.iter().find(|(file, _)| *file == (program.dev(), program.ino()));
                found.extend(user.map(|(_, id)| (id.clone(), pid)));
            }
            // A kernel thread, or a process that has ended.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            // Without CAP_SYS_PTRACE. Every pod has a shim, which is recognised by its name.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !calls_itself_ours(&entry.path()) => {}
            Err(error) => return Err(Error::host(format!("cannot look at process {pid}: {error}"))),
        }
    }
    Ok(found)
}

/// Whether the first word of a process's command line names one of the programs.
fn calls_itself_ours(process: &Path) -> bool {
    let words = fs::read(process.join("cmdline")).unwrap_or_default();
    let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
    PROGRAMS.iter().any(|name| first.ends_with(name.as_bytes()))
}

/// Removes the versions other than `kept` that no process runs from.
pub(crate) fn prune(host: &Host, root: &Path, kept: Option<&str>) -> Result<()> {
    let old: Vec<_> = host.names(&root.join(VERSIONS))?.into_iter().filter(|id| Some(id.as_str()) != kept).collect();
    if old.is_empty() {
        return Ok(());
    }
    let used: BTreeSet<_> = users(host, root)?.into_iter().map(|(id, _)| id).collect();
    for id in old.into_iter().filter(|id| !used.contains(id)) {
        host.remove_tree(&version_directory(root, &id))?;
    }
    Ok(())
}

/// Removes what no process needs of `root`, which new pods no longer get programs from. Returns whether nothing is left.
pub(crate) fn leave(host: &Host, root: &Path) -> Result<bool> {
    host.remove(&root.join(CURRENT))?;
    prune(host, root, None)?;
    host.remove_empty(&root.join(VERSIONS))?;
    host.remove_empty(root)?;
    Ok(!host.exists(&root.join(VERSIONS)))
}

/// Removes `root` and all versions.
pub(crate) fn remove_all(host: &Host, root: &Path) -> Result<()> {
    switch(host, root, None)?;
    host.remove_tree(root)
}

fn hash(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            length => hash.update(&buffer[..length]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        text += &format!("{byte:02x}");
        text
    })
}

//! The layers below a container's root file system. Nobody but root can change a file there, and whoever does changes its `ctime`. So
//! such a file need not be hashed twice.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::ResolveFlag;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};

use crate::host::cache::{Cache, FileIdentity};
use crate::host::lookup::open_beneath;
use crate::request::RootfsMount;
use crate::settings::Settings;

/// How long ago a file must have been changed: the kernel's clock for that goes in steps.
const SETTLED: Duration = Duration::from_secs(3);

/// The layers of an overlay that is a root file system.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    /// From the top.
    lower: Vec<PathBuf>,
    upper: Option<PathBuf>,
    cache_dir: PathBuf,
    cache_max_bytes: u64,
    settled: Duration,
}

impl Layers {
    /// Those of `rootfs`, if it is an overlay. What is known of them is kept in the cache of `settings`.
    pub(crate) fn of(rootfs: &[RootfsMount], settings: &Settings) -> Option<Self> {
        let [overlay] = rootfs else { return None };
        let option = |name: &str| overlay.options.iter().find_map(|option| option.strip_prefix(name));
        let lower = option("lowerdir=")?;
        // A backslash escapes a colon in a path; two colons begin layers of another kind.
        if overlay.kind != "overlay" || lower.contains('\\') || lower.contains("::") {
            return None;
        }
        Some(Self {
            lower: lower.split(':').map(PathBuf::from).collect(),
            upper: option("upperdir=").map(PathBuf::from),
            cache_dir: settings.cache_dir.clone(),
            cache_max_bytes: settings.cache_max_bytes,
            settled: SETTLED,
        })
    }

    /// The digest of `file`, which is open in the root file system at `rootfs`: what is remembered of it, or else what `compute` returns,
    /// which is remembered if `file` is one of a layer below.
    ///
    /// # Errors
    /// Those of `compute`.
    pub(crate) fn digest_of(
        &self,
        rootfs: &Path,
        file: &File,
        compute: impl FnOnce() -> io::Result<String>,
    ) -> io::Result<String> {
        let Some(before) = self.identity_of(rootfs, file) else { return compute() };
        let Ok(cache) = Cache::open(&self.cache_dir, self.cache_max_bytes) else { return compute() };
        if let Some(digest) = cache.digest_of(&before) {
            return Ok(digest);
        }
        let is_settled = self.is_settled(&before);
        let digest = compute()?;
        if is_settled && self.identity_of(rootfs, file).as_ref() == Some(&before) {
            // If that fails, it is hashed again.
            let _remembered = cache.remember_digest(before, &digest);
        }
        Ok(digest)
    }

    /// The identity of the file in a lower layer that `file` shows. `None` if it is, or may be, another one.
    fn identity_of(&self, rootfs: &Path, file: &File) -> Option<FileIdentity> {
        let path = fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd())).ok()?;
        let inside = path.strip_prefix(rootfs).ok()?;
        if let Some(upper) = &self.upper
            && !is_absent(&open_in(upper, inside))
        {
            return None;
        }
        let found = self.lower.iter().map(|layer| open_in(layer, inside)).find(|found| !is_absent(found))?.ok()?;
        let (identity, shown) = (identify(&found.metadata().ok()?)?, identify(&file.metadata().ok()?)?);
        // An overlay shows what it knows of the file itself, on a device of its own.
        let is_shown = FileIdentity { device: identity.device, ..shown } == identity;
        (is_shown && has_times_of_its_own(&found)).then_some(identity)
    }

    fn is_settled(&self, file: &FileIdentity) -> bool {
        let changed = u64::try_from(file.changed.0).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        changed.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age >= self.settled))
    }
}

/// Opens `path`, in which there are no links, in the layer at `root`.
fn open_in(root: &Path, path: &Path) -> io::Result<File> {
    let only_inside = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    open_beneath(root, path, only_inside)
}

fn is_absent(opened: &io::Result<File>) -> bool {
    opened.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// The identity of a regular file.
fn identify(meta: &Metadata) -> Option<FileIdentity> {
    meta.is_file().then(|| FileIdentity {
        device: meta.dev(),
        inode: meta.ino(),
        bytes: meta.len(),
        changed: (meta.ctime(), meta.ctime_nsec()),
        modified: (meta.mtime(), meta.mtime_nsec()),
    })
}

/// Whether a file is on a disk of this machine. Elsewhere a server says when it was changed.
fn has_times_of_its_own(file: &File) -> bool {
    let kind = fstatfs(file).map(|about| about.filesystem_type());
    kind.is_ok_and(|kind| [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC].contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two lower layers and an upper one; the root file system is the lower one at the bottom.
    struct Bed {
        directory: tempfile::TempDir,
        layers: Layers,
    }

    impl Bed {
        fn new(settled: Duration) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name).display().to_string();
            for name in ["top", "bottom", "upper"] {
                fs::create_dir(at(name)).unwrap();
            }
            fs::write(at("bottom/app"), "one").unwrap();
            let options = vec![format!("lowerdir={}:{}", at("top"), at("bottom")), format!("upperdir={}", at("upper"))];
            let overlay = RootfsMount { kind: "overlay".into(), options, ..RootfsMount::default() };
            let settings = Settings { cache_dir: directory.path().join("cache"), ..Settings::default() };
            let layers = Layers { settled, ..Layers::of(&[overlay], &settings).unwrap() };
            Self { directory, layers }
        }

        /// What is said to be the digest, if hashing it results in `computed`.
        fn digest(&self, computed: &str) -> String {
            let rootfs = self.directory.path().join("bottom");
            let file = File::open(rootfs.join("app")).unwrap();
            self.layers.digest_of(&rootfs, &file, || Ok(computed.into())).unwrap()
        }
    }

    #[test]
    fn a_file_of_a_lower_layer_is_hashed_once() {
        let bed = Bed::new(Duration::ZERO);
        assert_eq!(bed.digest("first"), "first");
        assert_eq!(bed.digest("second"), "first", "it is remembered");
        fs::write(bed.directory.path().join("bottom/app"), "two").unwrap();
        assert_eq!(bed.digest("third"), "third", "it was changed");
        let bytes = fs::read(bed.directory.path().join("bottom/app")).unwrap();
        let times = fs::metadata(bed.directory.path().join("bottom/app")).unwrap().modified().unwrap();
        fs::write(bed.directory.path().join("bottom/app"), bytes).unwrap();
        let file = File::options().write(true).open(bed.directory.path().join("bottom/app")).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(times)).unwrap();
        assert_eq!(bed.digest("fourth"), "fourth", "nobody can set the time of its last change");
    }

    #[test]
    fn a_file_that_may_be_another_one_is_hashed_each_time() {
        for above in ["upper/app", "top/app"] {
            let bed = Bed::new(Duration::ZERO);
            fs::write(bed.directory.path().join(above), "other").unwrap();
            assert_eq!([bed.digest("first"), bed.digest("second")], ["first", "second"], "{above}");
        }
        let bed = Bed::new(SETTLED);
        assert_eq!([bed.digest("first"), bed.digest("second")], ["first", "second"], "it has just been changed");
        let outside = tempfile::NamedTempFile::new().unwrap();
        let root = bed.directory.path().join("bottom");
        let digest = |word: &str| bed.layers.digest_of(&root, outside.as_file(), || Ok(word.into())).unwrap();
        assert_eq!([digest("first"), digest("second")], ["first", "second"], "it is in a volume");
    }

    #[test]
    fn only_an_overlay_has_layers() {
        let mount = |kind: &str, options: &[&str]| RootfsMount {
            kind: kind.into(),
            options: options.iter().map(|option| (*option).into()).collect(),
            ..RootfsMount::default()
        };
        let of = |mounts: &[RootfsMount]| Layers::of(mounts, &Settings::default()).map(|layers| layers.lower.len());
        assert_eq!(of(&[mount("overlay", &["index=off", "lowerdir=/a:/b", "upperdir=/u", "workdir=/w"])]), Some(2));
        assert_eq!(of(&[mount("overlay", &["lowerdir=/a:/b"])]), Some(2));
        assert_eq!(of(&[mount("bind", &["rbind", "rw"])]), None);
        assert_eq!(of(&[mount("overlay", &["lowerdir=/a\\:b"])]), None);
        assert_eq!(of(&[mount("overlay", &["lowerdir=/a::/b"])]), None);
        assert_eq!(of(&[]), None);
    }
}

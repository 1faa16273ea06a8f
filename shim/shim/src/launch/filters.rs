//! Filters of seccomp profiles, as the OCI runtime has installed them: read back from a container that it has made, and kept in the
//! cache. Nobody else's reading of a profile is the same for certain.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;
use skiff_linux::seccomp::{Instruction, read_filter};

use crate::error::{Context, Error, Kind, Result};
use crate::host::module::Digester;
use crate::settings::Settings;
use crate::spec::launch::Profile;

/// The most filters that are kept. Which profiles there are is up to the pods: containerd's default one differs by capabilities.
const FILTERS_MAX: usize = 64;
/// Where the library may be by which the OCI runtime makes filters: another version may make others.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/libseccomp.so.2",
    "/usr/lib/aarch64-linux-gnu/libseccomp.so.2",
    "/usr/lib64/libseccomp.so.2",
    "/usr/lib/libseccomp.so.2",
    "/lib/libseccomp.so.2",
];

/// The place of one profile's filter. Invariant: it is asked for once the compiled code has come from the cache, which root alone can
/// change then.
pub(super) struct Place(PathBuf);

impl Place {
    /// Where the filter is that the node's OCI runtime makes of `profile`.
    pub(super) fn of(profile: &Profile, settings: &Settings) -> Self {
        let mut digester = Digester::default();
        if let Ok(kernel) = uname() {
            digester.add(kernel.release().as_encoded_bytes());
        }
        for file in runtime(&settings.binary_name).into_iter().chain(LIBRARIES.map(PathBuf::from)) {
            digester.add(format!("\0{}\0{}", file.display(), identity(&file)).as_bytes());
        }
        digester.add(profile.text.as_bytes());
        Self(settings.cache_dir.join("filters").join(digester.finish()))
    }

    /// The filter, if it is known.
    pub(super) fn find(&self) -> Option<Vec<Instruction>> {
        let text = match fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                log::warn!("cannot read the filter `{}`: {error}", self.0.display());
                return None;
            }
        };
        // Whatever is no such list is replaced by the next one.
        serde_json::from_slice(&text).ok()
    }

    /// Reads the filter of the process `pid`, which the OCI runtime has made and which waits to be started, and keeps it.
    ///
    /// # Errors
    /// Those of reading it, and of writing it down.
    pub(super) async fn learn(self, pid: i32) -> Result<()> {
        let (done, learned) = tokio::sync::oneshot::channel();
        let learn = move || drop(done.send(read_filter(pid).and_then(|filter| self.keep(&filter))));
        let thread = std::thread::Builder::new().name("seccomp-filter".into()).spawn(learn);
        thread.doing(|| "cannot start a thread that reads the filter".into())?;
        let learned =
            learned.await.map_err(|_| Error::new(Kind::Host, "the thread that reads the filter has ended"))?;
        learned.doing(|| "cannot keep the filter of the seccomp profile".into())
    }

    fn keep(&self, filter: &[Instruction]) -> io::Result<()> {
        let directory = self.0.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        make_room(directory)?;
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        let new = directory.join(format!(".{name}.{}", std::process::id()));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(filter)?)?;
        fs::rename(&new, &self.0)
    }
}

/// Removes the oldest filters until there is room for one more.
fn make_room(directory: &Path) -> io::Result<()> {
    let mut kept: Vec<_> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    kept.sort();
    let too_many = (kept.len() + 1).saturating_sub(FILTERS_MAX);
    for (_, path) in kept.iter().take(too_many) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The OCI runtime's program.
fn runtime(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// What changes when a file is replaced or written to; empty for one that is not there.
fn identity(file: &Path) -> String {
    let Ok(metadata) = fs::metadata(file) else { return String::new() };
    format!(
        "{} {} {} {}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.ctime(),
        metadata.ctime_nsec()
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_filter_is_found_again_and_what_is_no_filter_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place(directory.path().join("filters/a"));
        assert_eq!(place.find(), None);
        place.keep(&[6 << 48, u64::MAX]).unwrap();
        assert_eq!(place.find(), Some(vec![6 << 48, u64::MAX]));
        for text in ["", "[1,", "{}", "[-1]"] {
            fs::write(&place.0, text).unwrap();
            assert_eq!(place.find(), None, "{text}");
        }
    }

    #[test]
    fn the_oldest_filters_make_room() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..FILTERS_MAX + 5 {
            let place = Place(directory.path().join(number.to_string()));
            place.keep(&[1]).unwrap();
            let written = UNIX_EPOCH + Duration::from_secs(u64::try_from(number).unwrap());
            fs::File::open(&place.0).unwrap().set_modified(written).unwrap();
        }
        let is_kept = |number: usize| Place(directory.path().join(number.to_string())).find().is_some();
        assert!(!is_kept(4) && is_kept(5) && is_kept(FILTERS_MAX + 4));
    }

    #[test]
    fn another_runtime_or_another_profile_has_another_filter() {
        let runtime = tempfile::NamedTempFile::new().unwrap();
        let settings = Settings { binary_name: runtime.path().to_str().unwrap().into(), ..Settings::default() };
        let of = |text: &str| Place::of(&Profile::of_text(text), &settings).0;
        let first = of("a");
        assert_eq!(of("a"), first);
        assert_ne!(of("b"), first);
        fs::write(runtime.path(), "new").unwrap();
        assert_ne!(of("a"), first);
    }
}

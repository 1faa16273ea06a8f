//! The node's cache of compiled code: what it holds, and what the shims have counted.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use skiff_protocol::Counters;
use skiff_protocol::names::CODE_EXTENSION;

use crate::error::{Context, Result};

/// The cache at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cache {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) counters: Counters,
}

/// Reads the cache in `dir`, which need not exist yet.
pub(super) fn read(dir: &Path) -> Result<Cache> {
    let reading = || format!("cannot read the cache `{}`", dir.display());
    let counters = Counters::read(dir).or_host(reading())?;
    let mut cache = Cache { counters, ..Cache::default() };
    for engine in directory(dir).or_host(reading())? {
        // A file is no directory of an engine, and an engine's directory may be removed at any time.
        for file in directory(&engine).unwrap_or_default() {
            if file.extension().is_some_and(|extension| extension == CODE_EXTENSION)
                && let Ok(metadata) = fs::symlink_metadata(&file)
            {
                cache.entries += 1;
                cache.bytes = cache.bytes.saturating_add(metadata.len());
            }
        }
    }
    Ok(cache)
}

fn directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => Ok(entries?.flatten().map(|entry| entry.path()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_all_engines_are_counted_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&dir.path().join("none")).unwrap(), Cache::default());
        for (path, bytes) in [("a/1.cwasm", 10), ("b/2.cwasm", 20), ("b/3.tmp", 40), ("b/4.failed", 80)] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; bytes]).unwrap();
        }
        fs::create_dir(dir.path().join("slot.0")).unwrap();
        let counters = Counters { hits: 3, ..Counters::default() };
        counters.add_to(dir.path()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Cache { entries: 2, bytes: 30, counters });
    }
}

//! What `keep` saw at its last look, in a file. It is for `status`, and for a probe that comes every few seconds and must not run
//! containerd's programs as root each time.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::node::restraint::MENDS_MAX;

/// A look that is older than this many intervals is outdated, unless it is younger than `YOUNG`.
const INTERVALS_MAX: u32 = 3;
const YOUNG: Duration = Duration::from_secs(10);
/// How much of the file is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// What was seen of the node, and how often it was mended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Whether the node is as it is wanted.
    pub(crate) ready: bool,
    /// What is wrong, one sentence each.
    pub(crate) reasons: Vec<String>,
    /// How often the node was mended without an hour of peace since.
    pub(crate) mends: u32,
    /// The time until the next look, in seconds.
    pub(crate) interval_seconds: u64,
}

impl Seen {
    /// Writes the file `path` whole or not at all, and makes its directory if necessary.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        let text = serde_json::to_vec(self).or_host("cannot write JSON")?;
        let job = || {
            if let Some(directory) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            fs::rename(&new, path)
        };
        job().or_host(format!("cannot write `{}`", path.display()))
    }

    /// Reads the file `path`. Returns its content and age; `None` when it does not exist.
    pub(crate) fn read(path: &Path) -> Result<Option<(Self, Duration)>> {
        let reading = || format!("cannot read `{}`", path.display());
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.or_host(reading())?,
        };
        let written = file.metadata().and_then(|metadata| metadata.modified()).or_host(reading())?;
        let mut text = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut text).or_host(reading())?;
        let seen = serde_json::from_slice(&text).or_host(reading())?;
        // A file from the future, after the clock was set back; the next look corrects it.
        let age = SystemTime::now().duration_since(written).unwrap_or(Duration::MAX);
        Ok(Some((seen, age)))
    }

    /// Why the node is not ready, according to the file `path`; empty when it is.
    pub(crate) fn faults(path: &Path) -> Result<Vec<String>> {
        let Some((seen, age)) = Self::read(path)? else {
            return Ok(vec!["`keep` has not looked at the node yet".into()]);
        };
        let interval = Duration::from_secs(seen.interval_seconds);
        if age > interval.saturating_mul(INTERVALS_MAX).max(YOUNG) {
            return Ok(vec![format!("`keep` has not looked at the node for {} s", age.as_secs())]);
        }
        match seen.reasons.is_empty() {
            true if !seen.ready => Ok(vec!["the node is not as wanted".into()]),
            _ => Ok(seen.reasons),
        }
    }

    /// The mends as a phrase for `status`; `None` when there were none.
    pub(crate) fn mends_in_words(&self) -> Option<String> {
        match self.mends {
            0 => None,
            MENDS_MAX.. => Some(format!("{} times; given up since then", self.mends)),
            mends => Some(format!("{mends} times without an hour of peace")),
        }
    }
}

/// Removes what an earlier process wrote.
pub(crate) fn forget(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::host(format!("cannot remove `{}`: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_believes_a_fresh_look_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/seen.json");
        assert_eq!(Seen::faults(&path).unwrap(), ["`keep` has not looked at the node yet"]);
        let check = |seen: Seen, age: u64, expected: &[&str]| {
            seen.write(&path).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
            assert_eq!(Seen::faults(&path).unwrap(), expected, "{seen:?}");
        };
        let right = Seen { ready: true, interval_seconds: 60, ..Seen::default() };
        check(right.clone(), 0, &[]);
        check(right.clone(), 175, &[]);
        check(Seen { interval_seconds: 1, ..right.clone() }, 9, &[]);
        check(Seen { interval_seconds: 1, ..right.clone() }, 11, &["`keep` has not looked at the node for 11 s"]);
        check(right.clone(), 181, &["`keep` has not looked at the node for 181 s"]);
        let wrong = Seen { ready: false, reasons: vec!["it is broken".into()], ..right.clone() };
        check(wrong, 0, &["it is broken"]);
        check(Seen { ready: false, ..right }, 0, &["the node is not as wanted"]);
        fs::write(&path, "{").unwrap();
        assert!(Seen::faults(&path).is_err());
        forget(&path).unwrap();
        forget(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}

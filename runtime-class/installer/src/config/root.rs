//! The root file of a configuration: its version, what it imports, and the tables it defines itself.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::config::entry::runtime_plugin;
use crate::error::{Context, Error, Result};

/// What a root file contains.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RootFile {
    pub(crate) version: u8,
    pub(crate) imports: Vec<String>,
    table: Table,
}

impl RootFile {
    /// Reads the text of the file `path`.
    ///
    /// # Errors
    /// When it is not TOML, its version is unknown, or `imports` is not a list of strings.
    pub(crate) fn read(path: &Path, text: &str) -> Result<Self> {
        let shown = path.display();
        let table: Table = text.parse().or_refused(format!("`{shown}` is not TOML"))?;
        let version = match table.get("version") {
            None => return Err(Error::refused(format!("`{shown}` has no `version`; only 2, 3 and 4 are known"))),
            Some(version) => version.as_integer().and_then(|version| u8::try_from(version).ok()).unwrap_or(0),
        };
        if !(2..=4).contains(&version) {
            let found = table.get("version").map(ToString::to_string).unwrap_or_default();
            return Err(Error::refused(format!("`{shown}` has version `{found}`; only 2, 3 and 4 are known")));
        }
        let imports = table.get("imports").map_or(Some(Vec::new()), texts);
        let imports =
            imports.ok_or_else(|| Error::refused(format!("`imports` of `{shown}` is not a list of strings")))?;
        Ok(Self { version, imports, table })
    }

    /// The section of a plugin.
    pub(crate) fn plugin(&self, name: &str) -> Option<&Value> {
        self.table.get("plugins")?.get(name)
    }

    /// The runtimes that the file itself defines.
    pub(crate) fn runtimes(&self) -> Option<&Table> {
        self.plugin(runtime_plugin(self.version))?.get("containerd")?.get("runtimes")?.as_table()
    }
}

fn texts(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

/// The directory from which a pattern of `imports` includes every file called `name`; `None` when it includes no such file.
pub(crate) fn covered_directory(root: &Path, pattern: &str, name: &str) -> Option<PathBuf> {
    let is_plain = |text: &str| !text.contains(['*', '?', '[', '\\', '$']);
    let path = root.parent()?.join(pattern);
    let (directory, last) = (path.parent()?, path.file_name()?.to_str()?);
    let (start, end) = last.split_once('*')?;
    let matches = name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end);
    (is_plain(directory.to_str()?) && is_plain(start) && is_plain(end) && matches).then(|| directory.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_what_containerd_would_read() {
        let check = |pattern: &str, expected: Option<&str>| {
            let found = covered_directory(Path::new("/etc/containerd/config.toml"), pattern, "skiff.toml");
            assert_eq!(found, expected.map(PathBuf::from), "{pattern}");
        };
        check("/etc/containerd/conf.d/*.toml", Some("/etc/containerd/conf.d"));
        check("conf.d/*.toml", Some("/etc/containerd/conf.d"));
        check("/etc/containerd/conf.d/*", Some("/etc/containerd/conf.d"));
        check("/etc/containerd/conf.d/skiff*.toml", Some("/etc/containerd/conf.d"));
        check("/etc/containerd/conf.d/nvidia*.toml", None);
        check("/etc/containerd/conf.d/nvidia.toml", None);
        check("/etc/*/conf.d/*.toml", None);
        check("${SNAP_DATA}/args/containerd.d/*.toml", None);
    }

    #[test]
    fn root_files_that_are_not_known_are_refused_with_a_sentence() {
        let check = |text: &str, expected: &str| {
            let error = RootFile::read(Path::new("/etc/containerd/config.toml"), text).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check("version = 1", "has version `1`");
        check("version = 5", "has version `5`");
        check("version = \"2\"", "has version `\"2\"`");
        check("# only comments", "has no `version`");
        check("version = 2\n[grpc", "is not TOML");
        check("version = 2\nimports = \"/x\"", "is not a list");
    }
}

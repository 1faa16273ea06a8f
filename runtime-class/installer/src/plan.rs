//! What has to be changed on a node, and into what. It reads files and changes none.

use std::path::{Path, PathBuf};

use crate::dump::Dump;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::layout::{Layout, Template};
use crate::record::{Edit, FileRecord, Record};
use crate::text::{self, Entry, HANDLER, RootFile};

/// The name of the drop-in file.
const DROP_IN: &str = "skiff.toml";
/// What k3s makes its own configuration from when there is no template.
const GO_BASE: &str = "{{ template \"base\" . }}\n";

/// The version of containerd's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// The oldest containerd that can be told the path of a shim for pods.
const OLDEST: Version = Version { major: 1, minor: 7 };
/// The oldest that merges the tables of imported files; older ones replace a plugin's whole section (its issue 5837).
const MERGING: Version = Version { major: 2, minor: 0 };
/// The oldest with the transfer service.
const TRANSFER: Version = Version { major: 2, minor: 1 };

impl Version {
    /// Whether this containerd unpacks only images of its own platform unless it is told otherwise.
    pub(crate) fn unpacks_own_platform_only(self) -> bool {
        self >= TRANSFER
    }

    /// Reads what `containerd --version` prints: the program, where its sources are, the version, the commit.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let number = line.split_whitespace().nth(2)?.trim_start_matches('v');
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// What containerd is to be told.
    pub(crate) entry: Entry,
    /// The files, those that must be there first first.
    pub(crate) files: Vec<FileRecord>,
    /// The configuration that containerd would have, without the drop-in file.
    pub(crate) root: String,
    /// The text of the drop-in file, where there is one.
    pub(crate) drop_in: Option<String>,
}

/// What a plan is made from.
pub(crate) struct Facts<'a> {
    pub(crate) host: &'a Host,
    pub(crate) layout: &'a Layout,
    pub(crate) containerd: Version,
    /// What containerd makes of its configuration as it is.
    pub(crate) dump: &'a Dump,
    pub(crate) record: Option<&'a Record>,
    /// Where the shim will be.
    pub(crate) shim: PathBuf,
}

/// A file that is there, and what it would be without us.
struct Source {
    path: PathBuf,
    now: Option<String>,
    original: Option<String>,
}

impl Facts<'_> {
    /// What has to be done so that this node has the runtime.
    pub(crate) fn plan(&self) -> Result<Plan> {
        if self.containerd < OLDEST {
            let Version { major, minor } = self.containerd;
            return Err(Error::refused(format!("containerd is {major}.{minor}; 1.7 is the oldest that can be used")));
        }
        self.dump.check_cri()?;
        let config = self.source(&self.layout.config)?;
        if config.now.is_none() && self.layout.template.is_some() {
            return Err(Error::refused(format!("`{}` is not there yet", config.path.display())));
        }
        let root = match &config.original {
            Some(text) => Some(text::read_root(&config.path, text)?),
            None => None,
        };
        let version = root.as_ref().map_or(if self.containerd < MERGING { 2 } else { 3 }, |root| root.version);
        let source = self.template(version)?;
        let plan = if self.containerd < MERGING {
            self.block(version, config, source, root.as_ref())?
        } else {
            self.drop_in(version, config, source, root.as_ref())?
        };
        self.check_owner(&plan)?;
        Ok(plan)
    }

    fn entry(&self) -> Entry {
        Entry { shim: self.shim.clone(), local_pull: self.containerd.unpacks_own_platform_only(), carried: Vec::new() }
    }

    /// Reads a file and takes away what we did to it.
    fn source(&self, path: &Path) -> Result<Source> {
        let now = self.host.read(path)?;
        let original = original(self.record.and_then(|record| record.file(path)), path, now.as_deref())?;
        Ok(Source { path: path.to_path_buf(), now, original })
    }

    fn template(&self, version: u8) -> Result<Option<Source>> {
        let path = match &self.layout.template {
            None => return Ok(None),
            Some(Template::Toml(path)) => path,
            Some(Template::Go { version2, version3 }) => {
                if version < 3 {
                    version2
                } else {
                    version3
                }
            }
        };
        self.source(path).map(Some)
    }

    /// A marked block at the end of the file that is the source of the configuration.
    fn block(&self, version: u8, config: Source, template: Option<Source>, root: Option<&RootFile>) -> Result<Plan> {
        let mut entry = self.entry();
        let own = root.and_then(|root| {
            let plugin = root.table.get("plugins")?.get(text::runtime_plugin(version))?;
            plugin.get("containerd")?.get("runtimes")?.as_table()
        });
        for (name, runtime) in self.dump.runtimes().into_iter().flatten() {
            if let Some(table) =
                runtime.as_table().filter(|_| own.is_none_or(|own| !own.contains_key(name)) && name != HANDLER)
            {
                entry.carried.push((name.clone(), table.clone()));
            }
        }
        let tables = text::tables(version, &entry);
        let mut base = config.original.clone().unwrap_or_else(|| format!("version = {version}\n"));
        if root.is_some_and(|root| {
            root.table.get("plugins").is_some_and(|plugins| plugins.get(text::IMAGES_PLUGIN).is_some())
        }) && entry.local_pull
        {
            return Err(Error::refused(format!(
                "`{}` has a table `{}` already and imports no directory; set `use_local_image_pull = true` there",
                config.path.display(),
                text::IMAGES_PLUGIN
            )));
        }
        let base_of_file = match &template {
            Some(template) => template.original.clone().unwrap_or_else(|| GO_BASE.to_owned()),
            None => base.clone(),
        };
        if let Some(without) = text::without_block(&base) {
            base = without;
        }
        let edit = |source: Source| FileRecord {
            edit: if source.original.is_none() { Edit::DropIn } else { Edit::Block },
            path: source.path,
            original: source.original,
            previous: source.now,
            after: Some(text::with_block(&base_of_file, &tables)),
        };
        let files = vec![edit(template.unwrap_or(config))];
        Ok(Plan { root: text::with_block(&base, &tables), entry, files, drop_in: None })
    }

    /// A file of its own in a directory that the configuration imports, or is made to import.
    fn drop_in(&self, version: u8, config: Source, template: Option<Source>, root: Option<&RootFile>) -> Result<Plan> {
        let ours = self.record.into_iter().flat_map(|record| &record.files).find_map(|file| match &file.edit {
            Edit::Import(pattern) => Some(pattern),
            Edit::DropIn | Edit::Block => None,
        });
        let imports = root.map(|root| root.imports.as_slice()).unwrap_or_default();
        let theirs = imports.iter().filter(|pattern| Some(*pattern) != ours);
        let mut covered = theirs.filter_map(|pattern| text::covered_directory(&config.path, pattern, DROP_IN));
        let mut files = Vec::new();
        let mut candidate = config.original.clone();
        let directory = match covered.next() {
            Some(directory) => directory,
            None => {
                let source = match template {
                    None => config,
                    // A Go template cannot be told to import.
                    Some(_) if matches!(self.layout.template, Some(Template::Go { .. })) => {
                        return self.block(version, config, template, root);
                    }
                    Some(template) => template,
                };
                let directory = source.path.with_file_name("conf.d");
                // Only our file: others may lie there that nobody imports yet. A glob may match nothing.
                let pattern = format!("{}/skiff*.toml", directory.display());
                let (edit, after) = match &source.original {
                    Some(text) => (Edit::Import(pattern.clone()), text::with_import(&source.path, text, &pattern)?),
                    None => (Edit::DropIn, text::root(version, &pattern)),
                };
                candidate.get_or_insert_with(|| after.clone());
                let (original, previous) = (source.original, source.now);
                files.push(FileRecord { path: source.path, edit, original, previous, after: Some(after) });
                directory
            }
        };
        let drop_in = self.source(&directory.join(DROP_IN))?;
        let entry = self.entry();
        let text = text::drop_in(version, &text::tables(version, &entry));
        files.insert(
            0,
            FileRecord {
                path: drop_in.path,
                edit: Edit::DropIn,
                original: drop_in.original,
                previous: drop_in.now,
                after: Some(text.clone()),
            },
        );
        Ok(Plan { entry, files, root: candidate.unwrap_or_default(), drop_in: Some(text) })
    }

    /// Refuses to take over a file or a runtime that somebody else made.
    fn check_owner(&self, plan: &Plan) -> Result<()> {
        for file in &plan.files {
            let is_drop_in = file.edit == Edit::DropIn;
            if let Some(original) = file.original.as_deref().filter(|_| is_drop_in) {
                let size = original.len();
                return Err(Error::refused(format!("`{}` ({size} bytes) is not skiff-node's", file.path.display())));
            }
        }
        let is_installed = plan.files.iter().any(|file| file.previous != file.original);
        if !is_installed && self.dump.runtimes().is_some_and(|runtimes| runtimes.contains_key(HANDLER)) {
            return Err(Error::refused(format!(
                "somebody else defined the runtime `{HANDLER}` in containerd's configuration"
            )));
        }
        Ok(())
    }
}

/// What a file with the text `now` would be without us.
pub(crate) fn original(record: Option<&FileRecord>, path: &Path, now: Option<&str>) -> Result<Option<String>> {
    if let Some(record) = record.filter(|record| record.after.as_deref() == now) {
        return Ok(record.original.clone());
    }
    let Some(now) = now else { return Ok(None) };
    if text::is_ours(now) {
        return Ok(None);
    }
    if let Some(without) = text::without_block(now) {
        return Ok((without != GO_BASE || record.is_none_or(|record| record.original.is_some())).then_some(without));
    }
    match record.map(|record| &record.edit) {
        Some(Edit::Import(pattern)) => text::without_import(path, now, pattern).map(Some),
        Some(Edit::DropIn | Edit::Block) | None => Ok(Some(now.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        for (line, expected) in [
            ("containerd github.com/containerd/containerd/v2 v2.4.2 abc", Some((2, 4))),
            ("containerd github.com/containerd/containerd/v2 2.1.9 ", Some((2, 1))),
            ("containerd github.com/k3s-io/containerd v2.1.5-k3s1", Some((2, 1))),
            ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6", Some((1, 7))),
            ("containerd containerd.io 1.7.27 05044ec", Some((1, 7))),
            ("containerd github.com/containerd/containerd unknown ", None),
            ("", None),
        ] {
            let expected = expected.map(|(major, minor)| Version { major, minor });
            assert_eq!(Version::parse(line), expected, "{line}");
        }
    }
}

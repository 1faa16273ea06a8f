//! What has to change on a node, and into what. A plan is made from facts; where it depends on a file that has not been read, it
//! names the file, and the caller reads it and asks again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Table;

use crate::config::dump::Dump;
use crate::config::edit;
use crate::config::entry::{Entry, HANDLER, IMAGES_PLUGIN, Sandboxer};
use crate::config::file::{ConfigFile, Edit, original};
use crate::config::layout::{GO_BASE, Layout, Template};
use crate::config::root::{RootFile, covered_directory};
use crate::config::version::{MERGING, OLDEST, SANDBOXERS, Version};
use crate::error::{Error, Result};

/// The name of the drop-in file.
const DROP_IN: &str = "skiff.toml";

/// What has to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// The entry that containerd gets.
    pub(crate) entry: Entry,
    /// The files, in the order in which they must be written.
    pub(crate) files: Vec<ConfigFile>,
    /// The configuration that containerd would have, without the drop-in file.
    pub(crate) root: String,
    /// The text of the drop-in file, where there is one.
    pub(crate) drop_in: Option<String>,
}

/// What a plan is made from.
pub(crate) struct Facts<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) containerd: Version,
    /// The current configuration, as containerd prints it.
    pub(crate) dump: &'a Dump,
    /// The files that an earlier installation changed.
    pub(crate) changed: &'a [ConfigFile],
    /// Where the shim will be.
    pub(crate) shim: PathBuf,
    /// Who should make sandboxes.
    pub(crate) sandboxer: Sandboxer,
    /// The texts of the files that have been read; `None` for a file that does not exist.
    pub(crate) texts: BTreeMap<PathBuf, Option<String>>,
}

/// Why there is no plan.
#[derive(Debug)]
pub(crate) enum Unplanned {
    /// The text of this file is missing from the facts.
    Unread(PathBuf),
    /// The node cannot be changed.
    Refused(Error),
}

impl From<Error> for Unplanned {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// An existing or future file, and what it would be without us.
struct Source {
    path: PathBuf,
    now: Option<String>,
    original: Option<String>,
}

impl Source {
    fn changed(self, edit: Edit, after: String) -> ConfigFile {
        ConfigFile { path: self.path, edit, original: self.original, previous: self.now, after: Some(after) }
    }
}

/// The files that make the configuration, and what is read from them.
struct Sources {
    /// The file that containerd reads.
    config: Source,
    /// The file that it is generated from.
    template: Option<Source>,
    root: Option<RootFile>,
    /// The version that our tables are written in.
    version: u8,
}

impl Facts<'_> {
    /// What has to be done so that this node has the runtime.
    ///
    /// # Errors
    /// The next file that has to be read, or the reason why this node is left alone.
    pub(crate) fn plan(&self) -> Result<Plan, Unplanned> {
        self.check_containerd()?;
        let sources = self.sources()?;
        let plan = match self.imported_directory(&sources) {
            _ if self.containerd < MERGING => self.block(sources)?,
            Some(directory) => {
                let root = sources.config.original.unwrap_or_default();
                self.drop_in(sources.version, &directory, root, None)?
            }
            // A Go template cannot import anything.
            None if matches!(self.layout.template, Some(Template::Go { .. })) => self.block(sources)?,
            None => self.import(sources)?,
        };
        self.check_owner(&plan)?;
        Ok(plan)
    }

    fn check_containerd(&self) -> Result<()> {
        let Version { major, minor } = self.containerd;
        if self.sandboxer == Sandboxer::Shim && self.containerd < SANDBOXERS {
            let sentence = "cannot leave sandboxes to the shim: that needs containerd 2.0 or newer";
            return Err(Error::refused(format!("containerd {major}.{minor} {sentence}")));
        }
        if self.containerd < OLDEST {
            return Err(Error::refused(format!("containerd {major}.{minor} is too old: skiff needs 1.7 or newer")));
        }
        self.dump.check_cri()
    }

    fn sources(&self) -> Result<Sources, Unplanned> {
        let config = self.source(&self.layout.config)?;
        if config.now.is_none() && self.layout.template.is_some() {
            return Err(Error::refused(format!("`{}` does not exist yet", config.path.display())).into());
        }
        let root = config.original.as_deref().map(|text| RootFile::read(&config.path, text)).transpose()?;
        let version = root.as_ref().map_or(if self.containerd < MERGING { 2 } else { 3 }, |root| root.version);
        let template = self.template(version).map(|path| self.source(path)).transpose()?;
        Ok(Sources { config, template, root, version })
    }

    /// The text of a file, with our changes to it undone.
    fn source(&self, path: &Path) -> Result<Source, Unplanned> {
        let now = self.texts.get(path).ok_or_else(|| Unplanned::Unread(path.into()))?;
        let known = self.changed.iter().find(|file| file.path == path);
        let original = original(known, path, now.as_deref())?;
        Ok(Source { path: path.into(), now: now.clone(), original })
    }

    fn template(&self, version: u8) -> Option<&Path> {
        match self.layout.template.as_ref()? {
            Template::Toml(path) => Some(path),
            Template::Go { version2, .. } if version < 3 => Some(version2),
            Template::Go { version3, .. } => Some(version3),
        }
    }

    fn entry(&self) -> Entry {
        Entry {
            shim: self.shim.clone(),
            sandboxer: self.sandboxer,
            may_leave_pause_image: self.containerd.may_leave_pause_image(),
            local_pull: self.containerd.unpacks_own_platform_only(),
            carried: Vec::new(),
        }
    }

    /// A marked block at the end of the file that the configuration is written in or generated from.
    fn block(&self, Sources { config, template, root, version }: Sources) -> Result<Plan> {
        let entry = Entry { carried: self.carried(root.as_ref()), ..self.entry() };
        if entry.local_pull && root.as_ref().is_some_and(|root| root.plugin(IMAGES_PLUGIN).is_some()) {
            let shown = config.path.display();
            return Err(Error::refused(format!(
                "`{shown}` has a table `{IMAGES_PLUGIN}` and does not import a directory: set `use_local_image_pull = true` there"
            )));
        }
        let tables = entry.tables(version);
        let base = config.original.clone().unwrap_or_else(|| format!("version = {version}\n"));
        let own_base = match &template {
            Some(template) => template.original.clone().unwrap_or_else(|| GO_BASE.to_owned()),
            None => base.clone(),
        };
        let base = edit::without_block(&base).unwrap_or(base);
        let changed = template.unwrap_or(config);
        let kind = if changed.original.is_none() { Edit::DropIn } else { Edit::Block };
        let files = vec![changed.changed(kind, edit::with_block(&own_base, &tables))];
        Ok(Plan { root: edit::with_block(&base, &tables), entry, files, drop_in: None })
    }

    /// The runtimes that containerd has by default, which a file that names one would take away.
    fn carried(&self, root: Option<&RootFile>) -> Vec<(String, Table)> {
        let own = root.and_then(RootFile::runtimes);
        let is_carried = |name: &str| own.is_none_or(|own| !own.contains_key(name)) && name != HANDLER;
        let runtimes = self.dump.runtimes().into_iter().flatten().filter(|(name, _)| is_carried(name));
        runtimes.filter_map(|(name, runtime)| Some((name.clone(), runtime.as_table()?.clone()))).collect()
    }

    /// A directory that the configuration imports without our help.
    fn imported_directory(&self, sources: &Sources) -> Option<PathBuf> {
        let ours = self.changed.iter().find_map(|file| match &file.edit {
            Edit::Import(pattern) => Some(pattern),
            Edit::DropIn | Edit::Block => None,
        });
        let mut theirs = sources.root.iter().flat_map(|root| &root.imports).filter(|pattern| Some(*pattern) != ours);
        theirs.find_map(|pattern| covered_directory(&sources.config.path, pattern, DROP_IN))
    }

    /// A separate file in a directory that the configuration is made to import.
    fn import(&self, Sources { config, template, version, .. }: Sources) -> Result<Plan, Unplanned> {
        let root = config.original.clone();
        let source = template.unwrap_or(config);
        let directory = source.path.with_file_name("conf.d");
        // Only our file: the directory may hold others that are not imported yet. A pattern may match nothing.
        let pattern = format!("{}/skiff*.toml", directory.display());
        let (edit, after) = match &source.original {
            Some(text) => (Edit::Import(pattern.clone()), edit::with_import(&source.path, text, &pattern)?),
            None => (Edit::DropIn, edit::root(version, &pattern)),
        };
        let root = root.unwrap_or_else(|| after.clone());
        self.drop_in(version, &directory, root, Some(source.changed(edit, after)))
    }

    /// A separate file in `directory`, and the change of the file that imports it, if it does not do so already.
    fn drop_in(
        &self,
        version: u8,
        directory: &Path,
        root: String,
        import: Option<ConfigFile>,
    ) -> Result<Plan, Unplanned> {
        let entry = self.entry();
        let text = edit::drop_in(version, &entry.tables(version));
        let drop_in = self.source(&directory.join(DROP_IN))?.changed(Edit::DropIn, text.clone());
        Ok(Plan { entry, files: [drop_in].into_iter().chain(import).collect(), root, drop_in: Some(text) })
    }

    /// Refuses to take over a file or a runtime that somebody else made.
    fn check_owner(&self, plan: &Plan) -> Result<()> {
        for file in plan.files.iter().filter(|file| file.edit == Edit::DropIn) {
            if let Some(original) = &file.original {
                let size = original.len();
                return Err(Error::refused(format!(
                    "`{}` ({size} bytes) was not written by skiff-node",
                    file.path.display()
                )));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layout::{known, plain};

    const RUNC: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'runc'\n\
                        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'r'\n";

    /// Plans with these files. Returns the files that were asked for, in order, and those that have to change.
    fn plan(layout: &Layout, minor: u32, files: &[(&str, &str)]) -> (Vec<String>, Result<Vec<String>, String>) {
        let dump = Dump::new(RUNC.parse().unwrap());
        let containerd = Version { major: 2, minor };
        let shim = "/opt/skiff/current/shim".into();
        let sandboxer = Sandboxer::default();
        let mut facts =
            Facts { layout, containerd, dump: &dump, changed: &[], shim, sandboxer, texts: BTreeMap::new() };
        let shown = |path: &Path| path.display().to_string();
        let mut asked = Vec::new();
        loop {
            match facts.plan() {
                Ok(plan) => return (asked, Ok(plan.files.iter().map(|file| shown(&file.path)).collect())),
                Err(Unplanned::Refused(error)) => return (asked, Err(error.to_string())),
                Err(Unplanned::Unread(path)) => {
                    let text = files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).into());
                    asked.push(shown(&path));
                    facts.texts.insert(path, text);
                }
            }
        }
    }

    #[test]
    fn a_plan_asks_for_the_files_that_it_depends_on_and_for_no_others() {
        let config = "/etc/containerd/config.toml";
        let check = |files: &[(&str, &str)], drop_in: &str, changed: &[&str]| {
            let (asked, planned) = plan(&plain(), 4, files);
            assert_eq!(asked, [config, drop_in]);
            assert_eq!(planned.unwrap(), changed);
        };
        let drop_in = "/etc/containerd/conf.d/skiff.toml";
        check(&[], drop_in, &[drop_in, config]);
        check(&[(config, "version = 3\n")], drop_in, &[drop_in, config]);
        check(&[(config, "version = 3\nimports = ['/x/*.toml']\n")], "/x/skiff.toml", &["/x/skiff.toml"]);
    }

    #[test]
    fn the_version_of_the_configuration_decides_which_template_is_read() {
        let [_, (config, k3s), _] = known();
        let config = config.to_str().unwrap();
        let (asked, planned) = plan(&k3s, 0, &[]);
        assert_eq!((asked.len(), planned), (1, Err(format!("`{config}` does not exist yet"))));
        for (version, template) in [(2, "config.toml.tmpl"), (3, "config-v3.toml.tmpl")] {
            let (asked, planned) = plan(&k3s, 0, &[(config, &format!("version = {version}\n"))]);
            let template = config.replace("config.toml", template);
            assert_eq!(asked, [config, template.as_str()]);
            assert_eq!(planned.unwrap(), [template]);
        }
    }
}

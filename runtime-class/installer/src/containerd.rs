//! What the node's containerd says of itself and of its configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command;
use crate::dump::Dump;
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::plan::{Plan, Version};
use crate::text;

/// What a configuration that is only tried is called; no pattern for `*.toml` matches it.
const TRIED_ROOT: &str = ".skiff-node-root";
const TRIED_DROP_IN: &str = ".skiff-node-drop-in";

/// containerd's program on the node.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    program: PathBuf,
    /// How long it may take to say something.
    limit: Duration,
}

impl Containerd {
    /// The first program that is there; `named` is the only one when it is given.
    pub(crate) fn find(host: &Host, layout: &Layout, named: Option<PathBuf>, limit: Duration) -> Result<Self> {
        let programs = named.map_or_else(|| layout.programs.clone(), |program| vec![program]);
        let found = programs.iter().find(|program| host.is_program(program));
        let program = found.cloned().ok_or_else(|| {
            let names: Vec<_> = programs.iter().map(|program| format!("`{}`", program.display())).collect();
            Error::refused(format!("containerd is not among {}; name it with `--containerd`", names.join(", ")))
        })?;
        Ok(Self { program, limit })
    }

    pub(crate) async fn version(&self, host: &Host) -> Result<Version> {
        let said = command::run(host, &self.program, &["--version"], self.limit).await?;
        let program = self.program.display();
        Version::parse(&said.stdout)
            .ok_or_else(|| Error::refused(format!("the version of `{program}` is not understood: `{}`", said.stdout)))
    }

    /// What containerd makes of the file `config`, which need not be there.
    pub(crate) async fn dump(&self, host: &Host, config: &Path) -> Result<Dump> {
        let words = ["--config".as_ref(), config.as_os_str(), "config".as_ref(), "dump".as_ref()];
        let said = command::run(host, &self.program, &words, self.limit).await?;
        if !said.is_success {
            let last = said.stderr.lines().last().unwrap_or("it says nothing");
            return Err(Error::refused(format!("containerd refuses the configuration: {last}")));
        }
        said.stdout.parse().map(Dump::new).or_refused("what `containerd config dump` prints is not TOML")
    }

    /// Lets containerd read the configuration that `plan` makes, beside the one that it runs with.
    pub(crate) async fn try_plan(&self, host: &Host, layout: &Layout, plan: &Plan, before: &Dump) -> Result<()> {
        let root = layout.config.with_file_name(TRIED_ROOT);
        let drop_in = layout.config.with_file_name(TRIED_DROP_IN);
        let made = host.missing_directories(&layout.config.with_file_name(""));
        if let Some(directory) = made.last() {
            host.make_directories(directory, 0o755)?;
        }
        let tried = self.try_files(host, (&root, &drop_in), plan, before).await;
        remove_tried(host, layout)?;
        for directory in made.iter().rev() {
            host.remove_empty(directory)?;
        }
        tried
    }

    async fn try_files(&self, host: &Host, (root, drop_in): (&Path, &Path), plan: &Plan, before: &Dump) -> Result<()> {
        let mut text = plan.root.clone();
        if let Some(file) = &plan.drop_in {
            host.put(drop_in, Some(file))?;
            text = text::with_import(root, &text, &drop_in.display().to_string())?;
        }
        host.put(root, Some(&text))?;
        let after = self.dump(host, root).await?;
        check(before, &after, plan)
    }
}

/// Removes what a trial left that was killed.
pub(crate) fn remove_tried(host: &Host, layout: &Layout) -> Result<()> {
    host.remove(&layout.config.with_file_name(TRIED_ROOT))?;
    host.remove(&layout.config.with_file_name(TRIED_DROP_IN))
}

/// Whether `after` is `before` with the runtime of `plan`, and nothing else.
pub(crate) fn check(before: &Dump, after: &Dump, plan: &Plan) -> Result<()> {
    after.check_cri()?;
    after.check_entry(&plan.entry).or_refused("the changed configuration is not what it should be")?;
    match before.lost_in(after) {
        None => Ok(()),
        Some(key) => Err(Error::refused(format!("the changed configuration would lose or change `{key}`"))),
    }
}

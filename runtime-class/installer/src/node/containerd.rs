//! What the node's containerd reports about itself and its configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::dump::Dump;
use crate::config::edit;
use crate::config::layout::Layout;
use crate::config::plan::Plan;
use crate::config::version::Version;
use crate::error::{Context, Error, Result};
use crate::node::files::Host;
use crate::node::run::run;

/// The names of a configuration that is only tried; the pattern `*.toml` does not match them.
const TRIED_ROOT: &str = ".skiff-node-root";
const TRIED_DROP_IN: &str = ".skiff-node-drop-in";

/// containerd's program on the node.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    program: PathBuf,
    /// How long one call of it may take.
    limit: Duration,
}

impl Containerd {
    /// The first of the layout's programs that exists, or `named` if it is given.
    pub(crate) fn find(host: &Host, layout: &Layout, named: Option<PathBuf>, limit: Duration) -> Result<Self> {
        let programs = named.map_or_else(|| layout.programs.clone(), |program| vec![program]);
        let found = programs.iter().find(|program| host.is_program(program));
        let program = found.cloned().ok_or_else(|| {
            let names: Vec<_> = programs.iter().map(|program| format!("`{}`", program.display())).collect();
            Error::refused(format!("containerd is not among {}: pass its path with `--containerd`", names.join(", ")))
        })?;
        Ok(Self { program, limit })
    }

    pub(crate) async fn version(&self, host: &Host) -> Result<Version> {
        let said = run(host, &self.program, &["--version"], self.limit).await?;
        let program = self.program.display();
        Version::parse(&said.stdout)
            .ok_or_else(|| Error::refused(format!("cannot read the version of `{program}`: `{}`", said.stdout)))
    }

    /// What containerd makes of the file `config`, which need not exist.
    pub(crate) async fn dump(&self, host: &Host, config: &Path) -> Result<Dump> {
        let words = ["--config".as_ref(), config.as_os_str(), "config".as_ref(), "dump".as_ref()];
        let said = run(host, &self.program, &words, self.limit).await?;
        if !said.is_success {
            let last = said.stderr.lines().last().unwrap_or("it gives no reason");
            return Err(Error::refused(format!("containerd refuses the configuration: {last}")));
        }
        said.stdout.parse().map(Dump::new).or_refused("the output of `containerd config dump` is not TOML")
    }

    /// Makes containerd read the planned configuration from a place beside the one that it runs with.
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
            text = edit::with_import(root, &text, &drop_in.display().to_string())?;
        }
        host.put(root, Some(&text))?;
        let after = self.dump(host, root).await?;
        check(before, &after, plan)
    }
}

/// Removes what an interrupted trial left.
pub(crate) fn remove_tried(host: &Host, layout: &Layout) -> Result<()> {
    host.remove(&layout.config.with_file_name(TRIED_ROOT))?;
    host.remove(&layout.config.with_file_name(TRIED_DROP_IN))
}

/// Checks that `after` is `before` with the planned runtime, and nothing else.
pub(crate) fn check(before: &Dump, after: &Dump, plan: &Plan) -> Result<()> {
    after.check_cri()?;
    after.check_entry(&plan.entry).or_refused("the changed configuration is not as planned")?;
    match before.lost_in(after) {
        None => Ok(()),
        Some(key) => Err(Error::refused(format!("the changed configuration would lose or change `{key}`"))),
    }
}

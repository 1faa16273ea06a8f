//! Where the programs and guests are: from the environment, else from the scripts that build them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// What is measured, and with what.
pub(crate) struct Programs {
    /// The directory of skiff's three programs.
    pub(crate) skiff: PathBuf,
    /// The directory of containerd, runc, `wasmtime`, `wrk` and the native programs.
    pub(crate) tools: PathBuf,
    /// The directory of the guests.
    pub(crate) guests: PathBuf,
    /// The directory of the baseline shim.
    pub(crate) baseline: PathBuf,
}

impl Programs {
    /// Reads `SKIFF_BIN`, `SKIFF_TOOLS`, `SKIFF_GUESTS` and `SKIFF_BASELINE` (a file); builds what is not named.
    ///
    /// # Errors
    /// When a build fails, or a named path does not exist.
    pub(crate) fn find() -> Result<Self> {
        let baseline = provided("SKIFF_BASELINE", "baseline/build.sh", &[])?;
        Ok(Self {
            skiff: provided("SKIFF_BIN", "programs.sh", &[])?,
            tools: provided("SKIFF_TOOLS", "tools/build.sh", &["containerd", "runc", "native", "wasmtime", "wrk"])?,
            guests: provided("SKIFF_GUESTS", "guests/build.sh", &["c", "go", "js", "rust"])?,
            baseline: baseline.parent().context("`SKIFF_BASELINE` is not a file")?.into(),
        })
    }

    /// The path of a tool.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// The path of a guest.
    pub(crate) fn guest(&self, name: &str) -> PathBuf {
        self.guests.join(name)
    }
}

fn provided(variable: &str, script: &str, arguments: &[&str]) -> Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => built(script, arguments)?,
    };
    ensure!(path.exists(), "`{variable}` is `{}`, which does not exist", path.display());
    Ok(path)
}

/// The scripts' last line of output is the path of what they built.
fn built(script: &str, arguments: &[&str]) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("").join(script);
    let output = Command::new(&script)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{}`", script.display()))?;
    ensure!(output.status.success(), "`{}` failed: {}", script.display(), output.status);
    let text = String::from_utf8(output.stdout).context("the script printed no text")?;
    Ok(text.lines().last().context("the script printed nothing")?.into())
}

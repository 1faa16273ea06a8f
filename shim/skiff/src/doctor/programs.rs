//! Are the three programs beside each other, and of one version?

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use skiff_protocol::CODE_ID;
use skiff_protocol::names::{ENGINE, SHIM};

use super::ask::{self, ask};
use super::check::Check;

const INSTALL: &str = "install the three programs of one release into one directory";

pub(super) fn check() -> Vec<Check> {
    let directory = env::current_exe().ok().and_then(|program| program.parent().map(Path::to_path_buf));
    match directory {
        Some(directory) => vec![check_shim(&directory), check_engine(&directory)],
        None => vec![Check::fail("programs", "skiff cannot find its own program file", "mount /proc")],
    }
}

fn check_shim(directory: &Path) -> Check {
    let path = directory.join(SHIM);
    let text = match ask(Command::new(&path).arg("-v"), ask::LIMIT) {
        Ok(text) => text,
        Err(error) => return Check::fail("shim", format!("`{}` cannot be run: {error}", path.display()), INSTALL),
    };
    match shim_version(&text) {
        Some((version, engine)) if version == env!("CARGO_PKG_VERSION") && engine == CODE_ID => {
            Check::ok("shim", format!("`{}`, version {version}", path.display()))
        }
        Some((version, engine)) => {
            let own = env!("CARGO_PKG_VERSION");
            Check::fail("shim", format!("version {version} for {engine}, but skiff is {own} for {CODE_ID}"), INSTALL)
        }
        None => Check::fail("shim", format!("`{} -v` does not report its version", path.display()), INSTALL),
    }
}

/// The version and the engine in what the shim's `-v` prints.
fn shim_version(text: &str) -> Option<(&str, &str)> {
    let value = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    Some((value("Version:")?, value("Engine:")?))
}

/// The engine takes no arguments, but its file contains the id of the code that it runs.
fn check_engine(directory: &Path) -> Check {
    let path = directory.join(ENGINE);
    match fs::read(&path) {
        Err(error) => Check::fail("engine", format!("cannot read `{}`: {error}", path.display()), INSTALL),
        Ok(bytes) if bytes.windows(CODE_ID.len()).any(|window| window == CODE_ID.as_bytes()) => {
            Check::ok("engine", format!("`{}`, {CODE_ID}", path.display()))
        }
        Ok(_) => Check::fail("engine", format!("`{}` was not built for {CODE_ID}", path.display()), INSTALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_tells_its_version_and_engine() {
        let text = "containerd-shim-skiff-v1:\n  Version:  0.1.0\n  Engine:   wasmtime-1-skiff-1\n";
        assert_eq!(shim_version(text), Some(("0.1.0", "wasmtime-1-skiff-1")));
        assert_eq!(shim_version("containerd-shim-runc-v2:\n  Version:  2.0\n"), None);
    }
}

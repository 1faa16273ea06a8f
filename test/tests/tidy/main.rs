//! The tidy test: keeps in order what no compiler looks at. It only reads files, of the work tree that it was built in, and
//! needs nothing of the other suites.

mod arrows;
mod code;
mod documents;
mod imports;

use std::fs;
use std::path::{Path, PathBuf};

/// What is built, fetched or kept by other programs.
const NOT_OURS: [&str; 4] = [".git", "target", "node_modules", ".venv"];

/// A text file of the work tree.
struct Source {
    /// Relative to the root of the repository.
    path: PathBuf,
    text: String,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The files below `folder` whose names end with one of `endings`, in order.
fn sources(folder: &str, endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap_or_default());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.extend((!NOT_OURS.contains(&name.as_str())).then_some(path));
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path: path.strip_prefix(root()).unwrap().into(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("`{path}`: {error}"))
}

/// Fails with every fault at once.
fn check(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The word at the beginning of `text`, after white space.
fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

//! Rules for source files.

use std::path::Path;

use crate::{check, sources};

/// The most lines of a source file; tests do not count.
const LINES_MAX: usize = 400;

#[test]
fn nothing_pure_touches_the_world() {
    let forbidden =
        ["std::fs", "std::net", "std::env", "std::process", "tokio", "nix::", "libc::", "Mutex", "::now()", "async "];
    let mut faults = Vec::new();
    let states = sources("shim/shim/src/pod", &["state.rs"]);
    let installer = sources("runtime-class/installer/src/config", &[".rs"]);
    for source in sources("shim/shim/src/spec", &[".rs"]).iter().chain(&states).chain(&installer) {
        let code = source.text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for word in forbidden.iter().filter(|word| code.contains(**word)) {
            faults.push(format!("`{}` has `{word}`", source.path.display()));
        }
    }
    check(&faults);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let files = sources("", &[".rs"]);
    assert!(files.len() > 50, "only {} source files were found", files.len());
    // A module's own tests are what the module says of them.
    let silent = files.iter().filter(|source| !source.text.starts_with("//!") && !source.path.ends_with("tests.rs"));
    check(&silent.map(|source| format!("`{}` does not open with `//!`", source.path.display())).collect::<Vec<_>>());
}

#[test]
fn no_source_file_is_longer_than_one_idea() {
    let mut faults = Vec::new();
    let is_test = |path: &Path| path.ends_with("tests.rs") || path.iter().any(|part| part == "tests");
    for source in sources("shim", &[".rs"]).iter().filter(|source| !is_test(&source.path)) {
        let lines = source.text.lines().take_while(|line| *line != "mod tests {").count();
        if lines > LINES_MAX {
            faults.push(format!("`{}` has {lines} lines, more than {LINES_MAX}", source.path.display()));
        }
    }
    check(&faults);
}

//! The tidy test: what keeps sources and documents in order that no compiler looks at. It reads files only, from the
//! work tree that it was built in, and needs nothing of the other suites.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what cannot be read is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a source file; tests do not count.
const LINES_MAX: usize = 400;
/// What is built, fetched or kept by other programs.
const NOT_OURS: [&str; 4] = [".git", "target", "node_modules", ".venv"];
/// Which modules of the shim a module of the shim may name, and may be named with `crate::`.
const ARROWS: [(&str, &[&str]); 4] = [
    ("error", &["error"]),
    ("settings", &["error", "settings"]),
    ("spec", &["error", "settings", "spec"]),
    ("host", &["error", "settings", "spec", "host"]),
];

/// A text file of the work tree.
struct Source {
    /// Relative to the root of the repository.
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
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

fn documents() -> Vec<Source> {
    sources("", &[".md"])
}

/// Fails with every fault at once.
fn check(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The names after `crate::` in `text`, also those of a `use crate::{...}`.
fn named_modules(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for (position, start) in text.match_indices("crate::") {
        let rest = &text[position + start.len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(first_level(list)),
            None => names.extend([identifier(rest)]),
        }
    }
    names
}

/// The names that a list in braces begins its parts with, those in inner braces left out.
fn first_level(list: &str) -> Vec<&str> {
    let mut names = vec![identifier(list)];
    let mut depth = 0;
    for (position, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(identifier(&list[position + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

#[test]
fn the_modules_of_the_shim_point_inward_only() {
    let mut faults = Vec::new();
    for source in sources("shim/shim/src", &[".rs"]) {
        let inside = source.path.strip_prefix("shim/shim/src").unwrap();
        let module = inside.iter().next().and_then(|first| first.to_str()).unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module.trim_end_matches(".rs")) else {
            continue;
        };
        for name in named_modules(&source.text) {
            if !allowed.contains(&name) {
                faults.push(format!("`{}` names `crate::{name}`", source.path.display()));
            }
        }
        if source.text.contains("super::super::super") {
            faults.push(format!("`{}` climbs with `super`", source.path.display()));
        }
    }
    check(&faults);
}

#[test]
fn nothing_pure_touches_the_world() {
    let forbidden =
        ["std::fs", "std::net", "std::env", "std::process", "tokio", "nix::", "libc::", "Mutex", "::now()", "async "];
    let mut faults = Vec::new();
    let states = sources("shim/shim/src/pod", &["state.rs"]);
    for source in sources("shim/shim/src/spec", &[".rs"]).iter().chain(&states) {
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

/// The names of the functions that are defined in the project's Rust code.
fn functions() -> BTreeSet<String> {
    let all = ["shim", "runtime-class", "test"].map(|folder| sources(folder, &[".rs"]));
    let names =
        |source: &Source| source.text.split("fn ").skip(1).map(|rest| identifier(rest).to_owned()).collect::<Vec<_>>();
    all.iter().flatten().flat_map(names).collect()
}

/// What stands between backticks in `text`, code blocks left out.
fn code_spans(text: &str) -> Vec<&str> {
    let mut spans = Vec::new();
    let mut is_in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_in_block = !is_in_block;
        } else if !is_in_block && !line.starts_with("    ") {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

#[test]
fn every_promise_names_tests_that_exist() {
    let (text, functions) = (read("SPECIFICATION.md"), functions());
    let promises = text.split("\n## Not promised yet").next().unwrap();
    let mut faults = Vec::new();
    let mut count = 0;
    for promise in promises.split("\n**").skip(1) {
        let number = promise.split("**").next().unwrap_or_default();
        let tests = promise.split("*Tests:*").nth(1).unwrap_or_default();
        let tests: Vec<_> = code_spans(tests.split("\n\n").next().unwrap_or_default());
        count += 1;
        if tests.is_empty() {
            faults.push(format!("promise {number} names no test"));
        }
        for test in tests.iter().filter(|test| !functions.contains(**test)) {
            faults.push(format!("promise {number} names `{test}`, which does not exist"));
        }
    }
    assert!(count > 10, "only {count} promises were found");
    check(&faults);
}

/// The targets of the links in a document.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// The anchors of a document's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let plain = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        anchors.insert(plain.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let mut faults = Vec::new();
    for document in documents() {
        for link in links(&document.text) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = document.path.parent().unwrap_or(Path::new(""));
            let target = if path.is_empty() { root().join(&document.path) } else { root().join(folder).join(path) };
            let mut fault =
                |what: &str| faults.push(format!("`{}` links to `{link}`: {what}", document.path.display()));
            if !target.exists() {
                fault("there is no such file");
            } else if !anchor.is_empty() && !anchors(&fs::read_to_string(&target).unwrap()).contains(anchor) {
                fault("there is no such heading");
            }
        }
    }
    check(&faults);
}

#[test]
fn no_document_names_a_place_on_somebodys_machine() {
    let own = root().to_str().unwrap();
    let mut faults = Vec::new();
    for document in documents() {
        for place in ["/home/", "/root/", "/Users/", own] {
            if document.text.contains(place) {
                faults.push(format!("`{}` names `{place}`", document.path.display()));
            }
        }
    }
    check(&faults);
}

/// The options that the shim reads, and their defaults as the documentation writes them.
fn options_of_the_code() -> BTreeMap<String, String> {
    let text = read("shim/shim/src/settings.rs");
    let fields = between(&text, "pub(crate) struct Settings {", "\n}");
    let defaults = between(&text, "fn default() -> Self {", "\n    }");
    let names = fields.lines().filter_map(|line| line.trim().strip_prefix("pub(crate) ")?.split(':').next());
    let default_of = |name: &str| {
        let line = defaults.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        written_default(line.unwrap_or_else(|| panic!("`{name}` has no default")).trim_end_matches(','))
    };
    names.map(|name| (pascal_case(name), default_of(name))).collect()
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("there is no `{start}`")).1;
    rest.split_once(end).unwrap().0
}

fn written_default(expression: &str) -> String {
    match expression {
        "String::new()" => "\"\"".into(),
        _ if expression.contains(" << ") => {
            let (number, shift) = expression.split_once(" << ").unwrap();
            (number.parse::<u64>().unwrap() << shift.parse::<u32>().unwrap()).to_string()
        }
        _ => expression.trim_end_matches(".into()").into(),
    }
}

fn pascal_case(name: &str) -> String {
    let mut text = String::new();
    for word in name.split('_') {
        let (first, rest) = word.split_at(1);
        write!(text, "{}{rest}", first.to_uppercase()).unwrap();
    }
    text
}

#[test]
fn the_table_of_options_is_that_of_the_code() {
    let text = read("docs/configuration.md");
    let table = between(&text, "## Runtime options", "\n## ");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let cell = |row: &str, column: usize| row.split('|').nth(column).unwrap().trim().trim_matches('`').to_owned();
    let documented: BTreeMap<_, _> = rows.map(|row| (cell(row, 1), cell(row, 3))).collect();
    assert_eq!(documented, options_of_the_code());
}

/// Whether `span` is the name of an environment variable, or of something else written like one.
fn is_variable(span: &str) -> bool {
    span.len() > 2
        && span.starts_with(|c: char| c.is_ascii_uppercase())
        && span.contains(|c: char| c.is_ascii_uppercase())
        && span.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

fn is_annotation(span: &str) -> bool {
    ["io.", "org.", "runtime."].iter().any(|start| span.starts_with(start))
        && span.matches('.').count() > 1
        && span.chars().all(|c| c.is_ascii_alphanumeric() || ".-/_".contains(c))
}

#[test]
fn every_variable_and_annotation_in_the_documents_exists() {
    let code = [
        sources("shim", &[".rs"]),
        sources("runtime-class", &[".rs"]),
        sources("test", &[".rs", ".sh", ".c"]),
        sources("", &["Makefile"]),
    ];
    let code: Vec<_> = code.iter().flatten().filter(|source| !source.path.ends_with("tidy.rs")).collect();
    let exists = |name: &str| code.iter().any(|source| source.text.contains(name));
    let mut faults = Vec::new();
    for document in documents() {
        for span in code_spans(&document.text) {
            let name = span.split('=').next().unwrap_or_default();
            if (is_variable(name) || is_annotation(name)) && !exists(name) {
                faults.push(format!("`{}` names `{name}`, which no code knows", document.path.display()));
            }
        }
    }
    check(&faults);
}

#[test]
fn the_tidy_test_reads_what_it_is_given() {
    let text =
        "use crate::error::Error;\nuse crate::{host::cgroup, task::{state, wasm}, pod};\ncrate::settings::Settings";
    assert_eq!(named_modules(text).into_iter().collect::<Vec<_>>(), ["error", "host", "pod", "settings", "task"]);
    assert_eq!(links("[a](b.md#c) [d](https://e) [f](#g)"), ["b.md#c", "#g"]);
    assert_eq!(anchors("# One `two`, three\n").into_iter().collect::<Vec<_>>(), ["one-two-three"]);
    assert_eq!(code_spans("a `b` c\n```\n`d`\n```\n    `e`\n`f` `g`"), ["b", "f", "g"]);
    assert_eq!(pascal_case("no_pivot_root"), "NoPivotRoot");
    assert_eq!(written_default("4 << 30"), "4294967296");
    assert!(is_variable("SKIFF_HTTP_ADDRESS") && !is_variable("Ok") && is_annotation("io.kubernetes.cri.sandbox-id"));
}

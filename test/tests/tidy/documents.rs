//! Documents and code that must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::{Source, check, identifier, read, root, sources};

fn documents() -> Vec<Source> {
    sources("", &[".md"])
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
        // The root directory of a process is on every machine.
        let text = document.text.replace("/proc/1/root/", "");
        for place in ["/home/", "/root/", "/Users/", own] {
            if text.contains(place) {
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
        _ if expression.starts_with("names::") => {
            let name = between(expression, "names::", ".into()");
            between(&read("shim/protocol/src/names.rs"), &format!("{name}: &str = "), ";").to_owned()
        }
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
    if let Some((_, name)) = span.split_once(".skiff.dev/") {
        return !["", "NAME", "…"].contains(&name);
    }
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
    let code: Vec<_> = code.iter().flatten().filter(|source| !source.path.iter().any(|part| part == "tidy")).collect();
    let exists = |name: &str| code.iter().any(|source| source.text.contains(name));
    let mut faults = Vec::new();
    for document in documents() {
        for span in code_spans(&document.text) {
            let name = span.split(['=', ':']).next().unwrap_or_default();
            let name = name.strip_prefix("CONTAINER.").unwrap_or(name);
            if (is_variable(name) || is_annotation(name)) && !exists(name) {
                faults.push(format!("`{}` names `{name}`, which no code knows", document.path.display()));
            }
        }
    }
    check(&faults);
}

#[test]
fn the_tidy_test_reads_what_it_is_given() {
    assert_eq!(links("[a](b.md#c) [d](https://e) [f](#g)"), ["b.md#c", "#g"]);
    assert_eq!(anchors("# One `two`, three\n").into_iter().collect::<Vec<_>>(), ["one-two-three"]);
    assert_eq!(code_spans("a `b` c\n```\n`d`\n```\n    `e`\n`f` `g`"), ["b", "f", "g"]);
    assert_eq!(pascal_case("no_pivot_root"), "NoPivotRoot");
    assert_eq!(written_default("4 << 30"), "4294967296");
    assert!(is_variable("SKIFF_HTTP_ADDRESS") && !is_variable("Ok") && is_annotation("io.kubernetes.cri.sandbox-id"));
    assert!(is_annotation("debug.skiff.dev/look") && !is_annotation("limits.skiff.dev/NAME"));
}

//! Which module of a crate names which other one, read from the sources: every path that begins with `crate`, `super`, `self`
//! or a child module. A name that is only passed on (`pub use`) counts as the module that it comes from; tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::{identifier, sources};

/// A module by its path in the crate; the crate's own is empty.
pub(crate) type Module = Vec<String>;

/// The modules of a crate, and what each names.
pub(crate) struct Imports {
    /// For each module the modules that it names.
    pub(crate) edges: BTreeMap<Module, BTreeSet<Module>>,
}

/// A module as it is written.
struct File {
    code: String,
    children: BTreeSet<String>,
    /// The paths that it passes on, by the name under which it does.
    passed_on: BTreeMap<String, Vec<String>>,
}

impl Imports {
    /// Reads the crate whose sources are in `folder`.
    pub(crate) fn of(folder: &str) -> Self {
        let files = sources(folder, &[".rs"]).into_iter().filter(|source| !source.path.ends_with("tests.rs"));
        let files = files.map(|source| {
            let inside = source.path.strip_prefix(folder).unwrap();
            (module_of(inside), file(&source.text))
        });
        Self::between(&files.collect())
    }

    fn between(files: &BTreeMap<Module, File>) -> Self {
        let mut edges = BTreeMap::new();
        for (module, file) in files {
            let named = paths_in(&file.code, &file.children).into_iter();
            let named = named.filter_map(|path| resolve(files, module, &path, 8)).filter(|other| other != module);
            edges.insert(module.clone(), named.collect());
        }
        Self { edges }
    }

    /// Groups of modules that name each other, directly or not.
    pub(crate) fn circles(&self) -> Vec<Vec<&Module>> {
        let reached: BTreeMap<_, _> = self.edges.keys().map(|module| (module, self.reached_from(module))).collect();
        let mut circles = BTreeSet::new();
        for (module, others) in &reached {
            let back = others.iter().filter(|other| reached.get(*other).is_some_and(|back| back.contains(module)));
            let circle: BTreeSet<_> = back.copied().chain([*module]).collect();
            if circle.len() > 1 {
                circles.insert(circle.into_iter().collect::<Vec<_>>());
            }
        }
        circles.into_iter().collect()
    }

    fn reached_from(&self, module: &Module) -> BTreeSet<&Module> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<_> = self.edges[module].iter().collect();
        while let Some(module) = next.pop() {
            if reached.insert(module) {
                next.extend(self.edges.get(module).into_iter().flatten());
            }
        }
        reached
    }
}

/// `a/b.rs` and `a/b/mod.rs` are `a::b`; `main.rs` and `lib.rs` are the crate.
fn module_of(inside: &Path) -> Module {
    let mut parts: Module = inside.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "main", "lib"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

fn file(text: &str) -> File {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("// ").next().unwrap_or_default());
    let code = lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let declared = code.lines().filter_map(|line| Some(line.trim_end().strip_suffix(';')?.rsplit_once("mod ")?.1));
    let children = declared.filter(|name| identifier(name) == *name).map(str::to_owned).collect();
    let (mut rest, mut passed_on) = (String::new(), BTreeMap::new());
    for statement in code.split_inclusive(';') {
        match statement.trim_start().strip_prefix("pub").and_then(|rest| rest.split_once("use ")) {
            Some((visibility, tree)) if visibility.trim().is_empty() || visibility.trim_start().starts_with('(') => {
                for mut path in expand(tree.trim_end_matches(';')) {
                    let name = path.last().cloned().unwrap_or_default();
                    let name = match name.split_once(" as ") {
                        Some((own, name)) => {
                            let last = path.len() - 1;
                            path[last] = own.to_owned();
                            name.to_owned()
                        }
                        None => name,
                    };
                    passed_on.insert(name, path);
                }
            }
            _ => rest.push_str(statement),
        }
    }
    File { code: rest, children, passed_on }
}

/// The paths of a tree of imports: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, list)) = tree.split_once('{') else {
        return vec![tree.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let prefix: Vec<String> =
        prefix.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    let list = list.trim_end().trim_end_matches('}');
    let mut depth = 0;
    let parts = list.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    let parts = parts.map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(expand).map(|path| prefix.iter().cloned().chain(path).collect()).collect()
}

/// Every path of the crate that `code` names, as it is written.
fn paths_in(code: &str, children: &BTreeSet<String>) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(position) = rest.find("::") {
        let before = &rest[..position];
        let start = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |index| index + 1);
        let (first, tail) = (&before[start..], &rest[position..]);
        let length = path_length(tail);
        if ["crate", "super", "self"].contains(&first) || children.contains(first) {
            let mut found = expand(&format!("{first}{}", &tail[..length]));
            for path in &mut found {
                if let Some(last) = path.last_mut() {
                    *last = last.split(" as ").next().unwrap_or_default().to_owned();
                }
            }
            paths.extend(found);
        }
        rest = &tail[length.max(2)..];
    }
    paths
}

/// How long the path at the beginning of `text` is, with a list in braces at its end.
fn path_length(text: &str) -> usize {
    let mut length = 0;
    while let Some(rest) = text[length..].strip_prefix("::") {
        if rest.starts_with('{') {
            let mut depth = 0;
            let end = rest.find(|c| {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                depth == 0
            });
            return length + 2 + end.map_or(rest.len(), |end| end + 1);
        }
        length += 2 + rest.len().min(identifier(rest).len());
        if identifier(rest).is_empty() {
            break;
        }
    }
    length
}

/// The module in which the thing is that `path`, written in `module`, names.
fn resolve(files: &BTreeMap<Module, File>, module: &Module, path: &[String], tries: u32) -> Option<Module> {
    let mut place = module.clone();
    let mut parts = path.iter();
    for (index, part) in path.iter().enumerate() {
        match part.as_str() {
            "crate" => place.clear(),
            "super" => drop(place.pop()),
            "self" => {}
            _ if index == 0 && !files[module].children.contains(part) => return None,
            _ => break,
        }
        parts.next();
    }
    for part in parts {
        let inner: Module = place.iter().cloned().chain([part.clone()]).collect();
        if files.contains_key(&inner) {
            place = inner;
            continue;
        }
        let passed_on = files.get(&place).and_then(|file| file.passed_on.get(part));
        return match passed_on {
            Some(path) if tries > 0 => resolve(files, &place, path, tries - 1),
            Some(_) | None => Some(place),
        };
    }
    Some(place)
}

#[test]
fn imports_are_read_as_the_compiler_reads_them() {
    let files = [
        ("main.rs", "mod a;\nmod b;\nuse a::C;\nfn main() { b::run() }"),
        ("a/mod.rs", "mod c;\nmod d;\npub(crate) use c::{C, E as F};\nuse crate::b;"),
        ("a/c.rs", "use super::d::D;\n// use crate::b;\n#[cfg(test)]\nmod tests {\n    use crate::b;\n}"),
        ("a/d.rs", "use crate::{a::{C, F}, b::{self, x::Y}};\nuse std::io;"),
        ("b.rs", "pub(crate) fn run() { crate::a::d::run() }"),
    ];
    let files = files.map(|(path, text)| (module_of(Path::new(path)), file(text)));
    let imports = Imports::between(&files.into());
    let module = |path: &str| path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect::<Module>();
    for (from, expected) in [
        ("", vec!["a::c", "b"]),
        ("a", vec!["b"]),
        ("a::c", vec!["a::d"]),
        ("a::d", vec!["a::c", "b"]),
        ("b", vec!["a::d"]),
    ] {
        let expected: BTreeSet<_> = expected.into_iter().map(module).collect();
        assert_eq!(imports.edges[&module(from)], expected, "{from}");
    }
    assert_eq!(imports.circles(), [[&module("a::c"), &module("a::d"), &module("b")]]);
}

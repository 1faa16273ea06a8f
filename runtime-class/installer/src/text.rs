//! The text that is put into containerd's configuration, and the edits of files that are somebody else's. No I/O.

use std::path::{Path, PathBuf};

use toml::de::DeTable;
use toml::{Table, Value};

use crate::error::{Context, Error, Result};

/// The name of the runtime in containerd's configuration: what a RuntimeClass calls its handler.
pub(crate) const HANDLER: &str = "skiff";
/// The annotations of a pod that the runtime is given.
pub(crate) const POD_ANNOTATIONS: [&str; 2] = ["limits.skiff.dev/*", "*.limits.skiff.dev/*"];
/// The part of containerd's configuration that says how images are pulled, since containerd 2.0.
pub(crate) const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";
/// The first line of a file that is all ours.
const HEADER: &str = "# Written by skiff-node, which also takes it away: `skiff-node remove`.";
const BEGIN: &str = "# skiff-node: begin. `skiff-node remove` takes these lines away.";
const END: &str = "# skiff-node: end.";

/// What containerd is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The shim's program.
    pub(crate) shim: PathBuf,
    /// Whether containerd has to be told to unpack images of other platforms, as `wasi/wasm` is.
    pub(crate) local_pull: bool,
    /// Runtimes that containerd would drop from its defaults, now that one is named: containerd 1 replaces the list.
    pub(crate) carried: Vec<(String, Table)>,
}

/// Which plugin has the runtimes in a configuration of this version.
pub(crate) const fn runtime_plugin(version: u8) -> &'static str {
    if version < 3 { "io.containerd.grpc.v1.cri" } else { "io.containerd.cri.v1.runtime" }
}

/// The tables of `entry` in a configuration of this version.
///
/// The type is the shim's path, and not a name with the path beside it: of that a containerd that is restarted finds only the
/// sandboxes again, and takes the containers in them for dead (its issue 10811).
pub(crate) fn tables(version: u8, entry: &Entry) -> String {
    let runtimes = format!("plugins.'{}'.containerd.runtimes", runtime_plugin(version));
    let annotations = POD_ANNOTATIONS.map(|annotation| format!("'{annotation}'")).join(", ");
    let mut text = format!(
        "[{runtimes}.{HANDLER}]\nruntime_type = '{}'\npod_annotations = [{annotations}]\n",
        entry.shim.display()
    );
    if entry.local_pull {
        text += &format!("\n[plugins.'{IMAGES_PLUGIN}']\nuse_local_image_pull = true\n");
    }
    for (name, table) in &entry.carried {
        text.push('\n');
        write_table(&mut text, &format!("{runtimes}.{}", Value::String(name.clone())), table);
    }
    text
}

fn write_table(text: &mut String, header: &str, table: &Table) {
    *text += &format!("[{header}]\n");
    for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        *text += &format!("{key} = {value}\n");
    }
    for (key, value) in table {
        if let Value::Table(table) = value {
            write_table(text, &format!("{header}.{key}"), table);
        }
    }
}

/// A file of its own with these tables.
pub(crate) fn drop_in(version: u8, tables: &str) -> String {
    format!("{HEADER}\nversion = {version}\n\n{tables}")
}

/// A root file for a node that has none.
pub(crate) fn root(version: u8, pattern: &str) -> String {
    format!("{HEADER}\nversion = {version}\nimports = ['{pattern}']\n")
}

/// Whether all of a file is ours.
pub(crate) fn is_ours(text: &str) -> bool {
    text.starts_with(HEADER)
}

/// `text` with these tables at its end.
pub(crate) fn with_block(text: &str, tables: &str) -> String {
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{newline}{BEGIN}\n{tables}{END}\n")
}

/// `text` without the block; none when it has none.
pub(crate) fn without_block(text: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{}", after.strip_prefix('\n').unwrap_or(after)))
}

/// What a root file says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RootFile {
    pub(crate) version: u8,
    pub(crate) imports: Vec<String>,
    pub(crate) table: Table,
}

/// Reads a root file; a version that is not known is refused.
pub(crate) fn read_root(path: &Path, text: &str) -> Result<RootFile> {
    let shown = path.display();
    let table: Table = text.parse().or_refused(format!("`{shown}` is not TOML"))?;
    let version = match table.get("version") {
        None => return Err(Error::refused(format!("`{shown}` has no `version`; only 2, 3 and 4 are known"))),
        Some(version) => version.as_integer().and_then(|version| u8::try_from(version).ok()).unwrap_or(0),
    };
    if !(2..=4).contains(&version) {
        let found = table.get("version").map(ToString::to_string).unwrap_or_default();
        return Err(Error::refused(format!("`{shown}` has version `{found}`; only 2, 3 and 4 are known")));
    }
    let imports = match table.get("imports") {
        None => Vec::new(),
        Some(value) => {
            let texts = value.as_array().and_then(|array| array.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
            let texts = texts.ok_or_else(|| Error::refused(format!("`imports` of `{shown}` is no list of texts")))?;
            texts.into_iter().map(str::to_owned).collect()
        }
    };
    Ok(RootFile { version, imports, table })
}

/// `text` with `pattern` in its `imports`; not a byte else changes.
pub(crate) fn with_import(path: &Path, text: &str, pattern: &str) -> Result<String> {
    let shown = path.display();
    let table = DeTable::parse(text).or_refused(format!("`{shown}` is not TOML"))?;
    let quoted = format!("\"{pattern}\"");
    let (at, added) = match table.get_ref().get("imports") {
        Some(imports) => {
            let list = imports.get_ref().as_array();
            let list = list.ok_or_else(|| Error::refused(format!("`imports` of `{shown}` is no list")))?;
            if list.iter().any(|import| import.get_ref().as_str() == Some(pattern)) {
                return Ok(text.to_owned());
            }
            match list.iter().last() {
                Some(last) => (last.span().end, format!(", {quoted}")),
                None => (imports.span().start + 1, quoted),
            }
        }
        None => {
            // Beside the version, which stands before every table.
            let version = table.get_ref().get("version").map_or(0, |version| version.span().end);
            let rest = &text[version..];
            let line = rest.find('\n').map_or(rest.len(), |end| end + 1);
            let newline = if rest[..line].ends_with('\n') { "" } else { "\n" };
            (version + line, format!("{newline}imports = [{quoted}]\n"))
        }
    };
    Ok(format!("{}{added}{}", &text[..at], &text[at..]))
}

/// `text` without `pattern` in its `imports`.
pub(crate) fn without_import(path: &Path, text: &str, pattern: &str) -> Result<String> {
    let quoted = format!("\"{pattern}\"");
    let forms = [format!("imports = [{quoted}]\n"), format!(", {quoted}"), format!("{quoted}, "), quoted];
    let found = forms.iter().find(|form| text.contains(form.as_str()));
    let without = found.map_or_else(|| text.to_owned(), |form| text.replacen(form.as_str(), "", 1));
    if read_root(path, &without)?.imports.iter().any(|import| import == pattern) {
        return Err(Error::refused(format!("take `{pattern}` out of `imports` of `{}` by hand", path.display())));
    }
    Ok(without)
}

/// The directory that a pattern of `imports` takes every file named `name` from; none when it does not.
pub(crate) fn covered_directory(root: &Path, pattern: &str, name: &str) -> Option<PathBuf> {
    let is_plain = |text: &str| !text.contains(['*', '?', '[', '\\', '$']);
    let path = root.parent()?.join(pattern);
    let (directory, last) = (path.parent()?, path.file_name()?.to_str()?);
    let (start, end) = last.split_once('*')?;
    let matches = name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end);
    (is_plain(directory.to_str()?) && is_plain(start) && is_plain(end) && matches).then(|| directory.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry { shim: "/opt/skiff/shim".into(), local_pull: false, carried: Vec::new() }
    }

    #[test]
    fn an_import_is_the_only_change_of_a_file() {
        let pattern = "/etc/containerd/conf.d/skiff*.toml";
        let check = |text: &str, expected: &str| {
            let with = with_import(Path::new("/root.toml"), text, pattern).unwrap();
            assert_eq!(with, expected);
            assert_eq!(with_import(Path::new("/root.toml"), &with, pattern).unwrap(), expected, "twice");
            assert_eq!(without_import(Path::new("/root.toml"), &with, pattern).unwrap(), text, "and back");
        };
        check(
            "# mine\nversion = 2 # two\n\n[grpc]\n  uid = 0 # root\n",
            "# mine\nversion = 2 # two\nimports = [\"/etc/containerd/conf.d/skiff*.toml\"]\n\n[grpc]\n  uid = 0 # root\n",
        );
        check(
            "imports = [\"/a/b.toml\"]\nversion = 3\n",
            "imports = [\"/a/b.toml\", \"/etc/containerd/conf.d/skiff*.toml\"]\nversion = 3\n",
        );
        check(
            "imports = [\n  '/a', # one\n]\r\nversion = 3\r\n",
            "imports = [\n  '/a', \"/etc/containerd/conf.d/skiff*.toml\", # one\n]\r\nversion = 3\r\n",
        );
        check(
            "version = 3\n[plugins.\"a\"]\nb=1\n[plugins.'a'.c]",
            "version = 3\nimports = [\"/etc/containerd/conf.d/skiff*.toml\"]\n[plugins.\"a\"]\nb=1\n[plugins.'a'.c]",
        );
        check(
            "version = 3\n[plugins]\n[plugins.'a']\nb=1\n",
            "version = 3\nimports = [\"/etc/containerd/conf.d/skiff*.toml\"]\n[plugins]\n[plugins.'a']\nb=1\n",
        );
    }

    #[test]
    fn an_empty_list_of_imports_gets_one() {
        let with = with_import(Path::new("/root.toml"), "version = 3\nimports = [ ]\n", "/skiff*.toml").unwrap();
        assert_eq!(with, "version = 3\nimports = [\"/skiff*.toml\" ]\n");
        assert_eq!(
            without_import(Path::new("/root.toml"), &with, "/skiff*.toml").unwrap(),
            "version = 3\nimports = [ ]\n"
        );
    }

    #[test]
    fn a_block_comes_and_goes() {
        let tables = tables(2, &entry());
        for text in ["", "version = 2\n", "{{ template \"base\" . }}\n"] {
            let with = with_block(text, &tables);
            assert_eq!(without_block(&with).unwrap(), text);
            assert_eq!(without_block(&format!("{with}# more\n")).unwrap(), format!("{text}# more\n"));
        }
        assert_eq!(without_block("version = 2\n"), None);
    }

    #[test]
    fn patterns_cover_what_containerd_would_read() {
        let check = |pattern: &str, expected: Option<&str>| {
            let found = covered_directory(Path::new("/etc/containerd/config.toml"), pattern, "skiff.toml");
            assert_eq!(found, expected.map(PathBuf::from), "{pattern}");
        };
        check("/etc/containerd/conf.d/*.toml", Some("/etc/containerd/conf.d"));
        check("conf.d/*.toml", Some("/etc/containerd/conf.d"));
        check("/etc/containerd/conf.d/*", Some("/etc/containerd/conf.d"));
        check("/etc/containerd/conf.d/skiff*.toml", Some("/etc/containerd/conf.d"));
        check("/etc/containerd/conf.d/nvidia*.toml", None);
        check("/etc/containerd/conf.d/nvidia.toml", None);
        check("/etc/*/conf.d/*.toml", None);
        check("${SNAP_DATA}/args/containerd.d/*.toml", None);
    }

    #[test]
    fn root_files_that_are_not_known_are_refused_with_a_sentence() {
        let check = |text: &str, expected: &str| {
            let error = read_root(Path::new("/etc/containerd/config.toml"), text).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check("version = 1", "has version `1`");
        check("version = 5", "has version `5`");
        check("version = \"2\"", "has version `\"2\"`");
        check("# only comments", "has no `version`");
        check("version = 2\n[grpc", "is not TOML");
        check("version = 2\nimports = \"/x\"", "is no list");
    }

    #[test]
    fn carried_runtimes_are_written_whole() {
        let runc: Table = "runtime_type = \"io.containerd.runc.v2\"\n[options]\nSystemdCgroup = true".parse().unwrap();
        let text = tables(2, &Entry { carried: vec![("my.runc".into(), runc.clone())], ..entry() });
        let table: Table = text.parse().unwrap();
        assert_eq!(
            table["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["my.runc"],
            Value::Table(runc)
        );
    }
}

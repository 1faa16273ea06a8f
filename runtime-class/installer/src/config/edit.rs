//! The edits of files that belong to somebody else. Each has an inverse, and leaves every other byte as it was.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::root::RootFile;
use crate::error::{Context, Error, Result};

/// The first line of a file that is wholly ours.
const HEADER: &str = "# Written by skiff-node, which also takes it away: `skiff-node remove`.";
const BEGIN: &str = "# skiff-node: begin. `skiff-node remove` takes these lines away.";
const END: &str = "# skiff-node: end.";

/// A separate file with these tables.
pub(crate) fn drop_in(version: u8, tables: &str) -> String {
    format!("{HEADER}\nversion = {version}\n\n{tables}")
}

/// A root file for a node that does not have one.
pub(crate) fn root(version: u8, pattern: &str) -> String {
    format!("{HEADER}\nversion = {version}\nimports = ['{pattern}']\n")
}

/// Whether a file is wholly ours.
pub(crate) fn is_ours(text: &str) -> bool {
    text.starts_with(HEADER)
}

/// `text` with these tables at its end.
pub(crate) fn with_block(text: &str, tables: &str) -> String {
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{newline}{BEGIN}\n{tables}{END}\n")
}

/// `text` without the block; `None` when it does not have one.
pub(crate) fn without_block(text: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{}", after.strip_prefix('\n').unwrap_or(after)))
}

/// `text` with `pattern` in its `imports`.
pub(crate) fn with_import(path: &Path, text: &str, pattern: &str) -> Result<String> {
    let table = parse(path, text)?;
    let Some(imports) = table.get_ref().get("imports") else { return Ok(with_list(text, table.get_ref(), pattern)) };
    let list = imports.get_ref().as_array();
    let list = list.ok_or_else(|| Error::refused(format!("`imports` of `{}` is not a list", path.display())))?;
    if list.iter().any(|import| is(import, pattern)) {
        return Ok(text.to_owned());
    }
    let quoted = quoted(pattern);
    Ok(match list.iter().last() {
        Some(last) => inserted(text, last.span().end, &format!(", {quoted}")),
        None => inserted(text, imports.span().start + 1, &quoted),
    })
}

/// `text` with a list of its own, on the line below the version, which precedes every table.
fn with_list(text: &str, table: &DeTable<'_>, pattern: &str) -> String {
    let version = table.get("version").map_or(0, |version| version.span().end);
    let rest = &text[version..];
    let line = rest.find('\n').map_or(rest.len(), |end| end + 1);
    let newline = if rest[..line].ends_with('\n') { "" } else { "\n" };
    inserted(text, version + line, &format!("{newline}{}\n", statement(pattern)))
}

/// `text` without `pattern` in its `imports`.
///
/// # Errors
/// When somebody has rewritten the pattern, so that the text that [`with_import`] added is gone but the import is not.
pub(crate) fn without_import(path: &Path, text: &str, pattern: &str) -> Result<String> {
    let table = parse(path, text)?;
    let without = match added(text, table.get_ref(), pattern) {
        Some(Range { start, end }) => format!("{}{}", &text[..start], &text[end..]),
        None => text.to_owned(),
    };
    if RootFile::read(path, &without)?.imports.iter().any(|import| import == pattern) {
        return Err(Error::refused(format!(
            "`imports` of `{}` was rewritten: remove `{pattern}` from it by hand",
            path.display()
        )));
    }
    Ok(without)
}

/// Where `text` has what [`with_import`] added: a line of its own, or a member of the list with the comma beside it.
fn added(text: &str, table: &DeTable<'_>, pattern: &str) -> Option<Range<usize>> {
    let (key, imports) = table.get_key_value("imports")?;
    let line = key.span().start..imports.span().end;
    if text[line.clone()] == statement(pattern) && text[line.end..].starts_with('\n') {
        return Some(line.start..line.end + 1);
    }
    let Range { start, end } = imports.get_ref().as_array()?.iter().find(|import| is(import, pattern))?.span();
    if text[start..end] != quoted(pattern) {
        return None;
    }
    Some(match (text[..start].strip_suffix(", "), text[end..].starts_with(", ")) {
        (Some(before), _) => before.len()..end,
        (None, true) => start..end + 2,
        (None, false) => start..end,
    })
}

fn parse<'a>(path: &Path, text: &'a str) -> Result<Spanned<DeTable<'a>>> {
    DeTable::parse(text).or_refused(format!("`{}` is not TOML", path.display()))
}

fn is(import: &Spanned<DeValue<'_>>, pattern: &str) -> bool {
    import.get_ref().as_str() == Some(pattern)
}

fn quoted(pattern: &str) -> String {
    format!("\"{pattern}\"")
}

fn statement(pattern: &str) -> String {
    format!("imports = [{}]", quoted(pattern))
}

fn inserted(text: &str, at: usize, added: &str) -> String {
    format!("{}{added}{}", &text[..at], &text[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let tables = "[plugins.x]\na = 1\n";
        for text in ["", "version = 2\n", "{{ template \"base\" . }}\n"] {
            let with = with_block(text, tables);
            assert_eq!(without_block(&with).unwrap(), text);
            assert_eq!(without_block(&format!("{with}# more\n")).unwrap(), format!("{text}# more\n"));
        }
        assert_eq!(without_block("version = 2\n"), None);
    }

    #[test]
    fn an_import_is_removed_where_it_is_and_only_as_it_was_written() {
        let path = Path::new("/root.toml");
        let without = |text: &str| without_import(path, text, "/skiff*.toml").map_err(|error| error.to_string());
        let check = |text: &str, expected: &str| assert_eq!(without(text).as_deref(), Ok(expected), "{text}");
        check("version = 3\nimports = [\"/skiff*.toml\", '/a']\n", "version = 3\nimports = ['/a']\n");
        check("version = 3\nimports = ['/a', \"/skiff*.toml\", '/b']\n", "version = 3\nimports = ['/a', '/b']\n");
        check("version = 3\nimports = [\"/skiff*.toml\"]\r\n", "version = 3\nimports = []\r\n");
        check("version = 3\nimports = [\"/skiff*.toml\"] # ours\n", "version = 3\nimports = [] # ours\n");
        let elsewhere = "# not \"/skiff*.toml\", here\nversion = 3\n";
        check(&format!("{elsewhere}imports = ['/a', \"/skiff*.toml\"]\n"), &format!("{elsewhere}imports = ['/a']\n"));
        check(elsewhere, elsewhere);
        let by_hand = "`imports` of `/root.toml` was rewritten: remove `/skiff*.toml` from it by hand";
        assert_eq!(without("version = 3\nimports = ['/skiff*.toml']\n"), Err(by_hand.into()));
        let twice = "version = 3\nimports = [\"/skiff*.toml\", \"/skiff*.toml\"]\n";
        assert_eq!(without(twice), Err(by_hand.into()));
    }
}

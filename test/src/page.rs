//! What a page of `docs/` tells its reader to do, so that the suites can do it: the files, commands and outputs in its fenced blocks.
//!
//! A block is a file if the paragraph before it begins with the file's name in backticks, commands if its language is `sh`, and the
//! output of the commands before it if its language is `text`. A part of a manifest has the language `yaml` and no name.

use std::fmt::Write as _;

/// What a fenced block is.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    File { path: String, text: String },
    Commands(String),
    Output(String),
}

/// One section of a page: what follows a heading, up to the next one.
#[derive(Debug)]
pub struct Section {
    /// The heading.
    pub title: String,
    blocks: Vec<Block>,
}

/// The sections of a page that begin with `## `.
pub fn sections(page: &str) -> Vec<Section> {
    let parts = page.split("\n## ").skip(1);
    let section = |part: &str| {
        let (title, text) = part.split_once('\n').unwrap_or((part, ""));
        Section { title: title.to_owned(), blocks: blocks(text) }
    };
    parts.map(section).collect()
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut paragraph = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            if line.is_empty() {
                paragraph.push('\n');
            } else if paragraph.ends_with('\n') || paragraph.is_empty() {
                line.clone_into(&mut paragraph);
            }
            continue;
        };
        let text: String = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        let before = std::mem::take(&mut paragraph);
        let named = before.strip_prefix('`').and_then(|rest| rest.split_once('`'));
        match (language, named) {
            ("sh", _) => blocks.push(Block::Commands(text)),
            ("text", _) => blocks.push(Block::Output(text)),
            (_, Some((path, _))) => blocks.push(Block::File { path: path.to_owned(), text }),
            ("yaml", None) => {}
            (_, None) => panic!("a block of `{language}` has no name: {text}"),
        }
    }
    blocks
}

impl Section {
    /// A script that writes the files and runs the commands before the first command that begins with `end`, in the order of the page.
    pub fn script_until(&self, end: &str) -> String {
        script(&self.blocks[..self.position(end)])
    }

    /// A script of everything from the commands on that begin with `start`.
    pub fn script_from(&self, start: &str) -> String {
        script(&self.blocks[self.position(start)..])
    }

    /// A script of the whole section.
    pub fn script(&self) -> String {
        script(&self.blocks)
    }

    /// What the page says that the last commands print.
    pub fn output(&self) -> &str {
        let outputs = self.blocks.iter().rev().find_map(|block| match block {
            Block::Output(text) => Some(text),
            Block::File { .. } | Block::Commands(_) => None,
        });
        outputs.unwrap_or_else(|| panic!("the section `{}` shows no output", self.title))
    }

    fn position(&self, start: &str) -> usize {
        let begins = |block: &Block| matches!(block, Block::Commands(text) if text.starts_with(start));
        let position = self.blocks.iter().position(begins);
        position.unwrap_or_else(|| panic!("the section `{}` has no block that begins with `{start}`", self.title))
    }
}

fn script(blocks: &[Block]) -> String {
    let mut script = String::new();
    for block in blocks {
        let written = match block {
            Block::File { path, text } => writeln!(script, "cat > '{path}' << 'END OF FILE'\n{text}END OF FILE"),
            Block::Commands(text) => write!(script, "{text}"),
            Block::Output(_) => Ok(()),
        };
        written.expect("a string can be written to");
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Title\n\n```sh\nbefore\n```\n\n## One\nText.\n\n```sh\nmkdir a\n```\n\n`a/b.c` says\n`more`:\n\n```c\nint x;\n\n```\n\n\
        An excerpt:\n\n```yaml\na: b\n```\n\n`other` text.\n\n```sh\nrun x\n```\n\n```text\nout\n```\n## Two\n";

    #[test]
    fn a_page_is_a_script() {
        let sections = sections(PAGE);
        assert_eq!(sections.iter().map(|section| &*section.title).collect::<Vec<_>>(), ["One", "Two"]);
        let one = &sections[0];
        let build = "mkdir a\ncat > 'a/b.c' << 'END OF FILE'\nint x;\n\nEND OF FILE\n";
        assert_eq!(one.script_until("run "), build);
        assert_eq!(one.script_from("run "), "run x\n");
        assert_eq!(one.script(), format!("{build}run x\n"));
        assert_eq!(one.output(), "out\n");
        assert_eq!(sections[1].script(), "");
    }

    #[test]
    #[should_panic(expected = "has no name")]
    fn a_file_without_a_name_is_an_error() {
        sections("\n## One\ntext\n\n```c\nx\n```\n");
    }
}

//! `skiff inspect`: what a wasm binary is, what it needs and whether skiff's engine can run it.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use skiff_protocol::bytes_and_mi;

use crate::digest::sha256;
use crate::error::{Context, Result};
use crate::guest::{Entry, Export, Guest, Import, Memory};
use crate::output;
use crate::regular::read_module;
use crate::support::{callable, full_name, missing, wasi_version};

/// The most that is shown of a name.
const NAME_CHARACTERS: usize = 400;

/// Which file to inspect.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The wasm binary.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The report about a wasm binary.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    kind: &'static str,
    entry: Entry,
    size: u64,
    sha256: String,
    /// A function of a service that can be named.
    #[serde(skip_serializing_if = "Option::is_none")]
    callable: Option<String>,
    wasi: BTreeSet<String>,
    imports: Vec<Import>,
    exports: Vec<Export>,
    memories: Vec<Memory>,
    runs: bool,
    /// Why it does not run.
    missing: Vec<String>,
}

/// Prints the report about a file, and returns whether skiff runs it.
///
/// # Errors
/// The guest's fault if the file is not valid wasm; the host's if it cannot be read, or nothing can be printed.
pub(crate) fn inspect(arguments: &Arguments) -> Result<bool> {
    let report = examine(arguments)?;
    if arguments.json {
        output::print_json(&report)?
    } else {
        output::print(&report)?
    }
    Ok(report.runs)
}

fn examine(arguments: &Arguments) -> Result<Report> {
    let name = arguments.file.display().to_string();
    let bytes = read_module(&arguments.file)?;
    let guest = Guest::read(&bytes, &name)?;
    let missing = missing(&guest);
    Ok(Report {
        file: name,
        kind: guest.kind.name(),
        entry: guest.entry(),
        size: u64::try_from(bytes.len()).or_host("cannot count")?,
        sha256: sha256(&bytes),
        callable: callable(&guest).filter(|_| guest.entry() == Entry::Reactor).map(|export| export.name.clone()),
        wasi: wasi_versions(&guest),
        imports: guest.imports,
        exports: guest.exports,
        memories: guest.memories,
        runs: missing.is_empty(),
        missing,
    })
}

fn wasi_versions(guest: &Guest) -> BTreeSet<String> {
    let imports = guest.imports.iter().filter_map(|import| wasi_version(import.module.as_deref(), &import.name));
    let exports = guest.exports.iter().filter(|_| guest.kind == crate::preamble::Kind::Component);
    imports.chain(exports.filter_map(|export| wasi_version(None, &export.name))).collect()
}

impl Report {
    /// What the file is, in words.
    fn entry(&self) -> String {
        match (self.entry, &self.callable) {
            (Entry::Command, _) => "command".into(),
            (Entry::Http, _) => "http server".into(),
            (Entry::Reactor, None) => "service".into(),
            (Entry::Reactor, Some(name)) => {
                format!("service (one function alone runs as `FILE.wasm#{}`)", shown(name))
            }
        }
    }
}

/// The report for a reader.
impl Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.entry();
        let wasi: Vec<&str> = self.wasi.iter().map(String::as_str).collect();
        writeln!(out, "file      {}", self.file)?;
        writeln!(out, "kind      {}, {entry}", self.kind)?;
        writeln!(out, "wasi      {}", if wasi.is_empty() { "none".into() } else { shown(&wasi.join(", ")) })?;
        writeln!(out, "size      {}", bytes_and_mi(self.size))?;
        writeln!(out, "sha256    {}", self.sha256)?;
        for memory in &self.memories {
            writeln!(out, "memory    {}", describe(memory))?;
        }
        for import in &self.imports {
            writeln!(out, "import    {} ({})", shown(&full_name(import)), import.kind)?;
        }
        for export in &self.exports {
            writeln!(out, "export    {} ({})", shown(&export.name), export.kind)?;
        }
        match self.missing.as_slice() {
            [] => write!(out, "runs      yes"),
            missing => {
                write!(out, "runs      no: {}", missing.iter().map(|why| shown(why)).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// A name that the file has, for a terminal.
fn shown(name: &str) -> String {
    output::shown(name, NAME_CHARACTERS)
}

fn describe(memory: &Memory) -> String {
    let maximum = memory.maximum_bytes.map_or("no maximum".into(), |bytes| format!("at most {} KiB", bytes >> 10));
    let width = if memory.memory64 { ", 64 bits" } else { "" };
    let shared = if memory.shared { ", shared" } else { "" };
    format!("{} KiB at first, {maximum}{width}{shared}", memory.initial_bytes >> 10)
}

//! `skiff inspect`: what a wasm binary is, what it needs and whether skiff's engine can run it.

mod support;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use self::support::{full_name, missing, wasi_version};
use crate::digest::sha256;
use crate::error::{Context, Result};
use crate::guest::{Entry, Export, Guest, Import, Memory};
use crate::regular::read_module;

/// Which file to inspect.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The wasm binary.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The report about a wasm binary.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    file: String,
    kind: &'static str,
    entry: Entry,
    size: u64,
    sha256: String,
    wasi: BTreeSet<String>,
    imports: Vec<Import>,
    exports: Vec<Export>,
    memories: Vec<Memory>,
    runs: bool,
    /// Why it does not run.
    missing: Vec<String>,
}

/// Inspects a file.
///
/// # Errors
/// If the file cannot be read or is not valid wasm.
pub(crate) fn inspect(arguments: &Arguments) -> Result<Report> {
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
    /// Prints the report for a reader.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn print(&self) -> Result<()> {
        self.write(&mut io::stdout().lock()).or_host("cannot write to standard output")
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let entry = match self.entry {
            Entry::Command => "command",
            Entry::Http => "http server",
            Entry::Reactor => "reactor (name a function: `entrypoint: FILE.wasm#FUNCTION`)",
        };
        let wasi: Vec<&str> = self.wasi.iter().map(String::as_str).collect();
        writeln!(out, "file      {}", self.file)?;
        writeln!(out, "kind      {}, {entry}", self.kind)?;
        writeln!(out, "wasi      {}", if wasi.is_empty() { "none".into() } else { wasi.join(", ") })?;
        writeln!(out, "size      {} bytes", self.size)?;
        writeln!(out, "sha256    {}", self.sha256)?;
        for memory in &self.memories {
            writeln!(out, "memory    {}", describe(memory))?;
        }
        for import in &self.imports {
            writeln!(out, "import    {} ({})", full_name(import), import.kind)?;
        }
        for export in &self.exports {
            writeln!(out, "export    {} ({})", export.name, export.kind)?;
        }
        match self.missing.as_slice() {
            [] => writeln!(out, "runs      yes"),
            missing => writeln!(out, "runs      no: {}", missing.join(", ")),
        }
    }
}

fn describe(memory: &Memory) -> String {
    let maximum = memory.maximum_bytes.map_or("no maximum".into(), |bytes| format!("at most {} KiB", bytes >> 10));
    let width = if memory.memory64 { ", 64 bits" } else { "" };
    let shared = if memory.shared { ", shared" } else { "" };
    format!("{} KiB at first, {maximum}{width}{shared}", memory.initial_bytes >> 10)
}

//! `skiff`: the command line, and the only program of the three that holds the compiler.

mod cache;
mod compile;
mod confine;
mod containers;
mod debug_info;
mod digest;
mod doctor;
mod error;
mod guest;
mod inspect;
mod layers;
mod output;
mod pack;
mod preamble;
mod processes;
mod ps;
mod regular;
mod stats;
mod support;
#[cfg(test)]
mod testing;

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::panic;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::error::{Context, Error, Fault, Result};

/// WebAssembly containers for containerd: compile, pack, inspect and check.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compile a wasm module or component from standard input to standard output.
    Compile(CompileArguments),
    /// Make an image of a wasm module or component.
    Pack(pack::Arguments),
    /// Show what a wasm module or component is, and whether skiff can run it.
    Inspect(inspect::Arguments),
    /// Check this node: what is there, what is missing, what to do.
    Doctor(doctor::Arguments),
    /// List the wasm containers of this node.
    Ps(ps::Arguments),
    /// Show how much memory the guests of running containers use.
    Stats(stats::Arguments),
    /// List, fill or empty this node's cache of compiled code.
    Cache(cache::Arguments),
    /// List the wasm layers of a container's image, as JSON.
    Layers(layers::Arguments),
}

#[derive(Debug, Args)]
struct CompileArguments {
    /// The module's name in messages.
    #[arg(long, default_value = "standard input", allow_hyphen_values = true)]
    name: String,
    /// Compile with as many threads; by default one for each processor. Each takes memory for the function that it compiles.
    #[arg(long)]
    threads: Option<NonZero<usize>>,
    /// Compile in a process without privileges, network or files.
    #[arg(long)]
    confine: bool,
    /// The confined compiler's memory limit, in bytes.
    #[arg(long, default_value_t = 2 << 30, requires = "confine")]
    memory_bytes: u64,
    /// The confined compiler's processor time limit, in seconds.
    #[arg(long, default_value_t = 300, requires = "confine")]
    cpu_seconds: u64,
    /// The confined compiler's time limit, in seconds.
    #[arg(long, default_value_t = 600, requires = "confine")]
    wall_seconds: u64,
    /// The confined compiler's output limit, in bytes.
    #[arg(long, default_value_t = 1 << 30, requires = "confine")]
    output_bytes: u64,
    /// Put the confined compiler into a control group of this name.
    #[arg(long, value_parser = group_name, requires = "confine")]
    cgroup: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments.command) {
        Ok(code) => code,
        Err(error) => {
            // If standard error is closed, there is nobody to report to.
            drop(writeln!(io::stderr().lock(), "skiff: {error}"));
            error.exit_code()
        }
    }
}

/// Does what the command line says, and returns the exit code.
fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Compile(arguments) => compile(arguments),
        Command::Inspect(arguments) => {
            return inspect::inspect(arguments)
                .map(|runs| if runs { ExitCode::SUCCESS } else { Fault::Guest.code().into() });
        }
        Command::Pack(arguments) => pack::pack(arguments).and_then(output::print).map_err(Error::plain),
        Command::Doctor(arguments) => doctor::doctor(arguments).map_err(Error::plain),
        Command::Ps(arguments) => ps::ps(arguments).map_err(Error::plain),
        Command::Stats(arguments) => stats::stats(arguments).map_err(Error::plain),
        Command::Cache(arguments) => cache::cache(arguments).map_err(Error::plain),
        Command::Layers(arguments) => {
            layers::layers(arguments).and_then(|report| output::print_json(&report)).map_err(Error::plain)
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

fn compile(arguments: &CompileArguments) -> Result<()> {
    // A panic of the compiler becomes a sentence about the module; nothing else may be written to standard error.
    panic::set_hook(Box::new(|_| {}));
    let job = || compile_standard_streams(arguments);
    if !arguments.confine {
        return job();
    }
    let limits = confine::Limits {
        memory_bytes: arguments.memory_bytes,
        cpu_seconds: arguments.cpu_seconds,
        wall: Duration::from_secs(arguments.wall_seconds),
        output_bytes: arguments.output_bytes,
        cgroup: arguments.cgroup.clone(),
    };
    confine::run(&limits, &arguments.name, job)
}

fn compile_standard_streams(arguments: &CompileArguments) -> Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned().or_host("cannot open standard input")?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned().or_host("cannot open standard output")?);
    compile::limit_threads(arguments.threads)?;
    compile::compile_stream(&mut input, &mut output, &arguments.name)
}

/// A name that is one directory: letters, digits, `.`, `_` and `-`, not beginning with a dot, at most 128 bytes.
fn group_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.chars().all(is_plain) {
        return Err(
            "a control group's name has only letters, digits, `.`, `_` and `-`, and does not begin with a dot".into()
        );
    }
    Ok(text.into())
}

//! `containerd-shim-skiff-v1`: the process that containerd starts for a pod, and that runs the pod's containers.
//!
//! The action `start` makes it, which then serves the Task API, and `delete` cleans up after one that was killed.

mod code;
mod containerd;
mod error;
mod events;
mod host;
mod identity;
mod image;
mod launch;
mod pod;
mod request;
mod settings;
mod spec;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match containerd::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what `start` and `delete` print; nobody else would see it.
            drop(writeln!(std::io::stderr(), "containerd-shim-skiff-v1: {}", error::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

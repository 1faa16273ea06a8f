//! `containerd-shim-skiff-v1`: the process that containerd starts for a pod, and that runs the pod's containers.
//!
//! `start` makes it, `delete` cleans up after one that was killed, and without an action it serves the Task API.

mod containerd;
mod error;
mod host;
mod pod;
mod settings;
mod spec;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match containerd::command::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what `start` and `delete` print; there is nobody else to tell.
            drop(writeln!(std::io::stderr(), "containerd-shim-skiff-v1: {}", error::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

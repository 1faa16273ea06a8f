//! Compiling: one `skiff compile` process, confined, per module that the cache does not hold yet.

use std::fs::File;
use std::io;
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};
use crate::host::engine::beside_the_shim;
use crate::host::process::end_with_the_shim;

/// The exit code of `skiff compile` when the node, not the module, is at fault.
const NODE_AT_FAULT: i32 = 2;

/// Compiles the module in `wasm` (named `name` in messages) into `code`. Blocks; the compiler limits its own time.
///
/// # Errors
/// `Invalid` with the compiler's sentence when the module is at fault or does not fit the compiler's limits.
pub(crate) fn compile(wasm: &File, name: &str, code: &File) -> Result<()> {
    let program = beside_the_shim("skiff").doing(|| "could not find the compiler".into())?;
    let clone = |file: &File| file.try_clone().doing(|| "could not pass a file to the compiler".into());
    let mut command = Command::new(&program);
    // The compiler's supervisor then ends the compiler and takes its cgroup away.
    end_with_the_shim(&mut command, libc::SIGTERM);
    let output = command
        .args(["compile", "--confine", "--cgroup", "skiff-compile", "--name", name])
        .stdin(clone(wasm)?)
        .stdout(clone(code)?)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|child| child.wait_with_output())
        .doing(|| format!("could not run the compiler `{}`", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let sentence = said.lines().last().unwrap_or_default().trim().trim_start_matches("skiff: ").to_string();
    let sentence =
        if sentence.is_empty() { format!("compiling `{name}` ended with {}", output.status) } else { sentence };
    match output.status.code() {
        None | Some(NODE_AT_FAULT) => {
            Err(Error::host(format!("could not compile `{name}`"), io::Error::other(sentence)))
        }
        Some(_) => Err(Error::invalid(sentence)),
    }
}

//! Does the confined compiler work here? It is run on an empty module.

use std::env;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use nix::unistd::Uid;

use super::check::Check;

const NAME: &str = "compiler";

pub(super) fn check() -> Check {
    if !Uid::effective().is_root() {
        return Check::warn(NAME, "not tried", "run the doctor as root");
    }
    match compile() {
        Ok(output) if output.status.success() => Check::ok(NAME, "compiles, confined"),
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr);
            let reason = reason.trim().trim_start_matches("skiff: ").to_owned();
            Check::fail(NAME, reason, "give skiff namespaces and control groups of its own: run it on the host")
        }
        Err(error) => Check::fail(NAME, format!("cannot be run: {error}"), "mount /proc"),
    }
}

fn compile() -> io::Result<Output> {
    let mut compiler = Command::new(env::current_exe()?)
        .args(["compile", "--confine", "--cgroup", "doctor", "--wall-seconds", "30", "--name", "an empty module"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = compiler.stdin.take() {
        input.write_all(b"\0asm\x01\0\0\0")?;
    }
    compiler.wait_with_output()
}

//! What the tests of the program share: running it, modules for it, and waiting.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::unistd::Uid;

/// The program with these arguments.
pub(crate) fn skiff(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program with `input` as a regular file on its standard input.
pub(crate) fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    // The offset stays at the end: the program reads the file from its start.
    skiff(arguments).stdin(file).output().unwrap()
}

/// The one line of standard error, without the program's name.
pub(crate) fn sentence(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1, "{text:?}");
    lines[0].strip_prefix("skiff: ").unwrap_or_else(|| panic!("{text:?}")).to_owned()
}

/// A small command.
pub(crate) fn hello() -> Vec<u8> {
    wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\08\00\00\00\06\00\00\00hello\n")
            (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20))))
        )"#,
    )
    .unwrap()
}

/// A module with `functions` functions, each of which gives the compiler something to do.
pub(crate) fn large(functions: u32) -> Vec<u8> {
    let body: String = (0..40)
        .map(|i| format!("(local.set 0 (i32.mul (local.get 0) (i32.xor (local.get 1) (i32.const {i}))))"))
        .collect();
    let functions: String = (0..functions)
        .map(|i| format!("(func (param i32 i32) (result i32) (if (local.get 1) (then {body})) (i32.add (local.get 0) (i32.const {i})))"))
        .collect();
    wat::parse_str(format!("(module {functions})")).unwrap()
}

/// A file with `bytes`, to be read from its start.
pub(crate) fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        poll(&mut [], PollTimeout::from(5_u8)).unwrap();
    }
}

/// Whether confinement can be tried here; prints why if it cannot.
pub(crate) fn is_root() -> bool {
    let is_root = Uid::effective().is_root();
    if !is_root {
        println!("not run: confining needs root");
    }
    is_root
}

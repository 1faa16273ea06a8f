//! Compiled code of guests: those of `test/guests`, and modules in the text format.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// The program under test.
pub(crate) const ENGINE: &str = env!("CARGO_BIN_EXE_skiff-engine");

/// Compiles with the `skiff` beside the engine, each guest once; `None` when the compiler refuses it.
pub(crate) fn compile(wasm: &[u8]) -> Option<PathBuf> {
    type Known = Mutex<HashMap<Vec<u8>, Option<PathBuf>>>;
    static CODE: OnceLock<(tempfile::TempDir, Known)> = OnceLock::new();
    let (folder, known) = CODE.get_or_init(|| (tempfile::tempdir().unwrap(), Mutex::default()));
    let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = folder.path().join(format!("{}.cwasm", known.len()));
    known.entry(wasm.to_vec()).or_insert_with(|| compile_to(wasm, &path).then_some(path)).clone()
}

fn compile_to(wasm: &[u8], path: &Path) -> bool {
    let skiff = Path::new(ENGINE).with_file_name("skiff");
    assert!(skiff.exists(), "these tests compile with `{}`: build the package `skiff` first", skiff.display());
    let mut child =
        Command::new(skiff).arg("compile").stdin(Stdio::piped()).stdout(File::create(path).unwrap()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(wasm).unwrap();
    child.wait().unwrap().success()
}

/// The folder of the guest `name`, built by the toolchain of its language.
pub(crate) fn guests_folder(name: &str) -> PathBuf {
    static FOLDERS: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    let language = name.split('-').next().unwrap().to_owned();
    let mut folders = FOLDERS.get_or_init(Mutex::default).lock().unwrap();
    folders.entry(language.clone()).or_insert_with(|| build_guests(&language)).clone()
}

fn build_guests(language: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/guests/build.sh");
    let output = Command::new("bash").arg(script).arg(language).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the guests in `{language}` cannot be built");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().lines().last().unwrap())
}

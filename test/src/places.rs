//! Where the programs under test, the tools and the guests are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The name of the shim's program.
pub const SHIM: &str = "containerd-shim-skiff-v1";
const TARGET: &str = "x86_64-unknown-linux-gnu/release";
const PROGRAMS: [&str; 3] = [SHIM, "skiff-engine", "skiff"];

/// The directory with the three programs: `SKIFF_BIN`, or cargo's release directory.
pub fn programs() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = match std::env::var_os("SKIFF_BIN") {
            Some(given) => PathBuf::from(given),
            None => target().join(TARGET),
        };
        for program in PROGRAMS {
            assert!(
                place.join(program).is_file(),
                "there is no `{program}` in `{}`: build it with `cargo build --release -p {program}` first, or set `SKIFF_BIN`",
                place.display()
            );
        }
        place
    })
}

/// The directory with containerd, runc and the other tools: `SKIFF_TOOLS`, or what `test/tools/build.sh` makes.
pub fn tools() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| given_or_built("SKIFF_TOOLS", "tools/build.sh"))
}

/// The directory with the guests: `SKIFF_GUESTS`, or what `test/guests/build.sh` makes.
pub fn guests() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| given_or_built("SKIFF_GUESTS", "guests/build.sh"))
}

/// The file of the guest `name`.
pub fn guest(name: &str) -> PathBuf {
    let file = guests().join(name).with_extension("wasm");
    assert!(file.is_file(), "there is no guest `{}`", file.display());
    file
}

/// `PATH` with these programs and the tools first.
pub(crate) fn search_path(programs: &Path) -> String {
    let rest = std::env::var("PATH").unwrap_or_default();
    format!("{}:{}:{rest}", programs.display(), tools().display())
}

/// The option that chooses the launcher: the OCI runtime with `SKIFF_OCI_LAUNCHER`, and otherwise the default.
pub(crate) fn launcher() -> &'static str {
    if std::env::var_os("SKIFF_OCI_LAUNCHER").is_some() { "OwnLauncher = false\n" } else { "" }
}

/// Who makes the sandboxes of pods: the shim with `SKIFF_SANDBOXER=shim`, and otherwise containerd.
pub(crate) fn sandboxer() -> Sandboxer {
    match std::env::var("SKIFF_SANDBOXER").as_deref() {
        Err(_) | Ok("podsandbox") => Sandboxer::Containerd,
        Ok("shim") => Sandboxer::Shim,
        Ok(other) => panic!("`SKIFF_SANDBOXER` is `{other}`, which is neither `shim` nor `podsandbox`"),
    }
}

/// Who makes the sandboxes of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sandboxer {
    /// containerd, with a container for each.
    Containerd,
    /// The shim, through the Sandbox API.
    Shim,
}

impl Sandboxer {
    /// The lines of a runtime in containerd's configuration.
    pub(crate) fn configuration(self) -> &'static str {
        match self {
            Self::Containerd => "",
            Self::Shim => "sandboxer = 'shim'\ndisable_pause_image_pull = true\n",
        }
    }
}

/// The compiled code that the suites share, so that a large guest is compiled once and not once per suite.
pub(crate) fn shared_code() -> PathBuf {
    cache().join("test-code")
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache().join("target"), PathBuf::from)
}

fn cache() -> PathBuf {
    if let Some(given) = std::env::var_os("SKIFF_CACHE") {
        return given.into();
    }
    let home = std::env::var_os("HOME").expect("`HOME` is set");
    Path::new(&home).join(".cache/skiff")
}

fn given_or_built(variable: &str, script: &str) -> PathBuf {
    if let Some(given) = std::env::var_os(variable) {
        let place = PathBuf::from(given);
        assert!(place.is_dir(), "`{variable}` is `{}`, which is not a directory", place.display());
        return place;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new("bash").arg(&script).stderr(Stdio::inherit()).output().expect("bash can be run");
    assert!(output.status.success(), "`{}` failed: {}", script.display(), output.status);
    let said = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let place = PathBuf::from(said.lines().last().unwrap_or_default());
    assert!(place.is_dir(), "`{}` did not print a directory but `{}`", script.display(), place.display());
    place
}

//! `make run`: a guest in a private containerd, of which nothing is left, however it ends.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use skiff_test::{compilers_of, free_port, get, guest, processes_touching, programs, tools, until};
use tempfile::TempDir;

/// A busy machine may take long to start a containerd and to compile a guest.
const LIMIT: Duration = Duration::from_secs(120);

/// `test/run.sh` at work, in a process group of its own, as a terminal starts it.
struct Run {
    child: Child,
    directory: TempDir,
}

impl Run {
    fn start(name: &str, variables: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().prefix("skiff-test-run-").tempdir().unwrap();
        let output = fs::File::create(directory.path().join("output")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/run.sh");
        // Whoever runs the tests may have them ignore the signals.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,TERM", script]).process_group(0).stdin(Stdio::null());
        command.env("SKIFF_BIN", programs()).env("SKIFF_TOOLS", tools()).env("TMPDIR", directory.path());
        command.env("WASM", guest(name)).envs(variables.iter().copied());
        let child = command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        Self { child, directory }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    fn waits_for(&self, what: &str, condition: impl FnMut() -> bool) {
        assert!(until(LIMIT, condition), "{what} does not happen: {}", self.said());
    }

    /// Waits for its end, and compares its code. Then there is nothing of it on the machine.
    fn ends_with(mut self, code: i32) {
        assert!(until(LIMIT, || self.child.try_wait().unwrap().is_some()), "it does not end: {}", self.said());
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{}", self.said());
        let place = self.directory.path().to_str().unwrap().to_owned();
        self.waits_for("the end of all processes", || processes_touching(&place).is_empty());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(mounts.lines().find(|mount| mount.contains(&place)), None);
        let left: Vec<_> = fs::read_dir(&place).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["output"], "{}", self.said());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // It may just have ended.
            let _sent = kill(self.pid(), Signal::SIGTERM);
            until(LIMIT, || self.child.try_wait().is_ok_and(|status| status.is_some()));
        }
    }
}

#[test]
fn a_guest_that_is_run_ends_with_its_code_and_leaves_nothing() {
    Run::start("c-exit", &[("ARGS", "7")]).ends_with(7);
}

#[test]
fn a_signal_ends_a_server_that_is_run_and_leaves_nothing() {
    for is_interrupt in [true, false] {
        let port = free_port();
        let run = Run::start("rust-p2-http", &[("PORT", &port.to_string())]);
        run.waits_for("a response", || get(port, "/").is_ok_and(|answer| answer.status == 200));
        let hint = format!("try it: curl http://127.0.0.1:{port}/ (Ctrl-C ends it)\n");
        assert!(run.said().contains(&hint), "{}", run.said());
        interrupt_or_terminate(run, is_interrupt);
    }
}

#[test]
fn a_signal_ends_a_command_that_is_run_and_leaves_nothing() {
    for is_interrupt in [true, false] {
        let run = Run::start("c-spin", &[]);
        run.waits_for("the guest's output", || run.said().contains("spinning\n"));
        interrupt_or_terminate(run, is_interrupt);
    }
}

#[test]
fn a_signal_while_the_guest_is_compiled_leaves_nothing() {
    for is_interrupt in [true, false] {
        // Nothing is compiled yet, and this program takes long.
        let cache = tempfile::tempdir().unwrap();
        let port = free_port().to_string();
        let run = Run::start("js-http", &[("SKIFF_CACHE", cache.path().to_str().unwrap()), ("PORT", &port)]);
        let place = run.directory.path().to_str().unwrap().to_owned();
        run.waits_for("compilation", || {
            processes_touching(&place).iter().any(|(pid, _)| !compilers_of(*pid).is_empty())
        });
        interrupt_or_terminate(run, is_interrupt);
    }
}

/// Ctrl-C on the terminal reaches the whole group; a supervisor's signal only the script.
fn interrupt_or_terminate(run: Run, is_interrupt: bool) {
    if is_interrupt {
        killpg(run.pid(), Signal::SIGINT).unwrap();
        run.ends_with(130);
    } else {
        kill(run.pid(), Signal::SIGTERM).unwrap();
        run.ends_with(143);
    }
}

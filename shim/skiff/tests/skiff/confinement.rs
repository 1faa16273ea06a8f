//! The confined compiler seen from the outside, while it waits for the rest of its input: what it may do, and what is
//! left however it ends.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::{file_with, hello, is_root, large, run, sentence, skiff, wait_until};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A compiler that waits for input.
struct Waiting {
    supervisor: Child,
    confined: u32,
}

impl Waiting {
    fn start(group: &str, more: &[&str]) -> Self {
        let mut arguments = vec!["compile", "--confine", "--cgroup", group, "--name", "/app.wasm"];
        arguments.extend(more);
        Self::run(&mut skiff(&arguments))
    }

    fn run(command: &mut Command) -> Self {
        let supervisor = command.stdin(Stdio::piped()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", supervisor.id());
        let mut confined = None;
        wait_until("the filter of the confined process", || {
            let text = fs::read_to_string(&children).unwrap();
            confined = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
            confined.is_some_and(|pid| status(pid, "Seccomp").as_deref() == Some("2"))
        });
        Self { supervisor, confined: confined.unwrap() }
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.confined.to_string()).join(file)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.proc(file)).unwrap()
    }

    /// Sends the module and waits for the end.
    fn finish(mut self, module: &[u8]) -> Output {
        self.supervisor.stdin.take().unwrap().write_all(module).unwrap();
        self.supervisor.wait_with_output().unwrap()
    }
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")))?;
    Some(value.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn is_gone(pid: u32) -> bool {
    status(pid, "State").is_none_or(|state| state.starts_with('Z'))
}

/// The directories of the control groups with the name `group` and any supervisor.
fn groups(group: &str) -> Vec<PathBuf> {
    let mounts =
        ["", "memory", "cpu", "pids"].map(|mount| Path::new("/sys/fs/cgroup").join(mount).join("skiff-compile"));
    let entries = mounts.iter().flat_map(fs::read_dir).flatten().flatten();
    let directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    directories.filter(|path| path.file_stem().unwrap() == group).collect()
}

#[test]
fn it_is_nobody_without_capabilities_under_a_filter() {
    if !is_root() {
        return;
    }
    let waiting = Waiting::start("nobody", &[]);
    let check =
        |field: &str, expected: &str| assert_eq!(status(waiting.confined, field).as_deref(), Some(expected), "{field}");
    check("Uid", "65534 65534 65534 65534");
    check("Gid", "65534 65534 65534 65534");
    check("Groups", "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        check(set, "0000000000000000");
    }
    check("NoNewPrivs", "1");
    check("Seccomp", "2");
    assert_eq!(waiting.read("oom_score_adj"), "1000\n");
    let of_supervisor = fs::read_to_string(format!("/proc/{}/oom_score_adj", waiting.supervisor.id())).unwrap();
    assert_eq!(of_supervisor, "1000\n");
    assert!(waiting.finish(&hello()).status.success());
    assert!(groups("nobody").is_empty());
}

#[test]
fn it_sees_no_files_no_network_and_no_other_process() {
    if !is_root() {
        return;
    }
    let waiting = Waiting::start("alone", &[]);
    assert_eq!(fs::read_dir(waiting.proc("root")).unwrap().count(), 0);
    let mounts = waiting.read("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,"), "{mounts}");
    let interfaces = waiting.read("net/dev");
    assert_eq!(interfaces.lines().filter(|line| line.contains(':')).count(), 1, "{interfaces}");
    assert!(interfaces.contains("lo:"), "{interfaces}");
    for namespace in ["ipc", "mnt", "net", "pid", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        let its = fs::read_link(waiting.proc("ns").join(namespace)).unwrap();
        assert_ne!(its, own, "{namespace}");
    }
    let pids = status(waiting.confined, "NSpid").unwrap();
    assert!(pids.ends_with(" 1"), "{pids}");
    assert!(waiting.finish(&hello()).status.success());
}

#[test]
fn it_holds_nothing_open_but_its_streams() {
    if !is_root() {
        return;
    }
    // A descriptor that a careless caller leaves open.
    let extra = fs::File::open("/dev/null").unwrap();
    let leaked = nix::unistd::dup(&extra).unwrap();
    let waiting = Waiting::start("streams", &[]);
    drop(leaked);
    for entry in fs::read_dir(waiting.proc("fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        assert!(target.to_string_lossy().starts_with("pipe:"), "{target:?}");
    }
    assert!(waiting.finish(&hello()).status.success());
}

#[test]
fn it_has_limits_and_a_group_of_its_own() {
    if !is_root() {
        return;
    }
    let waiting = Waiting::start("limits", &["--cpu-seconds", "7", "--memory-bytes", "268435456"]);
    let limits = waiting.read("limits");
    let limit = |name: &str| {
        limits.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(limit("Max cpu time"), "Max cpu time 7 12 seconds");
    assert_eq!(limit("Max core file size"), "Max core file size 0 0 bytes");
    assert_eq!(limit("Max open files"), "Max open files 16 16 files");
    assert_eq!(limit("Max file size"), "Max file size 1073741824 1073741824 bytes");
    let group = format!("/skiff-compile/limits.{}", waiting.supervisor.id());
    assert!(waiting.read("cgroup").contains(&group), "{}", waiting.read("cgroup"));
    let bytes = groups("limits").iter().find_map(|group| {
        let files = ["memory.limit_in_bytes", "memory.max"].map(|file| group.join(file));
        files.iter().find_map(|file| fs::read_to_string(file).ok())
    });
    assert_eq!(bytes.as_deref(), Some("268435456\n"));
    assert!(waiting.finish(&hello()).status.success());
    assert!(groups("limits").is_empty());
}

/// The value of the first of `files` that the group `/skiff-compile` has in any hierarchy.
fn of_all(files: [&str; 2]) -> Option<u64> {
    let mounts = ["", "memory", "cpu", "pids"];
    let groups = mounts.iter().map(|mount| Path::new("/sys/fs/cgroup").join(mount).join("skiff-compile"));
    let mut values = groups.flat_map(|group| files.map(|file| fs::read_to_string(group.join(file)).ok()));
    values.find_map(|value| value?.trim().parse().ok())
}

#[test]
fn all_compilers_together_have_limits() {
    if !is_root() {
        return;
    }
    let waiting = [Waiting::start("first", &[]), Waiting::start("second", &[])];
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")).unwrap();
    let quarter = (total.parse::<u64>().unwrap() * 1024 / 4).max(2 << 30);
    let memory = of_all(["memory.limit_in_bytes", "memory.max"]).unwrap();
    assert!(memory.abs_diff(quarter) < 1 << 20, "{memory} is not about {quarter}");
    let share = of_all(["cpu.shares", "cpu.weight"]).unwrap();
    assert!([256, 25].contains(&share), "{share}");
    assert_eq!(of_all(["pids.max", "pids.max"]), Some(1024));
    for waiting in waiting {
        assert!(waiting.finish(&hello()).status.success());
    }
}

/// A control group that a command sees as the outermost one.
struct Outermost {
    is_v2: bool,
    directory: PathBuf,
}

impl Outermost {
    fn new(memory_bytes: u64) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let mount = Path::new(if is_v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" });
        let directory = mount.join(format!("skiff-test-{}-{serial}", std::process::id()));
        if is_v2 {
            fs::write(mount.join("cgroup.subtree_control"), "+memory +cpu +pids").unwrap();
        }
        fs::create_dir(&directory).unwrap();
        let file = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(directory.join(file), memory_bytes.to_string()).unwrap();
        Self { is_v2, directory }
    }

    /// Lets the command see the group in place of the node's outermost one.
    fn show_to(&self, command: &mut Command) {
        let (directory, is_v2) = (self.directory.clone(), self.is_v2);
        let show = move || {
            const NONE: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            let place = if is_v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
            Ok(mount(Some(&directory), place, NONE, MsFlags::MS_BIND, NONE)?)
        };
        // SAFETY: between fork and exec the closure makes system calls only.
        unsafe { command.pre_exec(show) };
    }
}

impl Drop for Outermost {
    fn drop(&mut self) {
        wait_until("the removal of the group", || fs::remove_dir(&self.directory).is_ok());
    }
}

#[test]
fn a_compiler_for_which_the_others_leave_no_memory_is_not_its_modules_fault() {
    if !is_root() {
        return;
    }
    let outermost = Outermost::new(24 << 20);
    let module = large(4_000);
    let mut command = skiff(&["compile", "--confine", "--name", "a", "--cgroup", "together"]);
    outermost.show_to(&mut command);
    let output = command.stdin(file_with(&module)).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{:?}", String::from_utf8_lossy(&output.stderr));
    let expected = "compiling `a` was stopped: the modules that are being compiled on this node together need more memory than \
                    there is";
    assert_eq!(sentence(&output), expected);
}

#[test]
fn a_compiler_that_is_given_more_keeps_it_while_others_begin() {
    if !is_root() {
        return;
    }
    let outermost = Outermost::new(1 << 30);
    let file = if outermost.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
    let tebibytes = |count: u64| (count << 40).to_string();
    let waiting = [(Some(3), 3), (None, 3), (Some(2), 3), (Some(4), 4)].map(|(given, expected)| {
        let mut command = skiff(&["compile", "--confine", "--cgroup", "given", "--name", "/app.wasm"]);
        command.args(given.iter().flat_map(|given| ["--memory-bytes".into(), tebibytes(*given)]));
        outermost.show_to(&mut command);
        let waiting = Waiting::run(&mut command);
        let limit = fs::read_to_string(outermost.directory.join("skiff-compile").join(file)).unwrap();
        assert_eq!(limit.trim(), tebibytes(expected), "{given:?}");
        waiting
    });
    for waiting in waiting {
        assert!(waiting.finish(&hello()).status.success());
    }
}

#[test]
fn compiled_code_that_is_too_large_ends_with_a_sentence() {
    if !is_root() {
        return;
    }
    let mut command = skiff(&["compile", "--confine", "--name", "a", "--output-bytes", "4096"]);
    let code = tempfile::tempfile().unwrap();
    let output = command.stdin(file_with(&large(200))).stdout(code.try_clone().unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{:?}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(sentence(&output), "the compiled code of `a` is too large to be written");
    assert!(code.metadata().unwrap().len() <= 4096);
}

#[test]
fn a_module_that_needs_too_much_memory_ends_with_a_sentence() {
    if !is_root() {
        return;
    }
    let module = large(4_000);
    let expected = "compiling `a` exceeds its memory limit of 24 MiB";
    for group in [&["--cgroup", "memory"][..], &[]] {
        let mut arguments = vec!["compile", "--confine", "--name", "a", "--memory-bytes", "25165824"];
        arguments.extend(group);
        let output = run(&arguments, &module);
        assert_eq!(output.status.code(), Some(4), "{group:?}: {output:?}");
        assert_eq!(sentence(&output), expected, "{group:?}");
        assert!(output.stdout.is_empty());
    }
    assert!(groups("memory").is_empty());
}

#[test]
fn a_module_that_takes_too_much_processor_time_ends_with_a_sentence() {
    if !is_root() {
        return;
    }
    let output = run(&["compile", "--confine", "--cgroup", "cpu", "--name", "a", "--cpu-seconds", "1"], &large(12_000));
    assert_eq!(output.status.code(), Some(3), "{:?}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(sentence(&output), "compiling `a` exceeds its processor time limit of 1 s");
    assert!(groups("cpu").is_empty());
}

#[test]
fn a_compiler_that_does_not_end_is_ended() {
    if !is_root() {
        return;
    }
    let waiting = Waiting::start("wall", &["--wall-seconds", "1"]);
    let output = {
        let confined = waiting.confined;
        // The pipe stays open: the compiler would wait forever.
        let mut supervisor = waiting.supervisor;
        let mut input = supervisor.stdin.take().unwrap();
        input.write_all(&hello()[..20]).unwrap();
        let output = supervisor.wait_with_output().unwrap();
        drop(input);
        assert!(is_gone(confined));
        output
    };
    assert_eq!(output.status.code(), Some(2), "the node is at fault: it may have been overloaded");
    assert_eq!(sentence(&output), "compiling `/app.wasm` exceeds its time limit of 1 s");
    assert!(groups("wall").is_empty());
}

#[test]
fn a_terminated_supervisor_takes_everything_with_it() {
    if !is_root() {
        return;
    }
    let waiting = Waiting::start("term", &[]);
    let confined = waiting.confined;
    let mut supervisor = waiting.supervisor;
    let input = supervisor.stdin.take();
    kill(Pid::from_raw(i32::try_from(supervisor.id()).unwrap()), Signal::SIGTERM).unwrap();
    let output = supervisor.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(sentence(&output), "compiling `/app.wasm` was interrupted");
    assert!(is_gone(confined));
    assert!(groups("term").is_empty());
}

#[test]
fn a_killed_supervisor_takes_the_compiler_with_it_and_the_next_one_its_group() {
    if !is_root() {
        return;
    }
    let waiting = Waiting::start("killed", &[]);
    let confined = waiting.confined;
    let mut supervisor = waiting.supervisor;
    let input = supervisor.stdin.take();
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    wait_until("the compiler's end", || is_gone(confined));
    drop(input);
    wait_until("the removal of the group", || {
        assert!(run(&["compile", "--confine", "--cgroup", "next"], &hello()).status.success());
        groups("killed").is_empty()
    });
}

#[test]
fn somebody_who_is_not_root_cannot_confine() {
    if !is_root() {
        return;
    }
    // The program is copied to where everybody can execute it.
    let directory = tempfile::Builder::new().prefix("skiff-test").tempdir_in("/tmp").unwrap();
    let program = directory.path().join("skiff");
    fs::copy(env!("CARGO_BIN_EXE_skiff"), &program).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), everybody).unwrap();
    let output = std::os::unix::process::CommandExt::uid(&mut Command::new(program), 65534)
        .args(["compile", "--confine"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(sentence(&output), "confining the compiler needs root");
}

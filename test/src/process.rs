//! Processes of this machine, as `/proc` shows them.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether this is a user-mode kernel, where times are not those of the machine.
pub fn is_user_mode_linux() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("User Mode Linux"))
}

/// Whether `pid` is a process that has not ended. A zombie has ended.
pub fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// The command line of `pid`, its words separated by spaces; empty when it is gone.
pub fn command_line_of(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ")
}

/// The value of a line of `/proc/PID/status` of an engine behind its own wall, if a native process of the same specification has
/// `value` there, and `effective` as its effective capabilities.
pub fn behind_the_wall(name: &str, value: &str, effective: &str) -> String {
    // DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID and NET_BIND_SERVICE.
    const KEPT: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 10;
    const SETPCAP: u64 = 1 << 8;
    let number = |text: &str| u64::from_str_radix(text.trim(), 16).expect("a set of capabilities");
    match name {
        "CapPrm" | "CapEff" => format!("{:016x}", number(value) & KEPT),
        // It takes this capability to lower the bound.
        "CapBnd" if number(effective) & SETPCAP != 0 => format!("{:016x}", number(value) & KEPT),
        "CapInh" | "CapAmb" => format!("{:016x}", 0),
        "NoNewPrivs" => "1".into(),
        "Seccomp" => "2".into(),
        _ => value.trim().into(),
    }
}

/// The children of `pid` that have not ended.
pub fn children_of(pid: u32) -> Vec<u32> {
    all().into_iter().filter(|child| state_and_parent(*child).is_some_and(|(_, parent)| parent == pid)).collect()
}

/// The children of `pid` that have ended and were not waited for.
pub fn zombies_of(pid: u32) -> Vec<u32> {
    let is_its_zombie =
        |child: &u32| state_and_parent(*child).is_some_and(|(state, parent)| parent == pid && state == "Z");
    all().into_iter().filter(is_its_zombie).collect()
}

/// How many tasks (threads) `pid` has; 0 when it is gone.
pub fn tasks_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Sends a signal to `pid`.
///
/// # Errors
/// The kernel's; `ESRCH` when there is no such process.
pub fn signal(pid: u32, signal: Signal) -> nix::Result<()> {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal)
}

/// The compilers that the shim `pid` has started.
pub fn compilers_of(pid: u32) -> Vec<u32> {
    children_of(pid).into_iter().filter(|child| command_line_of(*child).contains(" compile ")).collect()
}

/// The value of a line of `/proc/PID/status`.
pub fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim().to_string()))
}

/// The processes whose command line or cgroup holds `text`, with what shows it. Zombies and this process are left out.
pub fn processes_with(text: &str) -> Vec<(u32, String)> {
    found_by(|pid| sign_of(pid, text))
}

/// The processes of [`processes_with`], and those whose working directory or open files hold `text` in their paths.
pub fn processes_touching(text: &str) -> Vec<(u32, String)> {
    found_by(|pid| sign_of(pid, text).or_else(|| file_with(pid, text)))
}

fn found_by(sign: impl Fn(u32) -> Option<String>) -> Vec<(u32, String)> {
    let own = std::process::id();
    let others = all().into_iter().filter(|pid| *pid != own && is_alive(*pid));
    others.filter_map(|pid| Some((pid, sign(pid)?))).collect()
}

fn sign_of(pid: u32, text: &str) -> Option<String> {
    let command = command_line_of(pid);
    if command.contains(text) {
        return Some(command);
    }
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroups.lines().find(|line| line.contains(text)).map(|line| format!("{command} in {line}"))
}

fn file_with(pid: u32, text: &str) -> Option<String> {
    let proc = Path::new("/proc").join(pid.to_string());
    let open = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten().map(|file| file.path());
    let targets = open.chain([proc.join("cwd")]).filter_map(|file| fs::read_link(file).ok());
    let found = targets.map(|target| target.to_string_lossy().into_owned()).find(|target| target.contains(text))?;
    Some(format!("{} with {found}", command_line_of(pid)))
}

fn all() -> Vec<u32> {
    let entries = fs::read_dir(Path::new("/proc")).expect("`/proc` is there");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn state_and_parent(pid: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_string(), fields.next()?.parse().ok()?))
}

//! Processes of this machine, as `/proc` shows them.

use std::fs;
use std::path::Path;

/// Whether this is a kernel in user mode, where nothing takes as long as on the machine itself.
pub fn is_user_mode_linux() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("User Mode Linux"))
}

/// Whether `pid` is a process that has not ended; a zombie has.
pub fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// The command line of `pid`, its words separated by spaces; empty when it is gone.
pub fn command_line_of(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ")
}

/// What an engine makes of what the specification gives a process: the value of a line of `/proc/PID/status` once the engine
/// has raised its own wall, where that of a native process is `value` and its effective capabilities are `effective`.
pub fn behind_the_wall(name: &str, value: &str, effective: &str) -> String {
    // DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID and NET_BIND_SERVICE.
    const KEPT: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 10;
    const SETPCAP: u64 = 1 << 8;
    let number = |text: &str| u64::from_str_radix(text.trim(), 16).expect("a set of capabilities");
    match name {
        "CapPrm" | "CapEff" => format!("{:016x}", number(value) & KEPT),
        // Only who has a capability for it can lower this bound.
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

/// The children of `pid` that have ended, and that nobody has waited for.
pub fn zombies_of(pid: u32) -> Vec<u32> {
    let is_its_zombie =
        |child: &u32| state_and_parent(*child).is_some_and(|(state, parent)| parent == pid && state == "Z");
    all().into_iter().filter(is_its_zombie).collect()
}

/// How many tasks (threads) `pid` has; none when it is gone.
pub fn tasks_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// The processes whose command line or cgroup holds `text`, with their command lines.
pub fn processes_with(text: &str) -> Vec<(u32, String)> {
    let own = std::process::id();
    let has = |pid: &u32| {
        *pid != own
            && is_alive(*pid)
            && (command_line_of(*pid).contains(text)
                || fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().contains(text))
    };
    all().into_iter().filter(has).map(|pid| (pid, command_line_of(pid))).collect()
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

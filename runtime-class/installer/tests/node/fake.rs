//! The stand-in for containerd, systemctl and skiff's programs in the trees of the tests.
//!
//! It acts by the name that it is called with, and by the files below `/fake`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::exit,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is a test's own program"
)]

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use toml::{Table, Value};

const OLD: &str = "io.containerd.grpc.v1.cri";
const NEW: &str = "io.containerd.cri.v1.runtime";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let name = Path::new(&words[0]).file_name().unwrap().to_str().unwrap().to_owned();
    let rest: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let code = match (name.as_str(), rest.as_slice()) {
        ("containerd", ["--version"]) => {
            println!("containerd github.com/containerd/containerd v{} 0000000", setting("version").unwrap());
            0
        }
        ("containerd", ["--config", config, "config", "dump"]) => print_dump(Path::new(config)),
        ("systemctl", ["is-active", "--quiet", unit]) => i32::from(setting("unit").as_deref() != Some(unit)) * 3,
        ("systemctl", ["restart", _]) | ("sh", ["-c", _]) => restart(),
        ("skiff-engine", _) => loop {
            std::thread::park();
        },
        _ => panic!("{words:?} is not expected"),
    };
    std::process::exit(code);
}

/// The text of the file `/fake/NAME`.
fn setting(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/fake").join(name)).ok().map(|text| text.trim_end().to_owned())
}

fn print_dump(config: &Path) -> i32 {
    if setting("hang").is_some() {
        loop {
            std::thread::park();
        }
    }
    match dump(config) {
        Ok(table) => {
            print!("{table}");
            0
        }
        Err(error) => {
            eprintln!("level=warning msg=\"something else\"\ncontainerd: {error}");
            1
        }
    }
}

/// The configuration as containerd of this version merges it.
fn dump(config: &Path) -> Result<Table, String> {
    if setting("refuse").is_some() {
        return Err("it refuses everything".into());
    }
    let is_old = setting("version").unwrap().starts_with("1.");
    let mut merged: Table = "version = 3\nimports = []".parse().unwrap();
    let mut plugins = Table::new();
    let mut pending = VecDeque::from([config.to_path_buf()]);
    while let Some(path) = pending.pop_front() {
        let text = match fs::read_to_string(&path) {
            Err(_) if path == config => break,
            text => text.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        let mut file: Table = text.parse().map_err(|error| format!("{}: {error}", path.display()))?;
        let version = file.remove("version").and_then(|version| version.as_integer()).unwrap_or(1);
        if version < 2 || version > if is_old { 2 } else { 4 } {
            return Err(format!("{}: version {version}", path.display()));
        }
        for import in file.remove("imports").and_then(|imports| imports.as_array().cloned()).into_iter().flatten() {
            pending.extend(matches(&path, import.as_str().unwrap()));
        }
        let Some(Value::Table(sections)) = file.remove("plugins") else {
            merge(&mut merged, file);
            continue;
        };
        merge(&mut merged, file);
        for (name, section) in sections {
            let name = if name == OLD && !is_old { NEW.to_owned() } else { name };
            match plugins.get_mut(&name) {
                // containerd 1 takes the section of the last file and ignores the others.
                Some(Value::Table(old)) if !is_old => merge(old, section.as_table().unwrap().clone()),
                _ => drop(plugins.insert(name, section)),
            }
        }
    }
    merged.insert("plugins".into(), Value::Table(with_defaults(plugins, is_old)));
    Ok(merged)
}

fn with_defaults(plugins: Table, is_old: bool) -> Table {
    let plugin = if is_old { OLD } else { NEW };
    let runc =
        "runtime_type = 'io.containerd.runc.v2'\nruntime_path = ''\n[options]\nSystemdCgroup = false\nBinaryName = ''";
    let mut defaults: Table =
        format!("['{plugin}'.containerd]\ndefault_runtime_name = 'runc'\n['{plugin}'.containerd.runtimes]")
            .parse()
            .unwrap();
    let given = plugins.get(plugin).and_then(|plugin| plugin.get("containerd")?.get("runtimes"));
    if given.is_none() || !is_old {
        defaults[plugin]["containerd"]["runtimes"]
            .as_table_mut()
            .unwrap()
            .insert("runc".into(), Value::Table(runc.parse().unwrap()));
    }
    merge(&mut defaults, plugins);
    defaults
}

/// The files that a pattern of `imports` names. One without a star must exist, or reading it fails later.
fn matches(parent: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = parent.parent().unwrap().join(pattern);
    let last = path.file_name().unwrap().to_str().unwrap().to_owned();
    let Some((start, end)) = last.split_once('*') else { return vec![path] };
    let names = fs::read_dir(path.parent().unwrap()).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let mut found: Vec<_> = names.filter(|name| name.starts_with(start) && name.ends_with(end)).collect();
    found.sort();
    found.iter().map(|name| path.with_file_name(name)).collect()
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// Starts the program that `/fake/pod` names, like a pod that arrives at this moment.
#[expect(clippy::zombie_processes, reason = "it outlives this program")]
fn start_pod() {
    let Some(program) = setting("pod") else { return };
    fs::remove_file("/fake/pod").unwrap();
    let pod = Command::new(program).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fs::write("/fake/pid", pod.id().to_string()).unwrap();
}

/// Generates the configuration from its template, reads it, and writes what the CRI reports from now on.
fn restart() -> i32 {
    let mut log = OpenOptions::new().create(true).append(true).open("/fake/restarts").unwrap();
    log.write_all(b"restart\n").unwrap();
    start_pod();
    let config = PathBuf::from(setting("config").unwrap());
    if let Some(template) = setting("template") {
        let base = setting("base").map(|base| base + "\n").unwrap_or_default();
        let text = fs::read_to_string(template).unwrap_or_else(|_| base.clone());
        let text =
            text.replace("{{ template \"base\" . }}\n", &base).replace("${SNAP_DATA}", "/var/snap/microk8s/current");
        fs::write(&config, text).unwrap();
    }
    let mut reported = String::new();
    if let Ok(table) = dump(&config) {
        let plugins = &table["plugins"];
        let plugin = plugins.get(NEW).or_else(|| plugins.get(OLD)).unwrap();
        for (name, runtime) in plugin["containerd"]["runtimes"].as_table().unwrap() {
            let path = runtime.get("runtime_type").and_then(Value::as_str).unwrap_or_default();
            if name != "skiff" || setting("never").is_none() {
                reported += &format!("{name} {path}\n");
            }
        }
        if plugin["containerd"]["runtimes"].get("runc").is_none() {
            reported.clear();
        }
    }
    fs::write("/fake/reported", reported).unwrap();
    0
}

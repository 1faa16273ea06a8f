//! `skiff cache`: what the node's cache of compiled code holds, putting code into it ahead of time, and emptying it. The cache
//! itself is the shim's, which alone writes entries.

use std::fs::{self, Metadata};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde::Serialize;
use skiff_protocol::names::{CACHE_DIR, CODE_EXTENSION, FAILURE_EXTENSION, SHIM};
use skiff_protocol::{WARM_ACTION, WarmRequest, Warmed};

use crate::error::{Context, Error, Result, one_line};
use crate::output::{self, mebibytes, period};
use crate::regular;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The directory of the compiled-code cache, as in the runtime's option `CacheDir`.
    #[arg(long, default_value = CACHE_DIR, global = true)]
    cache_dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the compiled modules.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compile modules as a pod's start would, so that the first pod starts at once.
    Warm {
        /// The wasm binaries.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The namespace that the entries count for when the cache is full.
        #[arg(long, default_value = "default")]
        namespace: String,
        /// The size that the cache is kept under, in bytes, as in the runtime's option `CacheMaxBytes`.
        #[arg(long, default_value_t = 4 << 30)]
        cache_max_bytes: u64,
        /// The memory that compiling one module may take, in bytes, as in the runtime's option `CompileMemoryBytes`.
        #[arg(long, default_value_t = 2 << 30)]
        compile_memory_bytes: u64,
    },
    /// Remove compiled modules. Running containers keep their code; others compile again.
    Clear {
        /// Only those that no container has started from for this long, for example `30d`, `12h` or `90m`.
        #[arg(long, value_parser = duration)]
        older: Option<Duration>,
    },
}

/// A compiled module.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    /// The sha256 of the module.
    module: String,
    /// The engine that runs the code.
    engine: String,
    /// The size of the code.
    bytes: u64,
    /// How long ago it was compiled; absent if the file system does not know.
    age_seconds: Option<u64>,
    /// How long ago a container last started from it.
    unused_seconds: u64,
    #[serde(skip)]
    path: PathBuf,
}

/// Does what the command line says.
///
/// # Errors
/// When the cache cannot be read or changed, or a module cannot be compiled.
pub(crate) fn cache(arguments: &Arguments) -> Result<()> {
    let directory = &arguments.cache_dir;
    match &arguments.verb {
        Verb::List { json } => {
            let entries = list(directory, CODE_EXTENSION)?;
            if *json { output::print_json(&entries) } else { print(&entries) }
        }
        Verb::Warm { files, namespace, cache_max_bytes, compile_memory_bytes } => files.iter().try_for_each(|file| {
            let file = std::path::absolute(file).or_host(format!("cannot find `{}`", file.display()))?;
            let warmed = warm(&WarmRequest {
                file: file.clone(),
                namespace: namespace.clone(),
                cache_dir: directory.clone(),
                cache_max_bytes: *cache_max_bytes,
                compile_memory_bytes: *compile_memory_bytes,
            })?;
            let what = if warmed.is_new { "compiled" } else { "already there" };
            output::print(format!("{}  {what}  {}", warmed.module, file.display()))
        }),
        Verb::Clear { older } => {
            let (count, bytes) = clear(directory, older.unwrap_or_default())?;
            let modules = if count == 1 { "module" } else { "modules" };
            output::print(format!("removed the code of {count} {modules}, {}", mebibytes(bytes)))
        }
    }
}

fn print(entries: &[Entry]) -> Result<()> {
    let row = |entry: &Entry| {
        let age = entry.age_seconds.map_or("?".into(), period);
        [entry.module.clone(), entry.engine.clone(), mebibytes(entry.bytes), age, period(entry.unused_seconds)]
    };
    output::print_table(&["MODULE", "ENGINE", "SIZE", "AGE", "UNUSED"], &entries.iter().map(row).collect::<Vec<_>>())
}

/// The files of the cache with this extension, the most recently used first.
fn list(directory: &Path, extension: &str) -> Result<Vec<Entry>> {
    let reading = || format!("cannot read the cache `{}`", directory.display());
    let engines = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        engines => engines.or_host(reading())?,
    };
    let mut found = Vec::new();
    for engine in engines {
        let engine = engine.or_host(reading())?;
        // What is removed meanwhile is not there any more.
        for file in fs::read_dir(engine.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|found| found == extension)
                && let Ok(metadata) = file.metadata()
            {
                found.push(entry(path, engine.file_name().to_string_lossy().into_owned(), &metadata));
            }
        }
    }
    found.sort_by(|a, b| (a.unused_seconds, &a.module).cmp(&(b.unused_seconds, &b.module)));
    Ok(found)
}

fn entry(path: PathBuf, engine: String, metadata: &Metadata) -> Entry {
    let since = |time: SystemTime| SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
    Entry {
        module: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        engine,
        bytes: metadata.len(),
        age_seconds: metadata.created().ok().map(since),
        unused_seconds: metadata.modified().map_or(0, since),
        path,
    }
}

/// Removes what was not used for `older`, also remembered failures, and returns how many modules' code it was, and its size.
fn clear(directory: &Path, older: Duration) -> Result<(usize, u64)> {
    let is_old = |entry: &Entry| entry.unused_seconds >= older.as_secs();
    let remove = |entry: &Entry| match fs::remove_file(&entry.path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::host(format!("cannot remove `{}`: {error}", entry.path.display())))
        }
        _ => Ok(()),
    };
    list(directory, FAILURE_EXTENSION)?.iter().filter(|entry| is_old(entry)).try_for_each(remove)?;
    let entries: Vec<Entry> = list(directory, CODE_EXTENSION)?.into_iter().filter(is_old).collect();
    entries.iter().try_for_each(remove)?;
    Ok((entries.len(), entries.iter().map(|entry| entry.bytes).sum()))
}

/// Has the shim's program compile a module into the cache.
fn warm(request: &WarmRequest) -> Result<Warmed> {
    let name = request.file.display();
    // The shim takes any file for a module that it is given this way.
    regular::open(&request.file).or_host(format!("cannot read `{name}`"))?;
    let program = std::env::current_exe().or_host("cannot find the shim")?.with_file_name(SHIM);
    let running = || format!("cannot run `{}`", program.display());
    let mut shim = Command::new(&program)
        .arg(WARM_ACTION)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .or_host(running())?;
    if let Some(mut input) = shim.stdin.take() {
        let text = serde_json::to_vec(request).or_host("cannot write JSON")?;
        input.write_all(&text).or_host(running())?;
    }
    let output = shim.wait_with_output().or_host(running())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or_default();
        return Err(Error::guest(one_line(said.strip_prefix(&format!("{SHIM}: ")).unwrap_or(said))));
    }
    serde_json::from_slice(&output.stdout).or_host("cannot parse what the shim printed")
}

/// A number with a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a time as `30d`, `12h`, `90m` or `10s`".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};

    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        for (text, expected) in [
            ("30d", Some(2_592_000)),
            ("12h", Some(43_200)),
            ("90m", Some(5400)),
            ("0s", Some(0)),
            ("5", None),
            ("", None),
            ("d", None),
            ("-1d", None),
            ("1é", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn the_cache_is_listed_and_cleared_by_the_time_of_the_last_use() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: usize, days: u64| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![0; bytes]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(days * 86400 + 5);
            File::options().write(true).open(&path).unwrap().set_times(FileTimes::new().set_modified(used)).unwrap();
        };
        put("wasmtime-1/aa.cwasm", 100, 0);
        put("wasmtime-1/bb.cwasm", 20, 40);
        put("wasmtime-0/cc.cwasm", 3, 50);
        put("wasmtime-1/dd.failed", 7, 1);
        put("wasmtime-1/ee.tmp", 7, 60);
        put("slot.0/x", 1, 60);
        let listed = || {
            let entries = list(directory.path(), CODE_EXTENSION).unwrap();
            entries.into_iter().map(|entry| (entry.module, entry.engine, entry.bytes)).collect::<Vec<_>>()
        };
        let row = |module: &str, engine: &str, bytes| (module.to_owned(), engine.to_owned(), bytes);
        let newest = row("aa", "wasmtime-1", 100);
        assert_eq!(listed(), [newest.clone(), row("bb", "wasmtime-1", 20), row("cc", "wasmtime-0", 3)]);
        assert_eq!(clear(directory.path(), duration("30d").unwrap()).unwrap(), (2, 23));
        assert_eq!(listed(), [newest]);
        assert!(directory.path().join("wasmtime-1/dd.failed").exists());
        assert_eq!(clear(directory.path(), Duration::ZERO).unwrap(), (1, 100));
        assert!(!directory.path().join("wasmtime-1/dd.failed").exists());
        // Locks are the shims'.
        assert!(directory.path().join("wasmtime-1/ee.tmp").exists() && directory.path().join("slot.0/x").exists());
        assert_eq!(clear(&directory.path().join("absent"), Duration::ZERO).unwrap(), (0, 0));
    }
}

//! The wall of the engine, tried from behind: this program raises the same wall, and then tries each thing that must no
//! longer be possible. It has no harness, because the wall is raised around the only thread of a process.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "this program is its own harness")]

mod attempts;
#[path = "../../src/wall/mod.rs"]
#[expect(dead_code, reason = "what the engine itself uses of it")]
mod wall;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::attempts::{Attempt, attempts};
use crate::wall::view::{Access, View};

const BEHIND: &str = "--behind-the-wall";
const FOLDER: &str = "WALL_TEST_FOLDER";
/// What the whole wall may cost, as a part of the start and end of this program without it, on the same machine at the same time.
const COST_PART_MAX: f64 = 1.0;
/// The capabilities that may stay: DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, NET_BIND_SERVICE.
const KEPT: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == BEHIND) {
        behind_the_wall(arguments.get(1).map_or("", String::as_str));
        return;
    }
    let tests: [(&str, fn()); 6] = [
        ("what_must_not_be_possible_fails_on_every_thread", what_must_not_be_possible_fails_on_every_thread),
        ("every_thread_has_lost_what_it_does_not_need", every_thread_has_lost_what_it_does_not_need),
        ("calls_of_other_abis_end_the_process", calls_of_other_abis_end_the_process),
        ("the_process_is_hidden_from_its_own_user", the_process_is_hidden_from_its_own_user),
        (
            "only_the_view_is_reachable_where_the_kernel_has_landlock",
            only_the_view_is_reachable_where_the_kernel_has_landlock,
        ),
        (
            "the_wall_costs_less_than_the_start_of_an_empty_program",
            the_wall_costs_less_than_the_start_of_an_empty_program,
        ),
    ];
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let mut failed = 0;
    let mut passed = 0;
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if arguments.iter().any(|argument| argument == "--list") {
            println!("{name}: test");
            continue;
        }
        let is_ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        *if is_ok { &mut passed } else { &mut failed } += 1;
    }
    println!(
        "\ntest result: {}. {passed} passed; {failed} failed; 0 ignored",
        if failed == 0 { "ok" } else { "FAILED" }
    );
    std::process::exit(i32::from(failed > 0));
}

/// The other process: raises the wall, and then does what the argument says.
fn behind_the_wall(what: &str) {
    if what == "nothing" {
        return;
    }
    if what == "user" {
        nix::unistd::setuid(nix::unistd::Uid::from_raw(1000)).unwrap();
    }
    wall::hide().unwrap();
    let (tell, told) = std::sync::mpsc::channel::<Vec<Attempt>>();
    let early = (what == "attempts").then(|| {
        std::thread::spawn(move || told.recv().unwrap().iter().for_each(|attempt| attempt.report("an early thread")))
    });
    let folder = std::env::var(FOLDER).unwrap_or_else(|_| "/tmp".to_owned());
    let directories = [(File::open(&folder).unwrap().into(), Access::Write)];
    let prepared = attempts();
    let begun = Instant::now();
    wall::raise(&View { directories: &directories, files: &["/etc/hosts", "/etc/resolv.conf"] }).unwrap();
    let cost = begun.elapsed();
    match what {
        "attempts" => {
            prepared.iter().for_each(|attempt| attempt.report("the main thread"));
            std::thread::spawn(|| attempts().iter().for_each(|attempt| attempt.report("a later thread")))
                .join()
                .unwrap();
            tell.send(attempts()).unwrap();
            early.unwrap().join().unwrap();
        }
        "files" => {
            for path in [format!("{folder}/in"), "/etc/passwd".to_owned(), "/proc/self/mem".to_owned()] {
                println!(
                    "{path}: {:?}",
                    std::fs::OpenOptions::new()
                        .read(true)
                        .write(true)
                        .open(&path)
                        .map(drop)
                        .map_err(|error| error.kind())
                );
            }
        }
        "i386" => attempts::call_as_i386(),
        "x32" => attempts::call_as_x32(),
        _ => {
            let waiting = std::thread::spawn(std::thread::park);
            println!("{}", cost.as_nanos());
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            drop(waiting);
        }
    }
}

fn start(what: &str, folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([BEHIND, what]).env(FOLDER, folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn output(what: &str, folder: &Path) -> (ExitStatus, String) {
    let output = start(what, folder).wait_with_output().unwrap();
    (output.status, String::from_utf8(output.stdout).unwrap())
}

/// Runs `look` while a process waits behind the wall, and returns what the wall cost.
fn while_it_waits(what: &str, look: impl Fn(u32)) -> Duration {
    let mut child = start(what, Path::new("/tmp"));
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    look(child.id());
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    Duration::from_nanos(line.trim().parse().unwrap())
}

fn what_must_not_be_possible_fails_on_every_thread() {
    let (status, output) = output("attempts", Path::new("/tmp"));
    assert!(status.success(), "{status}: {output}");
    for thread in ["the main thread", "a later thread", "an early thread"] {
        let tried = output.lines().filter(|line| line.starts_with(thread)).count();
        assert_eq!(tried, attempts().len(), "{thread}: {output}");
    }
    let done: Vec<&str> = output.lines().filter(|line| !line.ends_with("refused")).collect();
    assert!(done.is_empty(), "{done:#?}");
}

fn every_thread_has_lost_what_it_does_not_need() {
    while_it_waits("wait", |process| {
        let threads: Vec<_> =
            std::fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|thread| thread.unwrap()).collect();
        assert!(threads.len() >= 2);
        for thread in threads {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap();
            let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".to_owned(), "2".to_owned()));
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                let held = u64::from_str_radix(&line(set), 16).unwrap();
                // Without CAP_SETPCAP, which only root has here, the bounding set stays; nothing can be gained by it.
                if set != "CapBnd:" || nix::unistd::geteuid().is_root() {
                    assert_eq!(held & !KEPT, 0, "{set} {held:x}");
                }
            }
        }
    });
}

fn calls_of_other_abis_end_the_process() {
    if cfg!(target_arch = "x86_64") {
        for abi in ["i386", "x32"] {
            let (status, output) = output(abi, Path::new("/tmp"));
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{abi}: {status} {output}");
        }
    }
}

fn the_process_is_hidden_from_its_own_user() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can start a process of another user");
        return;
    }
    while_it_waits("user", |process| {
        let process = format!("/proc/{process}");
        assert_eq!(std::fs::metadata(&process).unwrap().uid(), 1000);
        assert_eq!(std::fs::metadata(format!("{process}/environ")).unwrap().uid(), 0, "it is dumpable");
    });
}

fn only_the_view_is_reachable_where_the_kernel_has_landlock() {
    let abi = skiff_linux::probe::landlock_version();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), "").unwrap();
    let (status, output) = output("files", folder.path());
    assert!(status.success() && output.contains("/in: Ok"), "{output}");
    if abi < 2 {
        println!("skipped: this kernel has no Landlock of version 2 (it says {abi})");
        return;
    }
    assert_eq!(output.matches("Err(PermissionDenied)").count(), 2, "{output}");
}

fn the_wall_costs_less_than_the_start_of_an_empty_program() {
    // The least are those which nothing else disturbed.
    let least_of_both = || {
        let both = (0..40).map(|_| {
            let begun = Instant::now();
            assert!(start("nothing", Path::new("/tmp")).wait().unwrap().success());
            (begun.elapsed(), while_it_waits("wait", |_| {}))
        });
        let (starts, walls): (Vec<_>, Vec<_>) = both.unzip();
        let (start, wall) = (starts.into_iter().min().unwrap(), walls.into_iter().min().unwrap());
        println!("the wall costs {wall:?}, and a process without it {start:?}");
        wall.as_secs_f64() / start.as_secs_f64()
    };
    assert!((0..5).any(|_| least_of_both() <= COST_PART_MAX));
}

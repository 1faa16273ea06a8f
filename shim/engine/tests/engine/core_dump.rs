//! Core dumps of guests that trap.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skiff_protocol::{Limits, OnTrap, Task};

use crate::calls::CallSocket;
use crate::driver::{Ended, Guest};
use crate::look_live::sections;
use crate::watch::wait_for;

/// A module that says where it is in its memory and in a global, and traps.
const TRAPPING: &str = r#"(module $trapping
  (memory (export "memory") 2)
  (data (i32.const 70000) "a needle")
  (global (export "number") (mut i64) (i64.const -7))
  (func $inner unreachable)
  (func (export "_start") (call $inner)))"#;

/// A library of a function that returns and one that traps.
const LIBRARY: &str = r#"(module
  (memory (export "memory") 1)
  (data (i32.const 7) "a needle")
  (func (export "one") (result i32) (i32.const 1))
  (func (export "fail") unreachable))"#;

const SECTIONS: [&str; 7] = ["core", "5", "6", "11", "coremodules", "coreinstances", "corestack"];

fn has_needle(wasm: &[u8]) -> bool {
    wasm.windows(8).any(|part| part == b"a needle")
}

/// A volume that hangs until its server is dropped. Only root can mount one.
struct Hanging {
    place: PathBuf,
    server: Option<File>,
}

impl Hanging {
    fn at(place: PathBuf) -> Self {
        fs::create_dir(&place).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("hanging"), &place, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { place, server: Some(server) }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        umount2(&self.place, MntFlags::MNT_DETACH).unwrap();
    }
}

/// The names of a process's threads, with the ends of their lines.
fn thread_names(process: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok()).collect()
}

/// Runs a guest that traps and has `folder` as its root, with this file for its dump.
fn trap(guest: Guest, folder: &Path, path: &str) -> Ended {
    let ended = guest.preopen(folder, "/", false).core_dump(path).run();
    assert_eq!(ended.code, 134, "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("skiff: /app/guest.wasm trapped: "), "{ended:?}");
    ended
}

#[test]
fn a_trap_leaves_a_core_dump_and_ends_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let ended = trap(Guest::text(TRAPPING), folder.path(), "/data/core.wasm");
    assert!(
        ended.stderr.starts_with("skiff: the core dump is in `/data/core.wasm`\nskiff: backtrace of "),
        "{ended:?}"
    );
    let wasm = fs::read(folder.path().join("data/core.wasm")).unwrap();
    assert_eq!(sections(&wasm), SECTIONS);
    assert!(has_needle(&wasm) && wasm.len() < 1000, "{}", wasm.len());
    let second = trap(Guest::text(TRAPPING), folder.path(), "/data/core.wasm");
    let refused = "skiff: cannot write the core dump to `/data/core.wasm`: file exists\n";
    assert!(second.stderr.starts_with(refused), "{second:?}");
    assert_eq!(fs::read(folder.path().join("data/core.wasm")).unwrap(), wasm, "the first one stays");
}

#[test]
fn a_core_dump_that_cannot_be_written_is_told_and_leaves_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    symlink(outside.path(), folder.path().join("out")).unwrap();
    symlink(outside.path().join("core"), folder.path().join("link")).unwrap();
    for (path, why) in [
        ("/missing/core", "no such file or directory"),
        ("/out/core", "no such file or directory"),
        ("/link", "file exists"),
    ] {
        let ended = trap(Guest::text(TRAPPING), folder.path(), path);
        let told = format!("skiff: cannot write the core dump to `{path}`: {why}\n");
        assert!(ended.stderr.starts_with(&told), "{path}: {ended:?}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_trap_in_a_call_leaves_a_core_dump() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, guest) = CallSocket::of(Guest::text(LIBRARY).on_trap(OnTrap::Restart));
    let _running = guest.preopen(folder.path(), "/", false).core_dump("/core").start().ready();
    let ended = socket.asks(Task::Invoke(vec!["fail()".to_owned()])).run();
    assert_eq!(ended.code, 134, "{ended:?}");
    // The answer does not wait for it.
    wait_for("the dump", || folder.path().join("core").exists());
    let wasm = fs::read(folder.path().join("core")).unwrap();
    assert!(has_needle(&wasm) && sections(&wasm).contains(&"corestack".to_owned()));
}

#[test]
fn a_call_does_not_wait_for_the_core_dump() {
    let folder = tempfile::tempdir().unwrap();
    let mut volume = Hanging::at(folder.path().join("data"));
    let (socket, guest) = CallSocket::of(Guest::text(LIBRARY).on_trap(OnTrap::Restart));
    let mut running = guest.preopen(folder.path(), "/", false).core_dump("/data/core").start().ready();
    let invoke = |args: &[&str]| socket.asks(Task::Invoke(args.iter().map(|arg| (*arg).to_owned()).collect()));
    let failed = |ended: Ended| assert!(ended.code == 134 && ended.stderr.contains("trapped"), "{ended:?}");
    failed(invoke(&["fail()"]).run());
    assert_eq!(running.stderr(), "", "the dump is not over");
    wait_for("the dump's turn", || thread_names(running.child.id()).contains(&"core-dump\n".to_owned()));
    failed(invoke(&["--repeat", "1", "fail()"]).run());
    let refused = "skiff: cannot write the core dump to `/data/core`: ";
    wait_for("the second dump", || running.stderr() == format!("{refused}another one is under way\n"));
    drop(volume.server.take());
    let ended = invoke(&["one()"]).run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "1\n"), "{ended:?}");
    wait_for("the first dump", || running.stderr().matches(refused).count() == 2);
    running.signal(libc::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn a_core_dump_takes_no_longer_than_it_may_whatever_the_run_time_is() {
    let folder = tempfile::tempdir().unwrap();
    let _volume = Hanging::at(folder.path().join("data"));
    let limits = Limits { run_time: Some(Duration::from_millis(300)), ..Limits::default() };
    let begun = Instant::now();
    let ended = trap(Guest::text(TRAPPING).limits(limits), folder.path(), "/data/core");
    let told = "skiff: cannot write the core dump to `/data/core`: it takes longer than 30 s\n";
    assert!(ended.stderr.starts_with(told), "{ended:?}");
    assert!(begun.elapsed() > Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn a_trapped_guest_whose_log_nobody_reads_is_ended_by_its_run_time() {
    let folder = tempfile::tempdir().unwrap();
    let (_reader, mut stderr) = std::io::pipe().unwrap();
    let length = fcntl(&stderr, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    stderr.write_all(&vec![b'x'; length.try_into().unwrap()]).unwrap();
    let limits = Limits { run_time: Some(Duration::from_millis(300)), ..Limits::default() };
    let guest = Guest::text(TRAPPING).limits(limits).stderr(stderr).preopen(folder.path(), "/", false);
    let ended = guest.core_dump("/core").start().ready().end();
    assert_eq!(ended.code, 134, "{ended:?}");
    assert!(folder.path().join("core").exists());
}

#[test]
fn a_user_without_capabilities_has_the_file_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(1000), None).unwrap();
    let ended = trap(Guest::text(TRAPPING).user(1000), folder.path(), "/core");
    assert!(ended.stderr.starts_with("skiff: the core dump is in `/core`\n"), "{ended:?}");
    let mode = fs::metadata(folder.path().join("core")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_kill_leaves_the_whole_of_a_core_dump_or_nothing() {
    // Large enough to be killed while it is dumped.
    let large = TRAPPING
        .replace("\"memory\") 2)", "\"memory\") 1024)")
        .replace("unreachable", "(memory.fill (i32.const 0) (i32.const 1) (i32.const 67108864)) unreachable");
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::text(&large).preopen(folder.path(), "/", false).core_dump("/core");
    let mut running = guest.start().ready();
    let descriptors = format!("/proc/{}/fd", running.child.id());
    let is_dumping = || {
        let links = fs::read_dir(&descriptors).into_iter().flatten().flatten();
        let mut targets = links.filter_map(|link| fs::read_link(link.path()).ok());
        targets.any(|target| target.starts_with(folder.path()) && target != folder.path())
    };
    wait_for("a dump", || is_dumping() || running.child.try_wait().unwrap().is_some());
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    match fs::read(folder.path().join("core")) {
        Ok(wasm) => assert_eq!(sections(&wasm), SECTIONS),
        Err(_) => assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0),
    }
}

#[test]
fn a_component_is_not_dumped_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::named("rust-p2-hello").args(&["panic"]).preopen(folder.path(), "/", false);
    let ended = guest.core_dump("/core").run();
    assert!(ended.code == 134 && ended.stderr.contains("only core modules are dumped"), "{ended:?}");
    assert!(!folder.path().join("core").exists());
}

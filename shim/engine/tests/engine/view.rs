//! What a guest sees: its arguments, environment and directories, also behind the wall.

use std::path::Path;

use crate::driver::Guest;

#[test]
fn arguments_environment_and_directory_arrive() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("work")).unwrap();
    let guest = Guest::named("go-env").args(&["one", "two words"]).env("A", "1").env("B", "x=y");
    let ended = guest.preopen(folder.path(), "/", false).cwd("/work").run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for part in [r#"["/app/go-env.wasm","one","two words"]"#, r#""A":"1""#, r#""B":"x=y""#, r#""cwd":"/work""#] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
}

#[test]
fn nothing_but_the_plan_is_a_guests_environment() {
    let guest = || {
        Guest::named("go-env").own_env("LD_PRELOAD", "/x").own_env("HOME", "/root").own_env("RUST_BACKTRACE", "full")
    };
    let ended = guest().env("A", "1").run();
    let environment = ended.stdout.split_once(r#""env":"#).map_or(ended.stdout.as_str(), |(_, rest)| rest);
    assert!(environment.contains(r#""A":"1""#) && environment.contains(r#""HOME":"/root""#), "{}", ended.stdout);
    assert!(!ended.stdout.contains("LD_PRELOAD") && !ended.stdout.contains("RUST_BACKTRACE"), "{}", ended.stdout);
    let ended = guest().env("HOME", "/mine").run();
    assert!(ended.stdout.contains(r#""HOME":"/mine""#) && !ended.stdout.contains("/root"), "{}", ended.stdout);
}

#[test]
fn a_guest_has_the_directories_of_its_plan_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), "from the host").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("out")).unwrap();
    let files = |path: &Path, read_only: bool, steps: &[&str]| {
        Guest::named("c-files").preopen(path, "/data", read_only).args(steps).run()
    };
    let ended = files(folder.path(), false, &["read:/data/in", "write:/data/new=text", "read:/data/new"]);
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert!(ended.stdout.contains("from the host") && ended.stdout.contains("text"), "{}", ended.stdout);
    assert_eq!(std::fs::read_to_string(folder.path().join("new")).unwrap(), "text");
    let outside = ["read:/etc/passwd", "read:/data/../../etc/passwd", "read:/data/out", "list:/proc"];
    assert_eq!(files(folder.path(), false, &outside).code, 4);
    let ended = files(folder.path(), true, &["read:/data/in", "write:/data/more=text"]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    assert!(!folder.path().join("more").exists());
}

/// Does to files below its first directory all that WASI 0.1 can do, and exits with the number of what fails.
const USES_FILES: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_set_times"
        (func $path_times (param i32 i32 i32 i32 i64 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_get" (func $path_stat (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_readlink" (func $readlink (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_remove_directory" (func $rmdir (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pread" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pwrite" (func $pwrite (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_sync" (func $sync (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_datasync" (func $datasync (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_advise" (func $advise (param i32 i64 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $set_size (param i32 i64) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_set_times" (func $times (param i32 i64 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_fdstat_set_flags" (func $set_flags (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\64\00\00\00\04\00\00\00")
    (data (i32.const 100) "text")
    (data (i32.const 200) "d") (data (i32.const 210) "d/a") (data (i32.const 220) "b")
    (data (i32.const 230) "l") (data (i32.const 240) "s")
    (func $try (param $step i32) (param $errno i32) (if (local.get $errno) (then (call $exit (local.get $step)))))
    (func (export "_start") (local $fd i32)
        (call $try (i32.const 1) (call $mkdir (i32.const 3) (i32.const 200) (i32.const 1)))
        (call $try (i32.const 2) (call $open (i32.const 3) (i32.const 0) (i32.const 210) (i32.const 3)
            (i32.const 1) (i64.const 0x1fffffff) (i64.const 0) (i32.const 0) (i32.const 16)))
        (local.set $fd (i32.load (i32.const 16)))
        (call $try (i32.const 3) (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16)))
        (call $try (i32.const 4) (call $pwrite (local.get $fd) (i32.const 0) (i32.const 1) (i64.const 4) (i32.const 16)))
        (call $try (i32.const 5) (call $pread (local.get $fd) (i32.const 0) (i32.const 1) (i64.const 2) (i32.const 16)))
        (call $try (i32.const 6) (call $sync (local.get $fd)))
        (call $try (i32.const 7) (call $datasync (local.get $fd)))
        (call $try (i32.const 8) (call $advise (local.get $fd) (i64.const 0) (i64.const 4) (i32.const 3)))
        (call $try (i32.const 9) (call $set_size (local.get $fd) (i64.const 100)))
        (call $try (i32.const 10) (call $times (local.get $fd) (i64.const 1) (i64.const 2) (i32.const 5)))
        (call $try (i32.const 11) (call $stat (local.get $fd) (i32.const 1024)))
        (call $try (i32.const 12) (call $set_flags (local.get $fd) (i32.const 1)))
        (call $try (i32.const 13) (call $close (local.get $fd)))
        (call $try (i32.const 14) (call $path_times
            (i32.const 3) (i32.const 0) (i32.const 210) (i32.const 3) (i64.const 1) (i64.const 2) (i32.const 5)))
        (call $try (i32.const 15) (call $path_times
            (i32.const 3) (i32.const 1) (i32.const 210) (i32.const 3) (i64.const 1) (i64.const 2) (i32.const 5)))
        (call $try (i32.const 16) (call $rename
            (i32.const 3) (i32.const 210) (i32.const 3) (i32.const 3) (i32.const 220) (i32.const 1)))
        (call $try (i32.const 17) (call $link (i32.const 3) (i32.const 0) (i32.const 220) (i32.const 1)
            (i32.const 3) (i32.const 210) (i32.const 3)))
        (call $try (i32.const 18) (call $symlink
            (i32.const 220) (i32.const 1) (i32.const 3) (i32.const 240) (i32.const 1)))
        (call $try (i32.const 19) (call $readlink
            (i32.const 3) (i32.const 240) (i32.const 1) (i32.const 1024) (i32.const 64) (i32.const 16)))
        (call $try (i32.const 20) (call $path_stat
            (i32.const 3) (i32.const 1) (i32.const 240) (i32.const 1) (i32.const 1024)))
        (call $try (i32.const 21) (call $readdir
            (i32.const 3) (i32.const 1024) (i32.const 1024) (i64.const 0) (i32.const 16)))
        (call $try (i32.const 22) (call $unlink (i32.const 3) (i32.const 240) (i32.const 1)))
        (call $try (i32.const 23) (call $unlink (i32.const 3) (i32.const 210) (i32.const 3)))
        (call $try (i32.const 24) (call $rmdir (i32.const 3) (i32.const 200) (i32.const 1)))))"#;

#[test]
fn files_are_used_as_before_behind_the_wall() {
    for preview in ["wasi_snapshot_preview1", "wasi_unstable"] {
        let folder = tempfile::tempdir().unwrap();
        let text = USES_FILES.replace("wasi_snapshot_preview1", preview);
        let ended = Guest::text(&text).preopen(folder.path(), "/", false).run();
        assert_eq!(ended.code, 0, "{preview}: the step with this number fails: {ended:?}");
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b"]);
        assert_eq!(&std::fs::read(folder.path().join("b")).unwrap()[..9], b"texttext\0");
    }
}

/// Makes the absolute link `d/s` to `/b`, and reads `b` through it: by its size, its text, and what is listed. It exits with
/// the size, and with more if a step fails. Everything is relative to `d`, which is opened first.
const USES_AN_ABSOLUTE_LINK: &str = r#"(module
    (import "PREVIEW" "proc_exit" (func $exit (param i32)))
    (import "PREVIEW" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "PREVIEW" "path_filestat_get" (func $stat (param i32 i32 i32 i32 i32) (result i32)))
    (import "PREVIEW" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
    (import "PREVIEW" "fd_pread" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
    (import "PREVIEW" "fd_close" (func $close (param i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\00\08\00\00\40\00\00\00")
    (data (i32.const 100) "/b") (data (i32.const 200) "d") (data (i32.const 240) "s")
    (func $try (param $step i32) (param $errno i32) (if (local.get $errno) (then (call $exit (local.get $step)))))
    (func (export "_start") (local $folder i32) (local $file i32)
        (call $try (i32.const 101) (call $open (i32.const 3) (i32.const 0) (i32.const 200) (i32.const 1)
            (i32.const 2) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
        (local.set $folder (i32.load (i32.const 16)))
        (call $try (i32.const 102) (call $symlink
            (i32.const 100) (i32.const 2) (local.get $folder) (i32.const 240) (i32.const 1)))
        (call $try (i32.const 103) (call $open (local.get $folder) (i32.const 1) (i32.const 240) (i32.const 1)
            (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
        (local.set $file (i32.load (i32.const 16)))
        ;; It has the number that follows, and is what the link leads to.
        (call $try (i32.const 104) (i32.sub (local.get $file) (i32.add (local.get $folder) (i32.const 1))))
        (call $try (i32.const 105) (call $pread
            (local.get $file) (i32.const 0) (i32.const 1) (i64.const 0) (i32.const 16)))
        (call $try (i32.const 106) (i32.ne (i32.load (i32.const 2048)) (i32.const 0x74786574)))
        (call $try (i32.const 107) (call $close (local.get $file)))
        (call $try (i32.const 108) (call $stat
            (local.get $folder) (i32.const 1) (i32.const 240) (i32.const 1) (i32.const 1024)))
        (call $exit (i32.load (i32.const SIZE)))))"#;

#[test]
fn an_absolute_link_is_followed_in_both_previews_and_from_every_directory() {
    for (preview, size_at) in [("wasi_snapshot_preview1", "1056"), ("wasi_unstable", "1048")] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("d")).unwrap();
        std::fs::write(folder.path().join("b"), "texts").unwrap();
        let text = USES_AN_ABSOLUTE_LINK.replace("PREVIEW", preview).replace("SIZE", size_at);
        let ended = Guest::text(&text).preopen(folder.path(), "/", false).run();
        assert_eq!(ended.code, 5, "{preview}: {ended:?}");
    }
}

#[test]
fn a_user_without_capabilities_uses_files_behind_the_wall() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can run as somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(1000), None).unwrap();
    let ended = Guest::text(USES_FILES).preopen(folder.path(), "/", false).user(1000).run();
    assert_eq!(ended.code, 0, "the step with this number fails: {ended:?}");
}

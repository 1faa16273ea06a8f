//! Listings of directories, in every version of WASI: right while files come and go, and in linear time.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use skiff_test::{Containerd, Job};

const GUESTS: [&str; 3] = ["c-files", "rust-p2-files", "rust-p3-files"];

/// Does the steps, and returns what came of each.
fn outcomes(job: Job<'_>, steps: &[&str]) -> Vec<String> {
    let outcome = job.args(steps.iter().copied()).run();
    let lines: Vec<_> =
        outcome.stdout.lines().map(|line| line.split_once(": ").unwrap_or((line, "")).1.trim().to_string()).collect();
    assert_eq!(lines.len(), steps.len(), "{outcome:?}");
    lines
}

fn make_files(folder: &Path, count: usize) {
    for number in 0..count {
        fs::write(folder.join(format!("keep-{number}")), "").unwrap();
    }
}

#[test]
fn files_are_removed_while_they_are_listed() {
    let containerd = Containerd::shared();
    for count in [500, 2000] {
        let fill = [&format!("fill:/new={count}"), &format!("fill:/scratch/new={count}")].map(String::clone);
        let steps = [
            // On the image's file system, and in memory.
            "mkdir:/new",
            &fill[0],
            "empty:/new",
            "rmdir:/new",
            "mkdir:/scratch/new",
            &fill[1],
            "empty:/scratch/new",
            "rmdir:/scratch/new",
        ];
        let job = containerd.job("c-files").mount("/scratch", "tmpfs", "tmpfs", &["mode=1777"]);
        assert_eq!(outcomes(job, &steps), [""; 8], "{count} files");
    }
}

#[test]
fn a_list_is_complete_while_a_neighbour_makes_and_removes_files() {
    let folder = tempfile::tempdir().unwrap();
    make_files(folder.path(), 200);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                fs::write(folder.path().join("x"), "").unwrap();
                fs::remove_file(folder.path().join("x")).unwrap();
            }
        });
        let job = |guest: &str| Containerd::shared().job(guest).bind(folder.path(), "/data", &["ro"]);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let first = outcomes(job("c-files"), &["count:/data=200"]);
            let others = ["rust-p2-files", "rust-p3-files"].map(|guest| outcomes(job(guest), &["count:/data"; 100]));
            (first, others)
        }));
        is_over.store(true, Ordering::Relaxed);
        let (first, others) = found.unwrap();
        assert_eq!(first, ["200 200"]);
        for counts in others {
            // The neighbour's file is there or not.
            assert!(counts.iter().all(|count| count == "200" || count == "201"), "{counts:?}");
        }
    });
}

#[test]
fn a_name_that_is_not_utf_8_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    for name in [&b"a"[..], b"b", b"caf\xe9", b"z"] {
        fs::write(folder.path().join(OsStr::from_bytes(name)), "").unwrap();
    }
    for guest in GUESTS {
        let job = Containerd::shared().job(guest).bind(folder.path(), "/data", &["ro"]);
        assert_eq!(outcomes(job, &["list:/data"]), ["a b z"], "{guest}");
    }
}

#[test]
fn entries_have_the_inodes_of_their_files() {
    let folder = tempfile::tempdir().unwrap();
    make_files(folder.path(), 3);
    fs::create_dir(folder.path().join("folder")).unwrap();
    let job = Containerd::shared().job("c-files").bind(folder.path(), "/data", &["ro"]);
    let found = outcomes(job, &["inodes:/data"]).remove(0);
    let mut names: Vec<_> = found.split(' ').collect();
    names.sort_unstable();
    assert_eq!(names, [".", "folder", "keep-0", "keep-1", "keep-2"]);
}

#[test]
fn a_list_takes_time_in_proportion_to_its_length() {
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [("small", 2000), ("big", 20_000)] {
        fs::create_dir(folder.path().join(name)).unwrap();
        make_files(&folder.path().join(name), count);
    }
    let time = |step: &str, expected: &str| {
        let begun = Instant::now();
        let job = Containerd::shared().job("c-files").bind(folder.path(), "/data", &["ro"]);
        assert_eq!(outcomes(job, &[step]), [expected]);
        begun.elapsed()
    };
    // As many names each. A list that is read again for every few names takes ten times as long for the big folder.
    let measure = || (time("count:/data/small=10", "2000 2000"), time("count:/data/big=1", "20000 20000"));
    let mut times = Vec::new();
    let is_linear = (0..5).any(|_| {
        let (small, big) = measure();
        times.push((small, big));
        big < small * 3 + Duration::from_secs(1)
    });
    println!("ten lists of 2,000 names, and one of 20,000: {times:?}");
    assert!(is_linear, "{times:?}");
}

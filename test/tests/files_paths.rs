//! The paths of a guest, in every version of WASI: one root, links as in any container, and errors as the kernel has them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use skiff_test::{Archive, Containerd, File, Image, Job};
use tempfile::TempDir;

/// A guest that does steps with files, and the version of WASI that it uses.
const GUESTS: [&str; 3] = ["c-files", "rust-p2-files", "rust-p3-files"];

/// The guest in an image that has links as Debian's have them.
fn image_with_links(guest: &str) -> Image {
    let program = File::program("app.wasm", fs::read(skiff_test::guest(guest)).unwrap());
    let files = [
        program,
        File::text("usr/share/zoneinfo/UTC", "TZif"),
        File::link("etc/localtime", "/usr/share/zoneinfo/UTC"),
        File::link("etc/relative", "../usr/share/zoneinfo/UTC"),
        File::link("etc/high", "../../../../usr/share/zoneinfo/UTC"),
        File::link("etc/twice", "/etc/localtime"),
        File::link("etc/later", "/tmp/later"),
        File::link("etc/circle", "/etc/circle"),
        File::link("var/run", "/run"),
        File::text("tmp/here", "here"),
    ];
    Archive::ordinary(&files, &["/app.wasm"]).import(Containerd::shared())
}

/// An error by its name, from whatever the guest's language makes of it.
fn error_of(outcome: &str) -> &str {
    const NAMES: [(&str, &[&str]); 8] = [
        ("EROFS", &["EROFS", "\"read-only\"", "ErrorCode::ReadOnly"]),
        ("EXDEV", &["EXDEV", "\"cross-device\"", "ErrorCode::CrossDevice"]),
        ("ENOENT", &["ENOENT", "\"no-entry\"", "ErrorCode::NoEntry"]),
        ("ELOOP", &["ELOOP", "errno 32", "\"loop\"", "ErrorCode::Loop"]),
        ("EEXIST", &["EEXIST", "\"exist\"", "ErrorCode::Exist"]),
        ("EISDIR", &["EISDIR", "\"is-directory\"", "ErrorCode::IsDirectory"]),
        ("EINVAL", &["EINVAL", "\"invalid\"", "ErrorCode::Invalid"]),
        ("ENOTDIR", &["ENOTDIR", "\"not-directory\"", "ErrorCode::NotDirectory"]),
    ];
    let is_of = |forms: &&(&str, &[&str])| forms.1.iter().any(|form| outcome.contains(form));
    NAMES.iter().find(is_of).map_or(outcome, |(name, _)| name)
}

fn check(guest: &str, job: Job<'_>, expected: &[(&str, &str)]) {
    let steps: Vec<_> = expected.iter().map(|(step, _)| *step).collect();
    let found = job.outcomes(&steps);
    let found: Vec<_> = steps.iter().copied().zip(found.iter().map(|outcome| error_of(outcome))).collect();
    assert_eq!(found, expected, "{guest}");
}

/// A directory with the file `note`, writable for all.
fn volume(text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(directory.path().join("note"), text).unwrap();
    directory
}

/// Exits with the number of directories that are open from the start.
const COUNTS_DIRECTORIES: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (local $fd i32)
        (local.set $fd (i32.const 3))
        (loop $next
            (if (i32.eqz (call $prestat (local.get $fd) (i32.const 0)))
                (then (local.set $fd (i32.add (local.get $fd) (i32.const 1))) (br $next))))
        (call $exit (i32.sub (local.get $fd) (i32.const 3)))))"#;

#[test]
fn a_guest_has_one_root_with_everything_in_it() {
    let volume = volume("");
    let containerd = Containerd::shared();
    let with_mounts = |job: Job<'static>| {
        job.bind(volume.path(), "/data", &["rw"]).mount("/scratch", "tmpfs", "tmpfs", &["mode=1777"])
    };
    let image = Image::of_text(containerd, COUNTS_DIRECTORIES);
    assert_eq!(with_mounts(containerd.job_of(&image)).run().code, 1);
    for guest in ["rust-p2-files", "rust-p3-files"] {
        check(
            guest,
            with_mounts(containerd.job(guest)),
            &[("directories:", "/"), ("read:/data/note", ""), ("write:/scratch/a=b", ""), ("read:/scratch/a", "b")],
        );
    }
}

#[test]
fn links_lead_where_they_do_in_any_container() {
    for guest in GUESTS {
        let image = image_with_links(guest);
        let token = volume("token");
        let job = || {
            let job = Containerd::shared().job_of(&image).bind(token.path(), "/run/secrets", &["ro"]);
            job.mount("/scratch", "tmpfs", "tmpfs", &["mode=1777"])
        };
        check(
            guest,
            job(),
            &[
                ("read:/var/run/secrets/note", "token"),
                ("list:/var/run/secrets", "note"),
                ("read:/etc/localtime", "TZif"),
                ("read:/etc/relative", "TZif"),
                ("read:/etc/high", "TZif"),
                ("read:/etc/twice", "TZif"),
                ("read:/etc/circle", "ELOOP"),
                ("readlink:/etc/localtime", "/usr/share/zoneinfo/UTC"),
                ("readlink:/usr/share/zoneinfo/UTC", "EINVAL"),
                ("touch:/etc/localtime", ""),
            ],
        );
        check(
            guest,
            job(),
            &[
                ("read:/etc/later", "ENOENT"),
                ("write:/etc/later=made", ""),
                ("read:/tmp/later", "made"),
                ("read:/etc/later", "made"),
                ("write:/etc/later=shorter", ""),
                ("read:/tmp/later", "shorter"),
                // Whatever is made, moved or removed below an absolute link is where the link leads.
                ("mkdir:/var/run/new", ""),
                ("write:/run/new/a=1", ""),
                ("rename:/var/run/new/a=/var/run/new/b", ""),
                ("link:/var/run/new/b=/var/run/new/c", ""),
                ("symlink:/var/run/new/d=/run/new/b", ""),
                ("read:/run/new/d", "1"),
                ("readlink:/var/run/new/d", "/run/new/b"),
                ("list:/var/run/new", "b c d"),
                ("rename:/tmp/here=/scratch/here", "EXDEV"),
                ("remove:/var/run/new/b", ""),
                ("remove:/var/run/new/c", ""),
                ("remove:/var/run/new/d", ""),
                ("rmdir:/var/run/new", ""),
                ("read:/run/new/b", "ENOENT"),
                // The link itself is removed, not where it leads.
                ("remove:/etc/later", ""),
                ("read:/tmp/later", "shorter"),
            ],
        );
    }
}

#[test]
fn links_lead_nowhere_outside_of_the_container() {
    const MARK: &str = "a file of the node";
    let outside = volume(MARK);
    let target = outside.path().join("note");
    for guest in GUESTS {
        let inside = volume("");
        let at = |name: &str| inside.path().join(name);
        symlink(&target, at("absolute")).unwrap();
        symlink(outside.path(), at("directory")).unwrap();
        symlink(format!("../../../../../../../..{}", target.display()), at("relative")).unwrap();
        for (name, place) in [("kernel", "/proc/self"), ("engine", "/dev/.skiff/root"), ("stdout", "/dev/fd/1")] {
            symlink(place, at(name)).unwrap();
        }
        let made = format!("symlink:/data/made={}", target.display());
        let steps = [
            "read:/data/absolute",
            "read:/data/relative",
            "read:/data/directory/note",
            "write:/data/directory/new=x",
            "list:/data/directory",
            "mkdir:/data/directory/new",
            "read:/data/kernel/status",
            "list:/data/kernel",
            "list:/data/engine",
            "write:/data/stdout=x",
            "rename:/data/note=/data/directory/stolen",
            "link:/data/note=/data/directory/stolen",
            &made,
            "read:/data/made",
            "write:/data/made=x",
        ];
        let job = Containerd::shared().job(guest).bind(inside.path(), "/data", &["rw"]);
        for (step, outcome) in steps.iter().zip(job.outcomes(&steps)) {
            let expected = match *step {
                "write:/data/stdout=x" => &["EROFS", "ENOENT"][..],
                step if step == made => &[""],
                // Nothing is at the same place in the container.
                _ => &["ENOENT"],
            };
            assert!(expected.contains(&error_of(&outcome)), "{guest}: {step}: {outcome}");
        }
        let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!((fs::read_to_string(&target).unwrap().as_str(), left.len()), (MARK, 1), "{guest}");
    }
    assert!(Path::new("/proc/self/status").exists(), "there would have been something to read");
}

#[test]
fn every_write_to_a_read_only_place_says_so() {
    let fixed = volume("fixed");
    symlink("/data/note", fixed.path().join("absolute")).unwrap();
    for guest in GUESTS {
        let job = || Containerd::shared().job(guest).bind(fixed.path(), "/data", &["ro"]);
        let writes = [
            "write:/data/note=x",
            "write:/data/new=x",
            "write:/data/absolute=x",
            "touch:/data/note",
            "mkdir:/data/new",
            "remove:/data/note",
            "rename:/data/note=/data/other",
            "link:/data/note=/data/other",
            "symlink:/data/link=note",
        ];
        let expected = writes.map(|step| (step, "EROFS"));
        check(guest, job(), &expected);
        // The root file system, and nothing that is mounted in it.
        let job = job().read_only().mount("/scratch", "tmpfs", "tmpfs", &["mode=1777"]);
        check(
            guest,
            job,
            &[
                ("write:/new=x", "EROFS"),
                ("mkdir:/new", "EROFS"),
                ("write:/scratch/new=x", ""),
                ("write:/dev/null=x", ""),
            ],
        );
    }
    for guest in ["rust-p2-files", "rust-p3-files"] {
        let job = Containerd::shared().job(guest).bind(fixed.path(), "/data", &["ro"]);
        check(guest, job, &[("touch-open:/data/note", "EROFS"), ("touch-open:/data", "EROFS")]);
    }
    assert_eq!(fs::read_to_string(fixed.path().join("note")).unwrap(), "fixed");
}

#[test]
fn a_file_at_dev_stdout_swallows_nothing() {
    for guest in GUESTS {
        let job = Containerd::shared().job(guest);
        check(
            guest,
            job,
            &[("write:/dev/stdout=lost", "EROFS"), ("write:/dev/stderr=lost", "EROFS"), ("read:/dev/stdin", "ENOENT")],
        );
    }
}

//! The files that a guest sees: the image, the pod's mounts with their flags, by its user's rights, and nothing of the node.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use skiff_test::{Archive, Containerd, File, Image, Job};
use tempfile::TempDir;

fn check(job: Job<'_>, expected: &[(&str, &str)]) {
    let steps: Vec<_> = expected.iter().map(|(step, _)| *step).collect();
    let found = job.outcomes(&steps);
    let found: Vec<_> = steps.iter().copied().zip(found.iter().map(String::as_str)).collect();
    assert_eq!(found, expected);
}

const READ_ONLY: &str = "EROFS";

fn files() -> Job<'static> {
    Containerd::shared().job("c-files")
}

/// A directory with the file `note`, writable for all.
fn volume(text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(directory.path().join("note"), text).unwrap();
    directory
}

/// `c-files` in an image with further files.
fn image_with(more: &[File]) -> Image {
    let wasm = fs::read(skiff_test::guest("c-files")).unwrap();
    let files = [&[File::program("c-files.wasm", wasm)], more].concat();
    Archive::ordinary(&files, &["/c-files.wasm"]).import(Containerd::shared())
}

#[test]
fn the_images_files_are_there_and_can_be_changed() {
    let image = image_with(&[File::text("etc/motd", "welcome"), File::link("etc/link", "motd")]);
    check(
        Containerd::shared().job_of(&image),
        &[
            ("read:/etc/motd", "welcome"),
            ("read:/etc/link", "welcome"),
            ("stat:/etc/link", "symlink 4"),
            ("write:/etc/motd=changed", ""),
            ("read:/etc/motd", "changed"),
            ("mkdir:/new", ""),
            ("write:/new/a=1", ""),
            ("append:/new/a=2", ""),
            ("rename:/new/a=/new/b", ""),
            ("read:/new/b", "12"),
            ("list:/new", "b"),
            ("truncate:/new/b=1", ""),
            ("stat:/new/b", "file 1"),
            ("remove:/new/b", ""),
            ("rmdir:/new", ""),
            ("read:/new/b", "ENOENT"),
        ],
    );
    check(Containerd::shared().job_of(&image), &[("read:/etc/motd", "welcome")]);
}

#[test]
fn a_volume_is_read_and_written_through() {
    let volume = volume("from the node");
    check(
        files().bind(volume.path(), "/data", &["rw"]),
        &[("read:/data/note", "from the node"), ("write:/data/new=from the guest", ""), ("list:/data", "new note")],
    );
    assert_eq!(fs::read_to_string(volume.path().join("new")).unwrap(), "from the guest");
}

#[test]
fn a_read_only_volume_refuses_every_change() {
    let volume = volume("fixed");
    check(
        files().bind(volume.path(), "/data", &["ro"]),
        &[
            ("read:/data/note", "fixed"),
            ("write:/data/note=x", READ_ONLY),
            ("write:/data/new=x", READ_ONLY),
            ("append:/data/note=x", READ_ONLY),
            ("truncate:/data/note=0", READ_ONLY),
            ("remove:/data/note", READ_ONLY),
            ("mkdir:/data/new", READ_ONLY),
            ("rename:/data/note=/data/other", READ_ONLY),
            ("symlink:/data/link=note", READ_ONLY),
        ],
    );
    assert_eq!(fs::read_to_string(volume.path().join("note")).unwrap(), "fixed");
}

#[test]
fn a_single_file_can_be_mounted() {
    let volume = volume("one file");
    let note = volume.path().join("note");
    check(
        files().bind(&note, "/etc/config", &["ro"]).bind(&note, "/etc/writable", &["rw"]),
        &[
            ("read:/etc/config", "one file"),
            ("write:/etc/config=x", READ_ONLY),
            ("list:/etc", "config writable"),
            ("write:/etc/writable=changed", ""),
            ("read:/etc/config", "changed"),
        ],
    );
    assert_eq!(fs::read_to_string(note).unwrap(), "changed");
}

#[test]
fn mounts_lie_in_mounts() {
    let (outer, inner) = (volume("outer"), volume("inner"));
    fs::create_dir(outer.path().join("inner")).unwrap();
    check(
        files().bind(outer.path(), "/data", &["rw"]).bind(inner.path(), "/data/inner", &["ro"]).mount(
            "/data/scratch",
            "tmpfs",
            "tmpfs",
            &["mode=1777"],
        ),
        &[
            ("read:/data/note", "outer"),
            ("read:/data/inner/note", "inner"),
            ("write:/data/inner/new=x", READ_ONLY),
            ("write:/data/scratch/new=here", ""),
            ("read:/data/scratch/new", "here"),
            ("write:/data/new=x", ""),
        ],
    );
    assert!(!outer.path().join("scratch/new").exists(), "the tmpfs covers the volume");
}

#[test]
fn a_tmpfs_is_the_guests_own() {
    check(
        files().mount("/scratch", "tmpfs", "tmpfs", &["mode=1777", "size=1m"]).read_only(),
        &[("write:/scratch/a=b", ""), ("read:/scratch/a", "b"), ("list:/scratch", "a"), ("write:/run/pid=1", "")],
    );
    check(files().mount("/scratch", "tmpfs", "tmpfs", &["mode=1777", "ro"]), &[("write:/scratch/a=b", READ_ONLY)]);
}

#[test]
fn a_read_only_root_refuses_changes_and_volumes_in_it_do_not() {
    let volume = volume("");
    check(
        files().read_only().bind(volume.path(), "/data", &["rw"]),
        &[("write:/new=x", READ_ONLY), ("mkdir:/new", READ_ONLY), ("write:/data/new=x", ""), ("read:/data/new", "x")],
    );
}

#[test]
fn links_in_a_mount_point_lead_inside_the_container() {
    let token = volume("token");
    let image = image_with(&[File::link("var/run", "/run"), File::link("escape", "../../../../../..")]);
    let job = || Containerd::shared().job_of(&image);
    check(
        job().bind(token.path(), "/var/run/secrets", &["ro"]),
        &[("read:/run/secrets/note", "token"), ("write:/run/secrets/note=x", READ_ONLY)],
    );
    check(job().bind(token.path(), "/escape/data", &["ro"]), &[("read:/data/note", "token")]);
    assert!(!Path::new("/data/note").exists());
}

#[test]
fn a_go_program_begins_in_the_working_directory() {
    let volume = volume("here");
    let containerd = Containerd::shared();
    let given: serde_json::Value =
        serde_json::from_str(&containerd.job("go-env").bind(volume.path(), "/data", &["rw"]).cwd("/data").run().stdout)
            .unwrap();
    assert_eq!(given["cwd"], "/data");
    let go = containerd.job("go-files").bind(volume.path(), "/data", &["rw"]).cwd("/data");
    assert_eq!(go.args(["read", "note"]).run().stdout, "here\n");
}

#[test]
fn a_user_has_its_own_rights_and_no_others() {
    let volume = volume("public");
    fs::write(volume.path().join("secret"), "secret").unwrap();
    fs::set_permissions(volume.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(volume.path().join("closed")).unwrap();
    check(
        files().user(1000, 2000).bind(volume.path(), "/data", &["rw"]),
        &[
            ("read:/data/note", "public"),
            ("read:/data/secret", "EACCES"),
            ("write:/data/closed/new=x", "EACCES"),
            ("write:/data/mine=x", ""),
            ("write:/new=x", "EACCES"),
        ],
    );
    let mine = fs::metadata(volume.path().join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (1000, 2000));
    let denied = files().user(1000, 1000).edit(|spec| {
        spec["process"]["capabilities"] = serde_json::json!({});
    });
    check(denied.bind(volume.path(), "/data", &["rw"]), &[("read:/data/secret", "EACCES")]);
}

#[test]
fn a_root_without_capabilities_has_no_power_over_others_files() {
    let volume = volume("");
    let theirs = volume.path().join("theirs");
    fs::write(&theirs, "theirs").unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o600)).unwrap();
    nix::unistd::chown(&theirs, Some(1000.into()), None).unwrap();
    let job = files().edit(|spec| spec["process"]["capabilities"] = serde_json::json!({}));
    check(job.bind(volume.path(), "/data", &["rw"]), &[("read:/data/theirs", "EACCES")]);
}

#[test]
fn the_kernels_files_are_not_to_be_seen() {
    let steps = [
        "read:/proc/self/mem",
        "read:/proc/self/environ",
        "read:/proc/1/root/etc/passwd",
        "stat:/proc/self",
        "stat:/sys/kernel",
        "stat:/sys/fs/cgroup",
        "stat:/dev/.skiff",
        "stat:/dev/.skiff/root",
        "stat:/dev/pts/0",
        "stat:/dev/core",
        "stat:/dev/fd",
    ];
    for (step, outcome) in steps.iter().zip(files().outcomes(&steps)) {
        assert!(["ENOENT", "ENOTCAPABLE"].contains(&outcome.as_str()), "{step}: {outcome}");
    }
}

#[test]
fn the_devices_are_the_harmless_ones() {
    check(
        files(),
        &[
            ("list:/dev", "full null random shm urandom zero"),
            ("stat:/dev/null", "device 0"),
            ("write:/dev/null=x", ""),
            ("read:/dev/null", ""),
            ("write:/dev/full=x", "ENOSPC"),
        ],
    );
}

#[test]
fn a_termination_log_can_be_written() {
    let volume = volume("");
    let job = files().bind(&volume.path().join("note"), "/dev/termination-log", &["rw"]);
    check(job, &[("write:/dev/termination-log=the end", "")]);
    assert_eq!(fs::read_to_string(volume.path().join("note")).unwrap(), "the end");
    fs::write(volume.path().join("note"), "").unwrap();
    let outcome =
        Containerd::shared().job("c-trap").bind(&volume.path().join("note"), "/dev/termination-log", &["rw"]).run();
    let words = fs::read_to_string(volume.path().join("note")).unwrap();
    assert!(
        words.starts_with("skiff: /c-trap.wasm trapped: ") && outcome.stderr.ends_with(&format!("{words}\n")),
        "{words}"
    );
}

#[test]
fn nothing_leads_out_of_the_container() {
    const MARK: &str = "a file of the node";
    let outside = volume(MARK);
    let inside = volume("");
    let target = outside.path().join("note");
    symlink(&target, inside.path().join("absolute")).unwrap();
    symlink(format!("../../../../../../../..{}", target.display()), inside.path().join("relative")).unwrap();
    symlink(outside.path(), inside.path().join("directory")).unwrap();
    let path = target.display();
    let steps = [
        "read:/data/absolute".to_string(),
        "read:/data/relative".into(),
        "read:/data/directory/note".into(),
        "write:/data/absolute=x".into(),
        "write:/data/directory/new=x".into(),
        format!("read:{path}"),
        format!("read:/data/../../../../../../..{path}"),
        format!("read:../../../../../../..{path}"),
        format!("symlink:/data/made={path}"),
        "read:/data/made".into(),
        format!("link:/data/hard={path}"),
        format!("rename:/data/note=../../../../../..{}/stolen", outside.path().display()),
        "list:/data/directory".into(),
    ];
    let steps: Vec<_> = steps.iter().map(String::as_str).collect();
    let found = files().bind(inside.path(), "/data", &["rw"]).outcomes(&steps);
    for (step, outcome) in steps.iter().zip(&found) {
        assert!(!outcome.contains(MARK), "{step}: {outcome}");
        assert!(!outcome.is_empty() || step.starts_with("symlink:"), "{step} succeeded");
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), MARK);
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["note"]);
}

#[test]
fn files_are_the_same_in_every_language_and_version() {
    let containerd = Containerd::shared();
    let volume = volume("text");
    let job = |guest: &str| containerd.job(guest).bind(volume.path(), "/data", &["ro"]);
    assert_eq!(job("go-files").args(["read", "/data/note"]).run().stdout, "text\n");
    assert_eq!(job("rust-p2-hello").args(["read", "/data/note"]).run().stdout, "text");
    assert_eq!(job("python-hello").args(["list", "/data"]).run().stdout, "note\n");
    let refused = job("go-files").args(["write", "/data/new", "x"]).run();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(!volume.path().join("new").exists());
}

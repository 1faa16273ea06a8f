//! The looking glass: what `skiff ls`, `cat`, `stat`, `env` and `mounts` show of a container's files, through its guest's own view.

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::stat::Mode;
use skiff_protocol::Task;

use crate::driver::{Ended, Guest};

fn look(args: &[&str]) -> Guest {
    Guest::task(Task::Look(args.iter().map(|arg| (*arg).to_owned()).collect()))
}

/// A guest's root with something of each kind in it, beside a secret.
fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("root/etc")).unwrap();
    fs::create_dir_all(at("root/dev")).unwrap();
    fs::create_dir_all(at("root/empty")).unwrap();
    fs::write(at("root/etc/motd"), "hello\n").unwrap();
    fs::write(at("root/etc/.hidden"), "").unwrap();
    fs::set_permissions(at("root/etc/motd"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(at("secret"), "of the node").unwrap();
    for (link, target) in
        [("root/up", "../../secret"), ("root/absolute", "/etc/motd"), ("root/node", "/proc/self/environ")]
    {
        symlink(target, at(link)).unwrap();
    }
    nix::unistd::mkfifo(&at("root/fifo"), Mode::S_IRWXU).unwrap();
    folder
}

fn run(folder: &Path, args: &[&str]) -> Ended {
    look(args).preopen(&folder.join("root"), "/", false).env("A", "1").env("B", "two words").run()
}

#[test]
fn files_are_shown_as_the_guest_sees_them() {
    let folder = tree();
    for (args, stdout, stderr, code) in [
        (&["cat", "/etc/motd"][..], "hello\n", "", 0),
        (&["cat", "etc/motd", "/absolute"], "hello\nhello\n", "", 0),
        (&["cat", "/up"], "", "skiff: `/up`: no such file or directory\n", 1),
        (&["cat", "/node"], "", "skiff: `/node`: no such file or directory\n", 1),
        (&["cat", "/missing", "/etc/motd"], "hello\n", "skiff: `/missing`: no such file or directory\n", 1),
        (&["cat", "/etc"], "", "skiff: `/etc` is a directory: only regular files can be shown\n", 1),
        (&["cat", "/fifo"], "", "skiff: `/fifo` is a fifo: only regular files can be shown\n", 1),
        (&["cat", "/etc/motd/x"], "", "skiff: `/etc/motd/x`: not a directory\n", 1),
        (&["ls"], "absolute\ndev\nempty\netc\nfifo\nnode\nup\n", "", 0),
        (&["ls", "/etc"], "motd\n", "", 0),
        (&["ls", "-a", "/etc"], ".hidden\nmotd\n", "", 0),
        (&["ls", "/etc/motd"], "/etc/motd\n", "", 0),
        (&["ls", "/etc", "/empty"], "/etc:\nmotd\n\n/empty:\n", "", 0),
        (&["ls", "/../../.."], "absolute\ndev\nempty\netc\nfifo\nnode\nup\n", "", 0),
        (&["env"], "A=1\nB=two words\n", "", 0),
        (&["rm", "/etc/motd"], "", "skiff: there is no command `skiff rm`: see `skiff help`\n", 2),
        (&["cat"], "", "skiff: `skiff cat` needs a path\n", 2),
        (&["ls", "-x"], "", "skiff: `skiff ls` knows the options `-l` and `-a`\n", 2),
    ] {
        let ended = run(folder.path(), args);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.code), (stdout, stderr, code), "{args:?}");
    }
}

#[test]
fn what_is_known_of_files_is_shown_in_a_line_or_in_several() {
    let folder = tree();
    let long = run(folder.path(), &["ls", "-l", "/etc", "/absolute"]);
    assert!(long.stdout.lines().any(|line| line.starts_with("-rw-r-----   1") && line.ends_with("Z motd")), "{long:?}");
    assert!(long.stdout.contains("Z /absolute -> /etc/motd\n"), "{long:?}");
    let stat = run(folder.path(), &["stat", "/etc/motd", "/absolute"]);
    for part in ["Path: /etc/motd\n", "Type: regular file\n", "Size: 6 bytes (0Mi)\n", "Mode: 0640 (-rw-r-----)\n"] {
        assert!(stat.stdout.contains(part), "{part}: {stat:?}");
    }
    assert!(stat.stdout.contains("Path: /absolute -> /etc/motd\n  Type: symbolic link\n"), "{stat:?}");
}

#[test]
fn a_name_that_is_no_text_is_escaped_and_a_big_directory_is_listed_whole() {
    let folder = tree();
    let odd = folder.path().join("root/empty");
    for name in [&b"\xffname"[..], b"two\nlines", b"\x1b[2J"] {
        fs::write(odd.join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
    }
    assert_eq!(run(folder.path(), &["ls", "/empty"]).stdout, "\\u{1b}[2J\ntwo\\nlines\n\\xffname\n");
    let many = folder.path().join("root/many");
    fs::create_dir(&many).unwrap();
    for number in 0..100_000 {
        fs::File::create(many.join(format!("{number:06}"))).unwrap();
    }
    let listed = run(folder.path(), &["ls", "/many"]);
    let mut names: Vec<&str> = listed.stdout.lines().collect();
    names.sort_unstable();
    assert_eq!((listed.code, names.len(), names.first(), names.last()), (0, 100_000, Some(&"000000"), Some(&"099999")));
    assert!(listed.stderr.contains("has too many names to sort"), "{}", listed.stderr);
}

#[test]
fn a_big_file_is_passed_on_in_parts_and_a_reader_that_goes_ends_it_quietly() {
    let folder = tree();
    let mut file = fs::File::create(folder.path().join("root/big")).unwrap();
    for number in 0..200_000_u32 {
        writeln!(file, "line {number}").unwrap();
    }
    let ended = run(folder.path(), &["cat", "/big"]);
    assert_eq!(ended.stdout.len() as u64, file.metadata().unwrap().len());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = look(&["cat", "/big"]).preopen(&folder.path().join("root"), "/", true).stdout(writer).run();
    assert_eq!((ended.code, ended.stderr.as_str()), (141, ""));
}

#[test]
fn commands_are_listed_and_can_be_turned_off() {
    let folder = tree();
    for args in [&[][..], &["help"]] {
        let ended = run(folder.path(), args);
        assert!(ended.code == 0 && ended.stdout.contains("\n  backtrace [SECONDS]"), "{ended:?}");
    }
    for args in [&["help"][..], &["ls"], &["ps"], &["rm"]] {
        let ended = look(args).preopen(&folder.path().join("root"), "/", false).looks_are_off().run();
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args:?}");
        assert!(ended.stderr.contains("`debug.skiff.dev/look` turns the commands of `skiff` off"), "{ended:?}");
    }
}

#[test]
fn mounts_are_shown_without_what_is_behind_them_on_the_node() {
    let folder = tree();
    let ended = look(&["mounts"])
        .preopen(&folder.path().join("root"), "/", false)
        .preopen(&folder.path().join("root/etc"), "/other", true)
        .run();
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("/  ") && lines[1].starts_with("/other  "), "{ended:?}");
    assert!(lines[0].contains("  rw") && lines[0].ends_with("Mi used"), "{ended:?}");
    assert!(!ended.stdout.contains(folder.path().to_str().unwrap()), "{ended:?}");
}

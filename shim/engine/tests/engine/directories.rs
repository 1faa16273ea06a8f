//! What becomes of a guest's directories when a neighbour, who shares a volume with it, moves them about.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::driver::Guest;
use crate::server::Server;

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("skipped: only root can mount");
    }
    is_root
}

#[test]
fn a_directory_behind_a_symbolic_link_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("real/deep")).unwrap();
    symlink("/proc", at("root")).unwrap();
    symlink("real", at("link")).unwrap();
    for place in ["root", "root/self", "link", "link/deep"] {
        for name in ["c-hello", "rust-p2-hello", "rust-p2-http"] {
            let sentence = Guest::named(name).preopen(&at(place), "/data", false).refused_as_guest();
            assert!(sentence.contains("symbolic link") && sentence.contains("`/data`"), "{place}: {sentence}");
        }
    }
    assert_eq!(Guest::named("c-hello").preopen(&at("real/deep"), "/data", false).run().code, 0);
}

#[test]
fn a_bind_mount_of_a_kernel_file_system_is_refused_wherever_it_is_reached_from() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("volume/bind")).unwrap();
    symlink("volume/bind", at("root")).unwrap();
    let guest = |place: &str| {
        let guest = Guest::named("c-hello").bind(Path::new("/proc"), &at("volume/bind"));
        guest.preopen(&at(place), "/data", false).refused_as_guest()
    };
    for (place, seen) in [("volume/bind", "`/data`"), ("volume/bind/sys", "`/data`"), ("volume", "`/data/bind`")] {
        let sentence = guest(place);
        assert!(sentence.contains("file system `proc`") && sentence.contains(seen), "{place}: {sentence}");
    }
    assert!(guest("root").contains("symbolic link"));
}

#[test]
fn a_directory_that_is_replaced_by_a_link_stays_the_one_that_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("volume/root")).unwrap();
    fs::write(at("volume/root/version"), "the original").unwrap();
    let guest = Guest::named("rust-p2-http").preopen(&at("volume/root"), "/data", false);
    let server = Server::start(guest);
    let read = |path: &str| {
        // Each request has an instance of its own.
        let response = server.get(&format!("/files?path={path}"));
        (response.status(), response.body.contains("the original"))
    };
    assert_eq!(read("/data/version"), (200, true));
    fs::rename(at("volume/root"), at("elsewhere")).unwrap();
    symlink("/proc", at("volume/root")).unwrap();
    for _ in 0..3 {
        assert_eq!(read("/data/version"), (200, true));
        assert_ne!(read("/data/self/status").0, 200);
    }
    // The same with a link on the way to it, and with nothing at its place at all.
    fs::remove_dir_all(at("volume")).unwrap();
    assert_eq!(read("/data/version"), (200, true));
    fs::create_dir(at("proc")).unwrap();
    symlink("/proc/self", at("proc/root")).unwrap();
    symlink("proc", at("volume")).unwrap();
    assert_eq!(read("/data/version"), (200, true));
    assert_ne!(read("/data/status").0, 200);
    let links = fs::read_dir(format!("/proc/{}/fd", server.running.child.id())).unwrap().flatten();
    let open = links.filter(|link| fs::read_link(link.path()).is_ok_and(|target| target == at("elsewhere"))).count();
    assert_eq!(open, 2, "all instances share one descriptor, and the engine itself has one");
}

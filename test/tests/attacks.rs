//! Attacks on the node, on other tenants and on the cache of compiled code, by the author of an image, a volume or a
//! specification. Each one succeeded against skiff before the walls were built, except the one on the guest's view, which was
//! found later.
//!
//! Attacks on the engine are in `attacks_engine`, those of a neighbour in the pod in `attacks_cri`, and those on a shim at
//! work in `attacks_shim`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;
use skiff_test::{
    Archive, Containerd, File, Image, Job, Layer, Refused, Volume, children_of, command_line_of, eventually, guest,
    is_alive, is_cgroup_v2, is_user_mode_linux, left_of, random_name, saying, signal, slow_module, until, zombies_of,
};

/// A refusal that waits for nothing arrives within this time, even on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(4);
/// An orphan is reaped within this time.
const ORPHAN_LIMIT: Duration = Duration::from_secs(20);

/// Makes a container and returns the result and how long it took. A shim that does not reply is killed.
fn answer(containerd: &Containerd, job: Job<'_>) -> (Result<(), Refused>, Duration) {
    let id = job.id().to_string();
    let since = Instant::now();
    let answered = std::thread::scope(|scope| {
        let asking = scope.spawn(|| job.try_start().map(drop));
        if !until(AT_ONCE, || asking.is_finished()) {
            let shim = eventually("the shim is there", || containerd.shim_of(&id));
            children_of(shim).into_iter().chain([shim]).for_each(|pid| {
                // It may have ended by itself.
                signal(pid, Signal::SIGKILL).ok();
            });
        }
        asking.join().unwrap()
    });
    (answered, since.elapsed())
}

/// Makes a container, which must be refused at once, and returns the refusal.
fn refused_at_once(containerd: &Containerd, job: Job<'_>) -> Refused {
    let (answer, after) = answer(containerd, job);
    let refused = answer.expect_err("the container is refused");
    assert!(after < AT_ONCE, "no answer after {after:?}; then {refused}");
    refused
}

// The cache of compiled code.

#[test]
fn a_module_that_changes_while_it_is_read_is_never_kept_as_what_it_was() {
    let containerd = Containerd::with_own_cache();
    let [victims, attackers] = ["the victim's", "the attacker"].map(saying);
    let volume = Volume::changing(victims.clone(), attackers);
    let attack = containerd.job_of(&Image::none()).bind(volume.path(), "/v", &["ro"]).command(["/v/app.wasm"]);
    let said = attack.try_start().map(|container| container.finish().stdout);
    assert!(volume.has_turned(), "the module was read once at least: {said:?}");

    let layer = Layer::new("application/wasm", victims.clone(), Some("a.wasm"));
    let config = json!({"architecture": "wasm", "os": "wasip1"});
    let artifact = Archive::of_layers("application/vnd.wasm.config.v0+json", config, vec![layer]).import(&containerd);
    for job in
        [containerd.job_of(&Image::of_wasm(&containerd, victims)), containerd.job_of(&artifact).command(["/a.wasm"])]
    {
        assert_eq!(job.run().stdout, "the victim's\n", "the attack ended with {said:?}");
    }
    let refused = said.expect_err("the attacker's own container is refused");
    assert!(refused.message.contains("`/v/app.wasm` changed while it was being read"), "{refused}");
}

/// Whether the cgroup of all compilers of the node has a memory limit, and its weight, if there is such a cgroup now.
fn limits_of_all_compilers() -> Option<(bool, u64)> {
    /// v1 writes "no limit" as the largest number of whole pages.
    const UNLIMITED_FROM: u64 = 1 << 62;
    let [memory, weight] = if is_cgroup_v2() {
        ["skiff-compile/memory.max", "skiff-compile/cpu.weight"]
    } else {
        ["memory/skiff-compile/memory.limit_in_bytes", "cpu/skiff-compile/cpu.shares"]
    };
    let read = |file| fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok();
    let is_limited = read(memory)?.trim().parse::<u64>().is_ok_and(|limit| limit < UNLIMITED_FROM);
    Some((is_limited, read(weight)?.trim().parse().unwrap()))
}

#[test]
fn all_compilers_together_are_limited_and_take_turns() {
    let containerd = Containerd::with_own_cache();
    let most = std::thread::available_parallelism().unwrap().get().div_euclid(2).max(1);
    let pods = u32::try_from(most + 1).unwrap();
    let images: Vec<_> = (0..pods).map(|seed| Image::of_wasm(&containerd, slow_module(seed, 150))).collect();
    let barrier = Barrier::new(images.len());
    let (mut at_once, mut limits) = (0, BTreeSet::new());
    std::thread::scope(|scope| {
        let running: Vec<_> = images
            .iter()
            .map(|image| {
                scope.spawn(|| {
                    barrier.wait();
                    containerd.job_of(image).run().code
                })
            })
            .collect();
        until(Duration::from_secs(60), || {
            let (seen, again) = (containerd.compilers(), containerd.compilers());
            // Only those that were there all the time between were there together.
            at_once = at_once.max(seen.iter().filter(|compiler| again.contains(compiler)).count());
            limits.extend(limits_of_all_compilers());
            // Reading all of `/proc` takes time from the compilers.
            until(Duration::from_millis(20), || false);
            running.iter().all(|run| run.is_finished())
        });
        assert!(running.into_iter().all(|run| run.join().unwrap() == 0));
    });
    assert!((1..=most).contains(&at_once), "{at_once} compilers at once, of at most {most}");
    // The limits are written a moment after the cgroup is made.
    let limit = (true, if is_cgroup_v2() { 25 } else { 256 });
    assert!(limits.contains(&limit), "memory is limited, and the weight a quarter of the usual: {limits:?}");
}

#[test]
fn a_module_that_cannot_be_compiled_is_not_compiled_again_and_again() {
    let containerd = Containerd::with_own_cache();
    // A function with an instruction that does not exist.
    let broken = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a\x05\x01\x03\0\xff\x0b";
    let image = Image::of_wasm(&containerd, broken.to_vec());
    let first = containerd.job_of(&image).refused();
    let again = containerd.job_of(&image).refused();
    assert!(first.message.contains("`/app.wasm`") && !first.message.contains("ten minutes"), "{first}");
    assert!(again.message.contains("`/app.wasm`") && again.message.contains("ten minutes ago"), "{again}");
}

// What is not a module.

/// Counts how often a file is opened by any process.
struct Opened {
    inotify: fs::File,
}

impl Opened {
    fn watch(path: &Path) -> Self {
        use std::os::fd::{AsRawFd, FromRawFd};
        // SAFETY: the call takes a number and returns a new descriptor or an error.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        assert!(fd >= 0, "inotify is there");
        // SAFETY: the kernel has just made this descriptor for us.
        let inotify = unsafe { fs::File::from_raw_fd(fd) };
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string that lives through the call.
        let watch = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), libc::IN_OPEN) };
        assert!(watch >= 0, "{path:?} can be watched");
        Self { inotify }
    }

    fn was_opened(&self) -> bool {
        std::io::Read::read(&mut &self.inotify, &mut [0; 4096]).is_ok_and(|length| length > 0)
    }
}

#[test]
fn a_device_a_fifo_or_a_socket_at_the_entry_point_is_refused_and_not_opened() {
    let containerd = Containerd::shared();
    let volume = tempfile::tempdir().unwrap();
    let [device, fifo, socket] = ["device", "fifo", "socket"].map(|name| volume.path().join(name));
    // The kernel's source of zeros: reading it breaks nothing.
    mknod(&device, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let _listening = UnixListener::bind(&socket).unwrap();
    for (file, what) in [(&device, "a character device"), (&fifo, "a fifo"), (&socket, "a socket")] {
        let opened = Opened::watch(file);
        let path = format!("/v/{}", file.file_name().unwrap().to_str().unwrap());
        let in_a_volume = containerd.job_of(&Image::none()).bind(volume.path(), "/v", &["rw"]).command([path]);
        let as_a_volume = containerd.job_of(&Image::none()).bind(file, "/app.wasm", &["ro"]).command(["/app.wasm"]);
        for (job, path) in [(in_a_volume, "/v/"), (as_a_volume, "/app.wasm")] {
            let (answer, after) = answer(containerd, job);
            assert!(!opened.was_opened(), "{what} was opened at `{path}`; then {answer:?}");
            let refused = answer.expect_err("no program");
            assert!(refused.message.contains(what) && refused.message.contains(path), "{what}: {refused}");
            assert!(after < AT_ONCE, "no answer after {after:?}");
        }
    }
}

#[test]
fn a_device_or_a_fifo_of_an_image_is_refused() {
    let containerd = Containerd::shared();
    for (file, what) in [(File::device("app.wasm", 10, 200), "a character device"), (File::fifo("app.wasm"), "a fifo")]
    {
        let image = Archive::ordinary(&[file], &["/app.wasm"]).import(containerd);
        let refused = refused_at_once(containerd, containerd.job_of(&image));
        assert!(refused.message.contains(what) && refused.message.contains("`/app.wasm`"), "{refused}");
    }
}

#[test]
fn a_module_larger_than_any_may_be_is_refused_and_not_read() {
    let containerd = Containerd::shared();
    let volume = tempfile::tempdir().unwrap();
    let sparse = fs::File::create(volume.path().join("app.wasm")).unwrap();
    sparse.write_all_at(b"\0asm\x01\0\0\0", 0).unwrap();
    sparse.set_len(8 << 40).unwrap();
    let job = containerd.job_of(&Image::none()).bind(volume.path(), "/v", &["ro"]).command(["/v/app.wasm"]);
    let refused = refused_at_once(containerd, job);
    assert!(refused.message.contains("`/v/app.wasm` is too big"), "{refused}");
}

#[test]
fn an_image_of_nested_indexes_is_refused_at_once() {
    let containerd = Containerd::shared();
    let image = Image::nested(containerd, 4, 40);
    let refused = refused_at_once(containerd, containerd.job_of(&image).command(["/app.wasm"]));
    assert!(refused.message.contains("/app.wasm"), "{refused}");
}

// What the guest sees of the node.

#[test]
fn a_hostpath_shows_no_file_system_of_the_kernel() {
    let containerd = Containerd::shared();
    let proc = containerd.job("c-files").args(["list:/host/proc"]).bind(Path::new("/proc"), "/host/proc", &["rw"]);
    let refused = proc.refused();
    assert!(refused.message.contains("`/host/proc`") && refused.message.contains("kernel"), "{refused}");
    let tree = tempfile::tempdir().unwrap();
    let mounted = MountedProc::below(tree.path());
    // The root of such a node is the machine's file system, whose `/proc` is ordinary files to it.
    let root = (!is_user_mode_linux()).then_some(Path::new("/"));
    for source in root.into_iter().chain([tree.path()]) {
        let outcome = containerd.job("c-files").args(["list:/host/proc"]).bind(source, "/host", &["rw"]).run();
        assert_eq!(outcome.stdout, "list /host/proc: \n", "{}: {outcome:?}", source.display());
    }
    drop(mounted);
}

#[test]
fn no_volume_takes_the_place_of_the_guests_view() {
    let containerd = Containerd::shared();
    let volume = tempfile::tempdir().unwrap();
    // The path that the engine would open as the guest's root.
    std::os::unix::fs::symlink("../../proc", volume.path().join("root")).unwrap();
    for place in ["/dev/.skiff", "/dev/.skiff/root", "/dev/../dev/.skiff/root/dev"] {
        let refused = containerd.job("c-files").args(["list:/"]).bind(volume.path(), place, &["rw"]).refused();
        assert!(refused.message.contains(&format!("the volume at `{place}`")), "{refused}");
    }
    let module = fs::read(guest("c-files")).unwrap();
    let files = [File::program("app.wasm", module), File::link("view", "/dev/.skiff")];
    let image = Archive::ordinary(&files, &["/app.wasm"]).import(containerd);
    let refused = containerd.job_of(&image).bind(volume.path(), "/view", &["rw"]).refused();
    assert!(refused.message.contains("the volume at `/view`"), "{refused}");
}

/// A `/proc` somewhere in a tree of files.
struct MountedProc(PathBuf);

impl MountedProc {
    fn below(tree: &Path) -> Self {
        let place = tree.join("proc");
        fs::create_dir(&place).unwrap();
        mount(Some("proc"), &place, Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
        Self(place)
    }
}

impl Drop for MountedProc {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}

// What containers leave behind.

#[test]
fn orphans_of_a_container_in_the_nodes_pid_namespace_are_reaped() {
    let script = "for i in 1 2 3; do sh -c 'sleep 0.2 & exec true'; done; echo orphaned; exec sleep 3600";
    let containerd = Containerd::shared();
    let container = containerd
        .shell(script)
        .edit(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        })
        .start();
    let shim = container.shim();
    container.streams.wait_for_stdout("orphaned\n");
    eventually("an orphan has ended", || (!zombies_of(shim).is_empty()).then_some(()));
    assert!(until(ORPHAN_LIMIT, || zombies_of(shim).is_empty()), "zombies: {:?}", zombies_of(shim));
    assert!(is_alive(container.pid), "the container is there still");
}

#[test]
fn a_ctr_run_that_is_killed_while_it_compiles_leaves_nothing() {
    let containerd = Containerd::with_own_cache();
    let image = Image::of_wasm(&containerd, slow_module(17, 700));
    let id = random_name("late");
    let options = containerd.options_file();
    let mut words = vec!["run", "--rm", "--null-io", "--runtime", "io.containerd.skiff.v1"];
    let cgroup = containerd.cgroups_path(&id);
    words.extend(["--cgroup", &cgroup, "--runtime-config-path", options.to_str().unwrap(), &image.name, &id]);
    let mut run = containerd.ctr_command(words).spawn().unwrap();
    let compiler = eventually("the compiler runs", || containerd.compilers().first().copied());
    run.kill().unwrap();
    run.wait().unwrap();
    let limit = Duration::from_secs(10);
    assert!(until(limit, || !is_alive(compiler)), "{}", command_line_of(compiler));
    let mut left = Vec::new();
    until(limit, || {
        left = left_of(&containerd, &id);
        left.is_empty()
    });
    assert!(left.is_empty(), "{left:#?}\n{}", containerd.log_of(&id));
    containerd.forget(&id);
    let outcome = containerd.job_of(&Image::of_wasm(&containerd, saying("again"))).with_id(&id).run();
    assert_eq!(outcome.stdout, "again\n", "the id is usable");
}

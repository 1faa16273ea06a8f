use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::poll::{PollFd, PollFlags, poll};

use super::*;

/// A fresh cgroup of the node, removed at the end with everything in it.
struct Scratch(pub(crate) Cgroup);

impl Scratch {
    fn new() -> Self {
        let cgroup = Cgroup::from_spec(&Self::path(), false, "").unwrap();
        cgroup.create_empty().unwrap();
        Self(cgroup)
    }

    fn path() -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        format!("/skiff-test-{}-{}/container", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// The unified tree of a hybrid node, treated like a v2 node; `None` if it is not mounted.
    fn unified() -> Option<Self> {
        let mountpoint = Path::new("/sys/fs/cgroup/unified");
        let cgroup = Cgroup::unified(mountpoint, mountpoint.join(Self::path().trim_start_matches('/')));
        mountpoint.join("cgroup.procs").exists().then(|| {
            cgroup.create_empty().unwrap();
            Self(cgroup)
        })
    }

    fn memory_limit(&self) -> PathBuf {
        let name = match self.0.hierarchy {
            Hierarchy::V1 => "memory.limit_in_bytes",
            Hierarchy::V2 => "memory.max",
        };
        self.0.dir("memory").unwrap().join(name)
    }

    /// A shell in the cgroup that has run its `script` up to the line it prints.
    fn shell(&self, script: &str) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        self.0.join(child.id()).unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.kill_all().unwrap();
        self.0.remove().unwrap();
        for node in &self.0.nodes {
            // It was made with the cgroup, and holds nothing else.
            fs::remove_dir(node.path.parent().unwrap()).ok();
        }
    }
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

#[test]
fn a_cgroup_is_made_in_every_hierarchy_and_removed() {
    let Scratch(cgroup) = &Scratch::new();
    assert!(cgroup.exists());
    assert!(cgroup.nodes.iter().all(|node| node.path.is_dir()), "{cgroup:?}");
    assert_eq!(cgroup.pids().unwrap(), [0; 0]);
    cgroup.create_empty().unwrap();
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
    assert_eq!(cgroup.pids().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(cgroup.oom_kills(), None);
}

#[test]
fn a_process_is_found_in_the_cgroup_that_the_spec_names() {
    let scratch = Scratch::new();
    let mut child = scratch.shell("echo; read forever");
    assert_eq!(scratch.0.pids().unwrap(), [pid_of(&child)]);
    assert_eq!(Cgroup::of_pid(pid_of(&child)).unwrap(), scratch.0);
    scratch.0.kill_all().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(scratch.0.oom_kills(), Some(0));
    assert_eq!(Cgroup::of_pid(pid_of(&child)).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn what_the_shim_shares_with_a_process_is_not_the_process_own() {
    let ours = Cgroup::of_pid(nix::unistd::getpid().as_raw()).unwrap();
    assert!(!ours.exists());
    assert_eq!(ours.pids().unwrap_err().kind(), ErrorKind::NotFound);
    ours.kill_all().unwrap();
    ours.remove().unwrap();
}

#[test]
fn the_cgroup_above_is_no_containers_at_the_root_of_the_hierarchy() {
    let mountpoint = Path::new("/sys/fs/cgroup");
    let container = Cgroup::unified(mountpoint, mountpoint.join("pod/container"));
    let pod = container.parent();
    assert_eq!(pod, Cgroup::unified(mountpoint, mountpoint.join("pod")));
    for above in [pod.parent(), pod.parent().parent()] {
        assert!(!above.exists(), "{above:?}");
    }
}

#[test]
fn the_shim_does_not_kill_itself() {
    let mut ours = Cgroup::of_pid(nix::unistd::getpid().as_raw()).unwrap();
    for node in &mut ours.nodes {
        node.is_own = true;
    }
    assert_eq!(ours.kill_all().unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(ours.signal_all(0).unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn every_process_of_the_tree_is_signalled_and_killed_also_below_and_frozen() {
    for scratch in [Some(Scratch::new()), Scratch::unified()].into_iter().flatten() {
        // Its children may end before the signal reaches it.
        let mut child =
            scratch.shell("trap 'echo; exit 3' TERM; sleep 1000 & sleep 1000 & echo; while :; do wait; done");
        for dir in scratch.0.own_nodes().map(|node| node.path.join("below")) {
            fs::create_dir(&dir).unwrap();
        }
        let mut below = Command::new("sleep").arg("1000").spawn().unwrap();
        for node in scratch.0.own_nodes().filter(|node| !node.controllers.contains(&"cpuset".to_owned())) {
            fs::write(node.path.join("below/cgroup.procs"), below.id().to_string()).unwrap();
        }
        assert_eq!(scratch.0.pids().unwrap().len(), 4);
        scratch.0.signal_all(libc::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert_eq!(below.wait().unwrap().signal(), Some(libc::SIGTERM));

        let mut child = scratch.shell("trap '' TERM; sleep 1000 & echo; wait");
        scratch.0.set_freezer("FROZEN");
        if scratch.0.hierarchy == Hierarchy::V2 {
            fs::write(scratch.0.dir("").unwrap().join("cgroup.freeze"), "1").unwrap();
        }
        assert_eq!(
            scratch.0.remove_until(Instant::now() + Duration::from_millis(20)).unwrap_err().kind(),
            ErrorKind::ResourceBusy
        );
        scratch.0.kill_all().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        scratch.0.remove().unwrap();
        assert!(!scratch.0.exists());
    }
}

#[test]
fn processes_stop_where_they_are_and_go_on() {
    for scratch in [Some(Scratch::new()), Scratch::unified()].into_iter().flatten() {
        let mut child = scratch.shell("echo; while read line; do echo $line; done");
        scratch.0.freeze().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"a\n").unwrap();
        let mut polled = [PollFd::new(child.stdout.as_ref().unwrap().as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, 50_u8), Ok(0), "{:?}", scratch.0.hierarchy);
        scratch.0.thaw().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        scratch.0.kill_all().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn only_the_devices_that_are_allowed_can_be_opened_on_v2() {
    let scratch = Scratch::new();
    // Nothing answers for devices where there is no unified tree.
    let Some(dir) = scratch.0.unified_dir().map(Path::to_owned) else { return };
    let null = |reads: bool| {
        let access = Access { reads, writes: true, makes: false };
        Devices::Only(vec![DeviceRule { is_block: false, major: Some(1), minor: Some(3), access }])
    };
    for (devices, expected) in [
        (Devices::All, "null zero \n"),
        (null(true), "null \n"),
        (null(false), "\n"),
        (Devices::Only(vec![]), "\n"),
        (Devices::All, "null zero \n"),
    ] {
        scratch.0.limit_devices(&devices).unwrap();
        let attached = crate::bpf::attached(fs::File::open(&dir).unwrap().as_fd()).unwrap();
        assert_eq!(attached.len(), 1, "the one before is gone");
        let mut child =
            scratch.shell("echo; for name in null zero; do true 2>&- < /dev/$name && printf '%s ' $name; done; echo");
        let mut text = String::new();
        child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        assert_eq!(text, expected, "{devices:?}");
    }
}

#[test]
fn a_fork_bomb_is_killed() {
    let scratch = Scratch::new();
    if let Some(dir) = scratch.0.dir("pids") {
        fs::write(dir.join("pids.max"), "60").unwrap();
    }
    let mut child = scratch.shell("bomb() { bomb & bomb & }; echo; bomb 2>/dev/null; wait");
    scratch.0.kill_all().unwrap();
    child.wait().unwrap();
    scratch.0.remove().unwrap();
}

#[test]
fn removal_waits_for_dying_processes() {
    let scratch = Scratch::new();
    let mut child = scratch.shell("echo; exec sleep 0.3");
    scratch.0.remove().unwrap();
    assert!(!scratch.0.exists());
    assert!(child.wait().unwrap().success());
}

#[test]
fn memory_limits_are_those_from_the_container_upwards() {
    let scratch = Scratch::new();
    fs::write(scratch.memory_limit(), "16777216").unwrap();
    let limits = scratch.0.memory_limits();
    let read = |(mountpoint, path): &(PathBuf, PathBuf)| fs::read_to_string(mountpoint.join(path)).unwrap();
    assert_eq!(read(&limits[0]), "16777216\n");
    assert_ne!(read(&limits[1]), "16777216\n");
}

#[test]
fn oom_kills_are_read_in_the_forms_of_both_versions() {
    let check = |text: &str, expected: Option<u64>| assert_eq!(oom_kills_in(text), expected, "{text}");
    check("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some(3));
    check("low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n", Some(2));
    check("oom_kill_disable 0\nunder_oom 0\n", None);
    check("", None);
}

#[test]
fn a_kernel_kill_for_memory_is_counted() {
    let scratch = Scratch::new();
    fs::write(scratch.memory_limit(), "8388608").unwrap();
    for (swap, limit) in [("memory.memsw.limit_in_bytes", "8388608"), ("memory.swap.max", "0")] {
        let file = scratch.memory_limit().with_file_name(swap);
        if file.exists() {
            fs::write(file, limit).unwrap();
        }
    }
    let mut child = scratch.shell("echo; exec tail /dev/zero >/dev/null 2>&1");
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(scratch.0.oom_kills(), Some(1));
}

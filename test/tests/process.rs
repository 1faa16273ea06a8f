//! The process of a wasm container, seen from the node: it is confined as a native one with the same specification is, and holds
//! nothing of the shim.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use serde_json::{Value, json};
use skiff_test::{
    Container, Containerd, Job, behind_the_wall, children_of, command_line_of, is_cgroup_v2, processes_with, programs,
};

/// The lines of `/proc/PID/status` that the specification decides.
const STATUS: [&str; 10] =
    ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
const NAMESPACES: [&str; 6] = ["pid", "ipc", "uts", "mnt", "net", "user"];

/// A wasm and a native container of the same specification, running.
fn pair(change: impl Fn(&mut Value) + Copy) -> [Container<'static>; 2] {
    let containerd = Containerd::shared();
    [containerd.job("c-sleep"), containerd.shell("echo sleeping; exec sleep 3600")].map(|job: Job<'_>| {
        let container = job.edit(change).start();
        container.streams.wait_for_stdout("sleeping\n");
        container
    })
}

fn of_proc(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_else(|error| panic!("/proc/{pid}/{name}: {error}"))
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = of_proc(pid, "status");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    let wanted = fields.filter(|(name, _)| STATUS.contains(name));
    wanted.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// The mount points, and whether each is writable, without the guest's own view.
fn mounts(pid: u32) -> BTreeSet<String> {
    let text = of_proc(pid, "mountinfo");
    let mounts = text.lines().map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        format!("{} {}", fields[4], fields[5].split(',').next().unwrap())
    });
    mounts.filter(|mount| !mount.starts_with("/dev/.skiff")).collect()
}

#[test]
fn it_is_confined_as_a_native_process_with_the_same_specification() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 6] = [
        ("as it comes", |_| {}),
        ("a user without capabilities", |spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 2000, "additionalGids": [3000]});
            spec["process"]["capabilities"] = json!({});
        }),
        ("ambient capabilities", |spec| {
            let one = json!(["CAP_NET_BIND_SERVICE"]);
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["capabilities"] =
                json!({"bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one});
        }),
        ("privileges may be gained", |spec| spec["process"]["noNewPrivileges"] = json!(false)),
        ("limits", |spec| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 66},
                                                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}]);
        }),
        ("the kernel's choice and a niceness", |spec| {
            spec["process"]["oomScoreAdj"] = json!(500);
            spec["hostname"] = json!("a-name");
        }),
    ];
    for (name, change) in changes {
        let [wasm, native] = pair(change);
        let mut expected = status(native.pid);
        let effective = expected["CapEff"].clone();
        for (field, value) in &mut expected {
            *value = behind_the_wall(field, value, &effective);
        }
        assert_eq!(status(wasm.pid), expected, "{name}");
        for file in ["limits", "oom_score_adj"] {
            assert_eq!(of_proc(wasm.pid, file), of_proc(native.pid, file), "{name}: {file}");
        }
        assert_eq!(mounts(wasm.pid), mounts(native.pid), "{name}");
    }
}

#[test]
fn it_has_the_namespaces_that_the_specification_says() {
    let own = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for container in &pair(|_| {}) {
        for name in NAMESPACES {
            let its = fs::read_link(format!("/proc/{}/ns/{name}", container.pid)).unwrap();
            assert_eq!(its != own(name), name != "user", "{name}");
        }
        let status = of_proc(container.pid, "status");
        let pids = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
        assert!(pids.ends_with("\t1"), "it is process 1 of its namespace: {pids}");
    }
    let shared = Containerd::shared().job("c-sleep").host_network().start();
    assert_eq!(fs::read_link(format!("/proc/{}/ns/net", shared.pid)).unwrap(), own("net"));
}

#[test]
fn it_is_in_the_control_group_that_the_specification_names() {
    for container in &pair(|_| {}) {
        let groups = of_proc(container.pid, "cgroup");
        let wanted = container.cgroup.path();
        for line in groups.lines().filter(|line| is_cgroup_v2() || !line.starts_with("0::")) {
            assert!(line.ends_with(&wanted), "{line}");
        }
    }
}

#[test]
fn the_seccomp_profile_is_on() {
    let [wasm, native] = pair(|spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    });
    for container in [&wasm, &native] {
        let status = of_proc(container.pid, "status");
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    let forbidden = Containerd::shared().job("c-files").args(["mkdir:/new"]).edit(|spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    });
    assert_eq!(forbidden.run().stdout, "mkdir /new: EPERM\n", "also for the guest");
}

#[test]
fn a_container_is_one_shim_and_one_process() {
    let container = Containerd::shared().job("c-sleep").start();
    container.streams.wait_for_stdout("sleeping\n");
    let shim = container.shim();
    assert_eq!(children_of(shim), [container.pid]);
    let mut pids: Vec<_> = processes_with(&container.id).into_iter().map(|(pid, _)| pid).collect();
    pids.sort_unstable();
    let mut expected = [shim, container.pid];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    assert!(command_line_of(container.pid).contains("/c-sleep.wasm"), "{}", command_line_of(container.pid));
}

#[test]
fn nothing_of_the_shim_is_open_in_it() {
    let container = Containerd::shared().job("c-sleep").memory(64 << 20).start();
    container.streams.wait_for_stdout("sleeping\n");
    let streams = container.streams.path("");
    let writable = ["/dev/null", "anon_inode:", "socket:", streams.to_str().unwrap()];
    let handed = ["memory.limit_in_bytes", "memory.max", "memory.high", "memory.stat", ".cwasm"];
    let readable = ["/dev/.skiff/", "/dev/urandom", "/run", "/pagemap"];
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", container.pid)).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned();
        if target.starts_with("socket:") {
            sockets.insert(target.clone());
        }
        if writable.iter().any(|known| target.contains(known)) {
            continue;
        }
        let is_handed = handed.iter().any(|known| target.ends_with(known));
        assert!(is_handed || readable.iter().any(|known| target.contains(known)), "{target}");
        if is_handed {
            let again = File::options().write(true).open(entry.path());
            assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EROFS), "{target}");
        }
        let info = of_proc(container.pid, &format!("fdinfo/{}", entry.file_name().to_string_lossy()));
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY, "{target}");
    }
    assert!(sockets.len() <= 3, "the engine's own pair for signals, the call socket, and no other: {sockets:?}");
    let maps = of_proc(container.pid, "maps");
    assert!(!maps.contains("containerd-shim"), "{maps}");
    assert!(!of_proc(container.pid, "environ").contains("TTRPC"), "the shim's environment");
}

#[test]
fn any_users_engine_can_ask_which_of_its_pages_were_written() {
    for user in [0, 1000] {
        let job = Containerd::shared()
            .job("c-sleep")
            .edit(|spec| spec["process"]["user"] = json!({"uid": user, "gid": user}));
        let container = job.start();
        container.streams.wait_for_stdout("sleeping\n");
        let open = fs::read_dir(format!("/proc/{}/fd", container.pid)).unwrap().flatten();
        let targets: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        assert!(targets.iter().any(|target| target.ends_with("pagemap")), "user {user}: {targets:?}");
    }
}

#[test]
fn the_engines_file_lies_on_a_read_only_mount_for_it() {
    let container = Containerd::shared().job("c-sleep").start();
    container.streams.wait_for_stdout("sleeping\n");
    let own = format!("/proc/{}/exe", container.pid);
    let file = File::options().read(true).custom_flags(libc::O_PATH).open(&own).unwrap();
    let flags = nix::sys::statvfs::fstatvfs(&file).unwrap().flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{flags:?}");
    File::options().write(true).open(own).unwrap_err();
}

#[test]
fn hooks_run() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("hook");
    fs::write(&script, format!("#!/bin/sh\ncat > {}/$1\n", directory.path().display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let hook = |name: &str| json!([{"path": script, "args": ["hook", name]}]);
    let container = Containerd::shared().job("c-hello").edit(|spec| {
        spec["hooks"] =
            json!({"createRuntime": hook("made"), "poststart": hook("started"), "poststop": hook("stopped")});
    });
    let id = container.id().to_string();
    assert_eq!(container.run().code, 0);
    for name in ["made", "started", "stopped"] {
        let state: Value = serde_json::from_str(&fs::read_to_string(directory.path().join(name)).unwrap()).unwrap();
        assert_eq!(state["id"], id.as_str(), "{name}");
    }
}

#[test]
fn devices_of_the_specification_are_there() {
    let job = Containerd::shared().job("c-files").args(["stat:/dev/mine", "list:/dev"]).edit(|spec| {
        spec["linux"]["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 438}]);
    });
    assert_eq!(job.run().stdout, "stat /dev/mine: device 0\nlist /dev: full mine null random shm urandom zero\n");
}

#[test]
fn each_program_is_one_static_file() {
    /// The type of a program header that names a loader.
    const PT_INTERP: u32 = 3;
    for program in ["containerd-shim-skiff-v1", "skiff-engine", "skiff"] {
        let bytes = fs::read(programs().join(program)).unwrap();
        let number = |at: usize, length: usize| {
            bytes[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        let kinds: Vec<_> = (0..count).map(|index| number(table + index * size, 4)).collect();
        assert!(!kinds.contains(&(PT_INTERP as usize)), "{program} needs a loader");
    }
}

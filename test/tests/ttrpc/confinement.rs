//! The container's process: it holds nothing of the shim, and is confined as a native process is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};
use skiff_test::fake_containerd::FakeContainerd;
use skiff_test::{Cgroup, SHIM, behind_the_wall, capabilities, guest, holds, programs, status_field};

/// The targets of a process's descriptors.
fn descriptors(pid: u32) -> BTreeMap<u32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let target = |path: &Path| fs::read_link(path).unwrap_or_default().to_string_lossy().into_owned();
    entries.map(|entry| (entry.file_name().to_str().unwrap().parse().unwrap(), target(&entry.path()))).collect()
}

fn is_read_only(pid: u32, number: u32) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & 3 == 0
}

/// Whether `pid` holds the call socket there, which listens; otherwise it has made the socket itself.
fn is_call_socket(pid: u32, number: u32) -> bool {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or an error.
    let process = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: pidfd_getfd takes three integers and returns a new descriptor or an error.
    let socket = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_getfd, process, number, 0) };
    assert!(process >= 0 && socket >= 0, "{}", std::io::Error::last_os_error());
    let [_process, socket] = [process, socket].map(|fd| {
        // SAFETY: the kernel has just made this descriptor for us, and nothing else owns it.
        unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
    });
    let listens = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::AcceptConn).unwrap();
    let maker = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials).unwrap().pid();
    assert!(listens || u32::try_from(maker) == Ok(pid), "{number} was made by {maker}");
    listens
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_shim_is_in_the_containers_process() {
    let containerd = FakeContainerd::new().await;
    let set = |spec: &mut Value| spec["process"]["env"] = json!(["PATH=/bin", "HOME=/", "ONLY=this"]);
    let bundle = containerd.wasm_with("a", &guest("c-sleep"), &[], set);
    let shim = containerd.start(&bundle).await;
    shim.create(&bundle).await.unwrap();
    let pid = shim.run(&bundle).await.unwrap();
    bundle.stdout.says("sleeping").await;

    let descriptors = descriptors(pid);
    let shims: BTreeSet<String> = fs::read_dir(format!("/proc/{}/fd", shim.pid().await))
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| !target.starts_with("anon_inode") && !target.starts_with("/dev/null"))
        .collect();
    assert_eq!(descriptors[&0], "/dev/null");
    assert_eq!((&descriptors[&1], &descriptors[&2]), (&bundle.stdout.path, &bundle.stderr.path));
    let mut call_sockets = 0;
    for (number, target) in descriptors.iter().filter(|(number, _)| **number > 2) {
        let wrong = || format!("{number} is {target}: {descriptors:?}");
        assert!(!target.starts_with("pipe:") && !target.contains(bundle.path.to_str().unwrap()), "{}", wrong());
        call_sockets += usize::from(target.starts_with("socket:") && is_call_socket(pid, *number));
        // What the shim handed over is read-only.
        let known = [".cwasm", "memory.limit_in_bytes", "memory.max", "memory.high"];
        let handed_over = known.iter().any(|name| target.ends_with(name));
        assert!(handed_over || !shims.contains(target), "{}", wrong());
        assert!(!handed_over || is_read_only(pid, *number), "{}", wrong());
    }
    assert_eq!(call_sockets, 1, "{descriptors:?}");

    let environment = String::from_utf8(fs::read(format!("/proc/{pid}/environ")).unwrap()).unwrap();
    // Not even the container's variables: those are the guest's. The OCI runtime sets a home directory if there is none.
    assert_eq!(environment.split_terminator('\0').collect::<Vec<_>>(), ["HOME=/"]);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let maps_file = |name: &str| {
        let inode = fs::metadata(programs().join(name)).unwrap().ino().to_string();
        maps.lines().any(|line| line.split_whitespace().nth(4) == Some(inode.as_str()))
    };
    assert!(maps_file("skiff-engine") && !maps_file(SHIM) && !maps_file("skiff"), "{maps}");
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

/// A process's confinement as it shows from outside, without the names of the container.
fn confinement(pid: u32, id: &str) -> BTreeMap<String, String> {
    let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let mut found = BTreeMap::new();
    for name in [
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "NSpid",
    ] {
        let value = status_field(pid, name).unwrap();
        // The pid outside differs, the one inside is 1.
        let value = if name == "NSpid" { value.split_whitespace().skip(1).collect() } else { value };
        found.insert(name.to_string(), value);
    }
    for line in proc("limits").lines() {
        found.insert(
            format!("limit {}", &line[..26].trim()),
            line[26..].split_whitespace().collect::<Vec<_>>().join(" "),
        );
    }
    found.insert("oom_score_adj".into(), proc("oom_score_adj"));
    found.insert("cgroup".into(), proc("cgroup").replace(id, "ID"));
    for kind in ["pid", "ipc", "uts", "mnt", "net", "user", "cgroup", "time"] {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let is_new = namespace(&pid.to_string()) != namespace("self");
        found.insert(format!("namespace {kind}"), if is_new { "its own" } else { "the node's" }.into());
    }
    found
}

/// The mount points that a process sees, with their options.
fn mount_options(pid: u32) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = |fields: Vec<&str>| {
        let kind = fields.iter().position(|field| *field == "-").map(|dash| fields[dash + 1]).unwrap();
        format!("{} {} {kind}", fields[4], fields[5])
    };
    fields.map(mount).collect()
}

fn confine(spec: &mut Value) {
    spec["process"]["user"] = json!({"uid": 1234, "gid": 4321, "additionalGids": [7, 8], "umask": 0o027});
    spec["process"]["capabilities"] = capabilities(&["CAP_NET_BIND_SERVICE"]);
    spec["process"]["capabilities"]["bounding"] = json!(["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]);
    spec["process"]["oomScoreAdj"] = json!(321);
    spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "hard": 2000, "soft": 1000}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}
    ]);
    spec["root"]["readonly"] = json!(true);
    spec["hostname"] = json!("box");
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    spec["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 64 << 20}, "pids": {"limit": 50},
        "cpu": {"shares": 512, "quota": 50000, "period": 100_000}
    });
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mknod", "mount", "ptrace", "bpf"], "action": "SCMP_ACT_ERRNO"}]
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_is_confined_as_a_native_process_of_the_same_specification_is() {
    let containerd = FakeContainerd::new().await;
    let native = containerd.native_with("native", &["sleep", "1000"], confine);
    let wasm = containerd.wasm_with("wasm", &guest("c-sleep"), &[], confine);
    let mut seen = Vec::new();
    for bundle in [&native, &wasm] {
        let shim = containerd.run(bundle).await;
        let pid = shim.state(bundle).await.unwrap().pid;
        holds("the program runs", || !fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().starts_with("runc"))
            .await;
        let cgroup = Cgroup::at(&containerd.cgroup(&bundle.id));
        let limits = (cgroup.memory_limit(), cgroup.pids_limit(), cgroup.cpu_weight());
        // On v2 devices are bounded by a program that no file shows.
        let devices = fs::read_to_string(format!("/sys/fs/cgroup/devices{}/devices.list", cgroup.path()));
        seen.push((confinement(pid, &bundle.id), (limits, devices.ok()), mount_options(pid)));
        shim.end(bundle).await;
        shim.shutdown().await;
    }
    assert_eq!(seen[0].0["Seccomp"], "2");
    let effective = seen[0].0["CapEff"].clone();
    let expected = seen[0].0.iter().map(|(name, value)| (name.clone(), behind_the_wall(name, value, &effective)));
    let engine = seen[1].0.iter().map(|(name, value)| (name.clone(), value.trim().to_string()));
    assert_eq!(expected.collect::<BTreeMap<_, _>>(), engine.collect());
    assert_eq!(seen[0].1, seen[1].1);
    let missing: Vec<_> = seen[0].2.difference(&seen[1].2).collect();
    assert!(missing.is_empty(), "not so for the engine: {missing:#?}\nbut {:#?}", seen[1].2);
    let more: Vec<_> = seen[1].2.difference(&seen[0].2).filter(|mount| !mount.starts_with("/dev/.skiff/")).collect();
    assert!(more.is_empty(), "{more:#?}");
    containerd.assert_nothing_left().await;
}

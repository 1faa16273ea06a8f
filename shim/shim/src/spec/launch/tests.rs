use serde_json::json;
use skiff_protocol::launch::{BIND, Capabilities, Identity, Limit, Mount, Resource};

use super::*;

/// What the CRI plugin and the rewriting for the engine make of a small container.
fn spec() -> Value {
    json!({
        "ociVersion": "1.2.1",
        "process": {"args": ["/proc/self/fd/3", "/app.wasm"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "/b/rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        ],
        "linux": {"cgroupsPath": "/c", "namespaces": [{"type": "mount"}, {"type": "pid"}]},
        "annotations": {"io.kubernetes.cri.sandbox-id": "x"},
    })
}

fn cgroups() -> Cgroups {
    let dir = |name: &str| CgroupDir {
        controllers: name.split(',').map(str::to_owned).collect(),
        mountpoint: Path::new("/cg").join(name),
        path: Path::new("/cg").join(name).join("c"),
    };
    Cgroups::V1(vec![dir("memory"), dir("cpu,cpuacct")])
}

fn plan_of(spec: &Value) -> Result<Plan, Reason> {
    plan_with(spec, &cgroups(), false)
}

/// The same where the node has one hierarchy of cgroups, and AppArmor.
fn plan_on_v2(spec: &Value) -> Result<Plan, Reason> {
    plan_with(spec, &Cgroups::V2, true)
}

fn plan_with(spec: &Value, cgroups: &Cgroups, has_apparmor: bool) -> Result<Plan, Reason> {
    let config = Config::parse(spec.to_string().as_bytes(), Path::new("/b")).unwrap();
    let has_scope = false;
    understand(&config, Given { id: "i", cgroups, has_scope, has_keyring: true, has_kcore: true, has_apparmor })
}

/// The specification with `value` at `pointer`, whose last part may be new.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = spec();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = parent.split('/').skip(1).fold(&mut spec, |value, name| match name.parse::<usize>() {
        Ok(index) => &mut value[index],
        Err(_) => &mut value[name],
    });
    match parent {
        Value::Array(values) => values.push(value),
        other => other[name] = value,
    }
    spec
}

fn plan(pointer: &str, value: Value) -> Plan {
    plan_of(&with(pointer, value)).unwrap()
}

fn steps(pointer: &str, value: Value) -> Vec<Step> {
    plan(pointer, value).stage.steps
}

/// Where the step is, which must be there once.
fn place(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
    let found: Vec<_> = steps.iter().enumerate().filter(|(_, step)| wanted(step)).map(|(index, _)| index).collect();
    assert_eq!(found.len(), 1, "{steps:#?}");
    found[0]
}

fn written(resources: Value) -> Vec<String> {
    let settings = plan("/linux/resources", resources).settings;
    let text = |setting: Setting| format!("{}/{} {}", setting.controller, setting.file, setting.value);
    settings.into_iter().filter(|setting| setting.controller != "devices").map(text).collect()
}

/// Files and values; an error about those with a `?` is tolerated.
fn on_v2(settings: Vec<Setting>) -> Vec<String> {
    let text = |setting: Setting| {
        format!("{}{} {}", setting.file, if setting.tolerates.is_some() { "?" } else { "" }, setting.value)
    };
    settings.into_iter().map(text).collect()
}

fn written_on_v2(resources: &Value) -> Result<Vec<String>, Reason> {
    Ok(on_v2(plan_on_v2(&with("/linux/resources", resources.clone()))?.settings))
}

#[test]
fn a_small_container_is_made_in_this_order() {
    let plan = plan_of(&spec()).unwrap();
    let names: Vec<String> = plan.stage.steps.iter().map(|step| format!("{step:?}")).collect();
    let names: Vec<&str> =
        names.iter().map(|name| name.split(|character| " ({".contains(character)).next().unwrap()).collect();
    let expected = "Keyring OomScore Session Cgroups Root Mount Mount Device Device Device Device Device Device Link Link Link \
                    Link Link Link NullStreams Directory Mask Pivot Umask Home Become Cgroups";
    assert_eq!(names.join(" "), expected);
    assert_eq!(plan.stage.args, ["/proc/self/fd/3", "/app.wasm"]);
    assert_eq!(plan.stage.steps[3], Step::Cgroups(vec!["/cg/memory/c/tasks".into()]));
    assert!(
        plan.stage.steps.contains(&Step::Cgroups(vec!["/cg/cpu,cpuacct/c/tasks".into()])),
        "the weight counts last"
    );
    assert!(plan.stage.steps.contains(&Step::OomScore(0)), "what is not said is not inherited from the shim");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let mut rows = 0;
    let mut check = |pointer: &str, value: Value, named: &str| {
        rows += 1;
        let refused = plan_of(&with(pointer, value.clone())).unwrap_err();
        assert!(refused.0.contains(named), "{pointer} {value}: {refused}");
    };
    check("/annotations", json!({"debug.skiff.dev/launcher": "oci"}), "the annotation");
    check("/ociVersion", json!("2.0.0"), "`ociVersion`");
    for field in ["hooks", "vm", "windows", "solaris", "zos", "freebsd", "future"] {
        check(&format!("/{field}"), json!({"a": [1]}), &format!("`{field}`"));
    }
    check("/root/future", json!(1), "`root`");
    check("/process/user/username", json!("a"), "`username`");
    for field in ["scheduler", "ioPriority", "execCPUAffinity", "selinuxLabel", "commandLine"] {
        check(&format!("/process/{field}"), json!("a"), &format!("`{field}`"));
    }
    check("/process/apparmorProfile", json!("cri"), "`process.apparmorProfile`: `cri`");
    check("/process/terminal", json!(true), "`process.terminal`");
    check("/process/args", json!(["/bin/sh"]), "`process.args`");
    check("/process/cwd", json!("a"), "working directory");
    check("/process/capabilities", json!({"bounding": ["CAP_NEW"]}), "`CAP_NEW`");
    check("/process/capabilities", json!({"ambient": ["CAP_KILL"], "permitted": ["CAP_KILL"]}), "ambient");
    check("/process/capabilities", json!({"future": ["CAP_KILL"]}), "`process.capabilities`");
    check("/process/rlimits", json!([{"type": "RLIMIT_NEW", "soft": 1, "hard": 1}]), "`RLIMIT_NEW`");
    check("/hostname", json!("h"), "`uts`");
    check("/domainname", json!("h"), "`uts`");
    for kind in ["user", "time", "pid"] {
        check("/linux/namespaces/-", json!({"type": kind, "path": "/n"}), &format!("`{kind}`"));
    }
    check("/linux/namespaces/-", json!({"type": "cgroup", "path": "/n"}), "`cgroup`");
    check("/linux/namespaces", json!([{"type": "pid"}]), "no `mount`");
    check("/linux/namespaces", json!([{"type": "mount"}]), "could read a first stage");
    check("/linux/namespaces", json!([{"type": "mount"}, {"type": "pid", "path": "/p"}]), "could read a first stage");
    check("/process/capabilities", json!({"bounding": ["CAP_SYS_PTRACE"]}), "could read a first stage");
    check("/linux/namespaces", json!([{"type": "mount", "path": "/n"}]), "`mount`");
    check("/linux/devices", json!([{"path": "/dev/p", "type": "p"}]), "`p`");
    check("/linux/devices", json!([{"path": "p", "type": "c"}]), "path `p`");
    check("/linux/cgroupsPath", json!("a.slice:b:c"), "`a.slice:b:c`");
    check("/linux/cgroupsPath", json!(""), "`linux.cgroupsPath`");
    check("/linux/rootfsPropagation", json!("shared"), "`shared`");
    check("/linux/rootfsPropagation", json!("rshared"), "`rshared`");
    for field in [
        "uidMappings",
        "gidMappings",
        "timeOffsets",
        "intelRdt",
        "personality",
        "memoryPolicy",
        "netDevices",
        "mountLabel",
        "future",
    ] {
        check(&format!("/linux/{field}"), json!({"a": 1}), &format!("`{field}`"));
    }
    for (field, value) in [
        ("listenerPath", json!("/l")),
        ("listenerMetadata", json!("m")),
        ("defaultAction", json!("SCMP_ACT_NOTIFY")),
        ("syscalls", json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}])),
        ("syscalls", json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "future": 1}])),
        ("flags", json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])),
    ] {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        profile[field] = value;
        check("/linux/seccomp", profile, "`linux.seccomp`");
    }
    for field in ["blockIO", "network", "rdma", "future"] {
        check("/linux/resources", json!({field: {"a": 1}}), &format!("`{field}`"));
    }
    check("/linux/resources", json!({"unified": {"memory.high": "1"}}), "`unified`");
    for field in ["kernel", "kernelTCP", "swappiness", "disableOOMKiller", "useHierarchy"] {
        let value = if field.ends_with('y') || field.ends_with("ller") { json!(true) } else { json!(1) };
        check("/linux/resources", json!({"memory": {field: value}}), &format!("`{field}`"));
    }
    for field in ["realtimePeriod", "realtimeRuntime"] {
        check("/linux/resources", json!({"cpu": {field: 1}}), &format!("`{field}`"));
    }
    for rule in [
        json!({"allow": false, "type": "c", "major": 1, "access": "w"}),
        json!({"allow": true, "type": "x", "access": "w"}),
        json!({"allow": true, "type": "c", "access": "z"}),
    ] {
        check("/linux/resources", json!({"devices": [{"allow": false, "access": "rwm"}, rule]}), "devices`");
    }
    for name in ["kernel.msgmax", "kernel.domainname", "net.ipv4.ip_forward", "kernel.panic", "vm.swappiness"] {
        check("/linux/sysctl", json!({name: "1"}), &format!("`{name}`"));
    }
    for (mount, named) in [
        (json!({"destination": "d", "type": "tmpfs"}), "below the root"),
        (json!({"destination": "/", "type": "tmpfs"}), "below the root"),
        (json!({"destination": "/a/../b", "type": "tmpfs"}), "below the root"),
        (json!({"destination": "/d", "type": "overlay"}), "type `overlay`"),
        (json!({"destination": "/d", "type": "bind", "source": "/s"}), "type `bind`"),
        (json!({"destination": "/d", "source": "s", "options": ["rbind"]}), "source"),
        (json!({"destination": "/d", "source": "/s", "options": ["bind", "size=1"]}), "option"),
        (json!({"destination": "/d", "type": "devpts", "options": ["size=1"]}), "option"),
        (json!({"destination": "/d", "type": "tmpfs", "options": ["tmpcopyup"]}), "`tmpcopyup`"),
        (json!({"destination": "/d", "source": "/s", "options": ["rbind", "idmap"]}), "`idmap`"),
        (json!({"destination": "/d", "source": "/s", "options": ["rbind", "rro"]}), "`rro`"),
        (json!({"destination": "/d", "source": "/s", "options": ["rbind", "remount"]}), "`remount`"),
        (json!({"destination": "/d", "type": "tmpfs", "uidMappings": [{"hostID": 1}]}), "`uidMappings`"),
        (json!({"destination": "/d", "type": "tmpfs", "gidMappings": [{"hostID": 1}]}), "`gidMappings`"),
        (json!({"destination": "/proc/self", "source": "/s", "options": ["rbind"]}), "`proc`"),
        (json!({"destination": "/proc", "source": "/s", "options": ["rbind"]}), "`proc`"),
        (json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}), "`/dev`"),
        (json!({"destination": "/dev/", "type": "bind", "source": "/dev", "options": ["rbind"]}), "`/dev`"),
        (json!({"destination": "/dev", "type": "tmpfs", "source": "/dev", "options": ["rbind"]}), "`/dev`"),
    ] {
        check("/mounts/-", mount, named);
    }
    assert_eq!(rows, 95);
}

#[test]
fn what_is_empty_counts_as_absent() {
    let expected = plan_of(&spec()).unwrap();
    for (pointer, value) in [
        ("/hooks", json!({"prestart": []})),
        ("/hostname", json!("")),
        ("/process/selinuxLabel", json!("")),
        ("/process/apparmorProfile", json!("unconfined")),
        ("/process/terminal", json!(false)),
        ("/process/capabilities", json!({"bounding": []})),
        ("/root/readonly", json!(false)),
        ("/linux/seccomp", json!(null)),
        ("/linux/seccomp", json!({"defaultAction": "", "syscalls": []})),
        ("/linux/intelRdt", json!({})),
        (
            "/linux/resources",
            json!({"memory": {"limit": 0, "swap": 0, "disableOOMKiller": false}, "cpu": {"shares": 0}}),
        ),
        ("/linux/rootfsPropagation", json!("rslave")),
    ] {
        assert_eq!(plan(pointer, value.clone()), expected, "{pointer} {value}");
    }
}

#[test]
fn the_filter_of_a_profile_is_installed_where_the_oci_runtime_does() {
    let place_of_filter = |no_new_privileges: bool| {
        let mut spec = with("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let mut plan = plan_of(&spec).unwrap();
        plan.install(&[6 << 48]);
        let process = serde_json::from_value(json!({
            "args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": no_new_privileges,
        }));
        let further = plan.further.stage(&process.unwrap()).unwrap();
        [plan.stage, further].map(|stage| {
            assert_eq!(stage.filter, [6 << 48]);
            let filter = place(&stage.steps, |step| matches!(step, Step::Filter(_)));
            let user = place(&stage.steps, |step| matches!(step, Step::Become(_)));
            (filter < user, filter == stage.steps.len() - 1)
        })
    };
    assert_eq!(place_of_filter(false), [(true, false); 2], "with all rights");
    assert_eq!(place_of_filter(true), [(false, true); 2], "as the last thing");
}

#[test]
fn flags_of_a_profile_are_those_that_it_has_or_else_the_runtimes() {
    let flags = |flags: Value| {
        let plan = plan("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_LOG", "flags": flags}));
        let FilterFlags { logs, speculates } = plan.profile.unwrap().flags;
        (logs, speculates)
    };
    for (written, expected) in [
        (Value::Null, (false, true)),
        (json!([]), (false, false)),
        (json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]), (true, false)),
        (json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]), (false, true)),
    ] {
        assert_eq!(flags(written.clone()), expected, "{written}");
    }
}

#[test]
fn the_process_is_what_it_is_said_to_be() {
    let process = json!({
        "args": ["/proc/self/fd/3"], "cwd": "/w", "noNewPrivileges": true, "oomScoreAdj": 999,
        "user": {"uid": 7, "gid": 8, "umask": 63, "additionalGids": [9, 10]},
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                         "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
    });
    let steps = steps("/process", process);
    let kill = 1 << 5;
    let capabilities =
        Capabilities { bounding: 1 | kill, effective: kill, permitted: kill, inheritable: kill, ambient: kill };
    let identity = Identity { user: 7, group: 8, groups: vec![9, 10], capabilities, directory: "/w".into() };
    for expected in [
        Step::Become(identity),
        Step::Limit(Limit { resource: Resource::Nofile, soft: 10, hard: 20 }),
        Step::OomScore(999),
        Step::Umask(63),
        Step::Directory("/w".into()),
    ] {
        assert!(steps.contains(&expected), "{expected:?}");
    }
    let privileges = place(&steps, |step| *step == Step::NoNewPrivileges);
    assert!(place(&steps, |step| matches!(step, Step::Pivot)) < privileges);
    assert!(privileges < place(&steps, |step| matches!(step, Step::Become(_))));
}

#[test]
fn namespaces_are_joined_before_new_ones_are_made() {
    let namespaces = json!([{"type": "cgroup"}, {"type": "network"}, {"type": "ipc", "path": "/i"}, {"type": "mount"},
                            {"type": "pid"}, {"type": "uts"}]);
    let mut spec = with("/linux/namespaces", namespaces);
    spec["hostname"] = json!("h");
    spec["domainname"] = json!("d");
    spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "9", "kernel.domainname": ""});
    let plan = plan_of(&spec).unwrap();
    let steps = &plan.stage.steps;
    let wanted = [
        Step::Cgroups(vec!["/cg/memory/c/tasks".into(), "/cg/cpu,cpuacct/c/tasks".into()]),
        Step::Join(Namespace::Ipc, "/i".into()),
        Step::New(Namespace::Uts),
        Step::New(Namespace::Network),
        Step::New(Namespace::Cgroup),
        Step::Loopback,
    ];
    assert_eq!(steps[3..9], wanted);
    let sysctl = Step::Sysctl("net/core/somaxconn".into(), "9".into());
    assert!(place(steps, |step| *step == sysctl) < place(steps, |step| matches!(step, Step::Mask(_))));
    let pivot = place(steps, |step| *step == Step::Pivot);
    assert_eq!(steps[pivot + 1..pivot + 3], [Step::HostName("h".into()), Step::DomainName("d".into())]);
    let ipc = json!([{"type": "ipc"}, {"type": "mount"}, {"type": "pid"}]);
    let mut spec = with("/linux/namespaces", ipc);
    spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "3"});
    let plan = plan_of(&spec).unwrap();
    assert!(plan.stage.steps.contains(&Step::Sysctl("fs/mqueue/msg_max".into(), "3".into())));
}

#[test]
fn a_mount_has_the_flags_that_its_options_name() {
    let check = |kind: &str, options: &[&str], flags: MountFlags, data: &str, propagation: &[MountFlags]| {
        let mount = json!({"destination": "/d", "type": kind, "source": "/s", "options": options});
        let steps = steps("/mounts/-", mount);
        let made = steps.iter().find_map(|step| match step {
            Step::Mount(mount) if mount.target == Path::new("/d") => Some(mount.clone()),
            _ => None,
        });
        let is_bind = flags.contains(MountFlags::MS_BIND);
        let changes = !(flags - MountFlags::MS_BIND - MountFlags::MS_REC).is_empty() || options.contains(&"rw");
        let expected = Mount {
            kind: if is_bind { BIND.into() } else { kind.into() },
            source: "/s".into(),
            target: "/d".into(),
            flags: flags.bits(),
            data: data.into(),
            propagation: propagation.iter().map(|flags| flags.bits()).collect(),
            then: (is_bind && changes).then(|| (flags | MountFlags::MS_REMOUNT).bits()),
        };
        assert_eq!(made, Some(expected), "{options:?}");
    };
    use MountFlags as F;
    let narrow = F::MS_NOSUID | F::MS_NODEV | F::MS_NOEXEC;
    check("bind", &["bind"], F::MS_BIND, "", &[]);
    check("none", &["rbind", "rprivate", "rw"], F::MS_BIND | F::MS_REC, "", &[F::MS_PRIVATE | F::MS_REC]);
    check(
        "bind",
        &["rbind", "ro", "rslave", "slave"],
        F::MS_BIND | F::MS_REC | F::MS_RDONLY,
        "",
        &[F::MS_SLAVE | F::MS_REC, F::MS_SLAVE],
    );
    check(
        "bind",
        &["bind", "shared", "rshared", "private"],
        F::MS_BIND,
        "",
        &[F::MS_SHARED, F::MS_SHARED | F::MS_REC, F::MS_PRIVATE],
    );
    check("sysfs", &["nosuid", "nodev", "noexec", "ro"], narrow | F::MS_RDONLY, "", &[]);
    check("mqueue", &["nosuid", "suid", "nodev", "dev", "noexec", "exec"], F::empty(), "", &[]);
    check("mqueue", &["noatime", "atime", "relatime", "nodiratime"], F::MS_RELATIME | F::MS_NODIRATIME, "", &[]);
    check(
        "devpts",
        &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        F::empty(),
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
        &[],
    );
    check(
        "tmpfs",
        &["strictatime", "size=1k", "mode=1", "uid=1", "gid=2", "nr_inodes=3"],
        F::MS_STRICTATIME,
        "size=1k,mode=1,uid=1,gid=2,nr_inodes=3",
        &[],
    );
}

#[test]
fn what_is_to_be_filled_becomes_read_only_last() {
    let mount = json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["ro", "nodev"]});
    let mut spec = with("/mounts/-", mount);
    spec["root"]["readonly"] = json!(true);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    spec["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    let steps = plan_of(&spec).unwrap().stage.steps;
    let flags = MountFlags::MS_REMOUNT | MountFlags::MS_BIND | MountFlags::MS_RDONLY;
    let last = [
        Step::Remount("/t".into(), (flags | MountFlags::MS_NODEV).bits()),
        Step::Remount("/".into(), flags.bits()),
        Step::ReadOnly("/proc/sys".into()),
        Step::Mask(vec!["/proc/kcore".into()]),
        Step::Pivot,
    ];
    let pivot = place(&steps, |step| *step == Step::Pivot);
    assert_eq!(steps[pivot - 4..=pivot], last);
}

#[test]
fn cgroups_are_shown_as_they_are_in_the_container() {
    let mount =
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]});
    let bind = MountFlags::MS_BIND | MountFlags::MS_REC | MountFlags::MS_NOSUID | MountFlags::MS_RDONLY;
    let steps = steps("/mounts/-", mount.clone());
    let place = place(&steps, |step| matches!(step, Step::Mount(mount) if mount.data == "mode=755"));
    let Step::Mount(memory) = &steps[place + 1] else { panic!("a mount") };
    assert_eq!((memory.source.as_str(), memory.flags), ("/cg/memory/c", bind.bits()));
    assert_eq!(memory.target, Path::new("/sys/fs/cgroup/memory"));
    let link = |name: &str| Link {
        path: Path::new("/sys/fs/cgroup").join(name),
        target: "cpu,cpuacct".into(),
        replaces: false,
    };
    assert_eq!(steps[place + 3..place + 5], [Step::Link(link("cpu")), Step::Link(link("cpuacct"))]);
    let mut spec = with("/mounts/-", mount);
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}]);
    let steps = plan_of(&spec).unwrap().stage.steps;
    assert!(
        steps.iter().any(|step| matches!(step, Step::Mount(mount) if mount.kind == "cgroup" && mount.data == "memory"))
    );
}

#[test]
fn devices_of_the_container_take_the_place_of_the_usual_ones() {
    let devices = json!([
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 8576, "uid": 1, "gid": 2},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        {"path": "/dev/sda", "type": "b", "major": 8},
    ]);
    let plan = plan("/linux/devices", devices);
    let nodes: Vec<_> = plan
        .stage
        .steps
        .iter()
        .filter_map(|step| if let Step::Device(node) = step { Some(node) } else { None })
        .collect();
    let node = |path: &str| *nodes.iter().find(|node| node.path == Path::new(path)).unwrap();
    assert_eq!(nodes.len(), 7);
    assert_eq!((node("/dev/null").mode, node("/dev/null").owner), (0o600, (1, 2)));
    assert_eq!((node("/dev/sda").is_block, node("/dev/sda").number, node("/dev/sda").mode), (true, (8, 0), 0o666));
    assert!(!plan.settings.iter().any(|setting| setting.value == "c 1:3 rwm"), "its rule is the container's, too");
}

#[test]
fn nothing_but_the_devices_of_the_rules_is_allowed() {
    let check = |rules: Value, expected: &[&str]| {
        let settings = plan("/linux/resources", json!({"devices": rules})).settings;
        let text: Vec<_> = settings.iter().map(|setting| format!("{} {}", setting.file, setting.value)).collect();
        assert_eq!(text[..expected.len()], *expected);
        text.len()
    };
    assert_eq!(check(json!([{"allow": false, "access": "rwm"}]), &["devices.deny a", "devices.allow c *:* m"]), 12);
    assert_eq!(check(json!([]), &["devices.deny a"]), 12, "without rules, too");
    let rules = json!([{"allow": true, "access": "rwm"}, {"allow": false, "access": "rwm"},
                       {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "r"},
                       {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]);
    assert_eq!(check(rules, &["devices.deny a", "devices.allow b 8:* r", "devices.allow c 1:3 rwm"]), 13);
    assert_eq!(check(json!([{"allow": true, "access": "rwm"}]), &["devices.allow a"]), 1);
}

#[test]
fn limits_are_what_is_written_to_the_files_of_the_cgroup() {
    let check = |resources: Value, expected: &[&str]| assert_eq!(written(resources.clone()), expected, "{resources}");
    check(json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}), &["memory/memory.limit_in_bytes 4096"]);
    check(
        json!({"memory": {"limit": 4096, "swap": 8192, "reservation": 1}}),
        &[
            "memory/memory.limit_in_bytes 4096",
            "memory/memory.memsw.limit_in_bytes 8192",
            "memory/memory.soft_limit_in_bytes 1",
        ],
    );
    check(
        json!({"memory": {"limit": -1}}),
        &["memory/memory.memsw.limit_in_bytes -1", "memory/memory.limit_in_bytes -1"],
    );
    check(
        json!({"cpu": {"shares": 2, "quota": 100, "period": 200, "burst": 1, "cpus": "0", "mems": "0", "idle": 1}}),
        &[
            "cpu/cpu.shares 2",
            "cpu/cpu.cfs_period_us 200",
            "cpu/cpu.cfs_quota_us 100",
            "cpu/cpu.cfs_period_us 200",
            "cpu/cpu.cfs_burst_us 1",
            "cpu/cpu.idle 1",
            "cpuset/cpuset.cpus 0",
            "cpuset/cpuset.mems 0",
        ],
    );
    check(json!({"cpu": {"period": 200}}), &["cpu/cpu.cfs_period_us 200"]);
    for (limit, value) in [(-1, "max"), (0, "1"), (7, "7")] {
        check(json!({"pids": {"limit": limit}}), &[&format!("pids/pids.max {value}")]);
    }
    check(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}), &["hugetlb/hugetlb.2MB.limit_in_bytes 5"]);
}

#[test]
fn on_v2_limits_are_converted_as_the_oci_runtime_does() {
    let check = |resources: Value, expected: &[&str]| {
        assert_eq!(written_on_v2(&resources).unwrap(), expected, "{resources}");
    };
    check(json!({"memory": {"limit": 4096}}), &["memory.max 4096"]);
    check(
        json!({"memory": {"limit": 4096, "swap": 12288, "reservation": 1}}),
        &["memory.swap.max 8192", "memory.max 4096", "memory.low 1"],
    );
    check(json!({"memory": {"limit": 4096, "swap": 4096}}), &["memory.swap.max? 0", "memory.max 4096"]);
    check(json!({"memory": {"limit": 4096, "swap": -1}}), &["memory.swap.max? max", "memory.max 4096"]);
    check(json!({"memory": {"limit": -1}}), &["memory.swap.max? max", "memory.max max"]);
    check(json!({"memory": {"limit": -1, "swap": 5}}), &["memory.swap.max 5", "memory.max max"]);
    check(json!({"memory": {"reservation": -1}}), &["memory.low max"]);
    check(
        json!({"cpu": {"shares": 1024, "quota": 100, "period": 200, "burst": 1, "cpus": "0", "mems": "0", "idle": 0}}),
        &[
            "cpu.idle 0",
            "cpu.weight 100",
            "cpu.max.burst? 1",
            "cpu.max 100 200",
            "cpu.max.burst 1",
            "cpuset.cpus 0",
            "cpuset.mems 0",
        ],
    );
    check(json!({"cpu": {"burst": 1}}), &["cpu.max.burst 1"]);
    check(json!({"cpu": {"quota": 100}}), &["cpu.max 100 100000"]);
    check(json!({"cpu": {"quota": -1, "period": 200}}), &["cpu.max max 200"]);
    check(json!({"cpu": {"period": 200}}), &["cpu.max max 200"]);
    // The weights are those of the OCI runtime's function.
    for (shares, weight) in [
        (1, 1),
        (2, 1),
        (3, 2),
        (100, 17),
        (1000, 99),
        (1024, 100),
        (2000, 170),
        (262_143, 10_000),
        (262_144, 10_000),
        (1_u64 << 40, 10_000),
    ] {
        check(json!({"cpu": {"shares": shares}}), &[&format!("cpu.weight {weight}")]);
    }
    for (limit, value) in [(-1, "max"), (0, "1"), (7, "7")] {
        check(json!({"pids": {"limit": limit}}), &[&format!("pids.max {value}")]);
    }
    check(
        json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}),
        &["hugetlb.2MB.max 5", "hugetlb.2MB.rsvd.max? 5"],
    );
    check(
        json!({"unified": {"memory.high": "9", "io.max": "8:0 rbps=1\n8:1 rbps=2"}, "memory": {"limit": 4096},
               "pids": {"limit": 3}, "cpu": {"cpus": "1"}}),
        &[
            "pids.max 3",
            "memory.max 4096",
            "cpuset.cpus 1",
            "io.max 8:0 rbps=1\n",
            "io.max 8:1 rbps=2",
            "memory.high 9",
        ],
    );
    for resources in [
        json!({"memory": {"swap": 4096}}),
        json!({"memory": {"limit": 4096, "swap": 4095}}),
        json!({"memory": {"limit": -2, "swap": 4095}}),
        json!({"unified": {"../memory.max": "1"}}),
    ] {
        let refused = written_on_v2(&resources).unwrap_err();
        assert!(refused.0.contains("`linux.resources."), "{resources}: {refused}");
    }
}

#[test]
fn on_v2_an_update_goes_on_from_the_limits_before() {
    let mut limits = plan_on_v2(&with(
        "/linux/resources",
        json!({"memory": {"limit": 100, "swap": 300, "reservation": 50}, "cpu": {"shares": 1024, "quota": 7, "period": 8},
               "pids": {"limit": 5}}),
    ))
    .unwrap()
    .limits;
    let mut check = |resources: Value, expected: &[&str]| {
        let (settings, updated) = update(resources.clone(), Hierarchy::V2, &limits, None).unwrap();
        assert_eq!(on_v2(settings), expected, "{resources}");
        limits = updated;
    };
    let memory = ["memory.swap.max 100", "memory.max 200", "memory.low 50"];
    check(json!({"memory": {"limit": 200}}), &[&memory[..], &["cpu.weight 100"]].concat());
    check(json!({"cpu": {"quota": 9, "period": 10}}), &[&memory[..], &["cpu.weight 100", "cpu.max 9 10"]].concat());
    check(json!({"cpu": {"quota": 11}}), &[&memory[..], &["cpu.weight 100", "cpu.max 11 10"]].concat());
    check(json!({"cpu": {"period": 12}}), &[&memory[..], &["cpu.weight 100", "cpu.max 11 12"]].concat());
    check(json!({"cpu": {"idle": 1}}), &[&memory[..], &["cpu.idle 1"]].concat());
    check(json!({"memory": {"limit": -1}}), &["memory.swap.max? max", "memory.max max", "memory.low 50"]);
    let checked = |resources: Value| update(resources, Hierarchy::V2, &limits, None).unwrap().1.checked_bytes();
    assert_eq!(checked(json!({"memory": {"limit": 300, "checkBeforeUpdate": true}})), Some(300));
    assert_eq!(checked(json!({"memory": {"limit": -1, "checkBeforeUpdate": true}})), None);
    assert_eq!(checked(json!({"memory": {"limit": 300}})), None);
    assert!(update(json!({"unified": {"a/b": "1"}}), Hierarchy::V2, &limits, None).is_err());
}

#[test]
fn on_v2_a_process_is_born_in_its_cgroup_and_a_program_decides_about_devices() {
    let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro", "rslave"]});
    let plan = plan_on_v2(&with("/mounts/-", mount)).unwrap();
    let process = json!({"cwd": "/", "user": {"uid": 1, "gid": 2}, "args": ["sh"]});
    let further = plan.further.stage(&serde_json::from_value(process).unwrap()).unwrap();
    for stage in [&plan.stage, &further] {
        assert!(!stage.steps.iter().any(|step| matches!(step, Step::Cgroups(_))), "{stage:?}");
    }
    let expected = Mount {
        kind: "cgroup2".into(),
        source: "cgroup".into(),
        target: "/sys/fs/cgroup".into(),
        flags: (MountFlags::MS_NOSUID | MountFlags::MS_RDONLY).bits(),
        ..Mount::default()
    };
    assert!(plan.stage.steps.contains(&Step::Mount(expected)));
    let Some(Devices::Only(rules)) = &plan.devices else { panic!("some devices") };
    assert_eq!((rules.len(), plan.settings.len()), (11, 0));
    let rules = json!([{"allow": true, "access": "rwm"}]);
    let plan = plan_on_v2(&with("/linux/resources", json!({"devices": rules}))).unwrap();
    assert_eq!(plan.devices, Some(Devices::All));
}

#[test]
fn what_different_rules_allow_for_the_same_devices_is_allowed_at_once() {
    let rule = |access: &str| json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": access});
    let resources = json!({"devices": [{"allow": false, "access": "rwm"}, rule("r"), rule("w")]});
    let devices = json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}]);
    let mut spec = with("/linux/resources", resources);
    spec["linux"]["devices"] = devices;
    let Some(Devices::Only(rules)) = plan_on_v2(&spec).unwrap().devices else { panic!("some devices") };
    let null = rules.iter().find(|rule| (rule.major, rule.minor) == (Some(1), Some(3))).unwrap();
    assert_eq!((null.access.reads, null.access.writes, null.access.makes), (true, true, false));
    assert_eq!(rules.len(), 11);
}

#[test]
fn a_profile_is_applied_while_the_nodes_files_are_in_sight() {
    let spec = with("/process/apparmorProfile", json!("cri"));
    let plan = plan_on_v2(&spec).unwrap();
    let place_of = |steps: &[Step], wanted: Step| place(steps, |step| *step == wanted);
    let steps = &plan.stage.steps;
    assert!(place_of(steps, Step::AppArmor("cri".into())) < place(steps, |step| matches!(step, Step::Root { .. })));
    for (named, expected) in [(None, "cri"), (Some("other"), "other"), (Some("unconfined"), "unconfined")] {
        let process = json!({"cwd": "/", "user": {"uid": 1, "gid": 2}, "args": ["sh"], "apparmorProfile": named});
        let steps = plan.further.stage(&serde_json::from_value(process).unwrap()).unwrap().steps;
        let joined = place(&steps, |step| matches!(step, Step::JoinProcess(_)));
        assert!(place_of(&steps, Step::AppArmor(expected.into())) < joined, "{steps:?}");
    }
    let without = plan_of(&with("/process/apparmorProfile", json!("unconfined"))).unwrap().stage.steps;
    assert!(!without.iter().any(|step| matches!(step, Step::AppArmor(_))), "there is nothing to be confined by");
}

#[test]
fn swap_is_never_below_memory() {
    let order = |current: u64, limit: i64, swap: i64| {
        let resources = json!({"memory": {"limit": limit, "swap": swap}});
        let (settings, _) = update(resources, Hierarchy::V1, &Limits::default(), Some(current)).unwrap();
        settings.into_iter().map(|setting| setting.value).collect::<Vec<_>>()
    };
    assert_eq!(order(100, 200, 300), ["300", "200"]);
    assert_eq!(order(100, 50, 60), ["50", "60"]);
    assert_eq!(order(100, 200, -1), ["-1", "200"]);
}

#[test]
fn a_further_process_joins_the_first_one() {
    let spec = json!({"type": "uts"});
    let mut spec = with("/linux/namespaces/-", spec);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    spec["process"]["user"]["umask"] = json!(7);
    spec["process"]["oomScoreAdj"] = json!(5);
    spec["process"]["capabilities"] = json!({"bounding": ["CAP_CHOWN"]});
    let further = plan_of(&spec).unwrap().further;
    let process = |text: Value| serde_json::from_value::<ProcessSpec>(text).unwrap();
    let stage = further
        .stage(&process(json!({"terminal": true, "cwd": "/w", "user": {"uid": 1, "gid": 2}, "args": ["sh"], "env": ["A=1", "B=2", "A=3"]})))
        .unwrap();
    let capabilities = Capabilities { bounding: 1, ..Capabilities::default() };
    let expected = [
        Step::Keyring("_ses.i".into()),
        Step::OomScore(5),
        Step::Session,
        Step::Cgroups(vec!["/cg/memory/c/tasks".into()]),
        Step::JoinProcess(vec![Namespace::Mount, Namespace::Uts]),
        Step::Terminal,
        Step::Umask(7),
        Step::Home,
        Step::Become(Identity { user: 1, group: 2, groups: vec![], capabilities, directory: "/w".into() }),
        Step::Cgroups(vec!["/cg/cpu,cpuacct/c/tasks".into()]),
    ];
    assert_eq!(stage.steps, expected);
    assert_eq!(stage.env, ["B=2", "A=3"]);
    let engine = further
        .stage(&process(json!({"cwd": "/", "user": {"uid": 1, "gid": 2}, "args": ["/proc/self/fd/3"]})))
        .unwrap();
    assert!(engine.steps.contains(&Step::Home) && engine.env.is_empty());
    let without = json!({"cwd": "/", "user": {"uid": 1, "gid": 2}, "args": ["sh"], "capabilities": {}});
    let without = further.stage(&process(without)).unwrap();
    let is_without = |step: &Step| matches!(step, Step::Become(who) if who.capabilities == Capabilities::default());
    assert!(without.steps.iter().any(is_without), "no capability is not the container's");
    let refused = further
        .stage(&process(json!({"cwd": "/", "user": {"uid": 1, "gid": 2}, "args": ["sh"], "apparmorProfile": "x"})));
    assert!(refused.unwrap_err().0.contains("apparmorProfile"));
    let reads = json!({"cwd": "/", "user": {"uid": 1, "gid": 2}, "args": ["sh"],
                       "capabilities": {"bounding": ["CAP_SYS_PTRACE"]}});
    assert!(further.stage(&process(reads)).unwrap_err().0.contains("first stage"));
}

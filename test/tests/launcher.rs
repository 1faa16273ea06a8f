//! Skiff's own launcher makes the same container as the OCI runtime. A probe in the engine's place reports what it finds, under both,
//! for specifications that are generated from a fixed seed. Any difference fails.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skiff_test::{APPARMOR_PROFILE, Containerd, Job, has_apparmor, is_cgroup_v2, load_apparmor_profile, programs};

/// How many specifications are generated.
const SPECIFICATIONS: u64 = 120;
/// In how many of their containers a further process is made.
const EXECS: u64 = 40;
/// Files of the container's cgroups that its specification sets, in their hierarchies.
const LIMITS: [(&str, &str); 11] = [
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpuset", "cpuset.cpus"),
    ("cpuset", "cpuset.mems"),
    ("devices", "devices.list"),
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("memory", "memory.soft_limit_in_bytes"),
    ("pids", "pids.max"),
    ("freezer", "freezer.state"),
];

/// Those on cgroup v2, where a container has one directory.
const LIMITS_ON_V2: [&str; 19] = [
    "cgroup.freeze",
    "cgroup.max.depth",
    "cgroup.subtree_control",
    "cgroup.type",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.oom.group",
    "memory.swap.max",
    "pids.max",
];

/// The programs, with the probe in the engine's place.
struct Probes {
    directory: tempfile::TempDir,
    volume: tempfile::TempDir,
    runtimes: [Containerd; 2],
}

impl Probes {
    fn new() -> Self {
        if has_apparmor() {
            load_apparmor_profile();
        }
        // The engine's file is bound from there, and must be root's alone.
        let directory = tempfile::tempdir_in("/var/lib").unwrap();
        for (program, from) in [
            ("containerd-shim-skiff-v1", programs().join("containerd-shim-skiff-v1")),
            ("skiff", programs().join("skiff")),
            ("skiff-engine", PathBuf::from(env!("CARGO_BIN_EXE_probe"))),
        ] {
            fs::copy(from, directory.path().join(program)).unwrap();
        }
        let volume = tempfile::tempdir().unwrap();
        fs::create_dir_all(volume.path().join("c/d")).unwrap();
        fs::write(volume.path().join("file"), "text").unwrap();
        let start = |own: bool| Containerd::with_programs(directory.path(), &format!("OwnLauncher = {own}\n"));
        let runtimes = [start(false), start(true)];
        Self { directory, volume, runtimes }
    }

    /// Fails if there are differences, or if the OCI runtime has made both containers of a pair.
    fn end(&self, differences: &[String]) {
        assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
        let [_, own] = &self.runtimes;
        assert_eq!(own.log_of("is left to the OCI runtime"), "");
        // Whichever of the tests comes to a profile first.
        let learned = own.log_of("first one with its seccomp profile").lines().count();
        assert!(learned <= profiles().len(), "{learned}");
        assert!(self.directory.path().is_dir());
    }

    /// What the probe finds in the container of `specification`, under each launcher.
    fn find(&self, specification: u64) -> [Value; 2] {
        self.runtimes.each_ref().map(|containerd| {
            let mut chance = Chance(specification);
            let job = containerd.job("c-hello").edit(|spec| change(spec, &mut chance, self.volume.path()));
            found(containerd, job)
        })
    }
}

/// What is found in the container of `job`.
fn found(containerd: &Containerd, job: Job<'_>) -> Value {
    let id = job.id().to_owned();
    let mut spec = Value::Null;
    let container = job.edit(|edited| spec = edited.clone()).create();
    let limits = limits_at(container.cgroup.path().trim_start_matches('/'));
    if let Err(refused) = container.start() {
        panic!("{refused}\n{spec:#}\n{}", containerd.log_of(&id));
    }
    let outcome = container.finish();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let mut found = comparable(containerd, &id, &outcome.stdout);
    found["limits"] = json!(limits);
    found
}

/// What the files of the cgroup at `place` say, and which program decides about its devices.
fn limits_at(place: &str) -> BTreeMap<String, String> {
    let root = Path::new("/sys/fs/cgroup");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
        // The order of rules has no meaning.
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    if !is_cgroup_v2() {
        let file = |(controller, file): &(&str, &str)| {
            ((*file).to_owned(), read(root.join(controller).join(place).join(file)))
        };
        return LIMITS.iter().map(file).collect();
    }
    let mut limits: BTreeMap<String, String> =
        LIMITS_ON_V2.iter().map(|file| ((*file).to_owned(), read(root.join(place).join(file)))).collect();
    let programs = skiff_linux::bpf::attached(fs::File::open(root.join(place)).unwrap().as_fd()).unwrap();
    let tag = |program: &OwnedFd| {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
        // A digest of its instructions.
        text.lines().find(|line| line.starts_with("prog_tag:")).unwrap().to_owned()
    };
    limits.insert("devices".into(), programs.iter().map(tag).collect());
    limits
}

/// What a probe in the container `id` has printed, without what differs from container to container.
fn comparable(containerd: &Containerd, id: &str, printed: &str) -> Value {
    let mut found: Value = serde_json::from_str(printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    for (name, value) in found["namespaces"].as_object_mut().unwrap() {
        let own = fs::read_link(Path::new("/proc/self/ns").join(name)).unwrap();
        *value = json!(if Path::new(value.as_str().unwrap()) == own { "the node's" } else { "another" });
    }
    // A process has another number each time, unless it is the first one.
    for line in found["status"].as_array_mut().unwrap() {
        let text = line.as_str().unwrap();
        if text.starts_with("NS") {
            *line = json!(
                text.split('\t')
                    .map(|part| if part.parse::<u32>().is_ok_and(|pid| pid > 1) { "more" } else { part })
                    .collect::<Vec<_>>()
            );
        } else if let Some(ignored) = text.strip_prefix("SigIgn:\t") {
            // Under `nohup` every process of these tests ignores SIGHUP, and of runc's children some.
            *line = json!(u64::from_str_radix(ignored, 16).unwrap() & !1);
        }
    }
    found["files"]["/proc/self/mountinfo"] = mounts(found["files"]["/proc/self/mountinfo"].as_str().unwrap());
    let text = found.to_string().replace(id, "ID").replace(containerd.cgroup(), "CGROUP");
    serde_json::from_str(&text.replace(containerd.directory().to_str().unwrap(), "DIRECTORY")).unwrap()
}

/// The mounts without their numbers, and without the names of snapshots.
fn mounts(text: &str) -> Value {
    let describe = |line: &str| {
        let (mount, file_system) = line.split_once(" - ").unwrap();
        let mount: Vec<_> = mount.split(' ').collect();
        let propagation: Vec<_> = mount[6..].iter().map(|tag| tag.split(':').next().unwrap()).collect();
        let mut file_system: Vec<_> = file_system.split(' ').collect();
        if file_system[0] == "overlay" {
            file_system.truncate(1);
        }
        format!("{} {} {} {propagation:?} {file_system:?}", mount[3], mount[4], mount[5])
    };
    json!(text.lines().map(describe).collect::<Vec<_>>())
}

/// Numbers from a seed.
struct Chance(u64);

impl Chance {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = self.below(of.len() as u64);
        &of[usize::try_from(index).unwrap()]
    }

    fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        of.iter().filter(|_| self.below(2) == 0).cloned().collect()
    }
}

const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SETPCAP",
];

/// Changes the specification as chance has it. The volume has a directory `c/d` and a file.
fn change(spec: &mut Value, chance: &mut Chance, volume: &Path) {
    // The smallest seeds are much alike.
    for _ in 0..4 {
        chance.below(1);
    }
    change_process(&mut spec["process"], chance);
    let kinds = ["ipc", "uts", "network", "cgroup"];
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "pid"})];
    namespaces.extend(kinds.iter().filter(|_| chance.below(4) != 0).map(|kind| json!({"type": kind})));
    let has = |kind: &str| namespaces.iter().any(|namespace| namespace["type"] == kind);
    if has("uts") && chance.below(2) == 0 {
        spec["hostname"] = json!("a-host");
        spec["domainname"] = json!("a-domain");
    }
    let mut sysctls = BTreeMap::new();
    if has("network") && chance.below(2) == 0 {
        sysctls.insert("net.ipv4.ip_forward", "1");
    }
    if has("ipc") && chance.below(2) == 0 {
        sysctls.extend([("kernel.msgmax", "4096"), ("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "5")]);
    }
    let has_network = has("network");
    spec["linux"]["namespaces"] = json!(namespaces);
    spec["linux"]["sysctl"] = json!(sysctls);
    spec["root"]["readonly"] = json!(chance.below(2) == 0);
    spec["linux"]["rootfsPropagation"] = json!(chance.one(&["", "private", "rprivate", "slave", "rslave"]));
    for paths in ["maskedPaths", "readonlyPaths"] {
        if let Some(paths) = spec["linux"][paths].as_array_mut() {
            paths.retain(|_| chance.below(4) != 0);
        }
    }
    change_resources(&mut spec["linux"], chance);
    change_mounts(spec["mounts"].as_array_mut().unwrap(), chance, volume);
    if chance.below(2) == 0 {
        spec["linux"]["seccomp"] = chance.one(&profiles()).clone();
    }
    // Without a network namespace of its own a container cannot mount the node's devices anew.
    if !has_network {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "sysfs" && mount["destination"] != "/sys/fs/cgroup");
    }
}

/// Some seccomp profiles, which refuse what no part of a container's making needs.
fn profiles() -> [Value; 4] {
    let rule = |names: Value, action: &str, more: Value| {
        let mut rule = json!({"names": names, "action": action});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    };
    let of = |flags: Value, rules: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "flags": flags,
               "syscalls": rules})
    };
    let refused =
        rule(json!(["kexec_load", "reboot", "swapon", "no_such_call"]), "SCMP_ACT_ERRNO", json!({"errnoRet": 38}));
    let argument = json!([{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 0xff, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]);
    let compared = rule(json!(["personality", "socket"]), "SCMP_ACT_KILL_PROCESS", json!({"args": argument}));
    [
        of(Value::Null, json!([refused])),
        of(json!([]), json!([compared])),
        of(json!(["SECCOMP_FILTER_FLAG_LOG"]), json!([refused, compared])),
        of(json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]), json!([rule(json!(["acct"]), "SCMP_ACT_LOG", json!({}))])),
    ]
}

fn change_process(process: &mut Value, chance: &mut Chance) {
    if chance.below(2) == 0 {
        let groups = chance.some(&[10, 20, 30]);
        process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": groups});
    }
    if chance.below(2) == 0 {
        process["user"]["umask"] = json!(chance.one(&[0, 0o77, 0o27]));
    }
    let (bounding, inheritable) = (chance.some(&CAPABILITIES), chance.some(&CAPABILITIES));
    let permitted: Vec<_> = bounding.iter().filter(|_| chance.below(4) != 0).copied().collect();
    let effective: Vec<_> = permitted.iter().filter(|_| chance.below(4) != 0).copied().collect();
    let inheritable: Vec<_> = inheritable.into_iter().filter(|name| bounding.contains(name)).collect();
    let ambient: Vec<_> = permitted.iter().filter(|name| inheritable.contains(name)).copied().collect();
    process["capabilities"] = json!({"bounding": bounding, "permitted": permitted, "effective": effective,
                                     "inheritable": inheritable, "ambient": ambient});
    process["noNewPrivileges"] = json!(chance.below(2) == 0);
    if has_apparmor() && chance.below(2) == 0 {
        process["apparmorProfile"] = json!(chance.one(&[APPARMOR_PROFILE, "unconfined"]));
    }
    process["oomScoreAdj"] = json!(chance.one(&[0, 100, 999, 1000]));
    process["cwd"] = json!(chance.one(&["/", "/tmp", "/new/directory", "/run/x"]));
    let limit = |name: &str, soft: u64| json!({"type": name, "soft": soft, "hard": soft + 1});
    process["rlimits"] = json!(chance.some(&[
        limit("RLIMIT_NOFILE", 1000),
        limit("RLIMIT_CORE", 0),
        limit("RLIMIT_NPROC", 500),
        limit("RLIMIT_STACK", 1 << 23),
        limit("RLIMIT_MEMLOCK", 4096),
        limit("RLIMIT_FSIZE", 1 << 30),
        limit("RLIMIT_SIGPENDING", 100),
        limit("RLIMIT_CPU", 1000),
    ]));
}

fn change_resources(linux: &mut Value, chance: &mut Chance) {
    let resources = &mut linux["resources"];
    if chance.below(2) == 0 {
        resources["memory"] = json!({"limit": 256 << 20, "reservation": 128 << 20});
        if chance.below(2) == 0 {
            resources["memory"]["swap"] = json!(chance.one(&[256_i64 << 20, 512 << 20, -1]));
        }
    }
    if chance.below(2) == 0 {
        resources["cpu"] = json!({"shares": chance.one(&[2, 100, 2000]), "quota": chance.one(&[-1, 50_000, 200_000]),
                                  "period": chance.one(&[50_000, 100_000]), "cpus": chance.one(&["", "0"]), "mems": "0"});
    }
    if chance.below(2) == 0 {
        resources["pids"] = json!({"limit": chance.one(&[-1, 100, 200])});
    }
    if is_cgroup_v2() {
        change_resources_on_v2(resources, chance);
    }
    match chance.below(4) {
        0 => resources["devices"] = json!([{"allow": true, "access": "rwm"}]),
        1 => {
            let allowed = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
            resources["devices"].as_array_mut().unwrap().push(allowed);
            linux["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o660, "uid": 5, "gid": 6},
                                      {"path": "/dev/below/zero", "type": "c", "major": 1, "minor": 5}]);
        }
        _ => {}
    }
}

fn change_resources_on_v2(resources: &mut Value, chance: &mut Chance) {
    if chance.below(2) == 0 {
        resources["unified"] = json!({"memory.high": "230000000", "memory.min": "4096", "cgroup.max.depth": "7"});
    }
    if chance.below(4) == 0 {
        resources["memory"] = json!({"limit": -1});
    }
    if chance.below(4) == 0 {
        resources["cpu"] = json!({"quota": 20_000, "burst": chance.one(&[5_000, 20_000])});
    }
    if chance.below(8) == 0 {
        resources["cpu"] = json!({"idle": chance.one(&[0, 1]), "period": 50_000});
    }
    if chance.below(2) == 0 {
        resources["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
    }
    // The node need not have all controllers, least of all one with version 1 whose unified tree is looked at alone.
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    let resources = resources.as_object_mut().unwrap();
    for (name, needed) in [
        ("memory", &["memory"][..]),
        ("unified", &["memory"]),
        ("cpu", &["cpu", "cpuset"]),
        ("pids", &["pids"]),
        ("hugepageLimits", &["hugetlb"]),
    ] {
        if !needed.iter().all(|name| has(name)) {
            resources.remove(name);
        }
    }
}

fn change_mounts(mounts: &mut Vec<Value>, chance: &mut Chance, volume: &Path) {
    let source = |name: &str| volume.join(name).to_str().unwrap().to_owned();
    let mut add = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        mounts.push(json!({"destination": destination, "type": kind, "source": source, "options": options}));
    };
    if chance.below(2) == 0 {
        let flags = *chance.one(&["ro", "rw"]);
        add("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", flags]);
    }
    let propagations = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];
    let flags = ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "suid", "dev", "exec", "atime"];
    for destination in ["/mnt/a", "/mnt/b", "/mnt/b/c/d", "/var/run/x"] {
        let mut options = chance.some(&flags);
        match chance.below(4) {
            0 => {}
            1 => {
                options.push(*chance.one(&["ro", "rw"]));
                options.extend(["mode=0750", "size=64k"]);
                add(destination, "tmpfs", "tmpfs", &options);
            }
            _ => {
                options.extend([
                    *chance.one(&["bind", "rbind"]),
                    *chance.one(&["ro", "rw"]),
                    *chance.one(&propagations),
                ]);
                add(destination, "bind", volume.to_str().unwrap(), &options);
            }
        }
    }
    if chance.below(2) == 0 {
        add("/etc/hosts", "bind", &source("file"), &["rbind", "rprivate", "ro"]);
        add("/dev/termination-log", "bind", &source("file"), &["rbind", "rprivate", "rw"]);
    }
}

#[test]
fn both_launchers_make_the_same_containers() {
    let probes = Probes::new();
    let mut differences = Vec::new();
    for specification in 0..SPECIFICATIONS {
        let [runtimes, own] = probes.find(specification);
        compare(&format!("{specification}"), &runtimes, &own, &mut differences);
    }
    probes.end(&differences);
}

#[test]
fn both_launchers_make_the_same_further_processes() {
    let probes = Probes::new();
    let (mut differences, mut with_filter) = (Vec::new(), 0);
    for specification in 0..EXECS {
        let [runtimes, own] = probes.runtimes.each_ref().map(|containerd| {
            let mut chance = Chance(specification);
            let job =
                containerd.job("c-hello").args(["stay"]).edit(|spec| change(spec, &mut chance, probes.volume.path()));
            let (id, container) = (job.id().to_owned(), job.start());
            let mut process = json!({"args": ["nothing"], "env": ["A=1"], "user": {"uid": 0, "gid": 0}});
            change_process(&mut process, &mut chance);
            process["cwd"] = json!("/");
            let exec = container.exec_of(&process).unwrap();
            exec.start().unwrap_or_else(|refused| panic!("{refused}\n{process:#}\n{}", containerd.log_of(&id)));
            let mut found = comparable(containerd, &id, &exec.finish().stdout);
            found["filter"] = filter_of(container.pid);
            container.kill(libc::SIGKILL).unwrap();
            container.finish();
            found
        });
        with_filter += usize::from(own["filter"].is_array());
        compare(&format!("{specification}"), &runtimes, &own, &mut differences);
    }
    assert!(with_filter > 10, "{with_filter}");
    probes.end(&differences);
}

/// The filter of the process `pid`.
fn filter_of(pid: u32) -> Value {
    // Whatever is left of the reading ends with its thread.
    let read =
        std::thread::spawn(move || skiff_linux::seccomp::read_filter(i32::try_from(pid).unwrap())).join().unwrap();
    read.map_or_else(|error| json!(error.to_string()), |filter| json!(filter))
}

/// Adds each leaf in which the two differ.
fn compare(place: &str, runtimes: &Value, own: &Value, differences: &mut Vec<String>) {
    match (runtimes, own) {
        (Value::Object(left), Value::Object(right)) => {
            let keys = left.keys().chain(right.keys().filter(|key| !left.contains_key(*key)));
            for key in keys {
                let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{place} {key}"), &value(left), &value(right), differences);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (left, right) in left.iter().zip(right) {
                compare(place, left, right, differences);
            }
        }
        _ if runtimes == own => {}
        _ => differences.push(format!("{place}:\n  {runtimes}\n  {own}")),
    }
}

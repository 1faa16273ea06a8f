//! Nothing is left behind: after deletion, after a failure at any step, and after the shim or containerd was killed.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::{
    Cgroup, Container, Containerd, Disk, Job, command_line_of, compilers_of, eventually, hierarchies, is_alive,
    random_name, signal, until,
};
use tonic::Code;

const A_MOMENT: Duration = Duration::from_secs(10);

/// Kills the shim of a container, waits until containerd notices, and deletes the container. Nothing of it may be left.
fn kill_shim_and_delete(container: &mut Container<'_>) {
    let shim = container.shim();
    let processes = [container.pids().unwrap_or_default(), vec![container.pid]].concat();
    signal(shim, Signal::SIGKILL).unwrap();
    // containerd then runs `containerd-shim-skiff-v1 delete` by itself.
    eventually("the container's processes end with its shim", || {
        processes.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
    eventually("containerd forgets the task", || container.state().is_err().then_some(()));
    drop(container.delete_task());
    container.forget();
}

#[test]
fn nothing_is_left_of_containers_that_ended_and_were_deleted() {
    let containerd = Containerd::shared();
    for job in [
        containerd.job("c-hello"),
        containerd.job("c-hello").memory(64 << 20),
        containerd.shell("sleep 3600 & true"),
        containerd.shell("echo").terminal(),
        containerd.job("c-hello").terminal(),
    ] {
        assert_eq!(job.run().code, 0);
    }
}

/// A way to make Create fail: its name, what it does, and a word of the message.
type Fault = (&'static str, fn(&mut Value), &'static str);

const FAULTS: [Fault; 12] = [
    ("a mount whose source is missing", |spec| add_mount(spec, "bind", "/does/not/exist"), "/does/not/exist"),
    ("a mount of an unknown type", |spec| add_mount(spec, "nonsensefs", "none"), "/mnt"),
    (
        "a seccomp profile with an unknown action",
        |spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NONSENSE"}),
        "SCMP_ACT_NONSENSE",
    ),
    ("an unknown namespace", |spec| spec["linux"]["namespaces"][0]["type"] = json!("nonsense"), "nonsense"),
    (
        "a network namespace that is not there",
        |spec| spec["linux"]["namespaces"][4]["path"] = json!("/does/not/exist"),
        "/does/not/exist",
    ),
    ("a relative working directory", |spec| spec["process"]["cwd"] = json!("relative"), "absolute path"),
    ("no arguments", |spec| spec["process"]["args"] = json!([]), "args"),
    (
        "a resource limit that is unknown",
        |spec| spec["process"]["rlimits"][0]["type"] = json!("RLIMIT_NONSENSE"),
        "RLIMIT_NONSENSE",
    ),
    ("a hook that fails", |spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]}), "hook"),
    (
        "a hook that is missing",
        |spec| spec["hooks"] = json!({"createRuntime": [{"path": "/does/not/exist"}]}),
        "/does/not/exist",
    ),
    ("a memory limit that is a word", |spec| spec["linux"]["resources"]["memory"] = json!({"limit": "much"}), "limit"),
    (
        "a cgroup that cannot be made",
        |spec| spec["linux"]["cgroupsPath"] = json!("/cgroup.procs/below"),
        "cgroup.procs",
    ),
];

fn add_mount(spec: &mut Value, kind: &str, source: &str) {
    let options = if kind == "bind" { json!(["rbind"]) } else { json!([]) };
    let mount = json!({"destination": "/mnt", "type": kind, "source": source, "options": options});
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

fn check_faults<'a>(job: impl Fn() -> Job<'a>) {
    let mut wrong = Vec::new();
    for (fault, change, said) in FAULTS {
        match job().edit(change).try_start() {
            Err(refused) if refused.message.contains(said) => {}
            Err(refused) => wrong.push(format!("{fault}: no `{said}` in `{refused}`")),
            Ok(_) => wrong.push(format!("{fault}: the container started")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_of_a_wasm_container_that_cannot_be_made() {
    check_faults(|| Containerd::shared().job("c-hello"));
}

#[test]
fn nothing_is_left_of_a_native_container_that_cannot_be_made() {
    check_faults(|| Containerd::shared().shell("true"));
    let refused = Containerd::shared().shell("").command(["/no/such/program"]).refused();
    assert!(refused.message.contains("/no/such/program"), "{refused}");
}

#[test]
fn a_container_without_a_root_file_system_is_refused_and_nothing_is_left() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-hello"), containerd.shell("true")] {
        let refused = job.without_rootfs().refused();
        assert!(!refused.message.is_empty());
    }
}

#[test]
fn a_stream_that_cannot_be_opened_fails_create_by_name() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-hello"), containerd.shell("true")] {
        let refused = job.log("/does/not/exist").refused();
        assert!(refused.message.contains("/does/not/exist"), "{refused}");
    }
}

#[test]
fn a_start_that_is_refused_leaves_nothing_after_delete() {
    let refused = Containerd::shared().job("c-hello").command(["/c-hello.wasm#nothing"]).refused();
    assert!(refused.message.contains("`nothing`"), "{refused}");
}

#[test]
fn systemds_cgroup_paths_on_a_machine_without_systemd_are_refused_and_nothing_is_left() {
    if Path::new("/run/systemd/system").exists() {
        return;
    }
    let containerd = Containerd::with_options("SystemdCgroup = true\n");
    let job = containerd.job("c-hello").edit(|spec| spec["linux"]["cgroupsPath"] = json!("user.slice:skiff:test"));
    let refused = job.refused();
    assert!(refused.message.contains("systemd"), "{refused}");
}

#[test]
fn a_full_disk_under_the_cache_fails_create_with_a_sentence_and_leaves_nothing() {
    let disk = Disk::new("32k", "700");
    let containerd = Containerd::with_options(&format!("CacheDir = \"{}/cache\"\n", disk.path().display()));
    let refused = containerd.job("c-hello").refused();
    assert!(refused.message.contains("the disk is full"), "{refused}");
    assert_eq!(containerd.shell("exit 5").run().code, 5, "native containers need no cache");
    let files: Vec<_> = walk(disk.path()).into_iter().filter(|path| is_left(path)).collect();
    assert!(files.is_empty(), "{files:?}");
}

/// Whether a path below a cache is a file other than its counters.
fn is_left(path: &Path) -> bool {
    path.is_file() && !path.ends_with("counters.1")
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    let below = entries.iter().filter(|path| path.is_dir()).flat_map(|path| walk(path)).collect();
    [entries, below].concat()
}

#[test]
fn nothing_is_left_when_the_shim_of_a_running_container_is_killed() {
    let containerd = Containerd::shared();
    for job in [
        containerd.job("c-spin"),
        containerd.job("c-sleep"),
        containerd.shell("sleep 3600 & echo; sleep 3600"),
        containerd.shell("sleep 3600").terminal(),
        containerd.job("c-sleep").terminal(),
    ] {
        kill_shim_and_delete(&mut job.start());
    }
}

#[test]
fn nothing_is_left_when_the_shim_of_a_container_is_killed_before_its_start() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-spin"), containerd.shell("sleep 3600")] {
        kill_shim_and_delete(&mut job.create());
    }
}

#[test]
fn nothing_is_left_when_the_shim_of_a_paused_container_is_killed() {
    let mut container = Containerd::shared().job("c-spin").start();
    container.pause_patiently();
    kill_shim_and_delete(&mut container);
}

#[test]
fn nothing_is_left_when_the_shim_of_a_container_that_ended_is_killed() {
    let mut container = Containerd::shared().job("c-hello").start();
    container.wait();
    kill_shim_and_delete(&mut container);
}

#[test]
fn nothing_is_left_when_the_shim_is_killed_at_some_moment_of_create() {
    let containerd = Containerd::shared();
    let rootfs_is_mounted = |id: &str| {
        let place = containerd.bundle(id).join("rootfs");
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&place.display().to_string())
    };
    let has_begun = |id: &str| {
        let record = std::fs::read_to_string(containerd.bundle(id).join("skiff.json"));
        record.is_ok_and(|record| record.contains("\"launcher\":\""))
    };
    type Moment<'a> = (&'a str, &'a dyn Fn(&str) -> bool);
    let moments: [Moment<'_>; 4] = [
        // Not earlier: containerd runs no delete for a shim that it has not connected to yet.
        ("Create has begun", &has_begun),
        ("the root file system is mounted", &rootfs_is_mounted),
        ("the OCI runtime has its state, or skiff has made the cgroup", &|id| {
            let cgroup = containerd.cgroups_path(id);
            containerd.runtime_root().join("skiff-test").join(id).exists()
                || hierarchies().iter().any(|mountpoint| mountpoint.join(cgroup.trim_start_matches('/')).exists())
        }),
        ("the container has a process", &|id| !Cgroup::at(&containerd.cgroups_path(id)).processes().is_empty()),
    ];
    for (moment, has_come) in moments {
        for job in [containerd.job("c-sleep"), containerd.job("c-sleep")] {
            kill_shim_when(containerd, job, moment, has_come);
        }
    }
}

/// Makes a container and kills its shim at the given moment, with any result of Create.
fn kill_shim_when(containerd: &Containerd, job: Job<'_>, moment: &str, has_come: &dyn Fn(&str) -> bool) {
    let id = job.id().to_string();
    let created = std::thread::scope(|scope| {
        let creating = scope.spawn(|| job.create_task());
        assert!(until(A_MOMENT, || has_come(&id)), "{moment}: never");
        if let Some(shim) = containerd.shim_of(&id) {
            signal(shim, Signal::SIGKILL).unwrap();
        }
        creating.join().unwrap()
    });
    match created {
        Ok(mut container) => {
            eventually("containerd forgets the task", || container.state().is_err().then_some(()));
            drop(container.delete_task());
            container.forget();
        }
        Err(_) => containerd.forget(&id),
    }
    assert!(containerd.shim_of(&id).is_none(), "{moment}");
}

#[test]
fn a_shim_that_is_killed_while_it_compiles_leaves_nothing_and_the_next_one_compiles() {
    let containerd = Containerd::with_own_cache();
    let job = containerd.job("go-hello");
    let id = job.id().to_string();
    let compiler = std::thread::scope(|scope| {
        let creating = scope.spawn(|| job.create_task().map(drop));
        let shim = eventually("the shim is there", || containerd.shim_of(&id));
        let compiler = eventually("the compiler runs", || compilers_of(shim).first().copied());
        signal(shim, Signal::SIGKILL).unwrap();
        creating.join().unwrap().expect_err("the shim was killed");
        compiler
    });
    containerd.forget(&id);
    assert!(until(A_MOMENT, || !is_alive(compiler)), "the compiler ends: {}", command_line_of(compiler));
    assert_eq!(containerd.job("go-hello").run().stdout, "hello\n");
    let entries: Vec<_> = walk(&containerd.own_cache()).into_iter().filter(|path| is_left(path)).collect();
    assert!(entries.len() == 1 && entries[0].extension().is_some_and(|kind| kind == "cwasm"), "{entries:?}");
}

#[test]
fn no_control_group_of_a_compiler_is_left() {
    let containerd = Containerd::with_own_cache();
    assert_eq!(containerd.job("c-hello").run().code, 0);
    let left: Vec<_> = hierarchies()
        .into_iter()
        .flat_map(|hierarchy| std::fs::read_dir(hierarchy.join("skiff-compile")).into_iter().flatten().flatten())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| std::fs::read_to_string(entry.path().join("cgroup.procs")).is_ok_and(|pids| pids.is_empty()))
        .map(|entry| entry.path())
        .collect();
    let left: Vec<_> = left.into_iter().filter(|path| !until(A_MOMENT, || !path.exists())).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn containers_outlive_containerd_and_tell_it_their_end_afterwards() {
    let containerd = Containerd::start();
    let spinning = containerd.job("c-spin").start();
    let native = containerd.shell("sleep 3600").start();
    let ending = containerd.job("c-cat").stdin().start();
    let created = containerd.job("c-exit").args(["11"]).create();
    ending.streams.write(b"before ");
    containerd.kill();
    ending.streams.write(b"meanwhile");
    ending.streams.close_stdin();
    containerd.start_again();

    for container in [&spinning, &native] {
        assert!(is_alive(container.pid), "{}", container.id);
        assert_eq!(container.state().unwrap().pid, container.pid);
    }
    created.start().unwrap();
    assert_eq!(created.finish().code, 11);
    ending.close_io().unwrap();
    let outcome = ending.finish();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "before meanwhile"));
    spinning.kill(libc::SIGTERM).unwrap();
    assert_eq!(spinning.finish().code, 143);
    native.kill(libc::SIGKILL).unwrap();
    assert_eq!(native.finish().code, 137);
}

#[test]
fn an_end_that_came_while_containerd_was_down_is_told_when_it_is_back() {
    let containerd = Containerd::start();
    let wasm = containerd.job("c-sleep").args(["700"]).start();
    let native = containerd.shell("sleep 0.5; exit 6").start();
    containerd.kill();
    assert!(until(A_MOMENT, || !is_alive(wasm.pid) && !is_alive(native.pid)));
    containerd.start_again();
    assert_eq!(wasm.finish().code, 0);
    assert_eq!(native.finish().code, 6);
}

#[test]
fn a_shim_that_is_killed_while_containerd_is_down_is_cleaned_up_after() {
    let containerd = Containerd::start();
    let mut container = containerd.job("c-spin").start();
    let shim = container.shim();
    containerd.kill();
    signal(shim, Signal::SIGKILL).unwrap();
    containerd.start_again();
    assert!(until(A_MOMENT, || !is_alive(container.pid)), "the guest ends");
    drop(container.delete_task());
    container.forget();
}

#[test]
fn of_two_creates_of_one_id_one_wins() {
    let containerd = Containerd::shared();
    let id = random_name("twin");
    let image = containerd.guest("c-sleep");
    let mut first = containerd.job_of(&image).with_id(&id).create();
    let refused = containerd.job_of(&image).with_id(&id).create_task().err().unwrap();
    assert_eq!(refused.code, Code::AlreadyExists, "{refused}");
    first.start().unwrap();
    first.kill(libc::SIGKILL).unwrap();
    assert_eq!(first.wait(), 137);
    first.delete().unwrap();
}

#[test]
fn of_many_tasks_for_one_container_at_once_one_is_made() {
    let containerd = Containerd::shared();
    let described = containerd.job("c-exit").describe().unwrap();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| described.create_task())).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 3, "{answers:?}");
    assert!(refused.iter().all(|refused| refused.message.contains("exists")), "{answers:?}");
    let pid = answers.iter().find_map(|answer| answer.as_ref().ok()).unwrap();
    let container = described.into_container(*pid);
    container.start().unwrap();
    assert_eq!(container.finish().code, 0);
}

//! Containers that come and go: in one pod, whose shim lives through all of them, and in shims of their own.

use std::fs;
use std::path::Path;

use skiff_test::{Container, Containerd, Job, TERMINALS, hierarchies, processes_with, random_name};

use crate::{Figures, part};

/// How many containers there are in the whole soak.
const CONTAINERS: u32 = 2000;
/// One over this of them come before the first look.
const WARM_UP: u32 = 10;
/// The fewest of those. By then each life has been lived in the pod.
const WARM_UP_LEAST: u32 = 40;
const REPORT_EVERY: u32 = 100;
/// The annotations by which containerd groups the containers of a pod.
const POD: &str = "io.kubernetes.cri.sandbox-id";
const KIND: &str = "io.kubernetes.cri.container-type";

/// Where a container lives.
struct Place<'a> {
    containerd: &'a Containerd,
    /// A container of the pod that is there all the time.
    keeper: &'a Container<'a>,
    /// The pod, unless the container has a shim of its own.
    pod: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn job(&self, guest: &str) -> Job<'a> {
        self.settle(self.containerd.job(guest))
    }

    fn settle(&self, job: Job<'a>) -> Job<'a> {
        match self.pod {
            Some(pod) => in_pod(job, pod),
            None => job,
        }
    }
}

fn in_pod<'a>(job: Job<'a>, pod: &str) -> Job<'a> {
    job.annotation(POD, pod).annotation(KIND, "container")
}

/// What becomes of a container. There is nothing left of it afterwards, which the harness checks.
const LIVES: [fn(&Place<'_>); 11] = [
    // It says hello.
    |place| assert_eq!(place.job("c-hello").run().stdout, "hello\n"),
    // It has a limit and an exit code.
    |place| {
        assert_eq!(place.job("c-hello").args(["exit", "7"]).memory(64 << 20).run().code, 7);
    },
    // It has a terminal.
    |place| assert_eq!(place.job("c-hello").terminal().run().stdout, "hello\r\n"),
    // It reads its input.
    |place| {
        let container = place.job("c-cat").stdin().start();
        container.streams.write(b"through");
        container.streams.close_stdin();
        container.close_io().unwrap();
        assert_eq!(container.finish().stdout, "through");
    },
    // It traps.
    |place| assert_eq!(place.job("c-trap").args(["unreachable"]).run().code, 134),
    // It is killed.
    |place| {
        let container = place.job("c-spin").start();
        container.kill(libc::SIGKILL).unwrap();
        assert_eq!(container.finish().code, 137);
    },
    // It is told to end.
    |place| {
        let container = place.job("c-sleep").start();
        container.streams.wait_for_stdout("sleeping\n");
        container.kill(libc::SIGTERM).unwrap();
        assert_eq!(container.finish().code, 143);
    },
    // It has no module.
    |place| {
        let refused = place.job("c-hello").command(["/nothing.wasm"]).refused();
        assert!(refused.message.contains("/nothing.wasm"), "{refused}");
    },
    // It has no such function.
    |place| {
        let refused = place.job("c-hello").command(["/c-hello.wasm#nothing"]).refused();
        assert!(refused.message.contains("`nothing`"), "{refused}");
    },
    // It has execs, one of them until it is killed.
    |place| {
        let container = place.job("c-sleep").start();
        execute(&container, &["/c-sleep.wasm", "1"]);
        let exec = container.exec(&["/c-sleep.wasm"], false).unwrap();
        exec.start().unwrap();
        exec.streams.wait_for_stdout("sleeping\n");
        container.kill(libc::SIGKILL).unwrap();
        assert_eq!(container.wait(), 137);
        assert_eq!(exec.finish().code, 137);
        container.finish();
        // One that outlives its execs.
        execute(place.keeper, &["/c-cat.wasm"]);
        execute(place.keeper, &["skiff", "ps"]);
    },
    // It is native.
    |place| {
        assert_eq!(place.settle(place.containerd.shell("exit 5")).run().code, 5);
    },
];

fn execute(container: &Container<'_>, args: &[&str]) {
    let exec = container.exec(args, false).unwrap();
    exec.start().unwrap();
    exec.close_io().unwrap();
    let outcome = exec.finish();
    assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}");
}

#[test]
fn thousands_of_containers_leave_their_pods_shim_and_the_node_as_they_were() {
    let containerd = Containerd::start();
    let pod = random_name("pod");
    let keeper = in_pod(containerd.job("c-cat"), &pod).stdin().start();
    let shim = keeper.shim();
    let containers = CONTAINERS / part();
    let live = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            // Two of three are in the pod. The numbers have no common divisor, so every life is lived in both places.
            let pod = (number % 3 != 0).then_some(pod.as_str());
            let live = LIVES[number as usize % LIVES.len()];
            live(&Place { containerd: &containerd, keeper: &keeper, pod });
            if (number + 1) % REPORT_EVERY == 0 {
                eprintln!("{} of {containers} containers", number + 1);
            }
        }
    };
    let warm_up = (containers / WARM_UP).max(WARM_UP_LEAST);
    let look = || figures(&containerd, &keeper, shim);
    live(0..warm_up);
    let before = Figures::at_rest(look);
    live(warm_up..containers);
    assert_eq!(keeper.shim(), shim);
    Figures::at_rest(look).assert_no_growth(&before, &format!("after {containers} containers"));
    keeper.kill(libc::SIGKILL).unwrap();
    assert_eq!(keeper.finish().code, 137);
}

fn figures(containerd: &Containerd, keeper: &Container<'_>, shim: u32) -> Figures {
    let mut figures = Figures::default();
    figures.add_process("the pod's shim", shim);
    figures.add_process("an engine of the pod", keeper.pid);
    figures.add_count("mounts", mounts(containerd.directory()));
    let cgroups = hierarchies().iter().map(|hierarchy| directories(&hierarchy.join(containerd.cgroup()))).sum();
    figures.add_count("cgroups", cgroups);
    for (name, directory) in [
        ("containerd's root", containerd.root()),
        ("containerd's state", containerd.state()),
        ("the OCI runtime's root", containerd.runtime_root()),
    ] {
        figures.add_count(&format!("entries of {name}"), entries(&directory));
    }
    let sockets = fs::read_dir(TERMINALS).into_iter().flatten().flatten();
    let of_shim = sockets.filter(|entry| entry.file_name().to_string_lossy().contains(&shim.to_string()));
    figures.add_count("sockets of the pod's shim", of_shim.count());
    let address = containerd.address();
    let processes = [containerd.cgroup(), &address.to_string_lossy()].map(|text| processes_with(text).len());
    figures.add_count("processes", processes.iter().sum());
    figures
}

/// The mounts of the node at places of this test's containerd, or of skiff. Whatever else runs on the machine has others.
fn mounts(containerd: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = [containerd.to_str().unwrap(), TERMINALS, "/var/lib/skiff"];
    mounts.lines().filter(|line| places.iter().any(|place| line.contains(place))).count()
}

/// The directories below this one, and it itself.
fn directories(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    usize::from(directory.exists()) + below.map(|entry| directories(&entry.path())).sum::<usize>()
}

/// Everything below a directory.
fn entries(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: fs::DirEntry| {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        1 + if is_directory { self::entries(&entry.path()) } else { 0 }
    };
    entries.map(count).sum()
}

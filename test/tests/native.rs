//! Native containers under the shim behave as under the OCI runtime's own shim.

use std::time::Duration;

use serde_json::json;
use skiff_test::{Container, Containerd, Image, eventually, is_alive, is_cgroup_v2, until};
use tonic::Code;

fn running(script: &str) -> Container<'static> {
    let container = Containerd::shared().shell(&format!("echo ready; {script}")).start();
    container.streams.wait_for_stdout("ready\n");
    container
}

#[test]
fn a_shell_has_its_arguments_environment_directory_user_and_files() {
    let containerd = Containerd::shared();
    let outcome = containerd
        .shell("echo $0 $GREETING $(pwd) $(id -u):$(id -g); cat /etc/passwd | head -1; ls -d /proc/1 /sys/kernel")
        .env("GREETING=hi")
        .cwd("/tmp")
        .user(1000, 1000)
        .run();
    let expected = "/bin/sh hi /tmp 1000:1000\nroot:x:0:0:root:/:/bin/sh\n/proc/1\n/sys/kernel\n";
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, expected), "{outcome:?}");
}

#[test]
fn a_static_program_runs_from_an_image_with_wasm_beside_it() {
    let containerd = Containerd::shared();
    let outcome = containerd.job_of(&Image::native(containerd)).command(["/bin/hello"]).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn ctr_runs_a_native_container_with_a_terminal_and_without() {
    let containerd = Containerd::shared();
    let image = Image::native(containerd);
    let said = containerd.ctr_run(&image, &[], &["/bin/sh", "-c", "echo out; exit 4"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(4), "out\n"), "{said:?}");
}

#[test]
fn further_processes_run_with_their_own_streams_and_exit_codes() {
    let container = running("sleep 3600");
    let exec = container.exec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], false).unwrap();
    exec.start().unwrap();
    let outcome = exec.finish();
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "out\n", "err\n"));
    let exec = container.exec(&["/bin/cat"], false).unwrap();
    exec.start().unwrap();
    exec.streams.write(b"through");
    exec.streams.close_stdin();
    exec.close_io().unwrap();
    assert_eq!(exec.finish().stdout, "through");
    let exec = container.exec(&["/bin/sleep", "3600"], false).unwrap();
    let pid = exec.start().unwrap();
    assert!(container.pids().unwrap().contains(&pid));
    exec.kill(libc::SIGTERM).unwrap();
    assert_eq!(exec.finish().code, 143);
    assert!(is_alive(container.pid));
}

#[test]
fn a_further_process_that_cannot_be_started_says_why_and_the_container_lives() {
    let container = running("sleep 3600");
    let exec = container.exec(&["/no/such/program"], false).unwrap();
    let refused = exec.start().unwrap_err();
    assert!(refused.message.contains("/no/such/program"), "{refused}");
    drop(exec);
    assert!(is_alive(container.pid));
    assert_eq!(
        container.exec(&["/bin/true"], false).map(|exec| exec.start().map(|_| exec.finish().code)).unwrap().unwrap(),
        0
    );
}

#[test]
fn further_processes_end_with_the_container() {
    let container = running("sleep 3600");
    let exec = container.exec(&["/bin/sleep", "3600"], false).unwrap();
    let pid = exec.start().unwrap();
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.wait(), 137);
    assert!(until(Duration::from_secs(5), || !is_alive(pid)));
    assert_eq!(exec.finish().code, 137);
}

#[test]
fn a_terminal_has_a_size_that_can_be_changed() {
    let containerd = Containerd::shared();
    let container =
        containerd.shell("stty -echo; echo ready; while read line; do stty size; done").terminal().stdin().start();
    container.streams.wait_for_stdout("ready\r\n");
    for (width, height) in [(80, 24), (132, 43)] {
        container.resize(width, height).unwrap();
        container.streams.write(b"\n");
        container.streams.wait_for_stdout(&format!("{height} {width}\r\n"));
    }
    container.streams.write(b"\x04");
    assert_eq!(container.finish().code, 0);
}

#[test]
fn a_terminals_output_is_whole_when_the_process_ends() {
    let outcome = Containerd::shared().shell("yes 0123456789 | head -20000").terminal().run();
    assert_eq!((outcome.code, outcome.stdout.len()), (0, 20000 * 12));
}

#[test]
fn a_further_process_can_have_a_terminal() {
    let container = running("sleep 3600");
    let exec = container.exec(&["/bin/sh", "-c", "read x; stty size; tty; exit 3"], true).unwrap();
    exec.start().unwrap();
    exec.resize(100, 50).unwrap();
    exec.streams.write(b"go\n");
    let outcome = exec.finish();
    assert!(outcome.code == 3 && outcome.stdout.contains("50 100\r\n"), "{outcome:?}");
}

#[test]
fn a_paused_container_stands_still() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-spin"), containerd.shell("while :; do :; done")] {
        let container = job.start();
        container.pause_patiently();
        assert_eq!(container.state().unwrap().status(), containerd_client::types::v1::Status::Paused);
        let before = ticks_of(container.pid);
        assert!(!until(Duration::from_millis(300), || ticks_of(container.pid) > before + 2), "it goes on");
        assert_eq!(container.pause().unwrap_err().code, Code::FailedPrecondition);
        container.resume().unwrap();
        assert!(until(Duration::from_secs(5), || ticks_of(container.pid) > before + 2), "it does not go on");
        assert_eq!(container.resume().unwrap_err().code, Code::FailedPrecondition);
        container.kill(libc::SIGKILL).unwrap();
        assert_eq!(container.finish().code, 137);
    }
}

#[test]
fn a_paused_container_can_be_killed() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-spin"), containerd.shell("sleep 3600")] {
        let container = job.start();
        container.pause_patiently();
        container.kill(libc::SIGKILL).unwrap();
        assert_eq!(container.finish().code, 137);
    }
}

/// The processor time of a process, in the kernel's ticks.
fn ticks_of(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn limits_can_be_changed_while_it_runs() {
    let container = running("sleep 3600");
    container.update(&json!({"memory": {"limit": 50 << 20}, "cpu": {"shares": 512}, "pids": {"limit": 77}})).unwrap();
    let cgroup = &container.cgroup;
    assert_eq!((cgroup.memory_limit(), cgroup.pids_limit()), (Some(50 << 20), Some(77)));
    // The OCI runtime turns shares of v1 into a weight of v2.
    let weight = cgroup.cpu_weight();
    assert!(if is_cgroup_v2() { weight < 100 } else { weight == 512 }, "{weight}");
}

#[test]
fn the_processes_are_listed_and_all_can_be_signalled() {
    let container = running("sleep 3600 & sleep 3600 & wait");
    let pids = eventually("three processes", || container.pids().ok().filter(|pids| pids.len() == 3));
    assert!(pids.contains(&container.pid), "{pids:?}");
    container.kill_all(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let container = Containerd::shared().job("c-spin").start();
    assert_eq!(container.pids().unwrap(), [container.pid]);
}

#[test]
fn a_container_has_figures() {
    let containerd = Containerd::shared();
    // The engine has a second thread, which waits for questions about its guest.
    for (job, threads) in [(containerd.shell("while :; do :; done"), 1), (containerd.job("c-spin"), 2)] {
        let container = job.memory(64 << 20).start();
        // For a moment the threads of the OCI runtime, which started the process, count too.
        let figures = eventually("processor time is counted", || {
            Some(container.figures().unwrap()).filter(|figures| figures.cpu_ns > 10_000_000 && figures.pids == threads)
        });
        assert!(figures.memory_bytes > 0 && figures.memory_limit_bytes == 64 << 20, "{figures:?}");
    }
}

#[test]
fn a_container_with_the_nodes_pids_takes_its_children_along() {
    let job = Containerd::shared().shell("sleep 3600 & sleep 3600 & echo ready; wait").edit(|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    });
    let container = job.start();
    container.streams.wait_for_stdout("ready\n");
    let pids = eventually("three processes", || container.pids().ok().filter(|pids| pids.len() == 3));
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.wait(), 137);
    assert!(until(Duration::from_secs(5), || pids.iter().all(|pid| !is_alive(*pid))), "{pids:?}");
}

//! The events of a task: in order and each once, also when something fails.

use skiff_test::{Containerd, Events, Job};

const WHOLE_LIFE: [&str; 4] = ["create", "start", "exit", "delete"];

fn check(job: Job<'_>, code: u32) {
    let events = Events::listen(Containerd::shared());
    let id = job.id().to_string();
    assert_eq!(job.run().code, code);
    assert_eq!(events.topics(&id, WHOLE_LIFE.len()), WHOLE_LIFE);
    let of = events.of(&id);
    assert_eq!(of[2].code, Some(code), "the exit event");
    assert_eq!(of[3].code, Some(code), "the delete event");
    assert!(of.iter().all(|event| event.process.is_empty() || event.process == id), "{of:?}");
}

#[test]
fn a_whole_life_is_told_in_order() {
    let containerd = Containerd::shared();
    check(containerd.job("c-hello").args(["return", "7"]), 7);
    check(containerd.shell("exit 8"), 8);
}

#[test]
fn the_shortest_lives_are_told_in_order_too() {
    for _ in 0..4 {
        check(Containerd::shared().job("c-exit").args(["3"]), 3);
        check(Containerd::shared().shell("").command(["/bin/true"]), 0);
    }
}

#[test]
fn a_start_that_fails_has_an_exit_and_no_start() {
    let containerd = Containerd::shared();
    let events = Events::listen(containerd);
    let job = containerd.job("c-hello").command(["/c-hello.wasm#nothing"]);
    let id = job.id().to_string();
    job.refused();
    let topics = events.topics(&id, 3);
    assert_eq!(topics, ["create", "exit", "delete"], "{:?}", events.of(&id));
}

#[test]
fn a_create_that_fails_is_no_event_of_a_task() {
    let containerd = Containerd::shared();
    let events = Events::listen(containerd);
    let job = containerd.shell("").command(["/no/such/program"]);
    let id = job.id().to_string();
    job.refused();
    let topics = events.topics(&id, 1);
    assert!(!topics.iter().any(|topic| ["create", "start", "exit"].contains(&topic.as_str())), "{topics:?}");
}

#[test]
fn a_pause_and_a_resume_are_told() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-spin"), containerd.shell("sleep 3600")] {
        let events = Events::listen(containerd);
        let container = job.start();
        let id = container.id.clone();
        container.pause_patiently();
        container.resume().unwrap();
        container.kill(libc::SIGKILL).unwrap();
        container.finish();
        assert_eq!(events.topics(&id, 6), ["create", "start", "paused", "resumed", "exit", "delete"]);
    }
}

#[test]
fn further_processes_have_events_of_their_own() {
    let containerd = Containerd::shared();
    let events = Events::listen(containerd);
    let container = containerd.shell("sleep 3600").start();
    let exec = container.exec(&["/bin/sh", "-c", "exit 5"], false).unwrap();
    exec.start().unwrap();
    let exec_id = exec.id.clone();
    assert_eq!(exec.finish().code, 5);
    // As with runc's own shim, there is no event for the deletion of a further process.
    let topics = events.topics(&container.id, 5);
    assert_eq!(topics, ["create", "start", "exec-added", "exec-started", "exit"]);
    let of_exec: Vec<_> = events.of(&container.id).into_iter().filter(|event| event.process == exec_id).collect();
    assert_eq!(of_exec.len(), 3, "{of_exec:?}");
    assert_eq!(of_exec[2].code, Some(5));
}

#[test]
fn an_exit_while_containerd_is_down_is_told_once_when_it_is_back() {
    let containerd = Containerd::start();
    let earlier = Events::listen(&containerd);
    let container = containerd.job("c-sleep").args(["1500"]).start();
    // An event that containerd has not taken yet would be sent again to the next one.
    assert_eq!(earlier.topics(&container.id, 2), ["create", "start"]);
    containerd.kill();
    assert!(skiff_test::until(std::time::Duration::from_secs(10), || !skiff_test::is_alive(container.pid)));
    containerd.start_again();
    let events = Events::listen(&containerd);
    let id = container.id.clone();
    container.wait();
    let told = events.topics(&id, 1);
    assert!(told.len() <= 1 && told.iter().all(|topic| topic == "exit"), "{told:?}");
}

#[test]
fn the_events_of_an_exec_are_told_in_order_in_a_wasm_container() {
    let events = Events::listen(Containerd::shared());
    let container = Containerd::shared().job("c-sleep").start();
    container.streams.wait_for_stdout("sleeping\n");
    let exec = container.exec(&["/no/such/file"], false).unwrap();
    exec.start().unwrap();
    let exec_id = exec.id.clone();
    assert_eq!(exec.finish().code, 127);
    container.kill(libc::SIGKILL).unwrap();
    let id = container.id.clone();
    container.finish();
    let topics = events.topics(&id, 7);
    assert_eq!(topics, ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]);
    let of_exec: Vec<_> = events.of(&id).into_iter().filter(|event| event.process == exec_id).collect();
    assert_eq!(of_exec.len(), 3, "{of_exec:?}");
    assert_eq!(of_exec[2].code, Some(127));
}

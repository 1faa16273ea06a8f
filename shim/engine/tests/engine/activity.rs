//! What a guest does, as others on the node read it from its account.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use skiff_protocol::Activity;

use crate::driver::Guest;
use crate::server::{BOTH, Server};
use crate::watch::wait_for;

fn wait_for_requests(account: &File, expected: [u64; 6]) {
    let all: u64 = expected.iter().sum();
    wait_for(&format!("{expected:?}"), || {
        let activity = Activity::read(account).unwrap();
        activity.requests == expected && activity.durations.iter().sum::<u64>() == all
    });
}

#[test]
fn a_server_s_requests_are_counted_by_code_and_duration() {
    for name in BOTH {
        let guest = Guest::named(name);
        let account = guest.account();
        let server = Server::start(guest);
        let before = Activity::read(&account).unwrap();
        assert_eq!((before.serves, before.requests), (true, [0; 6]), "{name}: trying out is not a request");
        for (path, status) in [("/", 200), ("/", 200), ("/nothing", 404), ("/slow?ms=30", 200)] {
            assert_eq!(server.get(path).status(), status, "{name}");
        }
        wait_for_requests(&account, [0, 0, 3, 0, 1, 0]);
        let activity = Activity::read(&account).unwrap();
        assert_eq!(activity.traps, 0, "{name}");
        assert!(activity.durations[6..].iter().sum::<u64>() >= 1, "{name}: {activity:?}");
        wait_for("the sum", || Activity::read(&account).unwrap().request_time >= Duration::from_millis(30));
    }
}

#[test]
fn a_trap_is_counted_with_the_request_that_it_failed() {
    let guest = Guest::named("rust-p2-http");
    let account = guest.account();
    let server = Server::start(guest);
    assert_eq!(server.get("/trap").status(), 500);
    wait_for_requests(&account, [0, 0, 0, 0, 0, 1]);
    wait_for("the trap", || Activity::read(&account).unwrap().traps == 1);
}

#[test]
fn a_request_is_counted_once_its_response_is_sent() {
    let guest = Guest::named("rust-p2-http");
    let account = guest.account();
    let server = Server::start(guest);
    let mut stream = server.begin("/big?bytes=64000000");
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(Activity::read(&account).unwrap().requests, [0; 6], "nobody has read the response");
    drop(stream);
    wait_for_requests(&account, [0, 0, 1, 0, 0, 0]);
}

#[test]
fn instances_are_counted_while_they_are_alive() {
    let guest = Guest::named("rust-p2-http");
    let account = guest.account();
    let server = Server::start(guest);
    let instances = || Activity::read(&account).unwrap().instances;
    wait_for("the instance that was tried out to go", || instances() == 0);
    let held = [server.begin("/slow?ms=600000"), server.begin("/slow?ms=600000")];
    wait_for("two instances", || instances() == 2);
    drop(held);
    let guest = Guest::text(r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#);
    let account = guest.account();
    assert_eq!(guest.run().code, 134);
    let activity = Activity::read(&account).unwrap();
    assert_eq!((activity.serves, activity.instances, activity.traps), (false, 1, 1), "a command has one to its end");
}

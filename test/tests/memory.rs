//! The memory limit bounds a guest's memories and tables before the kernel does.

use skiff_test::{Connection, Containerd, Events, Image, free_port, get, until};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn mib_in(text: &str) -> u64 {
    text.split(' ').find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number in {text:?}"))
}

#[test]
fn growth_is_refused_before_the_kernel_kills() {
    let containerd = Containerd::shared();
    for (limit_mib, least_mib) in [(16, 9), (64, 52), (256, 224)] {
        let outcome = containerd.job("c-memgrow").memory(limit_mib * MIB).run();
        assert_eq!(outcome.code, 0, "{limit_mib} MiB: {outcome:?}");
        assert!(outcome.stdout.starts_with("refused after"), "{limit_mib} MiB: {outcome:?}");
        let grown = mib_in(&outcome.stdout);
        assert!((least_mib..limit_mib).contains(&grown), "{grown} MiB of {limit_mib}");
    }
}

#[test]
fn what_fits_is_granted() {
    let containerd = Containerd::shared();
    let outcome = containerd.job("c-memgrow").args(["32"]).memory(64 * MIB).run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "grew 32 MiB\n"));
    let outcome = containerd.job("c-memgrow").args(["300"]).run();
    assert_eq!(outcome.stdout, "grew 300 MiB\n", "without a limit nothing is refused");
}

#[test]
fn several_memories_and_tables_share_the_limit() {
    let containerd = Containerd::shared();
    let memories = Image::of_text(
        containerd,
        "(module (memory 1) (memory 1) (func (export \"_start\")
           (if (i32.eq (memory.grow 0 (i32.const 600)) (i32.const -1)) (then unreachable))
           (if (i32.ne (memory.grow 1 (i32.const 600)) (i32.const -1)) (then unreachable))))",
    );
    let outcome = containerd.job_of(&memories).memory(64 * MIB).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let table = Image::of_text(
        containerd,
        "(module (table $t 1 funcref) (func (export \"_start\")
           (if (i32.ne (table.grow $t (ref.null func) (i32.const 100000000)) (i32.const -1)) (then unreachable))))",
    );
    let outcome = containerd.job_of(&table).memory(64 * MIB).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn an_http_server_answers_though_a_request_wants_too_much() {
    let port = free_port();
    let job = Containerd::shared().job("rust-p2-http").memory(64 * MIB).host_network().env(&format!("PORT={port}"));
    let _server = job.start();
    assert!(until(Duration::from_secs(20), || Connection::open(port).is_ok()));
    let answer = get(port, "/grow?mib=500").unwrap();
    assert!(answer.text().starts_with("refused after"), "{answer:?}");
    assert_eq!(get(port, "/").unwrap().status, 200);
}

#[test]
fn initial_memory_beyond_the_limit_fails_with_both_numbers() {
    let containerd = Containerd::shared();
    let image = Image::of_text(containerd, "(module (memory 2000) (func (export \"_start\")))");
    let refused = containerd.job_of(&image).memory(64 * MIB).refused();
    assert!(refused.message.contains("/app.wasm") && refused.message.contains("too big"), "{refused}");
    for number in ["131072000", "67108864"] {
        assert!(refused.message.contains(number), "no {number} in {refused}");
    }
    assert_eq!(containerd.job_of(&image).memory(256 * MIB).run().code, 0);
}

#[test]
fn a_native_container_that_takes_too_much_is_killed_and_an_event_says_so() {
    let containerd = Containerd::shared();
    let events = Events::listen(containerd);
    let container = containerd.shell("exec tail /dev/zero").memory(16 * MIB).start();
    let id = container.id.clone();
    let outcome = container.finish();
    assert_eq!(outcome.code, 137);
    assert_eq!(events.topics(&id, 5), ["create", "start", "oom", "exit", "delete"]);
}

//! Memories and tables that grow under a limit.

use std::time::{Duration, Instant};

use crate::driver::Guest;
use crate::watch::{limit_file, pause, set_limit};

const MIB: u64 = 1 << 20;

/// A module that grows by `body`, which leaves what `memory.grow` or `table.grow` answered, and exits with 1 for -1.
fn growing(body: &str) -> Guest {
    Guest::text(&format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory $one (export "memory") 1) (memory $two 1) (table $table 1 externref)
            (func (export "_start") (call $exit (i32.eq (i32.const -1) {body}))))"#
    ))
}

#[test]
fn memories_and_tables_share_the_limit() {
    let limit = limit_file(64 * MIB);
    for (body, refused) in [
        ("(memory.grow $one (i32.const 800))", false),
        ("(memory.grow $one (i32.const 1000))", true),
        ("(memory.grow $one (i32.const 500)) drop (memory.grow $two (i32.const 300))", false),
        ("(memory.grow $one (i32.const 500)) drop (memory.grow $two (i32.const 500))", true),
        ("(table.grow $table (ref.null extern) (i32.const 7000000))", false),
        ("(memory.grow $one (i32.const 500)) drop (table.grow $table (ref.null extern) (i32.const 7000000))", true),
    ] {
        let body = match body.split_once(" drop ") {
            Some((first, second)) => format!("(block (result i32) (drop {first}) {second})"),
            None => body.to_owned(),
        };
        assert_eq!(growing(&body).limit(limit.path()).run().code, i32::from(refused), "{body}");
    }
}

#[test]
fn tables_are_bounded_without_any_limit() {
    let grow = |elements: u32| growing(&format!("(table.grow $table (ref.null extern) (i32.const {elements}))"));
    assert_eq!(grow(9_000_000).run().code, 0);
    assert_eq!(grow(11_000_000).run().code, 1);
}

#[test]
fn a_guest_that_takes_all_is_refused_politely() {
    let limit = limit_file(64 * MIB);
    let ended = Guest::named("c-memgrow").limit(limit.path()).run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "refused after 59 MiB\n"));
}

#[test]
fn a_raised_limit_is_seen_by_a_running_guest() {
    let limit = limit_file(16 * MIB);
    // Tries to grow by 32 MiB until it can.
    let guest = Guest::text(
        r#"(module (memory 1)
            (func (export "_start") (loop $again (br_if $again (i32.eq (i32.const -1) (memory.grow (i32.const 512)))))))"#,
    );
    let mut running = guest.limit(limit.path()).start().ready();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(100) {
        assert!(running.child.try_wait().unwrap().is_none(), "it grew beyond its limit");
        pause();
    }
    set_limit(&limit, "max");
    assert_eq!(running.end().code, 0);
}

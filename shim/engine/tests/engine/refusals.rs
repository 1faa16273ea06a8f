//! Guests that cannot run, and the sentences for their owners.

use std::path::Path;

use skiff_protocol::Refusal;

use crate::driver::Guest;
use crate::watch::limit_file;

const MIB: u64 = 1 << 20;

#[test]
fn unknown_imports_are_refused_by_name() {
    let importing =
        |imports: &str| Guest::text(&format!(r#"(module {imports} (func (export "_start")))"#)).refused_as_guest();
    assert_eq!(
        importing(r#"(import "env" "answer" (func (result i32)))"#),
        "cannot link `/app/guest.wasm`: unknown import: `env::answer` has not been defined"
    );
    assert_eq!(
        importing(r#"(import "env" "a" (func)) (import "env" "b" (memory 1))"#),
        "cannot link `/app/guest.wasm`: unknown imports: `env::a`, `env::b` have not been defined"
    );
    let sentence = importing(r#"(import "wasi_snapshot_preview1" "fd_write" (global i32))"#);
    assert!(sentence.contains("`wasi_snapshot_preview1::fd_write`") && sentence.contains("global"), "{sentence}");
    let sentence = importing(r#"(import "wasi_snapshot_preview1" "proc_exit" (func (param i64)))"#);
    assert!(sentence.contains("`wasi_snapshot_preview1::proc_exit`") && sentence.contains("i64"), "{sentence}");
    let sentence = Guest::text(r#"(component (import "a:b/c@1.0.0" (instance (export "f" (func)))))"#)
        .function("f")
        .refused_as_guest();
    assert!(sentence.contains("`a:b/c@1.0.0`"), "{sentence}");
}

#[test]
fn a_module_for_another_host_is_refused_with_what_it_was_built_for() {
    let refused = |text: &str| Guest::text(text).refused_as_guest();
    for (import, target) in [
        (r#""__wbindgen_placeholder__" "__wbindgen_throw" (func (param i32 i32))"#, "wasm-bindgen"),
        (r#""gojs" "runtime.wasmExit" (func (param i32))"#, "`GOOS=js`"),
    ] {
        let sentence = refused(&format!(r#"(module (import {import}) (func (export "run")))"#));
        let head = "`/app/guest.wasm` exports no function `_start`: it was built for ";
        assert!(sentence.starts_with(head) && sentence.contains(target), "{sentence}");
    }
    for (import, name, target) in [
        (r#""env" "emscripten_run_script" (func (param i32))"#, "env::emscripten_run_script", "with emscripten"),
        (r#""wasi" "thread-spawn" (func (param i32) (result i32))"#, "wasi::thread-spawn", "with threads"),
    ] {
        let sentence = refused(&format!(r#"(module (import {import}) (func (export "_start")))"#));
        let head = "cannot link `/app/guest.wasm`: it was built ";
        let tail = format!("; unknown import: `{name}` has not been defined");
        assert!(sentence.starts_with(head) && sentence.contains(target) && sentence.ends_with(&tail), "{sentence}");
    }
}

#[test]
fn shared_memory_is_refused() {
    let guest = Guest::text(r#"(module (memory 1 2 shared) (func (export "_start")))"#);
    let sentence = guest.refused_as_guest();
    assert!(sentence.contains("shared"), "{sentence}");
}

#[test]
fn a_component_without_anything_to_run_is_refused() {
    let sentence = Guest::text("(component)").refused_as_guest();
    assert!(sentence.contains("neither a command nor an HTTP server nor a service"), "{sentence}");
}

#[test]
fn a_guest_that_would_see_a_kernel_file_system_is_refused() {
    for (host, guest, place) in
        [("/proc", "/host/proc", "/host/proc"), ("/", "/host", "/host/"), ("/proc/sys", "/me", "/me")]
    {
        let sentence = Guest::named("c-hello").preopen(Path::new(host), guest, false).refused_as_guest();
        assert!(sentence.contains("file system `") && sentence.contains(&format!("at `{place}")), "{sentence}");
    }
}

#[test]
fn initial_memory_beyond_the_limit_is_refused_with_both_numbers() {
    let limit = limit_file(32 * MIB);
    let guest = Guest::text(r#"(module (memory 2048) (func (export "_start")))"#).limit(limit.path());
    let sentence = guest.refused_as_guest();
    assert!(sentence.contains("134217728") && sentence.contains("33554432"), "{sentence}");
}

#[test]
fn initial_tables_beyond_the_bound_are_refused() {
    let guest = Guest::text(r#"(module (table 20000000 funcref) (func (export "_start")))"#);
    let sentence = guest.refused_as_guest();
    assert!(sentence.contains("20000000") && sentence.contains("10000000"), "{sentence}");
}

#[test]
fn a_missing_directory_is_the_hosts_fault() {
    let guest = Guest::named("c-hello").preopen(Path::new("/no/such/directory"), "/data", false);
    match guest.refused() {
        Refusal::Host(sentence) => assert!(sentence.contains("`/data`"), "{sentence}"),
        other => panic!("{other:?}"),
    }
}

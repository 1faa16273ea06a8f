//! `docs/wasm-features.md` against what the compiler and the engine take.

use std::path::Path;

use crate::driver::Guest;

/// One small module for each proposal that the document lists.
const PROPOSALS: &[(&str, &str)] = &[
    ("Mutable globals, sign extension, saturating conversions", "(func (drop (i32.extend8_s (i32.const 1))))"),
    ("Multi-value", "(func (result i32 i32) (i32.const 1) (i32.const 2))"),
    ("Bulk memory", "(memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)))"),
    ("Reference types", "(table 1 externref) (func (result externref) (ref.null extern))"),
    ("SIMD", "(func (result v128) (i32x4.splat (i32.const 1)))"),
    ("Relaxed SIMD", "(func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1)))"),
    ("Extended constant expressions", "(global i32 (i32.add (i32.const 1) (i32.const 2)))"),
    ("Tail calls", "(func $f (return_call $f))"),
    ("Multiple memories", "(memory 1) (memory 1)"),
    ("64-bit memories and tables", "(memory i64 1) (table i64 1 funcref)"),
    ("Typed function references", "(type $t (func)) (func (param (ref $t)) (call_ref $t (local.get 0)))"),
    ("Garbage collection", "(type $t (struct (field i32))) (func (result (ref $t)) (struct.new $t (i32.const 1)))"),
    ("Exceptions", "(tag $t) (func (throw $t))"),
    ("Atomics", "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))"),
    ("Shared memory (wasi-threads)", "(memory 1 1 shared)"),
    ("Wide arithmetic", "(func (param i64) (result i64 i64) (i64.mul_wide_u (local.get 0) (local.get 0)))"),
    ("Custom page sizes", "(memory 1 (pagesize 1))"),
    (
        "Stack switching",
        "(type $f (func)) (type $c (cont $f)) (func $g) (elem declare func $g) \
         (func (drop (cont.new $c (ref.func $g))))",
    ),
];

#[test]
fn the_document_lists_what_is_on_and_off() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/wasm-features.md");
    let document = std::fs::read_to_string(path).unwrap();
    for (name, fields) in PROPOSALS {
        let runs = Guest::starts(&format!(r#"(module {fields} (func (export "_start")))"#));
        let row = format!("| {name} | {} |", if runs { "on" } else { "off" });
        assert!(document.contains(&row), "docs/wasm-features.md does not say `{row}`");
    }
}

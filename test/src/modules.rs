//! Modules that a test makes: one that takes long to compile, and some that differ only in what they print.

use crate::encoding::leb;

/// How many functions a slow module has.
const FUNCTIONS: u32 = 8;
/// How many branches each of them has.
const BRANCHES: u32 = 8000;

/// Longer than what the shim reads to see what kind of file it is.
const PADDING_BYTES: usize = 8192;

/// A command that does nothing and takes long to compile: about four seconds of processor time with 300 `variables` in each
/// function, about ten with 700. Each `seed` makes a different module.
pub fn slow_module(seed: u32, variables: u32) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // The types of `_start` and of the functions, which are not called.
    section(&mut module, 1, &[2, 0x60, 0, 0, 0x60, 1, 0x7f, 1, 0x7f]);
    let types = std::iter::once(0).chain(std::iter::repeat_n(1, FUNCTIONS as usize)).collect::<Vec<u8>>();
    section(&mut module, 3, &[leb(FUNCTIONS + 1), types].concat());
    section(&mut module, 7, &[&[1, 6], &b"_start"[..], &[0, 0]].concat());
    let mut code = leb(FUNCTIONS + 1);
    code.extend([2, 0, 0x0b]);
    for function in 0..FUNCTIONS {
        let body = body(seed, function, variables);
        code.extend(leb(u32::try_from(body.len()).expect("a short body")));
        code.extend(body);
    }
    section(&mut module, 10, &code);
    module
}

/// A loop in which each branch changes a variable, so that the compiler has to track all of them everywhere.
fn body(seed: u32, function: u32, variables: u32) -> Vec<u8> {
    // The variables; i32.const SEED, local.set 0; loop.
    let mut body = [&[1], &leb(variables)[..], &[0x7f, 0x41], &leb(seed & 0xff_ffff), &[0x21, 0, 0x03, 0x40]].concat();
    for branch in 0..BRANCHES {
        let [first, second, third] =
            [branch * 7 + function, branch * 5 + 3, branch * 11 + 1].map(|number| leb(number % variables));
        // local.get FIRST, if; local.get SECOND, local.get THIRD, i32.add, local.set FIRST, end.
        body.extend(
            [&[0x20], &first[..], &[0x04, 0x40, 0x20], &second, &[0x20], &third, &[0x6a, 0x21], &first, &[0x0b]]
                .concat(),
        );
    }
    // local.get 0, br_if; end, local.get 0, end.
    body.extend([0x20, 0, 0x0d, 0, 0x0b, 0x20, 0, 0x0b]);
    body
}

fn section(module: &mut Vec<u8>, id: u8, content: &[u8]) {
    module.push(id);
    module.extend(leb(u32::try_from(content.len()).expect("a short section")));
    module.extend(content);
}

/// A command that prints `line`. Lines of the same length make modules of the same length.
pub fn saying(line: &str) -> Vec<u8> {
    let length = line.len() + 1;
    let text = format!(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 1) (data (i32.const 0) "\10\00\00\00\{length:02x}\00\00\00") (data (i32.const 16) "{line}\n")
             (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#
    );
    let mut module = wat::parse_str(text).expect("the text is a module");
    // A custom section with an empty name.
    section(&mut module, 0, &[0; PADDING_BYTES]);
    module
}

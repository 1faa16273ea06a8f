//! `skiff compile` from the outside: what it accepts, what it refuses and in which words.

use std::env;
use std::fs;
use std::io::Write;
use std::process::{ChildStdin, Stdio};

use crate::common::{file_with, hello, is_root, large, run, sentence, skiff};

/// How many broken modules are tried.
const BROKEN: usize = 200;

#[test]
fn equal_input_gives_equal_code_confined_or_not_from_a_file_or_a_pipe() {
    let module = large(200);
    let plain = run(&["compile"], &module);
    assert!(plain.status.success(), "{plain:?}");
    assert!(plain.stdout.starts_with(b"\x7fELF"));
    let mut piped = skiff(&["compile"]).stdin(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(&module).unwrap();
    assert!(piped.wait_with_output().unwrap().stdout == plain.stdout);
    if is_root() {
        let confined = run(&["compile", "--confine", "--cgroup", "equal"], &module);
        assert!(confined.stdout == plain.stdout, "{}", String::from_utf8_lossy(&confined.stderr));
    }
}

#[test]
fn what_is_no_wasm_is_refused_in_one_sentence_with_its_name() {
    let mut truncated = hello();
    truncated.truncate(60);
    let cases: [(&[u8], &str); 8] = [
        (b"", "`/app.wasm` is empty"),
        (
            b"\x7fELF\x02\x01\x01\xc8",
            "`/app.wasm` is code that wasmtime compiled: skiff never runs compiled code from an image",
        ),
        (
            b"\x7fELF\x02\x01\x01\0",
            "`/app.wasm` is a native program (ELF), not wasm: build it for WASI (`GOOS=wasip1 GOARCH=wasm`, `--target wasm32-wasip1`)",
        ),
        (b"\x1f\x8b\x08", "`/app.wasm` is compressed with gzip: unpack it first"),
        (b"(module)", "`/app.wasm` is wasm in its text format: skiff runs only the binary format"),
        (b"#!/bin/sh\n", "`/app.wasm` is a script, not wasm: it does not begin with `\\0asm`"),
        (b"\0asm", "`/app.wasm` is corrupt: it ends after 4 bytes, within the preamble"),
        (&truncated, "`/app.wasm` is corrupt: unexpected end-of-file (at offset 0x3c)"),
    ];
    let confined: &[&str] = &["compile", "--confine", "--name", "/app.wasm"];
    for (input, expected) in cases {
        for arguments in [&["compile", "--name", "/app.wasm"], confined].into_iter().take(1 + usize::from(is_root())) {
            let output = run(arguments, input);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert_eq!(sentence(&output), expected);
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn a_pipe_that_ends_early_or_does_not_end_is_refused_in_one_sentence() {
    let confined: &[&str] = &["compile", "--name", "a", "--confine"];
    let arguments = if is_root() { confined } else { &confined[..3] };
    let piped = |write: &dyn Fn(ChildStdin)| {
        let mut child = skiff(arguments).stdin(Stdio::piped()).spawn().unwrap();
        write(child.stdin.take().unwrap());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        sentence(&output)
    };
    let early = piped(&|mut input| input.write_all(&hello()[..60]).unwrap());
    assert_eq!(early, "`a` is corrupt: unexpected end-of-file (at offset 0x3c)");
    let endless = piped(&|mut input| {
        let piece = vec![0; 1 << 20];
        // Until the other end is closed.
        while input.write_all(&piece).is_ok() {}
    });
    assert_eq!(endless, "`a` is too big: skiff compiles at most 512 MiB");
}

#[test]
fn code_compiled_by_skiff_itself_is_refused_as_input() {
    let code = run(&["compile"], &hello()).stdout;
    let output = run(&["compile", "--name", "a.cwasm"], &code);
    assert_eq!(output.status.code(), Some(1));
    assert!(sentence(&output).ends_with("skiff never runs compiled code from an image"));
}

#[test]
fn a_name_that_looks_like_an_option_or_holds_a_line_break_is_just_a_name() {
    let output = run(&["compile", "--name", "--a\nb"], b"");
    assert_eq!(sentence(&output), "`--a b` is empty");
}

#[test]
fn a_full_disk_is_the_nodes_fault() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = skiff(&["compile", "--name", "a"]).stdin(file_with(&hello())).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(sentence(&output), "cannot write the compiled code of `a`: No space left on device (os error 28)");
}

/// The guests of the test suites, by their sources' names, if they have been built; otherwise a generated one.
fn guests() -> Vec<Vec<u8>> {
    let Some(directory) = env::var_os("SKIFF_GUESTS") else {
        println!("`SKIFF_GUESTS` does not name real guests: a generated one is broken instead");
        return vec![hello(), large(20)];
    };
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let small = files.filter(|path| fs::metadata(path).unwrap().len() < 300_000);
    let mut paths: Vec<_> = small.collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The `number`th broken module made from `bytes`: cut short, or with a few bits flipped.
fn broken(bytes: &[u8], number: usize) -> Vec<u8> {
    // Knuth's multiplicative generator: the same breaks in every run.
    let mut state = number as u64 + 1;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut bytes = bytes.to_vec();
    if number.is_multiple_of(2) {
        bytes.truncate(random(bytes.len()));
        return bytes;
    }
    for _ in 0..=random(8) {
        let at = random(bytes.len());
        bytes[at] ^= 1 << random(8);
    }
    bytes
}

#[test]
fn two_hundred_broken_modules_are_compiled_or_refused_in_one_sentence() {
    let guests = guests();
    let arguments: &[&str] = &["compile", "--name", "/broken.wasm", "--confine", "--wall-seconds", "120"];
    let arguments = if is_root() { arguments } else { &arguments[..3] };
    let mut refused = 0;
    for number in 0..BROKEN {
        let output = run(arguments, &broken(&guests[number % guests.len()], number));
        match output.status.code() {
            Some(0) => assert!(output.stdout.starts_with(b"\x7fELF") && output.stderr.is_empty(), "module {number}"),
            Some(1) => {
                refused += 1;
                let sentence = sentence(&output);
                assert!(sentence.starts_with("`/broken.wasm` "), "module {number}: {sentence}");
                assert!(!sentence.contains("crashed") && !sentence.contains("panicked"), "module {number}: {sentence}");
                assert!(output.stdout.is_empty(), "module {number}");
            }
            code => panic!("module {number} ended with {code:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    assert!(refused >= BROKEN / 2, "{refused}");
}

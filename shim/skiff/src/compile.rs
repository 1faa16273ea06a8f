//! Compiles a wasm binary ahead of time, in this process. Confinement is the business of `confine`.

use std::any::Any;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::available_parallelism;

use skiff_protocol::MODULE_BYTES_MAX;
use wasmparser::{BinaryReader, BinaryReaderError, Validator, WasmFeatures};
use wasmtime::Engine;

use crate::debug_info;
use crate::error::{Context, Error, Result, with_causes};
use crate::preamble::{Kind, kind_of};
use crate::regular::refuse_above_limit;

/// The most threads that compile. Memory grows with each of them: a large module may need a second try with fewer.
pub(crate) const THREADS_MAX: usize = 32;

/// How wasmtime reports an invalid function body; its type for that is not public.
const INVALID: &str = "Invalid input WebAssembly code at offset ";

/// Parts of the validator's messages that are about its limits, besides those that name the limit.
const VALIDATORS_LIMITS: [&str; 4] =
    ["implementation limit", "too many locals", "nesting is too deep", "type index too large"];

/// The same of the compiler's messages.
const COMPILERS_LIMITS: [&str; 2] = ["Implementation limit exceeded", "Code for function is too large"];

/// Reads a wasm binary from `input`, compiles it and writes the compiled code to `output`.
///
/// A regular file is read from its start, wherever its offset is.
///
/// # Errors
/// The guest's fault if the input is not valid wasm; the host's if reading or writing fails.
pub(crate) fn compile_stream(input: &mut File, output: &mut File, name: &str) -> Result<()> {
    let bytes = read_all(input, name)?;
    let code = compile(&bytes, name)?;
    output.write_all(&code).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => {
            Error::limit(format!("the compiled code of `{name}` is too large to be written"))
        }
        _ => Error::host(format!("cannot write the compiled code of `{name}`: {error}")),
    })
}

/// Compiles the wasm binary `bytes` for this machine's processor and skiff's engine.
///
/// # Errors
/// The guest's fault if it is not valid wasm, or needs something that the engine does not support.
pub(crate) fn compile(bytes: &[u8], name: &str) -> Result<Vec<u8>> {
    let kind = kind_of(bytes, name)?;
    let engine = engine()?;
    let compiled = catch_unwind(AssertUnwindSafe(|| {
        let bytes = debug_info::bounded(bytes);
        match kind {
            Kind::Module => engine.precompile_module(&bytes),
            Kind::Component => engine.precompile_component(&bytes),
        }
    }));
    match compiled {
        Ok(compiled) => compiled.map_err(|error| explain(&error, bytes, name)),
        Err(panic) => {
            let reason = panic_message(panic.as_ref());
            Err(Error::guest(format!("`{name}` cannot be compiled: the compiler panicked: {reason}")))
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

/// skiff's engine, with its compiler.
///
/// # Errors
/// The host's, if the processor lacks something that wasmtime needs.
pub(crate) fn engine() -> Result<Engine> {
    let config = skiff_engine_config::engine_config().or_host("cannot configure the engine")?;
    Engine::new(&config).or_host("cannot make the engine")
}

/// Bounds the threads that wasmtime compiles with: to `threads`, or to as many as there are processors. Called once, before the
/// first compilation.
///
/// # Errors
/// The host's, if threads cannot be made.
pub(crate) fn limit_threads(threads: Option<NonZero<usize>>) -> Result<()> {
    let threads = threads.or(available_parallelism().ok()).map_or(1, NonZero::get).min(THREADS_MAX);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().or_host("cannot start the compiler's threads")
}

/// Reads all of `input`, but not more than may be compiled: the size of a pipe cannot be checked first.
fn read_all(input: &mut File, name: &str) -> Result<Vec<u8>> {
    let reading = || format!("cannot read `{name}`");
    let metadata = input.metadata().or_host(reading())?;
    let mut bytes = Vec::new();
    if metadata.is_file() {
        refuse_above_limit(metadata.len(), name)?;
        input.seek(SeekFrom::Start(0)).or_host(reading())?;
        bytes.reserve_exact(usize::try_from(metadata.len()).or_host(reading())?);
    }
    input.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes).or_host(reading())?;
    refuse_above_limit(u64::try_from(bytes.len()).or_host(reading())?, name)?;
    Ok(bytes)
}

/// What is wrong with the guest, in a sentence.
fn explain(error: &wasmtime::Error, bytes: &[u8], name: &str) -> Error {
    if let Some(error) = error.downcast_ref::<BinaryReaderError>() {
        return Error::guest(explain_invalid(bytes, error.message(), error.offset(), name));
    }
    let text = with_causes(error.as_ref());
    let invalid = text.split_once(INVALID).and_then(|(_, rest)| rest.split_once(": "));
    Error::guest(match invalid.and_then(|(offset, message)| Some((offset.parse().ok()?, message))) {
        Some((offset, message)) => explain_invalid(bytes, message, offset, name),
        None if COMPILERS_LIMITS.iter().any(|limit| text.contains(limit)) => {
            format!("`{name}` exceeds a limit of the compiler: {text}")
        }
        None => format!("`{name}` cannot be compiled: {text}"),
    })
}

/// The sentence for the invalid wasm binary `bytes`: it is corrupt, exceeds a limit, or uses a proposal that is switched off.
pub(crate) fn explain_invalid(bytes: &[u8], message: &str, offset: usize, name: &str) -> String {
    let sentence = |fault, message: &str, offset| format!("`{name}` {fault}: {message} (at offset {offset:#x})");
    if is_limit(bytes, message, offset) {
        return sentence("exceeds a limit of the validator", message, offset);
    }
    if !(message.contains("enabled") || message.contains("disabled")) {
        return sentence("is corrupt", message, offset);
    }
    // Damage also makes instructions and types of proposals, but hardly a whole that is valid with them.
    match Validator::new_with_features(WasmFeatures::all()).validate_all(bytes) {
        Ok(_) => sentence("uses a wasm proposal that is off", message, offset),
        Err(error) => sentence("is corrupt", error.message(), error.offset()),
    }
}

/// Whether `message` is about a limit of the validator that the binary really exceeds: damage also makes large numbers, of things
/// for which it has no room.
fn is_limit(bytes: &[u8], message: &str, offset: usize) -> bool {
    if let Some((_, limit)) =
        message.split_once("exceeds limit of ").or_else(|| message.split_once("exceeds the limit of "))
    {
        let digits = limit.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        return digits.parse().is_ok_and(|limit: usize| bytes.len() > limit);
    }
    if message.ends_with(" size is out of bounds") {
        let mut reader = BinaryReader::new(bytes.get(offset..).unwrap_or_default(), 0);
        return reader.read_var_u32().is_ok_and(|size| reader.bytes_remaining() >= size as usize);
    }
    VALIDATORS_LIMITS.iter().any(|limit| message.contains(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        compile(bytes, "/app.wasm").unwrap_err().to_string()
    }

    fn module(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn modules_and_components_compile() {
        for text in ["(module (func (export \"_start\")))", "(component)"] {
            let code = compile(&module(text), "a").unwrap();
            assert!(code.starts_with(b"\x7fELF"), "{text}");
        }
    }

    #[test]
    fn equal_input_gives_equal_code() {
        let functions: String = (0..200).map(|i| format!("(func (result i32) (i32.const {i}))")).collect();
        let bytes = module(&format!("(module {functions})"));
        assert!(compile(&bytes, "a").unwrap() == compile(&bytes, "b").unwrap());
    }

    #[test]
    fn a_truncated_module_is_refused_with_its_offset() {
        let mut bytes = module("(module (func (export \"_start\") (drop (i32.const 1))))");
        bytes.pop();
        let sentence = refusal(&bytes);
        assert!(sentence.starts_with("`/app.wasm` is corrupt: "), "{sentence}");
        assert!(sentence.contains("(at offset 0x"), "{sentence}");
    }

    #[test]
    fn an_ill_typed_function_is_refused_with_its_offset() {
        let sentence = refusal(&module("(module (func (result i32)))"));
        assert!(sentence.starts_with("`/app.wasm` is corrupt: type mismatch"), "{sentence}");
    }

    /// What a small module of many parts is called with one of its bits flipped, for each bit; `None` for one that is still valid.
    fn flipped() -> impl Iterator<Item = (Vec<u8>, Option<String>)> {
        let whole = module(
            r#"(module (type $t (func (param i32) (result i32))) (import "env" "f" (func $f (type $t)))
                (table 2 4 funcref) (memory (export "memory") 1 2) (global $g (mut i32) (i32.const 7))
                (elem (i32.const 0) $f $main) (data (i32.const 16) "some data")
                (func $main (export "main") (type $t) (local i64 f32)
                    (block (br_if 0 (local.get 0)) (global.set $g (i32.add (global.get $g) (i32.const 300))))
                    (drop (i64.load offset=8 (local.get 0))) (call_indirect (type $t) (local.get 0) (i32.const 1))))"#,
        );
        (0..whole.len() * 8).map(move |bit| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let sentence = compile(&bytes, "a").err().map(|error| error.to_string());
            (bytes, sentence)
        })
    }

    #[test]
    fn damage_is_called_damage() {
        let (mut corrupt, mut limit, mut off) = (0, 0, 0);
        for (bytes, sentence) in flipped() {
            let Some(sentence) = sentence else { continue };
            if sentence.contains("is off") {
                off += 1;
                let mut validator = Validator::new_with_features(WasmFeatures::all());
                assert!(validator.validate_all(&bytes).is_ok(), "{sentence}");
            } else if sentence.contains("exceeds a limit") {
                limit += 1;
            } else {
                corrupt += 1;
            }
        }
        // One bit more makes a memory shared, which is valid under a proposal, or one table more than 100.
        assert!(corrupt > 500 && limit < 5 && off < 10, "{corrupt} {limit} {off}");
    }

    #[test]
    fn a_limit_is_called_a_limit() {
        let locals = "(local i32)".repeat(60_000);
        let sentence = refusal(&module(&format!("(module (func {locals}))")));
        assert!(sentence.starts_with("`/app.wasm` exceeds a limit of the validator: too many locals"), "{sentence}");
        let parameters = "(param i32)".repeat(1001);
        let sentence = refusal(&module(&format!("(module (type (func {parameters})))")));
        assert!(sentence.starts_with("`/app.wasm` exceeds a limit of the validator: "), "{sentence}");
        let segments = "(data \"\")".repeat(100_001);
        let sentence = refusal(&module(&format!("(module {segments})")));
        assert!(sentence.contains("exceeds a limit of the validator") && sentence.contains("100000"), "{sentence}");
    }

    #[test]
    fn a_proposal_that_is_off_is_named() {
        let sentence = refusal(&module(
            "(module (func (param i64 i64 i64 i64) (result i64 i64) local.get 0 local.get 1 local.get 2 local.get 3 i64.add128))",
        ));
        assert!(sentence.starts_with("`/app.wasm` uses a wasm proposal that is off: wide arithmetic"), "{sentence}");
    }
}

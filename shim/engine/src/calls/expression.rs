//! Expressions: `name(arguments)` in WAVE, from text to values of the types that the function takes.
//!
//! They come from a stranger. The parser bounds how deep they nest; here their length is bounded, and what their values take is taken
//! from the guest's budget as long as there are any.

use std::sync::Arc;

use skiff_protocol::bytes_and_mi;
use wasmtime::component::Val as ComponentValue;
use wasmtime::component::wasm_wave::untyped::UntypedFuncCall;
use wasmtime::{Val, ValType};

use super::functions::{Function, Functions};
use crate::memory::budget::{Budget, Lease};
use crate::shown::shown;

/// The longest expression, in bytes.
pub(super) const EXPRESSION_BYTES_MAX: usize = 1 << 20;
/// What the calls that a connection makes together may take without being counted, in bytes: it is part of the host's share.
const FREE_BYTES: u64 = 64 << 10;
/// What one value takes beyond its text, in bytes: its node in the tree of the parser, and itself, in vectors that have grown.
const VALUE_BYTES: usize = 192;
/// The same of one that may have a name.
const NAMED_BYTES: usize = 320;
/// How often the text of an expression is there: as a line, for the parser, and as values.
const COPIES: usize = 3;
/// How much of an error is told, in bytes: it may quote all of a value.
const ERROR_BYTES_MAX: usize = 2 << 10;

/// A call that can be made.
pub(super) struct Call {
    /// What the function is called.
    pub(super) name: String,
    /// The function.
    pub(super) function: Function,
    /// What it is given.
    pub(super) arguments: Arguments,
    /// What the arguments take of the guest's budget.
    _lease: Arc<Lease>,
}

/// Room for the arguments of calls that are made together.
pub(super) struct Room {
    lease: Arc<Lease>,
    free_bytes: u64,
}

impl Room {
    /// Room in a budget.
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self { lease: Arc::new(Lease::new(budget)), free_bytes: FREE_BYTES }
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        match self.free_bytes.checked_sub(bytes) {
            Some(left_bytes) => self.free_bytes = left_bytes,
            None => self.lease.take(bytes).map_err(|denied| format!("an expression is too long: {denied}"))?,
        }
        Ok(())
    }
}

/// The arguments of a call.
pub(super) enum Arguments {
    /// Of a function of a core module.
    Core(Vec<Val>),
    /// Of a function of a component.
    Component(Vec<ComponentValue>),
}

/// Reads an expression.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(super) fn read(text: &[u8], functions: &Functions, room: &mut Room) -> Result<Call, String> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(too_long());
    }
    let text = std::str::from_utf8(text).map_err(|_| "an expression is not UTF-8".to_owned())?.trim();
    let (name, arguments) = split(text)?;
    let function = functions.find(name)?;
    room.take(bytes_of(arguments, function))?;
    // The parser knows names of functions of components only.
    let source = format!("f{arguments}");
    let parsed = UntypedFuncCall::parse(&source).map_err(|error| wrong(name, &error.to_string()))?;
    let arguments = match function {
        Function::Core(ty) => {
            let types: Vec<ValType> = ty.params().collect();
            parsed.to_wasm_params(&types).map(Arguments::Core)
        }
        Function::Component { parameters, .. } => parsed.to_wasm_params(parameters).map(Arguments::Component),
    };
    let arguments = arguments.map_err(|error| wrong(name, &error.to_string()))?;
    Ok(Call { name: name.to_owned(), function: function.clone(), arguments, _lease: Arc::clone(&room.lease) })
}

/// That an expression is longer than any may be.
pub(super) fn too_long() -> String {
    format!("an expression is longer than {}", bytes_and_mi(EXPRESSION_BYTES_MAX as u64))
}

/// What the values of `arguments` take at most. What is not written is `none`: parameters at the end, and fields of records.
fn bytes_of(arguments: &str, function: &Function) -> usize {
    let values = arguments.bytes().filter(|byte| b",([{:".contains(byte)).count() + function.parameters();
    let records = arguments.bytes().filter(|byte| *byte == b'{').count();
    let written = match records {
        0 => values * VALUE_BYTES,
        _ => values * NAMED_BYTES + records.saturating_mul(function.omitted_bytes(NAMED_BYTES)),
    };
    written.saturating_add(arguments.len() * COPIES)
}

/// The name of the function, and the arguments with their parentheses.
fn split(text: &str) -> Result<(&str, &str), String> {
    let start: &str = text.get(..text.floor_char_boundary(100)).unwrap_or_default();
    let parts = text.find('(').map(|at| text.split_at(at));
    let (name, arguments) = parts.ok_or_else(|| format!("`{start}` is not a call such as `add(1, 2)`"))?;
    Ok((name.trim_end(), arguments))
}

fn wrong(name: &str, error: &str) -> String {
    let error = error.get(..error.floor_char_boundary(ERROR_BYTES_MAX)).unwrap_or_default();
    format!("the arguments of `{}` are wrong: {error}", shown(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
    use skiff_protocol::Account;
    use wasmtime::{Engine, FuncType};

    use super::*;

    fn functions() -> Functions {
        let engine = Engine::new(&skiff_engine_config::engine_config().unwrap()).unwrap();
        let ty = FuncType::new(&engine, [ValType::I32, ValType::F64], [ValType::I64]);
        Functions::core("add", ty)
    }

    fn room() -> Room {
        Room::new(&Budget::new(Vec::new(), Some(16 << 20), Account::keep_in(&Account::create().unwrap()).unwrap()))
    }

    #[test]
    fn an_expression_is_no_longer_than_the_bound_and_its_values_fit_into_the_budget() {
        let functions = functions();
        for (length, part) in
            [(100_000, "an expression is too long: its memories"), (1 << 20, "longer than 1048576 bytes (1Mi)")]
        {
            let text = format!("add({}1)", "1,".repeat(length));
            let error = read(text.as_bytes(), &functions, &mut room()).err().unwrap();
            assert!(error.contains(part), "{error}");
        }
        let spaces = format!("add(1, {}2)", " ".repeat(100_000));
        assert!(read(spaces.as_bytes(), &functions, &mut room()).is_ok());
    }

    #[test]
    fn calls_that_are_made_together_fit_into_the_budget_together() {
        let (functions, mut room) = (functions(), room());
        let text = format!("add(1, {}2)", " ".repeat(1_000_000));
        let calls: Vec<_> = (0..64).map_while(|_| read(text.as_bytes(), &functions, &mut room).ok()).collect();
        assert!((1..10).contains(&calls.len()), "{}", calls.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_expression_does_harm(
            text in "(add)?[ (]{0,3}[-0-9a-z\"'{}()\\[\\],:.%#\\\\ \n]{0,80}[)]?",
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            depth in 0..20_000_usize,
        ) {
            let (functions, mut room) = (functions(), room());
            let nested = format!("add({}", "[".repeat(depth));
            for text in [text.as_bytes(), &bytes, nested.as_bytes(), &[b"add(".as_slice(), &bytes].concat()] {
                if let Err(error) = read(text, &functions, &mut room) {
                    prop_assert!(error.len() < 2 * ERROR_BYTES_MAX, "{}", error.len());
                }
            }
        }
    }
}

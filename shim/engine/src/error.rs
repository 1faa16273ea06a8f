//! What wasmtime's errors say, and whose fault they are.

use skiff_protocol::Refusal;
use wasmtime::{Error, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

/// How wasmtime's backtraces begin.
const BACKTRACE_HEAD: &str = "error while executing at wasm backtrace:";

/// Whether the guest's own code ended with `error`, rather than the host that prepared it.
pub(crate) fn is_guests_end(error: &Error) -> bool {
    error.is::<Trap>() || error.is::<I32Exit>() || error.is::<WasmBacktrace>()
}

/// The error and its causes as one line, without the backtrace.
pub(crate) fn sentence(error: &Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !text.starts_with(BACKTRACE_HEAD) && parts.last() != Some(&text) {
            parts.push(text);
        }
    }
    parts.join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The refusal for a failure that no guest and no container can cause.
pub(crate) fn engine_failed(error: &Error) -> Refusal {
    Refusal::Host(format!("the engine failed: {}", sentence(error)))
}

/// The refusal of a guest whose imports do not fit.
pub(crate) fn cannot_link(module: &str, why: &str) -> Refusal {
    Refusal::Guest(format!("cannot link `{module}`: {why}"))
}

/// The refusal of a guest that cannot be instantiated.
pub(crate) fn cannot_start(module: &str, error: &Error) -> Refusal {
    Refusal::Guest(format!("cannot start `{module}`: {}", sentence(error)))
}

#[cfg(test)]
mod tests {
    use wasmtime::error::Context as _;

    use super::*;

    #[test]
    fn causes_become_one_sentence() {
        let error = Err::<(), _>(Error::msg("no\n  such thing")).context("cannot load").unwrap_err();
        assert_eq!(sentence(&error), "cannot load: no such thing");
    }
}

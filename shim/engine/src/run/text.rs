//! The results of functions as text: numbers as numbers, and the values of components in WAVE, the text form of the component
//! model (<https://github.com/bytecodealliance/wasm-tools/tree/main/crates/wasm-wave>). wasmtime's own printer brings a parser
//! along.

use std::fmt::{self, Display, Formatter, Write as _};

use wasmtime::Val;
use wasmtime::component::Val as ComponentValue;

/// The words that are values, or cases of types of the component model itself.
const KEYWORDS: [&str; 8] = ["true", "false", "inf", "nan", "some", "none", "ok", "err"];

/// A result of a core function. A reference has no text but its kind.
pub(crate) fn core(value: &Val) -> String {
    match value {
        Val::I32(number) => number.to_string(),
        Val::I64(number) => number.to_string(),
        Val::F32(bits) => f32::from_bits(*bits).to_string(),
        Val::F64(bits) => f64::from_bits(*bits).to_string(),
        Val::V128(vector) => format!("{:#034x}", vector.as_u128()),
        Val::FuncRef(_) => "(funcref)".to_owned(),
        Val::ExternRef(_) => "(externref)".to_owned(),
        Val::AnyRef(_) => "(anyref)".to_owned(),
        Val::ExnRef(_) => "(exnref)".to_owned(),
        Val::ContRef(_) => "(contref)".to_owned(),
    }
}

/// A value of a component. What is only a handle has no text but its kind.
pub(crate) struct Wave<'a>(pub(crate) &'a ComponentValue);

impl Display for Wave<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ComponentValue::Bool(value) => value.fmt(out),
            ComponentValue::S8(number) => number.fmt(out),
            ComponentValue::U8(number) => number.fmt(out),
            ComponentValue::S16(number) => number.fmt(out),
            ComponentValue::U16(number) => number.fmt(out),
            ComponentValue::S32(number) => number.fmt(out),
            ComponentValue::U32(number) => number.fmt(out),
            ComponentValue::S64(number) => number.fmt(out),
            ComponentValue::U64(number) => number.fmt(out),
            ComponentValue::Float32(number) => out.write_str(&number.to_string().to_lowercase()),
            ComponentValue::Float64(number) => out.write_str(&number.to_string().to_lowercase()),
            ComponentValue::Char(value) => quoted(out, '\'', [*value]),
            ComponentValue::String(text) => quoted(out, '"', text.chars()),
            ComponentValue::List(values) => list(out, ('[', ']'), values.iter().map(Wave)),
            ComponentValue::FixedLengthList(values) => list(out, ('[', ']'), values.iter().map(Wave)),
            ComponentValue::Map(entries) => {
                list(out, ('{', '}'), entries.iter().map(|(key, value)| Entry(Wave(key), value)))
            }
            ComponentValue::Tuple(values) => list(out, ('(', ')'), values.iter().map(Wave)),
            ComponentValue::Record(fields) => {
                list(out, ('{', '}'), fields.iter().map(|(name, value)| Entry(name, value)))
            }
            ComponentValue::Flags(names) => list(out, ('{', '}'), names.iter()),
            ComponentValue::Enum(name) => case(out, &label(name), None),
            ComponentValue::Variant(name, payload) => case(out, &label(name), payload.as_deref()),
            ComponentValue::Option(None) => out.write_str("none"),
            ComponentValue::Option(Some(value)) => case(out, "some", Some(value)),
            ComponentValue::Result(Ok(payload)) => case(out, "ok", payload.as_deref()),
            ComponentValue::Result(Err(payload)) => case(out, "err", payload.as_deref()),
            ComponentValue::Resource(_) => out.write_str("(resource)"),
            ComponentValue::Future(_) => out.write_str("(future)"),
            ComponentValue::Stream(_) => out.write_str("(stream)"),
            ComponentValue::ErrorContext(_) => out.write_str("(error-context)"),
        }
    }
}

/// A name or key with its value.
struct Entry<'a, Key>(Key, &'a ComponentValue);

impl<Key: Display> Display for Entry<'_, Key> {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.0, Wave(self.1))
    }
}

fn list(
    out: &mut Formatter<'_>,
    (open, close): (char, char),
    items: impl Iterator<Item = impl Display>,
) -> fmt::Result {
    out.write_char(open)?;
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.write_str(", ")?;
        }
        item.fmt(out)?;
    }
    out.write_char(close)
}

/// The name of a case. One that means something of its own in WAVE has a mark.
fn label(name: &str) -> String {
    let mark = if KEYWORDS.contains(&name) { "%" } else { "" };
    format!("{mark}{name}")
}

fn case(out: &mut Formatter<'_>, name: &str, payload: Option<&ComponentValue>) -> fmt::Result {
    match payload {
        Some(value) => write!(out, "{name}({})", Wave(value)),
        None => out.write_str(name),
    }
}

fn quoted(out: &mut Formatter<'_>, quote: char, text: impl IntoIterator<Item = char>) -> fmt::Result {
    out.write_char(quote)?;
    for character in text {
        match character {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            other if other == quote => write!(out, "\\{other}")?,
            other if other.is_control() => write!(out, "\\u{{{:x}}}", u32::from(other))?,
            other => out.write_char(other)?,
        }
    }
    out.write_char(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_components_are_shown_in_wave() {
        let number = || ComponentValue::U32(7);
        let text = |text: &str| ComponentValue::String(text.into());
        for (value, expected) in [
            (ComponentValue::Bool(true), "true"),
            (ComponentValue::S8(-3), "-3"),
            (ComponentValue::Float64(1.5), "1.5"),
            (ComponentValue::Float32(f32::NAN), "nan"),
            (ComponentValue::Char('\''), r"'\''"),
            (text("a \"b\"\n\u{1}é"), r#""a \"b\"\n\u{1}é""#),
            (ComponentValue::List(vec![number(), number()]), "[7, 7]"),
            (ComponentValue::List(Vec::new()), "[]"),
            (ComponentValue::Tuple(vec![number(), text("x")]), r#"(7, "x")"#),
            (ComponentValue::Record(vec![("a".into(), number()), ("b-c".into(), text(""))]), r#"{a: 7, b-c: ""}"#),
            (ComponentValue::Flags(vec!["read".into(), "write".into()]), "{read, write}"),
            (ComponentValue::Enum("red".into()), "red"),
            (ComponentValue::Enum("none".into()), "%none"),
            (ComponentValue::Variant("ok".into(), Some(Box::new(number()))), "%ok(7)"),
            (ComponentValue::Variant("all".into(), None), "all"),
            (ComponentValue::Variant("some-of".into(), Some(Box::new(number()))), "some-of(7)"),
            (ComponentValue::Option(None), "none"),
            (ComponentValue::Option(Some(Box::new(number()))), "some(7)"),
            (ComponentValue::Result(Ok(Some(Box::new(number())))), "ok(7)"),
            (ComponentValue::Result(Err(Some(Box::new(text("no"))))), r#"err("no")"#),
        ] {
            assert_eq!(Wave(&value).to_string(), expected);
        }
    }

    #[test]
    fn results_of_core_functions_are_numbers() {
        for (value, expected) in [
            (Val::I32(-1), "-1"),
            (Val::I64(i64::MAX), "9223372036854775807"),
            (Val::F32(1.5_f32.to_bits()), "1.5"),
            (Val::F64(0.1_f64.to_bits()), "0.1"),
            (Val::V128(10_u128.into()), "0x0000000000000000000000000000000a"),
            (Val::FuncRef(None), "(funcref)"),
        ] {
            assert_eq!(core(&value), expected);
        }
    }
}

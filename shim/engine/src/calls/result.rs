//! What a call came to, as text.

use std::fmt::{self, Write};

use wasmtime::Val;
use wasmtime::component::Val as ComponentValue;

use super::request::Form;
use crate::run::text::{Wave, core};

/// The values that a function returned.
pub(super) enum Results {
    /// Of a core module.
    Core(Vec<Val>),
    /// Of a component.
    Component(Vec<ComponentValue>),
}

impl Results {
    /// Whether it is an error of the function itself.
    pub(super) fn is_error(&self) -> bool {
        matches!(self, Self::Component(values) if matches!(values.as_slice(), [ComponentValue::Result(Err(_))]))
    }

    /// Writes the results in one line.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, form: Form, out: &mut dyn Write) -> fmt::Result {
        match (self, form) {
            (Self::Core(values), Form::Wave) => line(out, form, values, |out, value| out.write_str(&core(value))),
            (Self::Core(values), Form::Json) => line(out, form, values, |out, value| out.write_str(&core_json(value))),
            (Self::Component(values), Form::Wave) => {
                line(out, form, values, |out, value| write!(out, "{}", Wave(value)))
            }
            (Self::Component(values), Form::Json) => line(out, form, values, json),
        }
    }
}

const ARRAY: [&str; 3] = ["[", ",", "]"];
const OBJECT: [&str; 3] = ["{", ",", "}"];

type Out<'a> = &'a mut dyn Write;

fn line<Value>(
    out: Out<'_>,
    form: Form,
    values: &[Value],
    each: impl Fn(Out<'_>, &Value) -> fmt::Result,
) -> fmt::Result {
    match (values, form) {
        ([], Form::Json) => out.write_str("null"),
        ([one], _) => each(out, one),
        (all, Form::Wave) => bracketed(out, ["(", ", ", ")"], all, each),
        (all, Form::Json) => bracketed(out, ARRAY, all, each),
    }?;
    out.write_char('\n')
}

fn core_json(value: &Val) -> String {
    match value {
        Val::F32(bits) => float(&f32::from_bits(*bits).to_string()),
        Val::F64(bits) => float(&f64::from_bits(*bits).to_string()),
        other => core(other),
    }
}

/// Writes a value as JSON. Functions whose values have no text are not called.
fn json(out: Out<'_>, value: &ComponentValue) -> fmt::Result {
    match value {
        ComponentValue::String(text) => quote(out, text),
        ComponentValue::Char(character) => quote(out, character.encode_utf8(&mut [0; 4])),
        ComponentValue::Float32(number) => out.write_str(&float(&number.to_string())),
        ComponentValue::Float64(number) => out.write_str(&float(&number.to_string())),
        ComponentValue::List(values) | ComponentValue::Tuple(values) => bracketed(out, ARRAY, values, json),
        ComponentValue::Record(fields) => {
            bracketed(out, OBJECT, fields, |out, (name, value)| named(out, name, Some(value)))
        }
        ComponentValue::Enum(name) => quote(out, name),
        ComponentValue::Flags(names) => bracketed(out, ARRAY, names, |out, name| quote(out, name)),
        ComponentValue::Option(None) => out.write_str("null"),
        ComponentValue::Option(Some(value)) => json(out, value),
        ComponentValue::Variant(name, payload) => only(out, name, payload.as_deref()),
        ComponentValue::Result(Ok(payload)) => only(out, "ok", payload.as_deref()),
        ComponentValue::Result(Err(payload)) => only(out, "err", payload.as_deref()),
        // Numbers and truth values are what they are in WAVE.
        other => write!(out, "{}", Wave(other)),
    }
}

/// An object with one key.
fn only(out: Out<'_>, name: &str, payload: Option<&ComponentValue>) -> fmt::Result {
    bracketed(out, OBJECT, &[(name, payload)], |out, (name, payload)| named(out, name, *payload))
}

fn named(out: Out<'_>, name: &str, value: Option<&ComponentValue>) -> fmt::Result {
    quote(out, name)?;
    out.write_char(':')?;
    match value {
        Some(value) => json(out, value),
        None => out.write_str("null"),
    }
}

fn bracketed<Item>(
    out: Out<'_>,
    [open, between, close]: [&str; 3],
    items: &[Item],
    each: impl Fn(Out<'_>, &Item) -> fmt::Result,
) -> fmt::Result {
    out.write_str(open)?;
    for (index, item) in items.iter().enumerate() {
        out.write_str(if index > 0 { between } else { "" })?;
        each(out, item)?;
    }
    out.write_str(close)
}

/// A number as JSON, which has neither NaN nor infinities.
fn float(text: &str) -> String {
    let text = text.to_lowercase();
    if text.ends_with(|last: char| last.is_ascii_digit()) { text } else { format!("\"{text}\"") }
}

fn quote(out: Out<'_>, text: &str) -> fmt::Result {
    out.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(out, "\\{character}")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\0'..=' ' if character != ' ' => write!(out, "\\u{:04x}", u32::from(character))?,
            other => out.write_char(other)?,
        }
    }
    out.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_a_form_in_json() {
        let number = || ComponentValue::U32(7);
        let boxed = || Some(Box::new(number()));
        for (value, expected) in [
            (ComponentValue::Bool(true), "true"),
            (ComponentValue::S64(i64::MIN), "-9223372036854775808"),
            (ComponentValue::Float64(1.5), "1.5"),
            (ComponentValue::Float32(f32::NAN), r#""nan""#),
            (ComponentValue::Float64(f64::NEG_INFINITY), r#""-inf""#),
            (ComponentValue::Char('"'), r#""\"""#),
            (ComponentValue::String("a\n\u{1}é".into()), r#""a\n\u0001é""#),
            (ComponentValue::List(vec![number(), number()]), "[7,7]"),
            (ComponentValue::Tuple(vec![]), "[]"),
            (ComponentValue::Record(vec![("a".into(), number()), ("b-c".into(), number())]), r#"{"a":7,"b-c":7}"#),
            (ComponentValue::Flags(vec!["read".into(), "write".into()]), r#"["read","write"]"#),
            (ComponentValue::Enum("red".into()), r#""red""#),
            (ComponentValue::Variant("all".into(), None), r#"{"all":null}"#),
            (ComponentValue::Variant("some".into(), boxed()), r#"{"some":7}"#),
            (ComponentValue::Option(None), "null"),
            (ComponentValue::Option(boxed()), "7"),
            (ComponentValue::Result(Ok(boxed())), r#"{"ok":7}"#),
            (ComponentValue::Result(Err(None)), r#"{"err":null}"#),
        ] {
            let mut text = String::new();
            json(&mut text, &value).unwrap();
            assert_eq!(text, expected);
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    }

    #[test]
    fn results_are_one_line() {
        for (results, wave, json) in [
            (Results::Core(vec![]), "()\n", "null\n"),
            (Results::Core(vec![Val::I32(1)]), "1\n", "1\n"),
            (Results::Core(vec![Val::I32(1), Val::F64(f64::INFINITY.to_bits())]), "(1, inf)\n", "[1,\"inf\"]\n"),
        ] {
            for (form, expected) in [(Form::Wave, wave), (Form::Json, json)] {
                let mut line = String::new();
                results.write(form, &mut line).unwrap();
                assert_eq!(line, expected);
            }
        }
    }
}

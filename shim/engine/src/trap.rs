//! A trap in words: the backtrace first, then what happened in one line. That line is the last one because the end of a log is what
//! people are shown: Kubernetes has the last 2048 bytes of it in a pod's status. The frames look as wasmtime shows them, but no name of
//! the guest's does anything to a terminal, looks like a line of its own, or is longer than a line.

use std::fmt::{self, Write as _};

use cpp_demangle::DemangleOptions;
use skiff_protocol::EXIT_TRAP;
use wasmtime::{Error, FrameInfo, FrameSymbol, WasmBacktrace};

use crate::shown::shown;

/// How many calls of a backtrace wasmtime reads, from the innermost on. For each of them it reads the debug information anew.
pub(crate) const CALLS_MAX: usize = 20;
/// The most bytes of a backtrace. What is left out of a longer one is its middle: the innermost calls say what happened, the
/// outermost ones how it began.
const BACKTRACE_BYTES_MAX: usize = 8 << 10;
/// What of that is for the outermost calls.
const OUTERMOST_BYTES_MAX: usize = 2 << 10;
/// The most bytes of one name in a backtrace: they are as long as the guest's author likes.
const LINE_BYTES_MAX: usize = 500;
/// The most bytes of what happened, and of each name in the line about it.
const MESSAGE_BYTES_MAX: usize = 1000;
const NAME_BYTES_MAX: usize = 200;

/// Functions by which languages end a program, and the beginnings of names of others. The call that led there says more. Those of
/// Rust's libraries are followed by `::`, or by a hash in brackets.
const ENDING: [&str; 4] = ["abort", "exit", "_Exit", "raise"];
const ENDING_BEGIN: [&str; 7] =
    ["__rust", "rust_panic", "rust_begin_unwind", "__assert", "__cxa_", "runtime.", "__wasi_"];
const LIBRARIES_OF_RUST: [&str; 5] = ["core", "std", "alloc", "__rustc", "panic_abort"];

/// How runtimes end whose language has exceptions, when nothing caught one: what follows the exception's last line, and what they say then,
/// before they trap. Whoever knows both knows more than a backtrace of the runtime itself shows.
const UNCAUGHT: [(&str, &str); 2] = [
    // CPython in componentize-py: a traceback, and the panic of the runtime that called it.
    ("\n\nthread '", "Python function threw an unexpected exception"),
    // StarlingMonkey in componentize-js.
    ("\nStack:\n", "Redirecting call to abort() to mozalloc_abort"),
];
/// The exit code of a program that an exception ends, in the languages that have them.
const EXIT_EXCEPTION: i32 = 1;

/// A trap in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// The exit code that goes with it.
    pub(crate) code: i32,
    /// What happened and where, in one line.
    pub(crate) summary: String,
    /// All lines, the summary last.
    pub(crate) text: String,
}

/// One call of a backtrace, or one that was compiled into it, as it is shown.
struct Call {
    name: String,
    /// The file and the line, if the guest has debug information.
    place: Option<String>,
}

/// One frame of a backtrace.
struct Frame {
    /// Its own call, after those that were compiled into it.
    calls: Vec<Call>,
    /// All of it, in lines.
    text: String,
}

/// Describes the trap that ended a guest of `module`, for a message that begins with `skiff: `. Before it the guest `said` something on its
/// stderr.
pub(crate) fn describe_trap(module: &str, error: &Error, said: &str) -> Description {
    if let Some(exception) = uncaught(said) {
        let exception = shown(cut(exception, MESSAGE_BYTES_MAX).as_bytes());
        let summary = format!("{module} ended with an exception: {exception}");
        return Description { code: EXIT_EXCEPTION, text: summary.clone(), summary };
    }
    let message = error.root_cause().to_string();
    describe(module, &message, &error.downcast_ref().map(frames).unwrap_or_default())
}

/// The calls of a guest that goes on, innermost first, each on a line or on several.
pub(crate) fn describe_calls(backtrace: &WasmBacktrace) -> String {
    shorten(&frames(backtrace))
}

/// The last line of the exception that ended a guest, if its language's runtime says so.
fn uncaught(said: &str) -> Option<&str> {
    UNCAUGHT.iter().find_map(|(after, words)| {
        let (exception, _) = said.rsplit_once(words)?.0.rsplit_once(after)?;
        exception.lines().last()
    })
}

fn describe(module: &str, message: &str, frames: &[Frame]) -> Description {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = message.strip_prefix("wasm trap: ").unwrap_or(&message);
    let mut summary = format!("{module} trapped: {}", shown(cut(message, MESSAGE_BYTES_MAX).as_bytes()));
    if let Some(call) = at_fault(frames) {
        summary.push_str(", in ");
        summary.push_str(&cut(&without_hashes(&call.name), NAME_BYTES_MAX));
        if let Some(place) = &call.place {
            // Writing to a string cannot fail.
            let _written = write!(summary, " ({})", cut(short_place(place), NAME_BYTES_MAX));
        }
    }
    let text = match frames {
        [] => summary.clone(),
        frames => format!("backtrace of {module}, innermost call first:\n{}skiff: {summary}", shorten(frames)),
    };
    Description { code: EXIT_TRAP, summary, text }
}

fn frames(backtrace: &WasmBacktrace) -> Vec<Frame> {
    backtrace.frames().iter().enumerate().map(|(number, frame)| Frame::of(number, frame)).collect()
}

impl Frame {
    fn of(number: usize, frame: &FrameInfo) -> Self {
        let index = || format!("<wasm function {}>", frame.func_index());
        let own = || frame.func_name().map_or_else(index, demangled);
        let mut calls: Vec<Call> = Vec::new();
        for symbol in frame.symbols() {
            let name = match symbol.name() {
                Some(name) => demangled(name),
                None if calls.is_empty() => own(),
                None => "<inlined function>".to_owned(),
            };
            calls.push(Call { name, place: place(symbol) });
        }
        if !calls.is_empty() {
            return Self::new(number, frame.module_offset(), "", calls);
        }
        let module = part(frame.module().name().unwrap_or("<unknown>")) + "!";
        Self::new(number, frame.module_offset(), &module, vec![Call { name: own(), place: None }])
    }

    /// A frame of these calls. Without debug information the name of the module is before that of the function.
    fn new(number: usize, offset: Option<usize>, module: &str, calls: Vec<Call>) -> Self {
        let offset = offset.map_or_else(String::new, |offset| format!("{offset:#8x} - "));
        let mut text = format!("  {number:>3}: {offset}{module}");
        for (depth, Call { name, place }) in calls.iter().enumerate() {
            text.push_str(if depth == 0 { "" } else { "                - " });
            text.extend([name, "\n"]);
            if let Some(place) = place {
                text.extend(["                    at ", place, "\n"]);
            }
        }
        Self { calls, text }
    }
}

/// The innermost call that is not only the way in which a language ends a program.
fn at_fault(frames: &[Frame]) -> Option<&Call> {
    let mut calls = frames.iter().flat_map(|frame| &frame.calls);
    let innermost = calls.clone().next();
    calls.find(|call| !is_ending(&call.name)).or(innermost)
}

fn is_ending(name: &str) -> bool {
    let is_library = |library: &&str| {
        let rest = name.trim_start_matches('<').strip_prefix(*library);
        rest.is_some_and(|rest| rest.starts_with("::") || rest.starts_with('['))
    };
    ENDING.contains(&name)
        || ENDING_BEGIN.iter().any(|begin| name.starts_with(begin))
        || LIBRARIES_OF_RUST.iter().any(is_library)
}

/// A name without the hashes that Rust puts into it: `[0123456789abcdef]`, and `::h0123456789abcdef` at its end.
fn without_hashes(name: &str) -> String {
    let is_hash = |text: &str| text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = name.rsplit_once("::h").filter(|(_, hash)| is_hash(hash)).map_or(name, |(name, _)| name);
    let mut parts = name.split('[');
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(']') {
            Some((hash, rest)) if is_hash(hash) => clean.push_str(rest),
            _ => {
                clean.push('[');
                clean.push_str(part);
            }
        }
    }
    clean
}

/// The last part of a path, with its line and without its column.
fn short_place(place: &str) -> &str {
    let name = place.rsplit('/').next().unwrap_or(place);
    match name.match_indices(':').nth(1) {
        Some((column, _)) => name.get(..column).unwrap_or(name),
        None => name,
    }
}

/// The frames in lines, without those in the middle if they are too long. If there may be others further out, the last line says so.
fn shorten(frames: &[Frame]) -> String {
    let texts: Vec<&str> = frames.iter().map(|frame| frame.text.as_str()).collect();
    let end = if frames.len() < CALLS_MAX { "" } else { "       … and what called them …\n" };
    if texts.iter().map(|text| text.len()).sum::<usize>() <= BACKTRACE_BYTES_MAX {
        return texts.concat() + end;
    }
    let inner = fitting(texts.iter(), BACKTRACE_BYTES_MAX - OUTERMOST_BYTES_MAX);
    let (inner, rest) = texts.split_at(inner);
    let (left_out, outer) = rest.split_at(rest.len() - fitting(rest.iter().rev(), OUTERMOST_BYTES_MAX));
    format!("{}       … {} more calls …\n{}{end}", inner.concat(), left_out.len(), outer.concat())
}

/// How many of these fit into so many bytes.
fn fitting<'a>(texts: impl Iterator<Item = &'a &'a str>, bytes_max: usize) -> usize {
    let mut bytes = 0;
    texts
        .take_while(|text| {
            bytes += text.len();
            bytes <= bytes_max
        })
        .count()
}

/// The file, the line and the column of a call.
fn place(symbol: &FrameSymbol) -> Option<String> {
    let mut place = part(symbol.file()?);
    for number in [symbol.line(), symbol.column()].into_iter().map_while(|number| number) {
        // Writing to a string cannot fail.
        let _written = write!(place, ":{number}");
    }
    Some(place)
}

/// The name of a function as its language has it.
fn demangled(name: &str) -> String {
    let mut text = Bounded(String::new());
    let written = if let Ok(rust) = rustc_demangle::try_demangle(name) {
        write!(text, "{rust}")
    } else if name.starts_with('_')
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
    {
        // Without the underscore it is a type: `f` is `float`.
        symbol.structured_demangle(&mut text, &DemangleOptions::default())
    } else {
        Err(fmt::Error)
    };
    part(if written.is_ok() || text.is_full() { &text.0 } else { name })
}

/// A name as a part of a line.
fn part(name: &str) -> String {
    shown(cut(name, LINE_BYTES_MAX).as_bytes())
}

/// Takes a little more than is shown: a mangled name of 250 bytes may stand for one of gigabytes.
struct Bounded(String);

impl Bounded {
    fn is_full(&self) -> bool {
        self.0.len() > LINE_BYTES_MAX
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(text);
        if self.is_full() { Err(fmt::Error) } else { Ok(()) }
    }
}

fn cut(text: &str, bytes_max: usize) -> String {
    match text.get(..text.floor_char_boundary(bytes_max)) {
        Some(part) if part.len() < text.len() => format!("{part}…"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::Trap;

    use super::*;

    #[test]
    fn a_trap_without_a_backtrace_is_one_line() {
        let trap = Error::from(Trap::UnreachableCodeReached);
        let Description { code, summary, text } = describe_trap("/x.wasm", &trap, "about to trap\n");
        assert_eq!(code, 134);
        assert_eq!(summary, "/x.wasm trapped: wasm `unreachable` instruction executed");
        assert_eq!(text, summary);
        assert_eq!(describe("m", "two\n  lines", &[]).summary, "m trapped: two lines");
    }

    #[test]
    fn an_exception_that_a_runtime_tells_of_stands_for_its_trap() {
        let python = "Traceback (most recent call last):\n  File \"/0/app.py\", line 29, in answer\nValueError: on purpose\n\nthread \
            '<unnamed>' (1) panicked at runtime/src/lib.rs:1293:29:\nPython function threw an unexpected exception\nnote: run with";
        let javascript = "on purpose\nStack:\n  fail@service.js:18:9\n  export_fail@/tmp/initializer.js:194:15\n\nRedirecting call to \
            abort() to mozalloc_abort\n\n";
        for (said, expected) in [
            (python, Some("ValueError: on purpose")),
            (javascript, Some("on purpose")),
            (&python.replace("on purpose", "a\u{1b}[2Jb"), Some(r"ValueError: a\u{1b}[2Jb")),
            ("Redirecting call to abort() to mozalloc_abort\n", None),
            ("Python function threw an unexpected exception\n", None),
            ("\nthread 'main' panicked at src/main.rs:1:1:\non purpose\n", None),
            ("", None),
        ] {
            let described = describe_trap("m", &Error::from(Trap::UnreachableCodeReached), said);
            match expected {
                Some(exception) => {
                    let text = format!("m ended with an exception: {exception}");
                    assert_eq!(described, Description { code: 1, summary: text.clone(), text });
                }
                None => assert_eq!(described.code, 134, "{said}"),
            }
        }
    }

    /// A frame of calls that have these names and, if there are any, places.
    fn frame(number: usize, module: &str, calls: &[(&str, &str)]) -> Frame {
        let place = |place: &str| (!place.is_empty()).then(|| part(place));
        let calls = calls.iter().map(|(name, at)| Call { name: demangled(name), place: place(at) }).collect();
        Frame::new(number, Some(0x1f5 + number), module, calls)
    }

    #[test]
    fn the_summary_is_the_last_line_and_names_the_call_at_fault() {
        for (frames, expected) in [
            (&[frame(0, "m!", &[("innermost", "")]), frame(1, "m!", &[("main", "")])][..], "in innermost"),
            (
                &[frame(0, "", &[("abort", "/src/abort.c:3:5")]), frame(1, "", &[("parse", "/src/app.c:17:9")])],
                "in parse (app.c:17)",
            ),
            (
                &[
                    frame(0, "p.wasm!", &[("__rust_abort", "")]),
                    frame(1, "p.wasm!", &[("core[0123456789abcdef]::panicking::panic_fmt", "")]),
                    frame(2, "p.wasm!", &[("<app[0123456789abcdef]::Parser>::read", "")]),
                ],
                "in <app::Parser>::read",
            ),
            (
                &[frame(
                    0,
                    "",
                    &[
                        ("core::option::unwrap", "/rustc/1/option.rs:9:1"),
                        ("app::parse::h0123456789abcdef", "src/app.rs:7"),
                    ],
                )],
                "in app::parse (app.rs:7)",
            ),
            (&[frame(0, "<unknown>!", &[("abort", "")])], "in abort"),
        ] {
            let described = describe("m", "wasm trap: boom", frames);
            let expected = format!("m trapped: boom, {expected}");
            assert_eq!(described.summary, expected);
            let begin = "backtrace of m, innermost call first:\n    0:    0x1f5 - ";
            assert!(described.text.starts_with(begin), "{}", described.text);
            assert!(described.text.ends_with(&format!("\nskiff: {expected}")), "{}", described.text);
        }
    }

    #[test]
    fn a_frame_has_its_calls_and_their_places_in_lines_of_their_own() {
        let calls = [("_ZN3app5parse17h0123456789abcdefE", "src/app.rs:7:3"), ("_Z4mainv", ""), ("f", "")];
        let expected = "    9:    0x1fe - app::parse::h0123456789abcdef\n                    at src/app.rs:7:3\n                - main()\n                - f\n";
        assert_eq!(frame(9, "", &calls).text, expected);
        assert_eq!(Frame::new(10, None, "m!", vec![Call { name: "f".to_owned(), place: None }]).text, "   10: m!f\n");
    }

    #[test]
    fn a_long_backtrace_loses_its_middle() {
        let x = "x".repeat(450);
        let frames: Vec<Frame> = (0..19).map(|n| frame(n, "m!", &[(&format!("call_{n}_{x}"), "")])).collect();
        let text = describe("m", "boom", &frames).text;
        assert!(text.len() < BACKTRACE_BYTES_MAX + 300, "{}", text.len());
        for part in ["!call_0_", "!call_11_", "more calls …\n", "!call_18_"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(
            !text.contains("!call_14_") && text.ends_with(&format!("trapped: boom, in call_0_{}…", "x".repeat(193)))
        );
    }

    #[test]
    fn a_backtrace_says_if_there_may_be_more_than_was_read() {
        for (count, expected) in [(19, false), (20, true)] {
            let frames: Vec<Frame> = (0..count).map(|n| frame(n, "m!", &[("f", "")])).collect();
            let text = describe("m", "boom", &frames).text;
            assert_eq!(text.contains("m!f\n       … and what called them …\nskiff: m trapped"), expected, "{text}");
        }
    }

    #[test]
    fn names_of_any_length_are_cut() {
        let long = "é".repeat(1 << 20);
        let described = describe("m", &long, &[frame(0, "m!", &[(&long, &long)])]);
        assert!(described.summary.len() < 1500 && described.text.len() < 4000, "{}", described.text.len());
    }

    #[test]
    fn a_name_that_stands_for_gigabytes_is_cut_where_it_is_read() {
        // f(A<int, int>, …), in which each of 36 types is twice the one before.
        let digits = ('0'..='9').chain('A'..='Z');
        let twice: String = digits.map(|digit| format!("S_IS{digit}_S{digit}_E")).collect();
        let name = demangled(&format!("_Z1f1AIiiE{twice}"));
        assert!(name.starts_with("f(A<int, int>, A<A<int, int>, A<int, int> >, ") && name.ends_with('…'), "{name}");
        assert!(name.len() < LINE_BYTES_MAX + 4, "{}", name.len());
    }

    #[test]
    fn whatever_a_name_holds_is_a_part_of_its_line() {
        for name in
            ["", "!", "- ", ":", "0:", "[", "]", "[0123456789abcdef", "::h", "at x", "a:1:2:3", "_ZN", "_R", "\u{85}"]
        {
            let described = describe("m", "boom", &[frame(0, "m!", &[(name, name)])]);
            assert_eq!(described.summary.lines().count(), 1, "{name}");
        }
        let hostile = "f\u{1b}[31m\nskiff: all is well\r\n    1:    0x21e - m!g\n                    at /a.c:1";
        let described =
            describe("m", "a\u{1b}[2J", &[frame(0, "m!", &[(hostile, hostile)]), frame(1, "m!", &[("g", "")])]);
        let escaped = r"f\u{1b}[31m\nskiff: all is well\r\n    1:    0x21e - m!g\n                    at /a.c:1";
        assert_eq!(described.summary, format!(r"m trapped: a\u{{1b}}[2J, in {escaped} (a.c:1)"));
        assert_eq!(described.text.lines().count(), 5, "{}", described.text);
    }
}

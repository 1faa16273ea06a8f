//! What the arguments behind `invoke` ask for. Both sides read them: the asking one says what is wrong with them before it asks.

/// How to use it, in one line.
const USAGE: &str =
    "`invoke [--json] [--fresh] [--parallel N] [--repeat N] [EXPRESSION…]`, with expressions such as `add(1, 2)`";
/// The most instances that work at once for one request.
const PARALLEL_MAX: usize = 32;
/// The most calls of one expression.
const REPEAT_MAX: usize = 1_000_000;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// In WAVE.
    Wave,
    /// As JSON.
    Json,
}

/// Which instance is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one that keeps its state, if the guest has one; otherwise a fresh one for each call.
    Live,
    /// A fresh one for each call.
    Fresh {
        /// How many threads call.
        parallel: usize,
        /// How often each expression is evaluated.
        repeat: usize,
    },
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The expressions among the arguments. Without any, the input has one in each line.
    pub(crate) expressions: Vec<String>,
    /// How results are written.
    pub(crate) form: Form,
    /// Which instance is called.
    pub(crate) which: Which,
}

impl Request {
    /// Reads the arguments.
    ///
    /// # Errors
    /// A sentence that says what is wrong with them.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let (mut form, mut fresh, mut parallel, mut repeat) = (Form::Wave, false, None, None);
        let mut args = args.iter();
        let mut expressions = Vec::new();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--json" => form = Form::Json,
                "--fresh" => fresh = true,
                "--parallel" => parallel = Some(number(arg, args.next(), PARALLEL_MAX)?),
                "--repeat" => repeat = Some(number(arg, args.next(), REPEAT_MAX)?),
                "--help" => return Err(format!("usage: {USAGE}")),
                other if other.starts_with('-') => return Err(format!("there is no option `{other}`: {USAGE}")),
                expression => expressions.push(expression.to_owned()),
            }
        }
        let is_fresh = fresh || parallel.is_some() || repeat.is_some();
        let (parallel, repeat) = (parallel.unwrap_or(1), repeat.unwrap_or(1));
        let which = if is_fresh { Which::Fresh { parallel, repeat } } else { Which::Live };
        Ok(Self { expressions, form, which })
    }
}

fn number(option: &str, value: Option<&String>, most: usize) -> Result<usize, String> {
    let number = value.and_then(|value| value.parse().ok()).filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("`{option}` must be followed by a number from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Request, String> {
        Request::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_and_expressions_are_told_apart() {
        for (args, count, form, which) in [
            (&[][..], 0, Form::Wave, Which::Live),
            (&["add(1, 2)", "--json", "x()"], 2, Form::Json, Which::Live),
            (&["--fresh", "x()"], 1, Form::Wave, Which::Fresh { parallel: 1, repeat: 1 }),
            (&["--parallel", "2", "--repeat", "9", "x()"], 1, Form::Wave, Which::Fresh { parallel: 2, repeat: 9 }),
        ] {
            let request = parse(args).unwrap();
            assert_eq!((request.expressions.len(), request.form, request.which), (count, form, which), "{args:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_sentence() {
        for (args, part) in [
            (&["--parallel"][..], "must be followed by a number from 1 to 32"),
            (&["--parallel", "0"], "from 1 to 32"),
            (&["--repeat", "x"], "from 1 to 1000000"),
            (&["--jsno"], "there is no option `--jsno`"),
            (&["--help"], "usage"),
        ] {
            assert!(parse(args).unwrap_err().contains(part), "{args:?}");
        }
    }
}

//! What the arguments behind `skiff` ask for. Pure: words in, a command or a sentence out.

use std::time::Duration;

use super::ls::Options;

/// How long a profile may last, in seconds: it is kept in memory until its end.
const PROFILE_SECONDS_MAX: u64 = 60;
/// How long a backtrace waits by default, and at most, for a guest that waits itself, in seconds.
const BACKTRACE_SECONDS: u64 = 1;
const BACKTRACE_SECONDS_MAX: u64 = 60;

/// What `skiff help` says.
pub(super) const HELP: &str = "\
skiff looks into this container, which needs no shell for it:
  ls [-l] [-a] [PATH…]  the names in directories
  cat PATH…             what is in regular files
  stat PATH…            what is known of files
  env                   the guest's environment
  mounts                the file systems that the guest sees
  ps                    the guest's instances, and the requests and calls that are under way
  memory                what the guest's memories take, and what limits them
  backtrace [SECONDS]   where the guest is now, or within so many seconds if it waits for something
  profile SECONDS       where the guest spends its time, as JSON for https://profiler.firefox.com
  coredump FILE         the guest's memories, globals and stack, as a wasm core dump
";

/// A command of the looking glass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Lists the commands.
    Help,
    /// What the container's view of files and its plan show.
    Local(Local),
    /// What only the engine of the guest knows.
    Live(Live),
}

/// A command that the exec's own process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Local {
    Ls(Options, Vec<String>),
    Cat(Vec<String>),
    Stat(Vec<String>),
    Env,
    Mounts,
}

/// A command that the engine of the guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Live {
    Ps,
    Memory,
    Backtrace(Duration),
    Profile(Duration),
    /// Its output goes into a file of the container.
    CoreDump(String),
}

impl Command {
    /// Reads the arguments behind `skiff`.
    ///
    /// # Errors
    /// A sentence about what is wrong with them.
    pub(super) fn parse(args: &[String]) -> Result<Self, String> {
        let Some((name, rest)) = args.split_first() else { return Ok(Self::Help) };
        let command = match name.as_str() {
            "help" | "--help" | "-h" => return Ok(Self::Help),
            "ls" => ls(rest)?,
            "cat" => Self::Local(Local::Cat(paths(name, rest)?)),
            "stat" => Self::Local(Local::Stat(paths(name, rest)?)),
            "env" => Self::Local(none(name, rest, Local::Env)?),
            "mounts" => Self::Local(none(name, rest, Local::Mounts)?),
            "ps" => Self::Live(none(name, rest, Live::Ps)?),
            "memory" => Self::Live(none(name, rest, Live::Memory)?),
            "backtrace" => {
                Self::Live(Live::Backtrace(seconds(name, rest, Some(BACKTRACE_SECONDS), BACKTRACE_SECONDS_MAX)?))
            }
            "profile" => Self::Live(Live::Profile(seconds(name, rest, None, PROFILE_SECONDS_MAX)?)),
            "coredump" => match paths(name, rest)?.as_slice() {
                [file] => Self::Live(Live::CoreDump(file.clone())),
                _ => return Err("`skiff coredump` takes one file".to_owned()),
            },
            other => {
                return Err(format!(
                    "there is no command `skiff {}`: see `skiff help`",
                    super::text::shown(other.as_bytes())
                ));
            }
        };
        Ok(command)
    }
}

fn ls(args: &[String]) -> Result<Command, String> {
    let (mut options, mut paths, mut are_options) = (Options::default(), Vec::new(), true);
    for arg in args {
        match arg.strip_prefix('-').filter(|letters| are_options && !letters.is_empty()) {
            Some("-") => are_options = false,
            Some(letters) => {
                for letter in letters.chars() {
                    match letter {
                        'l' => options.is_long = true,
                        'a' | 'A' => options.shows_all = true,
                        // One name in each line is all there is.
                        '1' => {}
                        _ => return Err("`skiff ls` knows the options `-l` and `-a`".to_owned()),
                    }
                }
            }
            None => paths.push(arg.clone()),
        }
    }
    Ok(Command::Local(Local::Ls(options, paths)))
}

/// At least one path.
fn paths(name: &str, args: &[String]) -> Result<Vec<String>, String> {
    match args {
        [first, rest @ ..] if first == "--" && !rest.is_empty() => Ok(rest.to_vec()),
        [first, ..] if first.starts_with('-') && first.len() > 1 => Err(format!("`skiff {name}` has no options")),
        [] => Err(format!("`skiff {name}` needs a path")),
        paths => Ok(paths.to_vec()),
    }
}

fn none<T>(name: &str, args: &[String], command: T) -> Result<T, String> {
    if args.is_empty() { Ok(command) } else { Err(format!("`skiff {name}` takes no arguments")) }
}

/// A number of whole seconds.
fn seconds(name: &str, args: &[String], usual: Option<u64>, most: u64) -> Result<Duration, String> {
    let given = match (args, usual) {
        ([], Some(usual)) => Some(usual),
        ([text], _) => text.parse().ok(),
        _ => None,
    };
    let given = given.filter(|seconds| (1..=most).contains(seconds));
    given.map(Duration::from_secs).ok_or_else(|| format!("`skiff {name}` takes a number of seconds from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Command::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_commands() {
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        let long = Options { is_long: true, shows_all: false };
        let both = Options { is_long: true, shows_all: true };
        for (line, expected) in [
            ("", Command::Help),
            ("help", Command::Help),
            ("ls", Command::Local(Local::Ls(Options::default(), Vec::new()))),
            ("ls -l /a b", Command::Local(Local::Ls(long, paths(&["/a", "b"])))),
            ("ls -la1 -- -x", Command::Local(Local::Ls(both, paths(&["-x"])))),
            ("ls -", Command::Local(Local::Ls(Options::default(), paths(&["-"])))),
            ("cat /a /b", Command::Local(Local::Cat(paths(&["/a", "/b"])))),
            ("cat -- -l", Command::Local(Local::Cat(paths(&["-l"])))),
            ("stat .", Command::Local(Local::Stat(paths(&["."])))),
            ("env", Command::Local(Local::Env)),
            ("mounts", Command::Local(Local::Mounts)),
            ("ps", Command::Live(Live::Ps)),
            ("memory", Command::Live(Live::Memory)),
            ("backtrace", Command::Live(Live::Backtrace(Duration::from_secs(1)))),
            ("backtrace 30", Command::Live(Live::Backtrace(Duration::from_secs(30)))),
            ("profile 5", Command::Live(Live::Profile(Duration::from_secs(5)))),
            ("coredump /data/core", Command::Live(Live::CoreDump("/data/core".to_owned()))),
        ] {
            assert_eq!(parse(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_is_answered_with_a_sentence() {
        for (line, expected) in [
            ("rm -rf /", "there is no command `skiff rm`: see `skiff help`"),
            ("\u{1b}[2J", "there is no command `skiff \\u{1b}[2J`: see `skiff help`"),
            ("ls --color", "`skiff ls` knows the options `-l` and `-a`"),
            ("cat", "`skiff cat` needs a path"),
            ("cat --", "`skiff cat` has no options"),
            ("stat -L x", "`skiff stat` has no options"),
            ("env x", "`skiff env` takes no arguments"),
            ("backtrace 0", "`skiff backtrace` takes a number of seconds from 1 to 60"),
            ("profile", "`skiff profile` takes a number of seconds from 1 to 60"),
            ("profile 61", "`skiff profile` takes a number of seconds from 1 to 60"),
            ("profile 1 2", "`skiff profile` takes a number of seconds from 1 to 60"),
            ("profile -1", "`skiff profile` takes a number of seconds from 1 to 60"),
            ("coredump", "`skiff coredump` needs a path"),
            ("coredump a b", "`skiff coredump` takes one file"),
        ] {
            assert_eq!(parse(line), Err(expected.to_owned()), "{line}");
        }
    }
}

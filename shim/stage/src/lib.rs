//! The first stage of a container's process: takes the steps that the shim has written down, as root and in the node's namespaces
//! at first, and then executes the process's program. It decides nothing, and knows no specification.
//!
//! It has one thread. Whatever it leaves half done when it fails belongs to its own mount namespace, which ends with it, or to
//! the container's root file system and cgroups, which the shim removes.

mod become_user;
mod devices;
mod mounts;
mod root;
mod steps;
mod streams;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufReader};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use skiff_linux::{descriptors, signals, termination};
use skiff_protocol::EXIT_ENGINE;
use skiff_protocol::launch::{FIRST_STAGE, STAGE_FD, read_line, write_line};

use crate::steps::{Taken, is_unwanted};

/// Whether this process was executed to be a first stage.
pub fn is_asked_for() -> bool {
    std::env::args_os().next().is_some_and(|name| name == FIRST_STAGE)
}

/// Takes the steps and executes the program. Returns the exit code if that fails, or if nobody wants it any more.
pub fn run() -> i32 {
    let shim = match descriptors::inherit(STAGE_FD) {
        Ok(socket) => File::from(socket),
        Err(_) => return EXIT_ENGINE,
    };
    match take_steps(&shim) {
        Ok(Taken::Unwanted) => {}
        Err(sentence) => {
            // If nobody listens, nobody waits either.
            let _reported = write_line(&sentence, &shim);
        }
    }
    EXIT_ENGINE
}

fn take_steps(shim: &File) -> Result<Taken, String> {
    let said = |what: &str, error: io::Error| format!("cannot {what}: {error}");
    // Other processes of the container may see this one from the moment when it joins them.
    prctl::set_dumpable(false).map_err(|error| said("hide", error.into()))?;
    termination::install().map_err(|error| said("handle signals", error))?;
    let stage = read_line(BufReader::new(shim)).map_err(|error| said("read what to do", error))?;
    let Some(mut stage) = stage else { return Ok(Taken::Unwanted) };
    signals::reset(&[Signal::SIGCHLD, Signal::SIGPIPE]).map_err(|error| said("reset signals", error))?;
    if let Some(taken) = steps::take(&mut stage, shim)? {
        return Ok(taken);
    }
    // A filter may refuse to be asked this, so its step has asked already.
    if stage.filter.is_empty() && is_unwanted(shim) {
        return Ok(Taken::Unwanted);
    }
    Err(execute(&stage.args, &stage.env))
}

/// Executes the program of `args`. Returns why it cannot.
fn execute(args: &[String], env: &[String]) -> String {
    let program = args.first().map_or("", String::as_str);
    let strings =
        |texts: &[String]| texts.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(args), Ok(variables)) = (strings(args), strings(env)) else {
        return format!("`{program}` has an argument or a variable with a zero byte");
    };
    let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    // Not what happens to be in the working directory.
    let searched = path.split(':').filter(|directory| directory.starts_with('/'));
    let directories = if program.contains('/') { vec![""] } else { searched.collect() };
    let mut failed = Errno::ENOENT;
    for directory in directories {
        let place = if directory.is_empty() { program.to_owned() } else { format!("{directory}/{program}") };
        let Ok(place) = CString::new(place) else { continue };
        match nix::unistd::execve(&place, &args, &variables) {
            Ok(never) => match never {},
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error @ Errno::EACCES) => failed = error,
            Err(error) => return format!("cannot execute `{program}`: {}", error.desc()),
        }
    }
    format!("cannot execute `{program}`: {}", failed.desc())
}

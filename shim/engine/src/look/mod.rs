//! The looking glass: what the container sees and what its guest does, for a container that has no shell.
//!
//! Whatever the container's own view of files and its plan show is done in the exec's process, behind the same wall as a guest. The
//! rest is asked of the engine of the guest, over the call socket.

mod backtrace;
mod command;
mod dump;
mod files;
mod live;
mod ls;
mod mounts;
mod profile;
mod scene;
mod status;
mod text;

use std::io::{self, Write};
use std::path::Path;

use skiff_protocol::EnginePlan;

use self::command::{Command, HELP};
use self::mounts::Mounts;
use self::scene::Scene;
use crate::answer::Answer;
use crate::files::new_file::NewFile;
use crate::live::Live;
use crate::shared::Shared;
use crate::stdio::write::NamedOutput;

/// The exit code of arguments that make no sense.
const EXIT_USAGE: u8 = 2;
/// The exit code of a command that cannot be done.
const EXIT_FAILED: u8 = 1;
/// Why nothing is shown.
const OFF: &str = "the annotation `debug.skiff.dev/look` turns the commands of `skiff` off in this container";

/// What the asking process makes of a command.
pub(crate) enum Local {
    /// It was done here, and ends with this code.
    Done(u8),
    /// The guest's engine is asked. Its output goes here.
    Ask(NamedOutput),
}

/// What is shown, and is out of reach behind the wall.
pub(crate) struct Before(io::Result<Mounts>);

impl Before {
    /// Reads it.
    pub(crate) fn of(plan: &EnginePlan) -> Self {
        Self(Mounts::read(&plan.preopens))
    }
}

/// Does in the exec's own process what can be done there: whatever the container's view of files and the plan show.
pub(crate) fn local(args: &[String], shared: &Shared, before: &Before, stdout: Box<dyn Write>) -> Local {
    let command = match Command::parse(args) {
        _ if shared.plan.looks_are_off => return refuse(shared, OFF, EXIT_FAILED),
        Ok(command) => command,
        Err(sentence) => return refuse(shared, &sentence, EXIT_USAGE),
    };
    let mut scene = Scene::new(shared, stdout);
    let done = match command {
        Command::Help => scene.output.write_all(HELP.as_bytes()),
        Command::Local(command) => show(&mut scene, &command, before),
        Command::Live(command::Live::CoreDump(path)) => {
            let name = format!("the core dump to `{}`", text::shown(path.as_bytes()));
            return match NewFile::create(&Path::new(&shared.plan.cwd).join(&path), shared.reader()) {
                Ok(file) => Local::Ask(NamedOutput { writer: Box::new(file), name }),
                Err(error) => refuse(shared, &format!("cannot write {name}: {}", text::why(&error)), EXIT_FAILED),
            };
        }
        Command::Live(_) => return Local::Ask(NamedOutput::answer(scene.into_stdout())),
    };
    Local::Done(scene.end(done))
}

fn show(scene: &mut Scene<'_>, command: &command::Local, before: &Before) -> io::Result<()> {
    match command {
        command::Local::Ls(options, paths) => ls::ls(scene, *options, paths),
        command::Local::Cat(paths) => files::cat(scene, paths),
        command::Local::Stat(paths) => files::stat(scene, paths),
        command::Local::Env => {
            scene.shared.environment().iter().try_for_each(|(name, value)| writeln!(scene.output, "{name}={value}"))
        }
        command::Local::Mounts => match &before.0 {
            Ok(known) => mounts::mounts(scene, known),
            Err(error) => {
                scene.complain(&format!("cannot read the table of mounts: {}", text::why(error)));
                Ok(())
            }
        },
    }
}

fn refuse(shared: &Shared, sentence: &str, code: u8) -> Local {
    shared.reporter.line(sentence);
    Local::Done(code)
}

/// Answers what only the engine of the guest knows. Returns the exit code of the asking process.
///
/// # Errors
/// Those of [`Answer`].
pub(crate) fn live(args: &[String], answer: &mut Answer, live: &Live) -> io::Result<u8> {
    let (sentence, code) = match Command::parse(args) {
        _ if live.shared.plan.looks_are_off => (OFF.to_owned(), EXIT_FAILED),
        Ok(Command::Live(command)) => return live::answer(&command, answer, live),
        Ok(_) => ("the engine of the guest is not asked for this".to_owned(), EXIT_FAILED),
        Err(sentence) => (sentence, EXIT_USAGE),
    };
    answer.complain(&sentence)?;
    Ok(code)
}

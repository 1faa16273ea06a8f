//! `skiff ls`: the names in directories.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{AtFlags, Dir, FileType, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;

use super::scene::Scene;
use super::status::line;
use super::text::shown;
use crate::files::reader::{Links, Place};

/// How many bytes of names are sorted at once. A directory may have more names than the container has memory.
const SORTED_BYTES_MAX: usize = 4 << 20;
/// What a name takes besides its own bytes.
const NAME_BYTES: usize = 64;

/// What is shown of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// More than names.
    pub(super) is_long: bool,
    /// Also names that begin with a dot.
    pub(super) shows_all: bool,
}

/// Shows what is at `paths`: the names in directories, and the names of everything else.
///
/// # Errors
/// Those of writing.
pub(super) fn ls(scene: &mut Scene<'_>, options: Options, paths: &[String]) -> io::Result<()> {
    let here = [".".to_owned()];
    let paths = if paths.is_empty() { &here } else { paths };
    for (number, path) in paths.iter().enumerate() {
        // As usual, a link is shown as one where more than names are shown.
        let links = if options.is_long && !path.ends_with('/') { Links::Keep } else { Links::Follow };
        let Some(place) = scene.find(path, links) else { continue };
        let Some(status) = scene.or_complain(path, fstat(&place)) else { continue };
        if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
            show(scene, options, path.as_bytes(), &status, || readlinkat(&place, "", Vec::new()))?;
            continue;
        }
        if paths.len() > 1 {
            let gap = if number > 0 { "\n" } else { "" };
            writeln!(scene.output, "{gap}{}:", shown(path.as_bytes()))?;
        }
        directory(scene, options, path, &place)?;
    }
    Ok(())
}

fn directory(scene: &mut Scene<'_>, options: Options, path: &str, place: &Place) -> io::Result<()> {
    let Some(directory) = scene.or_complain(path, place.open_directory()) else { return Ok(()) };
    let Some(mut entries) = scene.or_complain(path, Dir::read_from(&directory)) else { return Ok(()) };
    for count in 0.. {
        let (names, is_end) = match next_names(&mut entries, options) {
            Ok(next) => next,
            Err(error) => {
                scene.or_complain::<(), _>(path, Err(error));
                return Ok(());
            }
        };
        if count == 0 && !is_end {
            let shown = shown(path.as_bytes());
            scene.note(&format!("`{shown}` has too many names to sort all of them: they are sorted in parts"));
        }
        show_all(scene, options, path, &directory, &names)?;
        if is_end {
            break;
        }
    }
    Ok(())
}

/// The next names of a directory, sorted, and whether they are the last ones.
fn next_names(entries: &mut Dir, options: Options) -> Result<(Vec<Vec<u8>>, bool), Errno> {
    let (mut names, mut bytes) = (Vec::new(), 0);
    let mut is_end = true;
    for entry in entries {
        let name = entry?.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." || (name.starts_with(b".") && !options.shows_all) {
            continue;
        }
        bytes += name.len() + NAME_BYTES;
        names.push(name);
        if bytes >= SORTED_BYTES_MAX {
            is_end = false;
            break;
        }
    }
    names.sort_unstable();
    Ok((names, is_end))
}

fn show_all(
    scene: &mut Scene<'_>,
    options: Options,
    path: &str,
    directory: &File,
    names: &[Vec<u8>],
) -> io::Result<()> {
    for name in names {
        if !options.is_long {
            writeln!(scene.output, "{}", shown(name))?;
            continue;
        }
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => show(scene, options, name, &status, || readlinkat(directory, name, Vec::new()))?,
            // Somebody has removed it meanwhile.
            Err(Errno::NOENT) => {}
            Err(error) => drop(scene.or_complain::<(), _>(path, Err(error))),
        }
    }
    Ok(())
}

/// Shows one name, with the text of the link if it is one.
fn show(
    scene: &mut Scene<'_>,
    options: Options,
    name: &[u8],
    status: &Stat,
    target: impl FnOnce() -> Result<std::ffi::CString, Errno>,
) -> io::Result<()> {
    if options.is_long {
        write!(scene.output, "{}", line(status))?;
    }
    write!(scene.output, "{}", shown(name))?;
    if options.is_long
        && FileType::from_raw_mode(status.st_mode) == FileType::Symlink
        && let Ok(target) = target()
    {
        write!(scene.output, " -> {}", shown(target.as_bytes()))?;
    }
    writeln!(scene.output)
}

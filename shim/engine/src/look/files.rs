//! `skiff cat` and `skiff stat`: what is in files, and what is known of them.

use std::io::{self, ErrorKind, Read, Write};

use rustix::fs::{FileType, fstat, readlinkat};

use super::scene::Scene;
use super::status::{kind, lines};
use super::text::shown;
use crate::files::reader::Links;

/// How much of a file is read at once, in bytes.
const PART_BYTES: usize = 64 << 10;

/// Writes the contents of regular files to stdout, byte by byte. Nothing else is opened: a device or a fifo may never end.
///
/// # Errors
/// Those of writing.
pub(super) fn cat(scene: &mut Scene<'_>, paths: &[String]) -> io::Result<()> {
    let mut part = vec![0; PART_BYTES];
    for path in paths {
        let Some(place) = scene.find(path, Links::Follow) else { continue };
        let Some(status) = scene.or_complain(path, fstat(&place)) else { continue };
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            let (shown, kind) = (shown(path.as_bytes()), kind(&status));
            scene.complain(&format!("`{shown}` is a {kind}: only regular files can be shown"));
            continue;
        }
        let Some(mut file) = scene.or_complain(path, place.open_file()) else { continue };
        loop {
            let length = match file.read(&mut part) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    scene.or_complain::<(), _>(path, Err(error));
                    break;
                }
            };
            scene.output.write_all(part.get(..length).unwrap_or_default())?;
        }
    }
    Ok(())
}

/// Shows what is known of `paths`. A link is not followed.
///
/// # Errors
/// Those of writing.
pub(super) fn stat(scene: &mut Scene<'_>, paths: &[String]) -> io::Result<()> {
    for path in paths {
        let Some(place) = scene.find(path, Links::Keep) else { continue };
        let Some(status) = scene.or_complain(path, fstat(&place)) else { continue };
        write!(scene.output, "  Path: {}", shown(path.as_bytes()))?;
        if let Ok(target) = readlinkat(&place, "", Vec::new()) {
            write!(scene.output, " -> {}", shown(target.as_bytes()))?;
        }
        write!(scene.output, "\n{}", lines(&status))?;
    }
    Ok(())
}

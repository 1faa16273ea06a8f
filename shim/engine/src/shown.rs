//! How names and errors are shown: as a part of one line, whatever a name contains.

use std::io;

use nix::errno::Errno;

/// A name, with everything escaped that is not printable text: a terminal obeys it otherwise.
pub(crate) fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                plain if is_plain(plain) => text.push(plain),
                other => text.extend(other.escape_default()),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Whether a terminal shows this character, and does nothing else. The others are controls, and marks that turn text around.
fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What an error says, as a part of a sentence.
pub(crate) fn why(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    };
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_line_of_printable_text() {
        for (name, expected) in [
            (&b"plain name-1.txt"[..], "plain name-1.txt"),
            ("größe \u{1f980}".as_bytes(), "größe \u{1f980}"),
            (b"a\nb\x1b[2Jc", "a\\nb\\u{1b}[2Jc"),
            (b"\xff\xfeok\x80", "\\xff\\xfeok\\x80"),
            (b"back\\slash", "back\\\\slash"),
            ("turned\u{202e}gpj.exe".as_bytes(), "turned\\u{202e}gpj.exe"),
        ] {
            assert_eq!(shown(name), expected);
        }
    }

    #[test]
    fn errors_are_parts_of_sentences() {
        assert_eq!(why(&io::Error::from_raw_os_error(libc::ENOENT)), "no such file or directory");
        assert_eq!(why(&io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")), "not a regular file");
    }
}

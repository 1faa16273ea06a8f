//! What is known of a file: in one line as `ls -l` shows it, and in several as `stat` does.

use rustix::fs::{FileType, Stat};
use skiff_protocol::bytes_and_mi;

use super::text::utc;

/// What a file is, in words.
pub(super) fn kind(status: &Stat) -> &'static str {
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}

/// Type and permissions in ten characters, as `ls -l` shows them.
pub(super) fn mode(status: &Stat) -> String {
    let mode = status.st_mode;
    let letter = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Unknown => '?',
    };
    let mut text = String::from(letter);
    for (shift, special, lower) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => lower,
            (true, false) => lower.to_ascii_uppercase(),
        });
    }
    text
}

/// The line of `ls -l` before the name.
pub(super) fn line(status: &Stat) -> String {
    let Stat { st_nlink, st_uid, st_gid, st_size, st_mtime, .. } = status;
    format!("{} {st_nlink:>3} {st_uid:>5} {st_gid:>5} {st_size:>11} {} ", mode(status), utc(*st_mtime))
}

/// The lines of `stat` after the name.
pub(super) fn lines(status: &Stat) -> String {
    let Stat { st_size, st_mode, st_nlink, st_uid, st_gid, st_ino, .. } = status;
    let [read, written, changed] = [status.st_atime, status.st_mtime, status.st_ctime].map(utc);
    let size = bytes_and_mi(u64::try_from(*st_size).unwrap_or_default());
    format!(
        "  Type: {}\n  Size: {size}\n  Mode: {:04o} ({})\n Owner: {st_uid}:{st_gid}\n Links: {st_nlink}\n Inode: {st_ino}\n  Read: \
         {read}\n Wrote: {written}\nChange: {changed}\n",
        kind(status),
        st_mode & 0o7777,
        mode(status),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{Mode, fchmod, fstat};

    use super::*;

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        let file = tempfile::tempfile().unwrap();
        for (bits, expected) in [
            (0o644, "-rw-r--r--"),
            (0o7755, "-rwsr-sr-t"),
            (0o6600, "-rwS--S---"),
            (0o1000, "---------T"),
            (0, "----------"),
        ] {
            fchmod(&file, Mode::from_raw_mode(bits)).unwrap();
            assert_eq!(mode(&fstat(&file).unwrap()), expected, "{bits:o}");
        }
        let directory = fstat(File::open("/").unwrap()).unwrap();
        assert_eq!((kind(&directory), mode(&directory).chars().next()), ("directory", Some('d')));
        assert_eq!(kind(&fstat(File::open("/dev/null").unwrap()).unwrap()), "character device");
    }
}

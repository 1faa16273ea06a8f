//! Reading a module, which is a stranger's file: piece by piece, hashed on its way, and never more than a module may have.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use skiff_plan::MODULE_BYTES_MAX;

/// How many bytes are read and hashed at a time: they stay in the processor's cache.
const CHUNK_BYTES: usize = 128 << 10;

/// A reader of a module from its beginning to its end; the file's own offset stays where it is.
pub(crate) struct Reader<'a> {
    file: &'a File,
    hasher: Sha256,
    bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Reads `file`, which is a regular one.
    pub(crate) fn of(file: &'a File) -> Self {
        Self { file, hasher: Sha256::new(), bytes: 0, buffer: vec![0; CHUNK_BYTES] }
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// `FileTooLarge` for more than [`MODULE_BYTES_MAX`] bytes; those of `pread(2)`.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<&[u8]>> {
        let read = loop {
            match self.file.read_at(&mut self.buffer, self.bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if read == 0 {
            return Ok(None);
        }
        self.bytes += read as u64;
        check_size(self.bytes)?;
        let piece = &self.buffer[..read];
        self.hasher.update(piece);
        Ok(Some(piece))
    }

    /// The sha256 of what was read, in lower-case hexadecimal.
    pub(crate) fn digest(self) -> String {
        use std::fmt::Write as _;
        self.hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a string cannot fail.
            let _written = write!(text, "{byte:02x}");
            text
        })
    }
}

/// Refuses a module of `bytes` bytes that is larger than any may be.
///
/// # Errors
/// `FileTooLarge` with a sentence that follows the module's name.
pub(crate) fn check_size(bytes: u64) -> io::Result<()> {
    if bytes <= MODULE_BYTES_MAX {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than the {MODULE_BYTES_MAX} bytes of a module")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(file: &File) -> io::Result<(String, u64)> {
        let mut reader = Reader::of(file);
        while reader.next_piece()?.is_some() {}
        let bytes = reader.bytes;
        Ok((reader.digest(), bytes))
    }

    #[test]
    fn a_digest_is_that_of_the_whole_file_wherever_its_offset_is() {
        for (content, expected) in [
            (vec![], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc".to_vec(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (vec![b'a'; 1_000_000], "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, &content).unwrap();
            assert_eq!(digest(&file).unwrap(), (expected.to_owned(), content.len() as u64));
        }
    }

    #[test]
    fn an_endless_file_is_read_no_further_than_a_module_may_go() {
        let endless = File::open("/dev/zero").unwrap();
        assert_eq!(digest(&endless).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(check_size(MODULE_BYTES_MAX).is_ok());
    }
}

//! Extended attributes of a file that is written anew: the label of SELinux among them, without which containerd may not read its
//! own configuration.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// What describes the old content: a hash, and what is signed over it.
const OF_THE_CONTENT: [&CStr; 2] = [c"security.ima", c"security.evm"];

/// Gives `to` the extended attributes of `from`, as far as the kernel lets this process: some are for processes with more
/// capabilities, and not every file system has them.
///
/// # Errors
/// Those of reading, and of a file system that is full.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    for name in names(from)?.into_iter().filter(|name| !OF_THE_CONTENT.contains(&name.as_c_str())) {
        if let Some(value) = value(from, &name)? {
            set(to, &name, &value)?;
        }
    }
    Ok(())
}

fn names(file: &File) -> io::Result<Vec<CString>> {
    // SAFETY: the kernel writes no more than the length of the buffer that goes with it, and nothing for a length of 0.
    let list = grown(|buffer| unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })?;
    let names = list.unwrap_or_default();
    let names = names.split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned)).collect())
}

/// The value of an attribute; none when it is gone, or not for this process.
///
/// # Errors
/// Those of `fgetxattr(2)` besides.
pub(crate) fn value(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    // SAFETY: the name is a text with its end, and the kernel writes no more than the length of the buffer.
    grown(|buffer| unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    })
}

/// What `call` writes into a buffer of the size that it asks for; none when there is nothing for this process.
fn grown(call: impl Fn(&mut [u8]) -> isize) -> io::Result<Option<Vec<u8>>> {
    loop {
        let mut buffer = match Errno::result(call(&mut [])) {
            Ok(length) => vec![0; usize::try_from(length).unwrap_or_default()],
            Err(error) if is_not_for_us(error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match Errno::result(call(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(usize::try_from(length).unwrap_or_default());
                return Ok(Some(buffer));
            }
            // It has grown in the meantime.
            Err(Errno::ERANGE) => {}
            Err(error) if is_not_for_us(error) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sets an attribute, if this process may.
///
/// # Errors
/// Those of `fsetxattr(2)` besides.
pub(crate) fn set(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    let (fd, bytes, length) = (file.as_raw_fd(), value.as_ptr().cast(), value.len());
    // SAFETY: the name is a text with its end, the value has this length, and the kernel reads both only.
    match Errno::result(unsafe { libc::fsetxattr(fd, name.as_ptr(), bytes, length, 0) }) {
        Err(error) if !is_not_for_us(error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_not_for_us(error: Errno) -> bool {
    matches!(error, Errno::EOPNOTSUPP | Errno::ENODATA | Errno::EPERM | Errno::EACCES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_copied_with_their_values() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let attributes: [(&CStr, &[u8]); 3] =
            [(c"user.skiff.text", b"a\0b"), (c"user.skiff.empty", b""), (c"trusted.skiff", b"c")];
        for (name, value) in attributes {
            set(&from, name, value).unwrap();
        }
        let there: Vec<_> = attributes.into_iter().filter(|(name, _)| value(&from, name).unwrap().is_some()).collect();
        assert!(!there.is_empty(), "the temporary directory has no extended attributes");
        copy(&from, &to).unwrap();
        for (name, expected) in there {
            assert_eq!(value(&to, name).unwrap().as_deref(), Some(expected), "{name:?}");
        }
    }
}

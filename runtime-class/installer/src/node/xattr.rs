//! Extended attributes of a file that is rewritten. Among them is the label of SELinux, without which containerd may not read its
//! own configuration.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;

use rustix::fs::{XattrFlags, fgetxattr, fgetxattr_query, flistxattr, flistxattr_query, fsetxattr};
use rustix::io::Errno;

/// What describes the old content: its hash, and a signature over it.
const OF_THE_CONTENT: [&CStr; 2] = [c"security.ima", c"security.evm"];

/// Gives `to` the extended attributes of `from`, as far as the kernel allows: some need more capabilities than this process has,
/// and not every file system has them.
///
/// # Errors
/// Those of reading, and those of a file system that is full.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    for name in names(from)?.into_iter().filter(|name| !OF_THE_CONTENT.contains(&name.as_c_str())) {
        if let Some(value) = value(from, &name)? {
            set(to, &name, &value)?;
        }
    }
    Ok(())
}

fn names(file: &File) -> io::Result<Vec<CString>> {
    let list = grown(|| flistxattr_query(file), |buffer| flistxattr(file, buffer))?.unwrap_or_default();
    let names = list.split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned)).collect())
}

/// The value of an attribute; `None` when it is gone or this process may not read it.
///
/// # Errors
/// The others of `fgetxattr(2)`.
pub(crate) fn value(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    grown(|| fgetxattr_query(file, name), |buffer| fgetxattr(file, name, buffer))
}

/// What `read` writes into a buffer of the size that `query` returns; `None` when this process may not read it.
fn grown(
    query: impl Fn() -> rustix::io::Result<usize>,
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Option<Vec<u8>>> {
    loop {
        let filled = query().and_then(|length| {
            let mut buffer = vec![0; length];
            let length = read(&mut buffer)?;
            buffer.truncate(length);
            Ok(buffer)
        });
        match filled {
            Ok(buffer) => return Ok(Some(buffer)),
            // It has grown in the meantime.
            Err(Errno::RANGE) => {}
            Err(error) if is_not_for_us(error) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sets an attribute if this process may.
///
/// # Errors
/// The others of `fsetxattr(2)`.
pub(crate) fn set(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    match fsetxattr(file, name, value, XattrFlags::empty()) {
        Err(error) if !is_not_for_us(error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_not_for_us(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NODATA | Errno::PERM | Errno::ACCESS)
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

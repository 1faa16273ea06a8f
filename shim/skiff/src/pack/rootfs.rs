//! The one layer of an ordinary image: a tar archive that does not depend on who made it, or when.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use tar::{EntryType, Header};

use crate::error::{Context, Error, Result};

/// The files of a layer by their paths below the root, sorted, so that directories come before what is in them.
#[derive(Debug, Default)]
pub(super) struct Rootfs {
    files: BTreeMap<PathBuf, Content>,
}

#[derive(Debug)]
enum Content {
    Directory,
    File { bytes: Vec<u8>, is_executable: bool },
    Link(PathBuf),
}

impl Rootfs {
    /// Adds a file.
    ///
    /// # Errors
    /// The caller's, if the path is taken or leads out of the image.
    pub(super) fn add_file(&mut self, path: &Path, bytes: Vec<u8>, is_executable: bool) -> Result<()> {
        self.insert(path, Content::File { bytes, is_executable })
    }

    /// Adds the file or directory `source`, with everything in it, at `destination`.
    ///
    /// # Errors
    /// The host's when it cannot be read; the caller's for anything but files, directories and symbolic links.
    pub(super) fn add(&mut self, source: &Path, destination: &Path) -> Result<()> {
        let reading = || format!("cannot read `{}`", source.display());
        let metadata = fs::symlink_metadata(source).or_host(reading())?;
        if metadata.is_symlink() {
            self.insert(destination, Content::Link(fs::read_link(source).or_host(reading())?))
        } else if metadata.is_dir() {
            self.insert(destination, Content::Directory)?;
            for entry in fs::read_dir(source).or_host(reading())? {
                let entry = entry.or_host(reading())?;
                self.add(&entry.path(), &destination.join(entry.file_name()))?;
            }
            Ok(())
        } else if metadata.is_file() {
            let is_executable = metadata.permissions().mode() & 0o111 != 0;
            self.add_file(destination, fs::read(source).or_host(reading())?, is_executable)
        } else {
            Err(Error::guest(format!("`{}` is not a file, a directory or a link", source.display())))
        }
    }

    fn insert(&mut self, path: &Path, content: Content) -> Result<()> {
        let path = below_root(path)?;
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            match self.files.entry(parent.into()).or_insert(Content::Directory) {
                Content::Directory => {}
                Content::File { .. } | Content::Link(_) => {
                    let sentence = format!("`/{}` is in the image already and is not a directory", parent.display());
                    return Err(Error::guest(sentence));
                }
            }
        }
        if path.as_os_str().is_empty() && matches!(content, Content::Directory) {
            return Ok(());
        }
        match self.files.entry(path) {
            Entry::Vacant(entry) => {
                entry.insert(content);
                Ok(())
            }
            Entry::Occupied(entry) if matches!((entry.get(), &content), (Content::Directory, Content::Directory)) => {
                Ok(())
            }
            Entry::Occupied(entry) => Err(Error::guest(format!("`/{}` is in the image twice", entry.key().display()))),
        }
    }

    /// Whether `path`, which is absolute and has no `..`, is a file here, or may be one behind a symbolic link.
    pub(super) fn may_have(&self, path: &Path) -> bool {
        let path = path.strip_prefix("/").unwrap_or(path);
        path.ancestors().any(|step| matches!(self.files.get(step), Some(Content::Link(_))))
            || matches!(self.files.get(path), Some(Content::File { .. }))
    }

    /// The layer.
    ///
    /// # Errors
    /// The host's, if a path does not fit into an archive.
    pub(super) fn into_tar(self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in &self.files {
            append(&mut archive, path, content).or_host(format!("cannot pack `/{}`", path.display()))?;
        }
        archive.into_inner().or_host("cannot pack the layer")
    }
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &Path, content: &Content) -> io::Result<()> {
    match content {
        Content::Directory => archive.append_data(&mut header(EntryType::Directory, 0o755, 0), path, io::empty()),
        Content::File { bytes, is_executable } => {
            let mode = if *is_executable { 0o755 } else { 0o644 };
            let size = u64::try_from(bytes.len()).map_err(io::Error::other)?;
            archive.append_data(&mut header(EntryType::Regular, mode, size), path, bytes.as_slice())
        }
        Content::Link(target) => archive.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target),
    }
}

/// A header that reveals nothing about this machine.
pub(super) fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// `path` without its leading slash.
fn below_root(path: &Path) -> Result<PathBuf> {
    let mut below = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => below.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::guest(format!("`{}` leads out of the image", path.display())));
            }
        }
    }
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn files_come_sorted_with_their_directories() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        fs::write(directory.path().join("sub/b"), "b").unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        let mut rootfs = Rootfs::default();
        rootfs.add_file(Path::new("app.wasm"), vec![0], true).unwrap();
        rootfs.add(directory.path(), Path::new("/srv/www")).unwrap();
        let names = names(&rootfs.into_tar().unwrap());
        assert_eq!(names, ["app.wasm", "srv", "srv/www", "srv/www/a", "srv/www/sub", "srv/www/sub/b"]);
    }

    #[test]
    fn what_is_there_twice_or_outside_is_refused() {
        let mut rootfs = Rootfs::default();
        rootfs.add_file(Path::new("/a"), vec![], false).unwrap();
        let twice = rootfs.add_file(Path::new("a"), vec![], false).unwrap_err();
        assert_eq!(twice.to_string(), "`/a` is in the image twice");
        let outside = rootfs.add_file(Path::new("../b"), vec![], false).unwrap_err();
        assert_eq!(outside.to_string(), "`../b` leads out of the image");
        assert!(rootfs.add_file(Path::new("a/b"), vec![], false).is_err());
    }
}

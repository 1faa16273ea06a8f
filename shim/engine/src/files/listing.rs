//! Listings of directories: names as the kernel has them, a block at a time. Names that come and go meanwhile disturb no
//! others. A name that is not UTF-8 cannot be shown to a guest, and is left out.

use std::collections::VecDeque;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, openat, seek, statat};
use rustix::io::Errno;

/// How much is read at once. No name is longer than 255 bytes.
const BLOCK_BYTES: usize = 4 << 10;

/// A name in a directory.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The name.
    pub(crate) name: String,
    /// What it is the name of.
    pub(crate) kind: FileType,
    /// The inode, as the directory has it.
    pub(crate) inode: u64,
    /// The place of the next entry.
    pub(crate) next: u64,
}

/// An open directory whose names are read.
#[derive(Debug)]
pub(crate) struct Listing {
    directory: OwnedFd,
    block: VecDeque<Entry>,
    /// The place of the entry that is read next.
    at: u64,
}

impl Listing {
    /// Begins to list a directory.
    pub(crate) fn of(directory: &File) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(directory, ".", flags, Mode::empty())?;
        Ok(Self { directory, block: VecDeque::new(), at: 0 })
    }

    /// The next name; `None` after the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Errno> {
        if self.block.is_empty() {
            self.block = self.read()?;
        }
        let entry = self.block.pop_front();
        if let Some(entry) = &entry {
            self.at = entry.next;
        }
        Ok(entry)
    }

    /// All names of the next block except `.` and `..`; none after the last one.
    pub(crate) fn next_names(&mut self) -> Result<Vec<Entry>, Errno> {
        loop {
            let block = self.read()?;
            if block.is_empty() {
                return Ok(Vec::new());
            }
            let names: Vec<_> = block.into_iter().filter(|entry| entry.name != "." && entry.name != "..").collect();
            if !names.is_empty() {
                return Ok(names);
            }
        }
    }

    /// Takes back the entry that was returned last, which is at this place.
    pub(crate) fn put_back(&mut self, entry: Entry, place: u64) {
        self.block.push_front(entry);
        self.at = place;
    }

    /// The place of the next entry.
    pub(crate) fn place(&self) -> u64 {
        self.at
    }

    /// Goes on at a place that an entry named.
    pub(crate) fn go_to(&mut self, place: u64) -> Result<(), Errno> {
        if place != self.at {
            seek(&self.directory, SeekFrom::Start(place))?;
            self.block.clear();
            self.at = place;
        }
        Ok(())
    }

    /// What an entry is the name of; `None` if it is gone.
    pub(crate) fn look(&self, name: &str) -> Option<Result<Stat, Errno>> {
        match statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            found => Some(found),
        }
    }

    /// Reads until there is an entry, or until the end.
    fn read(&self) -> Result<VecDeque<Entry>, Errno> {
        let mut entries = VecDeque::new();
        let mut bytes = [MaybeUninit::uninit(); BLOCK_BYTES];
        let mut block = RawDir::new(&self.directory, &mut bytes);
        while let Some(found) = block.next() {
            let found = found?;
            let (inode, next) = (found.ino(), found.next_entry_cookie());
            if let Ok(name) = found.file_name().to_str() {
                let kind = match found.file_type() {
                    FileType::Unknown => self.look(name).map(|found| found.map_or(FileType::Unknown, kind_of)),
                    known => Some(known),
                };
                entries.extend(kind.map(|kind| Entry { name: name.to_owned(), kind, inode, next }));
            }
            if block.is_buffer_empty() && !entries.is_empty() {
                break;
            }
        }
        Ok(entries)
    }
}

fn kind_of(status: Stat) -> FileType {
    FileType::from_raw_mode(status.st_mode)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rest_of(listing: &mut Listing) -> Vec<String> {
        std::iter::from_fn(|| listing.next().unwrap()).map(|entry| entry.name).collect()
    }

    #[test]
    fn a_listing_goes_on_at_a_place_also_when_it_was_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..1000 {
            std::fs::write(folder.path().join(format!("a name that fills blocks {number}")), "").unwrap();
        }
        let directory = File::open(folder.path()).unwrap();
        let mut listing = Listing::of(&directory).unwrap();
        let begun: Vec<_> = (0..300).map(|_| listing.next().unwrap().unwrap().name).collect();
        let place = listing.place();
        let cut = listing.next().unwrap().unwrap();
        let name = cut.name.clone();
        listing.put_back(cut, place);
        listing.go_to(place).unwrap();
        let rest = rest_of(&mut listing);
        assert_eq!(rest.first(), Some(&name));
        let mut again = Listing::of(&directory).unwrap();
        again.go_to(place).unwrap();
        assert_eq!(rest_of(&mut again), rest);
        listing.go_to(place).unwrap();
        assert_eq!(rest_of(&mut listing), rest);
        let all: BTreeSet<_> = begun.iter().chain(&rest).collect();
        assert_eq!((all.len(), begun.len() + rest.len()), (1002, 1002));
    }
}

//! Readers of the forms in which cgroup files come. What is not of the form is left out.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// The text of `dir/file`; none if the kernel has no such file, or does not serve it.
///
/// # Errors
/// `NotFound` when the cgroup is gone; those of reading.
pub(super) fn text(dir: &Path, file: &str) -> io::Result<Option<String>> {
    let path = dir.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            Err(io::Error::new(ErrorKind::NotFound, format!("the cgroup `{}` is gone", dir.display())))
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot read `{}`: {error}", path.display()))),
    }
}

/// The number in `dir/file`, or 0.
///
/// # Errors
/// Those of [`text`].
pub(super) fn value(dir: &Path, file: &str) -> io::Result<u64> {
    Ok(text(dir, file)?.and_then(|text| number(&text)).unwrap_or(0))
}

/// The `key value` lines of `dir/file`, if there is such a file.
///
/// # Errors
/// Those of [`text`].
pub(super) fn keyed(dir: &Path, file: &str) -> io::Result<Option<HashMap<String, u64>>> {
    Ok(text(dir, file)?.map(|text| flat_keyed(&text)))
}

/// The huge page sizes (`2MB`) that the files of the cgroup are about.
///
/// # Errors
/// Those of reading the directory; `NotFound` when the cgroup is gone.
pub(super) fn huge_page_sizes(dir: &Path, suffix: &str) -> io::Result<Vec<String>> {
    let mut sizes = Vec::new();
    for file in fs::read_dir(dir)? {
        sizes.extend(file?.file_name().to_str().and_then(|name| huge_page_size(name, suffix)));
    }
    sizes.sort();
    Ok(sizes)
}

/// `2MB` of `hugetlb.2MB.current`; `hugetlb.2MB.rsvd.current` is about something else.
pub(super) fn huge_page_size(name: &str, suffix: &str) -> Option<String> {
    let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?.strip_suffix('.')?;
    (!size.contains('.')).then(|| size.to_owned())
}

/// A number; `max` is the largest one, and what is below zero means nothing.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        text if text.starts_with('-') => Some(0),
        text => text.parse().ok(),
    }
}

/// `key value` lines.
pub(super) fn flat_keyed(text: &str) -> HashMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), number(value)?))).collect()
}

/// A line of a `blkio.*` file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlockCount {
    pub(super) device: (u64, u64),
    /// `Read`, `Write`...; empty where the file does not tell them apart.
    pub(super) operation: String,
    pub(super) count: u64,
}

/// `8:0 Read 512` or `8:0 512`; the last line, `Total 512`, is left out.
pub(super) fn block_counts(text: &str) -> Vec<BlockCount> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (device, operation, count) = match fields[..] {
            [device, operation, count] => (device, operation, count),
            [device, count] => (device, "", count),
            _ => return None,
        };
        Some(BlockCount { device: device_number(device)?, operation: operation.into(), count: number(count)? })
    };
    text.lines().filter_map(parse).collect()
}

/// `8:0`.
pub(super) fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The device files of `/proc/partitions`, the first of each number.
pub(super) fn devices(text: &str) -> HashMap<(u64, u64), String> {
    let mut devices = HashMap::new();
    for line in text.lines() {
        if let [major, minor, _, name] = line.split_whitespace().collect::<Vec<_>>()[..]
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            devices.entry((major, minor)).or_insert_with(|| format!("/dev/{name}"));
        }
    }
    devices
}

/// A device's line of `rdma.current` or `rdma.max`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RdmaCount {
    pub(super) device: String,
    pub(super) handles: u32,
    pub(super) objects: u32,
}

/// `mlx4_0 hca_handle=2 hca_object=max`.
pub(super) fn rdma_counts(text: &str) -> Vec<RdmaCount> {
    let parse = |line: &str| {
        let (device, pairs) = line.split_once(' ')?;
        let count_of = |key: &str| {
            let pair = pairs.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            pair.and_then(number).map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
        };
        Some(RdmaCount { device: device.to_owned(), handles: count_of("hca_handle"), objects: count_of("hca_object") })
    };
    text.lines().filter_map(parse).collect()
}

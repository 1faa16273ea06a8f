//! `skiff mounts`: the file systems that the guest sees. Where they come from on the node is not shown.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::fstatvfs;
use skiff_linux::mounts::unescape;
use skiff_protocol::Preopen;

use super::scene::Scene;
use super::text::shown;
use crate::files::reader::Links;

const MOUNTS: &str = "/proc/self/mountinfo";
/// How much of the table is read, in bytes. A container has a few dozen mounts, of about 150 bytes each.
const BYTES_MAX: u64 = 1 << 20;
/// What is worth knowing of a mount's options.
const OPTIONS: [&str; 3] = ["nosuid", "nodev", "noexec"];

/// The mounts that a guest sees.
pub(crate) struct Mounts(Vec<Mount>);

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    options: String,
}

impl Mounts {
    /// Reads the table of this process. Behind the wall it is out of reach.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn read(preopens: &[Preopen]) -> io::Result<Self> {
        let mut table = Vec::new();
        std::fs::File::open(MOUNTS)?.take(BYTES_MAX).read_to_end(&mut table)?;
        Ok(Self(seen(&String::from_utf8_lossy(&table), preopens)))
    }
}

/// Shows the mounts, with the size of each file system and what is used of it.
///
/// # Errors
/// Those of writing.
pub(super) fn mounts(scene: &mut Scene<'_>, mounts: &Mounts) -> io::Result<()> {
    for Mount { point, kind, options } in &mounts.0 {
        let place = scene.shared.reader().find(point, Links::Follow).ok();
        let sizes = place.and_then(|place| fstatvfs(&place).ok()).map(|known| {
            let [all, free] = [known.f_blocks, known.f_bfree].map(|blocks| blocks.saturating_mul(known.f_frsize) >> 20);
            format!("{all}Mi, {}Mi used", all.saturating_sub(free))
        });
        let point = shown(point.as_os_str().as_encoded_bytes());
        writeln!(scene.output, "{point}  {}  {options}  {}", shown(kind.as_bytes()), sizes.unwrap_or_default())?;
    }
    Ok(())
}

/// The mounts of a table that are seen through directories of a plan, in the order of the paths.
fn seen(table: &str, preopens: &[Preopen]) -> Vec<Mount> {
    let all: Vec<Mount> = table.lines().filter_map(parse).collect();
    let mut seen = Vec::new();
    for Preopen { host, guest, .. } in preopens {
        let (host, guest) = (Path::new(host), Path::new(guest));
        // The directory itself is on the mount whose point is nearest above it; of two at one point the later one is on top.
        let own =
            all.iter().filter(|mount| host.starts_with(&mount.point)).max_by_key(|mount| mount.point.as_os_str().len());
        seen.extend(own.map(|mount| Mount { point: guest.to_owned(), ..mount.clone() }));
        for mount in &all {
            if let Ok(inside) = mount.point.strip_prefix(host)
                && !inside.as_os_str().is_empty()
            {
                let point = guest.join(inside);
                // What it covers is not seen any more.
                seen.retain(|other: &Mount| !other.point.starts_with(&point));
                seen.push(Mount { point, ..mount.clone() });
            }
        }
    }
    seen.sort_by(|one, other| one.point.cmp(&other.point));
    seen
}

/// Reads a line of [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html).
fn parse(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut words = mount.split(' ').skip(4);
    let (point, own) = (unescape(words.next()?), words.next()?);
    let mut words = file_system.split(' ');
    let (kind, whole) = (words.next()?, words.nth(1).unwrap_or_default());
    let is_read_only = [own, whole].iter().any(|options| options.split(',').any(|option| option == "ro"));
    let mut options = String::from(if is_read_only { "ro" } else { "rw" });
    for option in own.split(',').filter(|option| OPTIONS.contains(option)) {
        options.push(',');
        options.push_str(option);
    }
    Some(Mount { point, kind: kind.to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "20 1 0:30 / / rw,relatime - overlay overlay rw,lowerdir=/secret\n21 20 0:31 / /proc rw - proc proc rw\n\
        23 20 0:33 / /dev rw,nosuid - tmpfs tmpfs rw\n24 23 0:30 / /dev/.skiff/root ro,nodev - overlay overlay rw\n\
        25 24 8:1 /var/lib/kubelet/pods/x /dev/.skiff/root/data\\040set rw,nosuid,noexec - ext4 /dev/sda1 rw\n\
        26 25 8:2 / /dev/.skiff/root/data\\040set/old rw - xfs /dev/sda2 rw\n\
        27 24 0:40 / /dev/.skiff/root/covered rw - tmpfs a rw\n28 27 0:41 / /dev/.skiff/root/covered rw - tmpfs b ro\n";

    #[test]
    fn mounts_are_those_that_the_guest_sees_and_name_nothing_of_the_node() {
        let preopen = |host: &str, guest: &str| Preopen { host: host.into(), guest: guest.into(), read_only: false };
        let lines = |preopens: &[Preopen]| -> Vec<String> {
            let all = seen(TABLE, preopens);
            all.iter().map(|mount| format!("{} {} {}", mount.point.display(), mount.kind, mount.options)).collect()
        };
        assert_eq!(
            lines(&[preopen("/dev/.skiff/root", "/")]),
            ["/ overlay ro,nodev", "/covered tmpfs ro", "/data set ext4 rw,nosuid,noexec", "/data set/old xfs rw"]
        );
        assert_eq!(lines(&[preopen("/home/me", "/work")]), ["/work overlay rw"]);
        assert!(lines(&[]).is_empty());
    }

    #[test]
    fn a_line_that_is_none_is_left_out() {
        for line in ["", "a", "1 2 3 4 5 6", "1 2 3 4 - x", " - ", "1 2 3 4 /x rw"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}

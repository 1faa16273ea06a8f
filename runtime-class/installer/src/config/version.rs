//! The version of containerd's program, and what depends on it.

/// A version of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// The oldest version that accepts the path of a shim for pods.
pub(crate) const OLDEST: Version = Version { major: 1, minor: 7 };
/// The oldest that merges the tables of imported files; older ones replace a plugin's whole section (containerd issue 5837).
pub(crate) const MERGING: Version = Version { major: 2, minor: 0 };
/// The oldest with the transfer service.
const TRANSFER: Version = Version { major: 2, minor: 1 };

/// The oldest in which a runtime can have another sandboxer.
pub(crate) const SANDBOXERS: Version = Version { major: 2, minor: 0 };
/// The oldest with `disable_pause_image_pull`.
const NO_PAUSE_IMAGE: Version = Version { major: 2, minor: 4 };

impl Version {
    /// Whether this containerd can be told not to pull the pause image.
    pub(crate) fn may_leave_pause_image(self) -> bool {
        self >= NO_PAUSE_IMAGE
    }

    /// Whether this containerd unpacks only images of its own platform by default.
    pub(crate) fn unpacks_own_platform_only(self) -> bool {
        self >= TRANSFER
    }

    /// Reads what `containerd --version` prints: program, source repository, version, commit.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let number = line.split_whitespace().nth(2)?.trim_start_matches('v');
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        for (line, expected) in [
            ("containerd github.com/containerd/containerd/v2 v2.4.2 abc", Some((2, 4))),
            ("containerd github.com/containerd/containerd/v2 2.1.9 ", Some((2, 1))),
            ("containerd github.com/k3s-io/containerd v2.1.5-k3s1", Some((2, 1))),
            ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6", Some((1, 7))),
            ("containerd containerd.io 1.7.27 05044ec", Some((1, 7))),
            ("containerd github.com/containerd/containerd unknown ", None),
            ("", None),
        ] {
            let expected = expected.map(|(major, minor)| Version { major, minor });
            assert_eq!(Version::parse(line), expected, "{line}");
        }
    }
}

//! What a container uses, as containerd's metrics messages: read from the cgroup's files and from nothing else.
//!
//! The fields are those that containerd's own `cgroups` module fills. A file that the kernel does not have leaves its
//! fields at zero or its part out, as there.

mod read;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::io::{self, ErrorKind};

use protobuf::Message;
use protobuf::well_known_types::any::Any;

use skiff_linux::cgroup::{Cgroup, Hierarchy};

/// The metrics of a container's cgroup: `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
///
/// # Errors
/// `NotFound` when the container has no cgroup of its own (any more); those of reading its files.
pub(super) fn collect(cgroup: &Cgroup) -> io::Result<Any> {
    let any = match cgroup.hierarchy() {
        Hierarchy::V1 => to_any("io.containerd.cgroups.v1.Metrics", &v1::metrics(cgroup)?),
        Hierarchy::V2 => to_any("io.containerd.cgroups.v2.Metrics", &v2::metrics(cgroup)?),
    }?;
    // Looked at last: what vanished while it was read is not to be told as zeros.
    if !cgroup.exists() {
        return Err(io::Error::new(ErrorKind::NotFound, "the container has no cgroup"));
    }
    Ok(any)
}

fn to_any(type_url: &str, message: &impl Message) -> io::Result<Any> {
    let value = message.write_to_bytes().map_err(io::Error::other)?;
    Ok(Any { type_url: type_url.into(), value, ..Any::default() })
}

//! `ready`: the readiness probe. It reads what `keep` saw last, and runs nothing on the node.

use std::path::Path;

use crate::error::Result;
use crate::node::seen::Seen;
use crate::say::say;

/// Whether the node was as it should be when `keep` looked last; reports what was wrong.
pub(crate) fn ready(seen: &Path) -> Result<bool> {
    let faults = Seen::faults(seen)?;
    faults.iter().for_each(|fault| say(fault));
    Ok(faults.is_empty())
}

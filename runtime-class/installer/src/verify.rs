//! `verify`: whether the node is as it should be now; it asks the node itself, unlike `ready`.

use crate::say::say;
use crate::status::Status;
use crate::wanted::Wanted;

/// Whether the node is as wanted; reports what is wrong.
pub(crate) fn verify(status: &Status, wanted: Wanted) -> bool {
    let is_right = match wanted {
        Wanted::Installed => status.ready,
        Wanted::Removed => status.is_removed(),
    };
    if !is_right {
        status.reasons.iter().for_each(|reason| say(reason));
        if status.reasons.is_empty() {
            say("skiff is installed");
        }
    }
    is_right
}

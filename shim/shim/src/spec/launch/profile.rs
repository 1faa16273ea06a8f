//! What is understood of a seccomp profile: how its filter is installed. The filter itself is the OCI runtime's.

use serde_json::Value;
use skiff_protocol::launch::FilterFlags;

use super::reason::Reason;
use super::strict::{Seccomp, section};

/// A container's seccomp profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    /// As it was written: the same text means the same filter.
    pub(crate) text: String,
    pub(super) flags: FilterFlags,
}

#[cfg(test)]
impl Profile {
    pub(crate) fn of_text(text: &str) -> Self {
        Self { text: text.into(), flags: FilterFlags::default() }
    }
}

/// Understands the profile `seccomp`, which lacks what is empty in the one that was `written`.
pub(super) fn understand(seccomp: Value, written: &Value) -> Result<Profile, Reason> {
    let seccomp: Seccomp = section("linux.seccomp", seccomp)?;
    let actions = seccomp.syscalls.iter().map(|rule| &rule.action);
    for action in actions.chain([&seccomp.default_action]) {
        // Somebody would have to answer.
        if action.is_empty() || action == "SCMP_ACT_NOTIFY" {
            return Err(Reason(format!("`linux.seccomp`: the action `{action}`")));
        }
    }
    // runc adds this one where nothing is said about flags, not even that there are none.
    let speculates = written.get("flags").is_none_or(Value::is_null);
    let mut flags = FilterFlags { logs: false, speculates };
    for flag in &seccomp.flags {
        match flag.as_str() {
            "SECCOMP_FILTER_FLAG_LOG" => flags.logs = true,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags.speculates = true,
            // The process has one thread.
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            other => return Err(Reason(format!("`linux.seccomp`: the flag `{other}`"))),
        }
    }
    Ok(Profile { text: written.to_string(), flags })
}

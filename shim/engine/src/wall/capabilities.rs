//! Capabilities: only those stay that make files and low ports reachable, if the container has them.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities,
};

/// What the guest's file access and its server's port may need.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Takes all others out of the calling thread's sets.
///
/// # Errors
/// Those of `capget(2)` and `capset(2)`, which do not fail in a container.
pub(super) fn drop_unneeded() -> io::Result<()> {
    let held = capabilities(None)?;
    // Both fail only without CAP_SETPCAP and on old kernels, where an exec could gain nothing by them.
    let _cleared = clear_ambient_capability_set();
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(KEPT).iter() {
            let _dropped = remove_capability_from_bounding_set(capability);
        }
    }
    let kept = CapabilitySets {
        effective: held.effective.intersection(KEPT),
        permitted: held.permitted.intersection(KEPT),
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, kept)?)
}

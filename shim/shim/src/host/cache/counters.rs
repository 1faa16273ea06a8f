//! What the cache counts for the node's metrics. A failure to count never fails a container.

use std::fs::File;

use skiff_protocol::Counters;

use super::Cache;

impl Cache {
    /// Counts that the wanted `file` was there.
    pub(super) fn hit(&self, file: File) -> File {
        self.count(&Counters { hits: 1, ..Counters::default() });
        file
    }

    /// Adds `more` to the counters of the node.
    pub(super) fn count(&self, more: &Counters) {
        if let Err(error) = more.add_to(&self.dir) {
            log::debug!("cannot count in the cache `{}`: {error}", self.dir.display());
        }
    }
}

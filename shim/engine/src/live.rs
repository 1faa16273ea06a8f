//! The guest of this process as questions find it: what is asked for from outside while it runs.

use std::sync::Arc;

use crate::shared::Shared;

/// A guest that runs. Every question gets a clone.
#[derive(Clone)]
pub(crate) struct Live {
    /// What all of its instances have in common.
    pub(crate) shared: Arc<Shared>,
}

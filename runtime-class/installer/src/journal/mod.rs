//! What skiff did to a node and how it is taken back: the record, the changes that it describes, and the installed programs.

pub(crate) mod change;
pub(crate) mod programs;
pub(crate) mod record;

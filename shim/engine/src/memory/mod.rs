//! The memory of the guest: one budget for all stores of the process, and what a store may take of it.

pub(crate) mod budget;
pub(crate) mod denied;
pub(crate) mod limiter;
#[cfg(test)]
mod tests;

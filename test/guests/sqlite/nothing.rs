//! The crate is in use for the files of its dependency; see `Cargo.toml`.

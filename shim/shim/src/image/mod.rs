//! What a container runs: a file that it will see, recognised by its content, or else a wasm layer of its image.

mod layers;
mod program;

pub(crate) use program::{Module, Program, Wanted, find, find_in};

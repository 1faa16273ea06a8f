//! The engine as its users see it: real guests, compiled by `skiff`, in real processes.

mod command;
mod driver;
mod http;

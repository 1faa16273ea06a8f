//! The engine as its users see it: real guests, compiled by `skiff`, in real processes.

#[cfg(test)]
mod command;
#[cfg(test)]
mod directories;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod features;
#[cfg(test)]
mod http;
#[cfg(test)]
mod limits;

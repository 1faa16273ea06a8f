//! The program as its users see it: real processes, confined where a test is about that.

#[cfg(test)]
mod common;
#[cfg(test)]
mod compile;
#[cfg(test)]
mod confinement;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod pack;

//! The engine as its users see it: real guests, compiled by `skiff`, in real processes.

#[cfg(test)]
mod activity;
#[cfg(test)]
mod calls;
#[cfg(test)]
mod collected;
#[cfg(test)]
mod command;
#[cfg(test)]
mod compiled;
#[cfg(test)]
mod core_dump;
#[cfg(test)]
mod directories;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod features;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod http;
#[cfg(test)]
mod http_attacks;
#[cfg(test)]
mod http_connections;
#[cfg(test)]
mod http_end;
#[cfg(test)]
mod http_left;
#[cfg(test)]
mod http_output;
#[cfg(test)]
mod invoke;
#[cfg(test)]
mod invoke_limits;
#[cfg(test)]
mod last_words;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod look;
#[cfg(test)]
mod look_live;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod names;
#[cfg(test)]
mod others;
#[cfg(test)]
mod outgoing;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod server;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod start;
#[cfg(test)]
mod view;
#[cfg(test)]
mod watch;

//! Which program had a processor, from when until when.

use std::collections::HashMap;

use super::event::{Event, What};

/// Whose work something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Containerd,
    Shim,
    /// The OCI runtime.
    Runtime,
    /// The container's program; for skiff the engine.
    Guest,
}

impl Role {
    pub(super) const ALL: [Self; 4] = [Self::Containerd, Self::Shim, Self::Runtime, Self::Guest];
}

/// A time in which a program had a processor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) role: Role,
    pub(super) from: f64,
    pub(super) to: f64,
}

/// What is known of the threads as the events go by.
struct Threads {
    roles: HashMap<u32, Role>,
    /// Since when those run that run now.
    running: HashMap<u32, f64>,
    /// The container's process, whose one exec is that of the guest.
    guest: u32,
}

/// An event, and whose it is.
pub(super) struct Deed<'a> {
    pub(super) event: &'a Event,
    pub(super) role: Role,
}

/// What each role did and when it had a processor, given containerd's threads and the container's process.
pub(super) fn of<'a>(events: &'a [Event], containerd: &[u32], guest: u32) -> (Vec<Deed<'a>>, Vec<Slice>) {
    let roles = containerd.iter().map(|thread| (*thread, Role::Containerd)).collect();
    let mut threads = Threads { roles, running: HashMap::new(), guest };
    let mut deeds = Vec::new();
    let mut slices = Vec::new();
    for event in events {
        slices.extend(threads.follow(event));
        if let Some(role) = threads.roles.get(&event.thread) {
            deeds.push(Deed { event, role: *role });
        }
    }
    (deeds, slices)
}

impl Threads {
    /// Takes note of an event. Returns the time that a thread has had a processor, if it loses that or becomes another program.
    fn follow(&mut self, event: &Event) -> Option<Slice> {
        match &event.what {
            What::Fork(child) => {
                let role = *self.roles.get(&event.thread)?;
                self.roles.insert(*child, role);
                None
            }
            What::Exec(program) => {
                let slice = self.ends(event.thread, event.at);
                self.running.insert(event.thread, event.at);
                if let Some(role) = self.role_of(program, event.thread) {
                    self.roles.insert(event.thread, role);
                }
                slice
            }
            What::Switch(from, to) => {
                self.running.insert(*to, event.at);
                self.ends(*from, event.at)
            }
            What::Exit | What::Mkdir(_) | What::Attach(_) | What::Enter(_) | What::Leave(_) => None,
        }
    }

    fn ends(&mut self, thread: u32, at: f64) -> Option<Slice> {
        let from = self.running.remove(&thread)?;
        Some(Slice { role: *self.roles.get(&thread)?, from, to: at })
    }

    /// A program of another name is a part of what executes it.
    fn role_of(&self, program: &str, thread: u32) -> Option<Role> {
        let name = program.rsplit('/').next().unwrap_or_default();
        match name {
            _ if thread == self.guest => Some(Role::Guest),
            "runc" => Some(Role::Runtime),
            _ if name.starts_with("containerd-shim-") => Some(Role::Shim),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_processor_belongs_to_the_program_that_its_thread_has_become() {
        let event = |at, thread, what| Event { at, thread, what };
        let exec = |program: &str| What::Exec(program.into());
        let events = [
            event(0.0, 0, What::Switch(0, 1)),
            event(1.0, 1, What::Fork(2)),
            event(2.0, 1, What::Switch(1, 2)),
            event(3.0, 2, exec("/x/containerd-shim-skiff-v1")),
            event(4.0, 2, What::Fork(3)),
            event(5.0, 2, What::Switch(2, 3)),
            event(6.0, 3, exec("/x/runc")),
            event(7.0, 3, exec("/proc/self/exe")),
            event(8.0, 3, What::Fork(4)),
            event(9.0, 3, What::Switch(3, 4)),
            event(10.0, 4, exec("/proc/self/fd/3")),
            event(12.0, 4, What::Switch(4, 99)),
            event(13.0, 99, What::Switch(99, 0)),
        ];
        let (deeds, slices) = of(&events, &[1], 4);
        let used = Role::ALL.map(|role| {
            slices.iter().filter(|slice| slice.role == role).map(|slice| slice.to - slice.from).sum::<f64>()
        });
        assert_eq!(used, [3.0, 3.0, 4.0, 2.0]);
        assert_eq!(deeds.len(), 11, "those of strangers are left out");
        assert_eq!(deeds.last().map(|deed| deed.role), Some(Role::Guest));
    }
}

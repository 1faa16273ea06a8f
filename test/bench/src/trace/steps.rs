//! The steps of a container's life, found among what was recorded.

use anyhow::{Context, Result};

use super::event::{Event, What};
use super::work::{Deed, Role, Slice};

/// When the client sent its requests and got the replies, in milliseconds on the monotonic clock.
#[derive(Clone, Copy)]
pub(super) struct Requests {
    pub(super) begun: f64,
    pub(super) created: f64,
    pub(super) spoke: f64,
    pub(super) ended: f64,
    pub(super) deleted: f64,
}

/// A step, which begins where the one before it ends.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) ms: f64,
    /// What each role used of the processors meanwhile, in the order of [`Role::ALL`].
    pub(super) processor_ms: [f64; Role::ALL.len()],
}

/// Goes through the deeds in their order, from one mark to the next.
struct Walk<'a> {
    deeds: &'a [Deed<'a>],
    slices: &'a [Slice],
    at: f64,
    steps: Vec<Step>,
}

/// Who makes the container of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// The OCI runtime.
    Runtime,
    /// The shim itself, with the engine's first stage.
    Shim,
}

/// The steps from the request of Create to the reply to Delete.
///
/// # Errors
/// When something that belongs to a life was not recorded.
pub(super) fn steps(maker: Maker, deeds: &[Deed<'_>], slices: &[Slice], requests: Requests) -> Result<Vec<Step>> {
    let mut walk = Walk { deeds, slices, at: requests.begun, steps: Vec::new() };
    let is_shim = |deed: &Deed<'_>| deed.role == Role::Shim && matches!(deed.event.what, What::Exec(_));
    let start = walk.find("the shim", is_shim)?;
    walk.until("containerd executes the shim's `start`", start.at);
    let end = walk.find("the end of `start`", ends(start.thread))?;
    walk.until("`start`", end.at);
    let mount = walk.find("the mount of the root file system", enters(Role::Shim, "mount"))?;
    walk.until("containerd connects and sends Create", mount.at);
    let mounted = walk.find("a mounted root file system", leaves(mount.thread))?;
    walk.until("the shim mounts the root file system", mounted.at);
    match maker {
        Maker::Runtime => walk.life_of_the_runtime(requests)?,
        Maker::Shim => walk.life_of_the_shim(requests)?,
    }
    let unmount = walk.find("the unmount of the root file system", enters(Role::Shim, "umount"))?;
    walk.until("the shim, until it unmounts the root file system", unmount.at);
    let unmounted = walk.find("an unmounted root file system", leaves(unmount.thread))?;
    walk.until("the unmount", unmounted.at);
    walk.until("the rest of Delete; the shim ends", requests.deleted);
    Ok(walk.steps)
}

fn is_runtime(deed: &Deed<'_>) -> bool {
    deed.role == Role::Runtime && matches!(&deed.event.what, What::Exec(program) if program.ends_with("/runc"))
}

fn is_guest(deed: &Deed<'_>) -> bool {
    deed.role == Role::Guest && matches!(deed.event.what, What::Exec(_))
}

fn makes_a_cgroup(deed: &Deed<'_>) -> bool {
    matches!(deed.event.what, What::Mkdir(_))
}

fn ends(thread: u32) -> impl Fn(&Deed<'_>) -> bool {
    move |deed| deed.event.thread == thread && deed.event.what == What::Exit
}

fn enters(role: Role, call: &str) -> impl Fn(&Deed<'_>) -> bool {
    let enter = What::Enter(call.into());
    move |deed| deed.role == role && deed.event.what == enter
}

fn leaves(thread: u32) -> impl Fn(&Deed<'_>) -> bool {
    move |deed| deed.event.thread == thread && matches!(deed.event.what, What::Leave(_))
}

impl<'a> Walk<'a> {
    /// From the mounted root file system to the removed container, which the OCI runtime makes.
    fn life_of_the_runtime(&mut self, requests: Requests) -> Result<()> {
        let create = self.find("`runc create`", is_runtime)?;
        self.until("the shim prepares (skiff: the module and its code)", create.at);
        let group = self.find("a cgroup", makes_a_cgroup)?;
        self.until("`runc create` until its first cgroup", group.at);
        let moved = self.find("a move into the cgroup", |deed| matches!(deed.event.what, What::Attach(_)))?;
        self.until("the first move into a cgroup", moved.at);
        let pivot = self.find("pivot_root", enters(Role::Runtime, "pivot_root"))?;
        self.until("the other cgroups, namespaces, mounts", pivot.at);
        let end = self.find("the end of `runc create`", ends(create.thread))?;
        self.until("`runc create` from pivot_root to its end", end.at);
        self.until("the shim and containerd reply to Create", requests.created);
        let start = self.find("`runc start`", is_runtime)?;
        self.until("Start, until `runc start`", start.at);
        let guest = self.find("the guest", is_guest)?;
        self.until("`runc start` until the program is executed", guest.at);
        self.run(guest, requests)?;
        let delete = self.find("`runc delete`", is_runtime)?;
        self.until("Delete, until `runc delete`", delete.at);
        let end = self.find("the end of `runc delete`", ends(delete.thread))?;
        self.until("`runc delete`", end.at);
        Ok(())
    }

    /// The same of one that the shim makes. The engine is executed, and loads the guest, before the reply to Create.
    fn life_of_the_shim(&mut self, requests: Requests) -> Result<()> {
        let group = self.find("a cgroup", makes_a_cgroup)?;
        self.until("the shim prepares the module and its code", group.at);
        let stage = self.find("the first stage", is_guest)?;
        self.until("the cgroups; the process of the first stage", stage.at);
        let pivot = self.find("pivot_root", enters(Role::Guest, "pivot_root"))?;
        self.until("the first stage: cgroups, namespaces, mounts", pivot.at);
        let engine = self.find("the engine", is_guest)?;
        self.until("the first stage: from pivot_root to the engine's execution", engine.at);
        self.until("the shim and containerd reply to Create", requests.created);
        self.run(engine, requests)
    }

    /// The run of the program whose execution was `guest`, until the reply to Wait.
    fn run(&mut self, guest: &Event, requests: Requests) -> Result<()> {
        let end = self.find("the guest's end", ends(guest.thread))?;
        // The client may read it only after that.
        self.until("the program's first byte", requests.spoke.min(end.at));
        self.until("the program's end", end.at);
        self.until("the shim and containerd report the end", requests.ended);
        Ok(())
    }

    /// The next event that is looked for.
    fn find(&self, name: &str, is_it: impl Fn(&Deed<'_>) -> bool) -> Result<&'a Event> {
        let found = self.deeds.iter().find(|deed| deed.event.at >= self.at && is_it(deed));
        Ok(found.with_context(|| format!("the trace does not show {name}"))?.event)
    }

    /// Ends a step.
    fn until(&mut self, name: &'static str, at: f64) {
        // The client may be told of something only after the next step has begun.
        let from = self.at;
        self.at = at.max(from);
        let used = |role| {
            let own = self.slices.iter().filter(|slice| slice.role == role);
            own.map(|slice| (slice.to.min(self.at) - slice.from.max(from)).max(0.0)).sum()
        };
        self.steps.push(Step { name, ms: self.at - from, processor_ms: Role::ALL.map(used) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: Requests = Requests { begun: 0.0, created: 10.0, spoke: 13.5, ended: 15.0, deleted: 20.0 };

    /// What is recorded of a life: one event a millisecond.
    fn life() -> Vec<(Role, Event)> {
        let exec = |program: &str| What::Exec(program.into());
        let enter = |call: &str| What::Enter(call.into());
        let leave = |call: &str| What::Leave(call.into());
        let (shim, runtime, guest) = (Role::Shim, Role::Runtime, Role::Guest);
        let deeds = [
            (1.0, shim, 1, exec("/x/containerd-shim-skiff-v1")),
            (2.0, shim, 1, What::Exit),
            (3.0, shim, 2, enter("mount")),
            (4.0, shim, 2, leave("mount")),
            (5.0, runtime, 3, exec("/x/runc")),
            (5.5, runtime, 4, exec("/proc/self/exe")),
            (6.0, runtime, 3, What::Mkdir("/c".into())),
            (7.0, runtime, 3, What::Attach("/c".into())),
            (8.0, runtime, 4, enter("pivot_root")),
            (9.0, runtime, 3, What::Exit),
            (11.0, runtime, 5, exec("/x/runc")),
            (12.0, guest, 4, exec("/proc/self/fd/3")),
            (14.0, guest, 4, What::Exit),
            (16.0, runtime, 6, exec("/x/runc")),
            (17.0, runtime, 6, What::Exit),
            (18.0, shim, 2, enter("umount")),
            (19.0, shim, 2, leave("umount")),
        ];
        deeds.into_iter().map(|(at, role, thread, what)| (role, Event { at, thread, what })).collect()
    }

    /// The same of a container that the shim makes.
    fn life_of_the_shim() -> Vec<(Role, Event)> {
        let of_both = life().into_iter().filter(|(role, _)| *role != Role::Runtime);
        let mut life: Vec<_> = of_both.filter(|(_, event)| event.at != 12.0).collect();
        let exec = |program: &str| What::Exec(program.into());
        let of_the_shim = [
            (5.0, Role::Shim, 2, What::Mkdir("/c".into())),
            (6.0, Role::Guest, 4, exec("/proc/self/fd/9")),
            (7.0, Role::Guest, 4, What::Enter("pivot_root".into())),
            (8.0, Role::Guest, 4, exec("/proc/self/fd/3")),
        ];
        life.extend(of_the_shim.map(|(at, role, thread, what)| (role, Event { at, thread, what })));
        life.sort_by(|one, other| one.1.at.total_cmp(&other.1.at));
        life
    }

    fn steps_of(maker: Maker, life: &[(Role, Event)]) -> Result<Vec<Step>> {
        let deeds: Vec<_> = life.iter().map(|(role, event)| Deed { event, role: *role }).collect();
        let slices =
            [Slice { role: Role::Runtime, from: 4.5, to: 5.5 }, Slice { role: Role::Guest, from: 12.0, to: 14.0 }];
        steps(maker, &deeds, &slices, REQUESTS)
    }

    #[test]
    fn each_step_of_a_life_ends_where_the_next_one_begins() {
        let steps = steps_of(Maker::Runtime, &life()).unwrap();
        let expected = [1.0; 12].into_iter().chain([1.5, 0.5]).chain([1.0; 6]).collect::<Vec<_>>();
        assert_eq!(steps.iter().map(|step| step.ms).collect::<Vec<_>>(), expected);
        let used = |number: usize| steps[number].processor_ms;
        assert_eq!([used(4), used(5)], [[0.0, 0.0, 0.5, 0.0]; 2], "a slice is divided among the steps");
        assert_eq!([used(12), used(13)], [[0.0, 0.0, 0.0, 1.5], [0.0, 0.0, 0.0, 0.5]]);

        let steps = steps_of(Maker::Shim, &life_of_the_shim()).unwrap();
        let expected = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.5, 0.5, 1.0, 3.0, 1.0, 1.0];
        assert_eq!(steps.iter().map(|step| step.ms).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_life_of_which_something_was_not_recorded_is_no_figure() {
        // One of runc's two executions shows the same step.
        for missing in (0..life().len()).filter(|number| *number != 5) {
            let mut life = life();
            let (_, event) = life.remove(missing);
            assert!(steps_of(Maker::Runtime, &life).is_err(), "without {event:?}");
        }
        for missing in 0..life_of_the_shim().len() {
            let mut life = life_of_the_shim();
            let (_, event) = life.remove(missing);
            assert!(steps_of(Maker::Shim, &life).is_err(), "without {event:?}");
        }
    }
}

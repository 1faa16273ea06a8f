//! The soak: many containers and a long load, after which nothing has grown: no shim, no engine, and nothing that they leave on
//! the node. A tenth of it by default; `SKIFF_SOAK` sets the part.

mod containers;
mod requests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use skiff_test::{tasks_of, until_every, zombies_of};

/// What names of memory begin with.
const MEMORY: &str = "private memory";
const KIB: u64 = 1 << 10;
/// How much memory may be more at the end than after the warm-up, beyond a tenth. What was measured is in `docs/benchmark.md`: a heap
/// gets its last 400 KiB late, when some threads happen to work at once for the first time.
const SLACK_BYTES: u64 = 512 * KIB;
/// How long figures are read before the least of each counts. Idle threads of a shim or an engine end after 10 s.
const REST: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(250);

/// One over this of the soak is run.
pub(crate) fn part() -> u32 {
    match std::env::var("SKIFF_SOAK").as_deref() {
        Ok("whole") => 1,
        Ok(number) => number.parse().expect("`SKIFF_SOAK` is `whole`, or 3 for a third"),
        Err(_) => 10,
    }
}

/// What may not grow, by name.
#[derive(Clone, Default)]
pub(crate) struct Figures(BTreeMap<String, u64>);

impl Figures {
    pub(crate) fn add(&mut self, name: &str, value: u64) {
        self.0.insert(name.into(), value);
    }

    pub(crate) fn add_count(&mut self, name: &str, count: usize) {
        self.add(name, u64::try_from(count).unwrap());
    }

    /// Adds what the process `pid` has: memory of its own, open files, threads, and children that nobody waited for.
    pub(crate) fn add_process(&mut self, name: &str, pid: u32) {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let kib = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")?.split_whitespace().next());
        self.add(&format!("{MEMORY} of {name}"), kib.unwrap().parse::<u64>().unwrap() * KIB);
        self.add_count(&format!("open files of {name}"), fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
        self.add_count(&format!("threads of {name}"), tasks_of(pid));
        self.add_count(&format!("zombies of {name}"), zombies_of(pid).len());
    }

    /// The least of each figure while nothing is asked for.
    pub(crate) fn at_rest(read: impl Fn() -> Self) -> Self {
        let mut least = read();
        until_every(PAUSE, REST, || {
            for (name, value) in read().0 {
                least.0.entry(name).and_modify(|least| *least = value.min(*least)).or_insert(value);
            }
            false
        });
        least
    }

    /// What is more than in `before`, by more than is permitted.
    fn grown(&self, before: &Self) -> Vec<String> {
        let most = |name: &str, before: u64| {
            if name.starts_with(MEMORY) { before + before / 10 + SLACK_BYTES } else { before }
        };
        let check = |(name, now): (&String, &u64)| {
            let before = before.0.get(name).copied().unwrap_or_default();
            (*now > most(name, before)).then(|| format!("{name}: {before} after the warm-up, {now} at the end"))
        };
        self.0.iter().filter_map(check).collect()
    }

    /// Shows both, and panics if anything has grown since `before`.
    pub(crate) fn assert_no_growth(&self, before: &Self, after_what: &str) {
        let mut text = format!("{after_what}:\n");
        for (name, now) in &self.0 {
            writeln!(text, "  {name}: {} after the warm-up, {now} at the end", before.0[name]).unwrap();
        }
        eprint!("{text}");
        let grown = self.grown(before);
        assert!(grown.is_empty(), "{after_what}, this has grown:\n{}", grown.join("\n"));
    }
}

#[test]
fn a_count_may_not_grow_and_memory_only_within_its_bound() {
    let figures = |files: u64, bytes: u64| {
        let mut figures = Figures::default();
        figures.add("open files of a shim", files);
        figures.add("private memory of a shim", bytes);
        figures
    };
    let before = figures(20, 1000 * KIB);
    for (files, bytes, grown) in
        [(20, 1000 * KIB, 0), (19, 1612 * KIB, 0), (20, 1612 * KIB + 1, 1), (21, 1000 * KIB, 1), (21, 2000 * KIB, 2)]
    {
        assert_eq!(figures(files, bytes).grown(&before).len(), grown, "{files} files, {bytes} bytes");
    }
}

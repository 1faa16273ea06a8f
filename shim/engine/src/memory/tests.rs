//! Stores that share one budget.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert_eq, prop_oneof, proptest};
use skiff_protocol::{Account, Limits, MemoryLimit, guest_share_bytes};
use wasmtime::ResourceLimiter;

use super::budget::Budget;
use super::denied::Denied;
use super::limiter::{Limiter, TABLE_ELEMENT_BYTES};

const MIB: usize = 1 << 20;

fn account() -> Account {
    Account::keep_in(&Account::create().unwrap()).unwrap()
}

fn limited(limit: &str) -> (tempfile::NamedTempFile, Arc<Budget>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(limit.as_bytes()).unwrap();
    let stat = File::open("/dev/null").unwrap();
    let budget = Budget::new(vec![MemoryLimit { limit: file.reopen().unwrap(), stat }], Some(1), account());
    (file, budget)
}

fn limiter(budget: &Arc<Budget>) -> Limiter {
    Limiter::new(budget, &Limits::default())
}

#[test]
fn two_memories_share_one_budget() {
    let (_file, budget) = limited("67108864\n");
    let (mut first, mut second) = (limiter(&budget), limiter(&budget));
    assert!(first.memory_growing(0, 40 * MIB, None).unwrap());
    assert!(!second.memory_growing(0, 40 * MIB, None).unwrap());
    assert!(second.memory_growing(0, 16 * MIB, None).unwrap());
    drop(first);
    assert!(second.memory_growing(16 * MIB, 40 * MIB, None).unwrap());
}

#[test]
fn a_lease_outlives_its_limiter() {
    let (_file, budget) = limited("67108864\n");
    let mut limiter = limiter(&budget);
    assert!(limiter.memory_growing(0, 40 * MIB, None).unwrap());
    let lease = limiter.lease();
    drop(limiter);
    assert_eq!(budget.account.used_bytes(), 40 << 20);
    drop(lease);
    assert_eq!(budget.account.used_bytes(), 0);
}

#[test]
fn files_in_memory_are_taken_from_the_guests_share() {
    let level = |limit: &str, stat: &str| {
        let [limit, stat] = [limit, stat].map(|text| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.reopen().unwrap()
        });
        MemoryLimit { limit, stat }
    };
    let own = level("67108864\n", "cache 40000000\nshmem 33554432\n");
    let of_pod = level("134217728\n", "shmem 4096\nmapped_file 1\ntotal_shmem 117440512\n");
    for (levels, guest_mib) in [(vec![own], 27), (vec![of_pod, level("67108864\n", "")], 7)] {
        let budget = Budget::new(levels, None, account());
        assert_eq!(budget.limit_bytes(), Some(64 << 20));
        let mut limiter = limiter(&budget);
        assert!(limiter.memory_growing(0, guest_mib * MIB, None).unwrap());
        assert!(!limiter.memory_growing(guest_mib * MIB, (guest_mib + 1) * MIB, None).unwrap());
        let denied = limiter.denied().unwrap().to_string();
        assert!(denied.contains("for the guest: files in memory take"), "{denied}");
    }
}

#[test]
fn the_refusal_names_its_numbers() {
    let (_file, budget) = limited("67108864\n");
    let mut limiter = limiter(&budget);
    assert!(!limiter.memory_growing(0, 256 * MIB, None).unwrap());
    let denied =
        Denied::Memory { wanted_bytes: 256 << 20, guest_bytes: 62_783_488, limit_bytes: 64 << 20, shared_bytes: 0 };
    assert_eq!(limiter.denied(), Some(&denied));
    assert_eq!(limiter.denied_just_now(), Some(&denied));
    assert!(limiter.memory_growing(0, MIB, None).unwrap());
    assert_eq!(limiter.denied(), None, "a guest that goes on with less has handled it");
}

#[test]
fn tables_count_by_their_elements() {
    let budget = Budget::new(Vec::new(), None, account());
    let mut limiter = limiter(&budget);
    assert!(limiter.table_growing(0, 9_000_000, None).unwrap());
    assert_eq!(budget.account.used_bytes(), 72_000_000);
    assert!(!limiter.table_growing(0, 2_000_000, None).unwrap());
    assert_eq!(limiter.denied(), Some(&Denied::Table { wanted_elements: 11_000_000, max_elements: 10_000_000 }));
}

#[test]
fn a_failed_growth_is_given_back_once() {
    let budget = Budget::new(Vec::new(), None, account());
    let mut limiter = limiter(&budget);
    assert!(limiter.memory_growing(0, MIB, None).unwrap());
    assert!(limiter.memory_growing(MIB, 3 * MIB, None).unwrap());
    limiter.memory_grow_failed(wasmtime::Error::msg("no mapping")).unwrap();
    limiter.memory_grow_failed(wasmtime::Error::msg("again")).unwrap();
    limiter.table_grow_failed(wasmtime::Error::msg("overflow")).unwrap();
    assert_eq!(budget.account.used_bytes(), 1 << 20);
    assert!(!limiter.memory_growing(MIB, 3 * MIB, Some(2 * MIB)).unwrap());
    assert_eq!(limiter.denied(), None);
}

#[test]
fn a_changed_limit_is_seen() {
    let (mut file, budget) = limited("16777216\n");
    let mut limiter = limiter(&budget);
    assert!(!limiter.memory_growing(0, 32 * MIB, None).unwrap());
    file.as_file().set_len(0).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.write_all(b"max\n").unwrap();
    assert!(limiter.memory_growing(0, 32 * MIB, None).unwrap(), "nothing is refused under a limit of before");
}

#[test]
fn without_files_the_specification_says_the_limit() {
    let budget = Budget::new(Vec::new(), Some(16 << 20), account());
    assert!(!limiter(&budget).memory_growing(0, 13 * MIB, None).unwrap());
}

#[test]
fn a_memory_has_no_more_pages_than_it_may() {
    let budget = Budget::new(Vec::new(), None, account());
    let mut limiter = Limiter::new(&budget, &Limits { memory_pages: Some(16), ..Limits::default() });
    assert!(limiter.memory_growing(0, MIB, None).unwrap());
    assert!(!limiter.memory_growing(MIB, MIB + 1, None).unwrap());
    assert_eq!(limiter.denied(), Some(&Denied::Pages { wanted_pages: 17, max_pages: 16 }));
    limiter.memory_grow_failed(wasmtime::Error::msg("of the last one")).unwrap();
    assert_eq!(budget.account.used_bytes(), 1 << 20);
}

/// What a store of the property test does next.
#[derive(Clone, Debug)]
enum Step {
    GrowMemory(usize),
    FailGrowth,
    GrowTable(usize),
    Drop,
    Limit(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..8 * MIB).prop_map(Step::GrowMemory),
        Just(Step::FailGrowth),
        (1..100_000_usize).prop_map(Step::GrowTable),
        Just(Step::Drop),
        (8 * MIB as u64..64 * MIB as u64).prop_map(Step::Limit),
    ]
}

/// One store's life: its limiter, the sizes of its memory and its table, and the last growth of the memory.
struct Life {
    limiter: Limiter,
    memory: usize,
    table: usize,
    last: usize,
}

impl Life {
    fn new(budget: &Arc<Budget>) -> Self {
        Self { limiter: limiter(budget), memory: 0, table: 0, last: 0 }
    }

    fn take(&mut self, step: &Step, budget: &Arc<Budget>, limit: &tempfile::NamedTempFile) {
        match *step {
            Step::GrowMemory(bytes) => {
                let granted = self.limiter.memory_growing(self.memory, self.memory + bytes, None).unwrap();
                self.last = if granted { bytes } else { 0 };
                self.memory += self.last;
            }
            Step::FailGrowth => {
                self.limiter.memory_grow_failed(wasmtime::Error::msg("no mapping")).unwrap();
                self.memory -= std::mem::take(&mut self.last);
            }
            Step::GrowTable(elements) => {
                let granted = self.limiter.table_growing(self.table, self.table + elements, None).unwrap();
                self.table += if granted { elements } else { 0 };
            }
            Step::Drop => *self = Self::new(budget),
            // At once and of one length: a reader sees one number or the other.
            Step::Limit(bytes) => limit.as_file().write_all_at(format!("{bytes:<10}\n").as_bytes(), 0).unwrap(),
        }
    }

    fn held_bytes(&self) -> u64 {
        self.memory as u64 + self.table as u64 * TABLE_ELEMENT_BYTES
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_stores_hold_is_what_the_budget_says(lives in vec(vec(step(), 1..60), 1..5)) {
        let (file, budget) = limited("67108864  \n");
        let run = |steps: &[Step]| {
            let mut life = Life::new(&budget);
            for step in steps {
                life.take(step, &budget, &file);
                let used = budget.account.used_bytes();
                assert!(used <= guest_share_bytes(64 << 20), "{used}");
            }
            (life.held_bytes(), life)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = lives.iter().map(|steps| scope.spawn(|| run(steps))).collect();
            let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(budget.account.used_bytes(), ended.iter().map(|(held, _)| held).sum::<u64>());
        });
        prop_assert_eq!(budget.account.used_bytes(), 0);
    }
}

#[test]
fn concurrent_stores_never_take_more_than_there_is() {
    let (_file, budget) = limited("67108864\n");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut limiter = limiter(&budget);
                    let mut size = 0;
                    while limiter.memory_growing(size, size + 64 * 1024, None).unwrap() {
                        size += 64 * 1024;
                        let used = budget.account.used_bytes();
                        assert!(used <= guest_share_bytes(64 << 20), "{used}");
                        if size > 16 * MIB {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(budget.account.used_bytes(), 0);
}

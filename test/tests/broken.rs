//! Two hundred broken modules: truncations and bit flips of real guests. None of them may crash the compiler, hang, or
//! leave anything behind. Each is refused with a sentence, or still runs as some module.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use skiff_test::{Containerd, guest, programs};

const COUNT: usize = 200;
const SEED: u64 = 0x05ee_d0f5_c1ff;
const GUESTS: [&str; 4] = ["c-exit", "c-hello", "rust-hello", "rust-p3-hello"];
/// One in this many refused modules is also run in a container, and so are those that compile, up to a number.
const REFUSED_STEP: usize = 12;
const ACCEPTED_MAX: usize = 24;
const WORKERS: usize = 3;
/// How long a module that still runs is left running.
const RUN_LIMIT: Duration = Duration::from_millis(300);

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

fn broken_modules() -> Vec<Vec<u8>> {
    let whole: Vec<_> = GUESTS.iter().map(|name| fs::read(guest(name)).unwrap()).collect();
    let mut numbers = Numbers(SEED);
    let mut modules = Vec::new();
    for index in 0..COUNT {
        let mut bytes = whole[index % whole.len()].clone();
        if index % 5 == 0 {
            // The magic number stays, so that it is taken for wasm.
            bytes.truncate(4 + numbers.below(bytes.len() - 4));
        } else {
            for _ in 0..=numbers.below(8) {
                let at = 4 + numbers.below(bytes.len() - 4);
                bytes[at] ^= 1 << numbers.below(8);
            }
        }
        modules.push(bytes);
    }
    modules
}

/// Compiles the module as the shim does and returns whether it could.
fn compile(wasm: &[u8], index: usize) -> bool {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(wasm).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let name = format!("/broken-{index}.wasm");
    let output = Command::new(programs().join("skiff"))
        .args(["compile", "--confine", "--wall-seconds", "20", "--name", &name])
        .stdin(input)
        .stdout(File::create("/dev/null").map_or(Stdio::null(), Stdio::from))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), None, "module {index}: {said}");
    match output.status.code() {
        Some(0) => true,
        Some(1) => {
            assert!(said.contains(&name) && said.trim_end().lines().count() == 1, "module {index}: {said}");
            assert!(!said.contains("panick"), "module {index}: {said}");
            false
        }
        code => panic!("module {index}: the compiler ended with {code:?}: {said}"),
    }
}

/// Runs it in a container with any result. Nothing of it may be left.
fn run(wasm: &[u8], index: usize) {
    let containerd = Containerd::shared();
    let file = containerd.directory().join(format!("broken-{index}.wasm"));
    fs::write(&file, wasm).unwrap();
    let job = containerd.job("c-hello").command(["/broken.wasm"]).memory(64 << 20).bind(&file, "/broken.wasm", &["ro"]);
    match job.try_start() {
        Err(refused) => assert!(refused.message.contains("/broken.wasm"), "module {index}: {refused}"),
        Ok(container) => {
            if container.wait_for(RUN_LIMIT).is_err() {
                container.kill(libc::SIGKILL).ok();
            }
            container.finish();
        }
    }
}

/// Does `work` for every index below `count`, on a few threads.
fn side_by_side(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    match next.fetch_add(1, Ordering::SeqCst) {
                        index if index < count => work(index),
                        _ => return,
                    }
                }
            });
        }
    });
}

#[test]
fn two_hundred_broken_modules_neither_crash_nor_hang_nor_leave_anything() {
    let modules = broken_modules();
    let compiled: Vec<_> = modules.iter().map(|_| AtomicUsize::new(0)).collect();
    side_by_side(COUNT, |index| {
        compiled[index].store(usize::from(compile(&modules[index], index)), Ordering::SeqCst);
    });
    let does_compile = |index: &usize| compiled[*index].load(Ordering::SeqCst) == 1;
    let accepted = (0..COUNT).filter(does_compile).take(ACCEPTED_MAX);
    let refused = (0..COUNT).filter(|index| !does_compile(index)).step_by(REFUSED_STEP);
    let chosen: Vec<_> = accepted.chain(refused).collect();
    assert!(chosen.len() > ACCEPTED_MAX, "some compile and some do not: {chosen:?}");
    side_by_side(chosen.len(), |at| run(&modules[chosen[at]], chosen[at]));
}

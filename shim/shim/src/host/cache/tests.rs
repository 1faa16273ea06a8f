use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, setrlimit};

use std::os::unix::fs::FileExt;

use skiff_protocol::COUNTERS_FILE;

use super::*;

/// Set when this test binary is run again, as a process that can be killed.
const CHILD: &str = "SKIFF_CACHE_TEST_DIR";

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("skiff-cache-{}-{count}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn cache(&self) -> Cache {
        Cache::open(&self.0.join("cache"), u64::MAX).unwrap()
    }

    fn cache_of(&self, max_bytes: u64) -> Cache {
        Cache::open(&self.0.join("cache"), max_bytes).unwrap()
    }

    fn files(&self) -> Vec<String> {
        files_below(&self.0.join("cache"))
    }
}

/// Every file below the cache, relative to it, without its counters.
fn files_below(cache: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![cache.to_owned()];
    while let Some(dir) = dirs.pop() {
        for file in fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.ends_with(COUNTERS_FILE) {
                found.push(path.strip_prefix(cache).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Only one test has mounted something there.
        umount2(&self.0.join("cache"), MntFlags::MNT_DETACH).ok();
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn key(number: u8) -> String {
    format!("{number:064x}")
}

fn entry(number: u8) -> String {
    format!("{CODE_ID}/{}.{CODE_EXTENSION}", key(number))
}

fn wanted(digest: &str) -> Wanted<'_> {
    Wanted { digest, owner: "namespace", pod: "pod", memory_bytes: 2 << 30 }
}

/// A compiler for the guest `number`.
fn writes(number: u8, bytes: &[u8]) -> impl FnOnce(&File) -> Result<String, Failure<io::Error>> {
    move |mut output| output.write_all(bytes).map(|()| key(number)).map_err(passing)
}

/// A failure that is not remembered.
fn passing<E>(error: E) -> Failure<E> {
    Failure { error, lasting: None }
}

fn artefact(file: &File, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

fn put(cache: &Cache, number: u8, bytes: usize) {
    cache.get_or_compile(wanted(&key(number)), writes(number, &vec![number; bytes])).unwrap();
}

fn host<E: std::fmt::Debug>(error: CacheError<E>) -> io::Error {
    match error {
        CacheError::Host(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_compiled_once_is_found_again_and_is_read_only() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    assert!(cache.lookup(&key(1)).unwrap().is_none());
    let code = vec![7; 300_000];
    let made = cache.get_or_compile(wanted(&key(1)), writes(1, &code)).unwrap();
    assert_eq!(artefact(&made, code.len()), code);
    let found = cache.get_or_compile(wanted(&key(1)), |_| Err(passing("compiled twice"))).unwrap();
    assert_eq!(artefact(&found, code.len()), code);
    for mut file in [&made, &found] {
        assert!(file.write_all(b"x").is_err());
        let again = File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    assert!(cache.lookup(&key(2)).unwrap().is_none());
    assert_eq!(scratch.files(), [entry(1)]);
}

#[test]
fn any_user_may_open_the_descriptor_again_and_nobody_the_path() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    put(&cache, 1, 10);
    let permissions = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(permissions(&scratch.0.join("cache")), 0o700);
    assert_eq!(permissions(&scratch.0.join("cache").join(CODE_ID)), 0o700);
    assert_eq!(permissions(&scratch.0.join("cache").join(entry(1))), 0o444);
}

#[test]
fn what_was_compiled_of_other_bytes_is_not_kept() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    let changed = cache.get_or_compile(wanted(&key(1)), writes(2, b"of another guest"));
    assert!(matches!(changed, Err(CacheError::Changed)));
    assert_eq!(scratch.files(), [""; 0]);
    put(&cache, 1, 10);
    let changed = cache.recompile(wanted(&key(1)), writes(2, b"of another guest"));
    assert!(matches!(changed, Err(CacheError::Changed)));
    assert_eq!(artefact(&cache.lookup(&key(1)).unwrap().unwrap(), 10), [1; 10]);
}

#[test]
fn a_cache_that_is_removed_while_code_is_compiled_is_made_again() {
    for removed in ["cache", &format!("cache/{CODE_ID}"), &format!("cache/{CODE_ID}/{}.{PENDING}", key(1))] {
        let scratch = Scratch::new();
        let cache = scratch.cache();
        let place = scratch.0.join(removed);
        let made = cache.get_or_compile(wanted(&key(1)), |output| {
            if place.is_dir() { fs::remove_dir_all(&place) } else { fs::remove_file(&place) }.unwrap();
            writes(1, b"code")(output)
        });
        assert_eq!(artefact(&made.unwrap(), 4), b"code", "{removed}");
        assert_eq!(scratch.files(), [entry(1)], "{removed}");
    }
}

#[test]
fn whoever_begins_anew_after_a_removal_publishes_its_own_file() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    let lock = scratch.0.join(format!("cache/{CODE_ID}/{}.{PENDING}", key(1)));
    let (another, code) = (cache.clone(), b"code");
    let mut begun_anew = None;
    let made = cache.get_or_compile(wanted(&key(1)), |output| {
        fs::remove_file(&lock).unwrap();
        begun_anew =
            Some(std::thread::spawn(move || another.get_or_compile(wanted(&key(1)), writes(1, code)).unwrap()));
        // It waits for the same slot.
        while !lock.exists() {
            std::thread::yield_now();
        }
        writes(1, code)(output)
    });
    for file in [made.unwrap(), begun_anew.unwrap().join().unwrap()] {
        assert_eq!(artefact(&file, 4), code);
    }
    assert_eq!(scratch.files(), [entry(1)]);
}

#[test]
fn an_entry_is_replaced_by_one_that_is_compiled_again_and_never_missing() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    put(&cache, 1, 10);
    let failed = cache.recompile(wanted(&key(1)), |_| Err(passing("no")));
    assert!(matches!(failed, Err(CacheError::Compile("no"))));
    assert!(cache.lookup(&key(1)).unwrap().is_some());
    let code = cache.recompile(wanted(&key(1)), writes(1, b"again")).unwrap();
    assert_eq!(artefact(&code, 5), b"again");
    assert_eq!(artefact(&cache.lookup(&key(1)).unwrap().unwrap(), 5), b"again");
    assert_eq!(scratch.files(), [entry(1)]);
}

#[test]
fn a_failed_compilation_leaves_nothing() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    match cache.get_or_compile(wanted(&key(1)), |_| Err(passing("corrupt"))).unwrap_err() {
        CacheError::Compile(error) => assert_eq!(error, "corrupt"),
        other => panic!("{other:?}"),
    }
    let empty = cache.get_or_compile(wanted(&key(1)), writes(1, b"")).unwrap_err();
    assert_eq!(host(empty).kind(), ErrorKind::InvalidData);
    assert_eq!(scratch.files(), [""; 0]);
    put(&cache, 1, 10);
}

#[test]
fn a_lasting_failure_is_remembered_for_ten_minutes() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    let lasting = |number, sentence: &str| {
        let lasting = Lasting { digest: key(number), sentence: sentence.into(), memory_bytes: None };
        Err(Failure { error: (), lasting: Some(lasting) })
    };
    let fail = || cache.get_or_compile(wanted(&key(1)), |_| lasting(1, "corrupt"));
    assert!(matches!(fail(), Err(CacheError::Compile(()))));
    let again = cache.get_or_compile(wanted(&key(1)), |_| -> Result<String, Failure<()>> { panic!("compiled again") });
    assert!(matches!(again, Err(CacheError::Remembered(sentence)) if sentence == "corrupt"));
    let path = scratch.0.join("cache").join(entry(1)).with_extension("failed");
    let old = SystemTime::now() - Duration::from_secs(601);
    File::open(&path).unwrap().set_times(fs::FileTimes::new().set_modified(old)).unwrap();
    assert!(matches!(fail(), Err(CacheError::Compile(()))));
    File::open(&path).unwrap().set_times(fs::FileTimes::new().set_modified(old)).unwrap();
    assert!(cache.get_or_compile(wanted(&key(2)), |_| lasting(2, "too")).is_err());
    assert!(!path.exists(), "what is over is tidied away with the next failure");
    assert!(cache.get_or_compile(wanted(&key(3)), |_| lasting(4, "of other bytes")).is_err());
    put(&cache, 3, 10);
}

#[test]
fn a_failure_for_memory_is_remembered_for_whoever_has_no_more() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    let digest = key(1);
    let with = |memory_bytes| {
        let lasting = Lasting { digest: key(1), sentence: "too much".into(), memory_bytes: Some(memory_bytes) };
        let fail = move |_: &File| Err(Failure { error: (), lasting: Some(lasting) });
        cache.get_or_compile(Wanted { memory_bytes, ..wanted(&digest) }, fail)
    };
    assert!(matches!(with(20), Err(CacheError::Compile(()))));
    for memory_bytes in [20, 19] {
        assert!(matches!(with(memory_bytes), Err(CacheError::Remembered(sentence)) if sentence == "too much"));
    }
    assert!(matches!(with(21), Err(CacheError::Compile(()))));
    assert!(matches!(with(21), Err(CacheError::Remembered(_))));
    // As an earlier release wrote it.
    fs::write(scratch.0.join("cache").join(entry(1)).with_extension("failed"), "corrupt").unwrap();
    assert!(matches!(with(22), Err(CacheError::Remembered(sentence)) if sentence == "corrupt"));
}

#[test]
fn a_compiler_knows_whether_others_wait_for_it() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    assert!(!cache.is_awaited(&key(1)));
    std::thread::scope(|scope| {
        let made = cache.get_or_compile(wanted(&key(1)), |output| {
            assert!(!cache.is_awaited(&key(1)));
            scope.spawn(|| put(&scratch.cache(), 1, 10));
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while !cache.is_awaited(&key(1)) {
                assert!(std::time::Instant::now() < deadline, "the other waits");
                std::thread::yield_now();
            }
            writes(1, &[1; 10])(output)
        });
        made.unwrap();
    });
}

#[test]
fn a_pod_compiles_one_guest_at_a_time() {
    let scratch = Scratch::new();
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for number in 1..5 {
            let (scratch, now, most) = (&scratch, &now, &most);
            scope.spawn(move || {
                let made = scratch.cache().get_or_compile(wanted(&key(number)), |output| {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let written = writes(number, &vec![number; 1 << 20])(output);
                    now.fetch_sub(1, Ordering::SeqCst);
                    written
                });
                made.unwrap();
            });
        }
    });
    assert_eq!(most.into_inner(), 1);
}

#[test]
fn a_digest_is_no_path() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    let long = format!("{}g", &key(1)[1..]);
    for digest in ["", "ab", "../../../../etc/shadow", &key(1).to_uppercase().replace('0', "A"), &long] {
        assert_eq!(cache.lookup(digest).unwrap_err().kind(), ErrorKind::InvalidInput, "{digest}");
    }
}

#[test]
fn many_threads_compile_once() {
    let scratch = Scratch::new();
    let (compiled, start) = (AtomicUsize::new(0), Barrier::new(16));
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (scratch, compiled, start) = (&scratch, &compiled, &start);
            scope.spawn(move || {
                let cache = scratch.cache();
                for round in 0..8 {
                    start.wait();
                    let file = cache
                        .get_or_compile(wanted(&key(round)), |output| {
                            compiled.fetch_add(1, Ordering::Relaxed);
                            writes(round, &[round; 1000])(output)
                        })
                        .unwrap();
                    assert_eq!(artefact(&file, 1000), [round; 1000], "thread {thread}");
                }
            });
        }
    });
    assert_eq!(compiled.into_inner(), 8);
    assert_eq!(scratch.files(), (0..8).map(entry).collect::<Vec<_>>());
}

#[test]
fn threads_whose_compilation_fails_take_turns() {
    let scratch = Scratch::new();
    let (compiled, start) = (AtomicUsize::new(0), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = scratch.cache();
                start.wait();
                let failure =
                    cache.get_or_compile(wanted(&key(1)), |_| Err(passing(compiled.fetch_add(1, Ordering::Relaxed))));
                assert!(matches!(failure, Err(CacheError::Compile(_))));
            });
        }
    });
    assert_eq!(compiled.into_inner(), 8);
    assert_eq!(scratch.files(), [""; 0]);
}

/// Runs in the processes that the tests below start; does nothing otherwise.
#[test]
fn child_process() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let cache = Cache::open(Path::new(&dir), u64::MAX).unwrap();
    let mut code = vec![9; 4 << 20];
    code[0] = 1;
    match std::env::var("SKIFF_CACHE_TEST_DEED").unwrap().as_str() {
        // SIGXFSZ kills the process while it writes the entry.
        "die-writing" => cache
            .get_or_compile(wanted(&key(1)), |output| {
                let digest = writes(1, &code)(output)?;
                setrlimit(Resource::RLIMIT_FSIZE, 1_000_000, 1_000_000).unwrap();
                Ok(digest)
            })
            .map(drop)
            .unwrap(),
        "die-compiling" => cache
            .get_or_compile(wanted(&key(1)), |_| {
                nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).unwrap();
                Err(passing(()))
            })
            .map(drop)
            .unwrap(),
        "compile" => cache
            .get_or_compile(wanted(&key(1)), |output| {
                fs::write(Path::new(&dir).with_file_name(format!("compiled-{}", std::process::id())), "").unwrap();
                writes(1, &code)(output)
            })
            .map(drop)
            .unwrap(),
        "fill" => fill(Path::new(&dir), &cache),
        deed => panic!("{deed}"),
    }
}

fn child(scratch: &Scratch, deed: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let name = format!("{}::child_process", module_path!().split_once("::").unwrap().1);
    child.args([&name, "--exact", "--test-threads=1"]);
    child.env(CHILD, scratch.0.join("cache")).env("SKIFF_CACHE_TEST_DEED", deed);
    child.stdout(Stdio::piped());
    child
}

#[test]
fn many_processes_compile_once() {
    let scratch = Scratch::new();
    let children: Vec<_> = (0..6).map(|_| child(&scratch, "compile").spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("1 passed"));
    }
    let compiled = fs::read_dir(&scratch.0)
        .unwrap()
        .filter(|file| file.as_ref().unwrap().file_name().to_str().unwrap().starts_with("compiled-"));
    assert_eq!(compiled.count(), 1);
    assert!(scratch.cache().lookup(&key(1)).unwrap().is_some());
    assert_eq!(scratch.files(), [entry(1)]);
}

#[test]
fn a_process_killed_in_the_middle_of_a_write_leaves_no_entry_and_the_next_run_tidies_up() {
    for (deed, signal, next) in
        [("die-writing", libc::SIGXFSZ, 1), ("die-writing", libc::SIGXFSZ, 2), ("die-compiling", libc::SIGKILL, 2)]
    {
        let scratch = Scratch::new();
        let output = child(&scratch, deed).output().unwrap();
        assert_eq!(output.status.signal(), Some(signal), "{deed}");
        let left = scratch.0.join("cache").join(entry(1)).with_extension(PENDING);
        let expected_bytes = if deed == "die-writing" { 1_000_000 } else { 0 };
        assert_eq!(fs::metadata(left).unwrap().len(), expected_bytes);
        let cache = scratch.cache();
        assert!(cache.lookup(&key(1)).unwrap().is_none());
        put(&cache, next, 10);
        assert_eq!(scratch.files(), [entry(next)], "{deed}");
    }
}

#[test]
fn entries_that_are_not_what_was_written_are_removed_and_compiled_again() {
    type Spoil = fn(&Path);
    let truncate: Spoil = |path| File::options().write(true).open(path).unwrap().set_len(5000).unwrap();
    let spoils: [(&str, Spoil); 13] = [
        ("truncated", truncate),
        ("empty", |path| File::options().write(true).open(path).unwrap().set_len(0).unwrap()),
        ("first bit", |path| flip(path, 0)),
        ("a bit in the middle", |path| flip(path, 5000)),
        ("a bit of the magic", |path| flip(path, 10_000)),
        ("a bit of the key", |path| flip(path, 10_016)),
        ("a bit of the owner", |path| flip(path, 10_081)),
        ("last bit", |path| flip(path, 10_159)),
        ("appended", |path| File::options().append(true).open(path).unwrap().write_all(b"x").unwrap()),
        ("foreign", |path| chown(path, Some(65534), None).unwrap()),
        ("group-writable", |path| fs::set_permissions(path, Permissions::from_mode(0o664)).unwrap()),
        ("hard-linked", |path| fs::hard_link(path, path.with_extension("other")).unwrap()),
        ("symlink", |path| {
            let other = path.with_extension("other");
            fs::rename(path, &other).unwrap();
            symlink(&other, path).unwrap();
        }),
    ];
    for (name, spoil) in spoils {
        let scratch = Scratch::new();
        let cache = scratch.cache();
        put(&cache, 1, 10_000);
        spoil(&scratch.0.join("cache").join(entry(1)));
        assert!(cache.lookup(&key(1)).unwrap().is_none(), "{name}");
        assert!(!scratch.files().contains(&entry(1)), "{name}");
        put(&cache, 1, 10_000);
        assert!(cache.lookup(&key(1)).unwrap().is_some(), "{name}");
    }
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn an_entry_under_the_name_of_another_is_not_taken() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    put(&cache, 1, 10);
    fs::rename(scratch.0.join("cache").join(entry(1)), scratch.0.join("cache").join(entry(2))).unwrap();
    assert!(cache.lookup(&key(2)).unwrap().is_none());
}

#[test]
fn a_fifo_in_place_of_an_entry_does_not_block() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    put(&cache, 1, 10);
    let path = scratch.0.join("cache").join(entry(1));
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(cache.lookup(&key(1)).unwrap().is_none());
}

#[test]
fn the_least_recently_used_entries_go_first_and_the_new_one_never() {
    let scratch = Scratch::new();
    let cache = scratch.cache_of(35_000);
    for number in [1, 2, 3] {
        put(&cache, number, 10_000);
        let path = scratch.0.join("cache").join(entry(number));
        let old = SystemTime::now() - Duration::from_secs(1000 - u64::from(number));
        File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(old)).unwrap();
    }
    assert_eq!(scratch.files(), [entry(1), entry(2), entry(3)]);
    cache.lookup(&key(1)).unwrap().unwrap();
    put(&cache, 4, 10_000);
    assert_eq!(scratch.files(), [entry(1), entry(3), entry(4)]);
    put(&cache, 5, 100_000);
    assert_eq!(scratch.files(), [entry(5)]);
}

#[test]
fn hits_misses_compilations_and_evictions_are_counted() {
    let scratch = Scratch::new();
    let cache = scratch.cache_of(100_000);
    put(&cache, 1, 60_000);
    put(&cache, 1, 60_000);
    put(&cache, 1, 60_000);
    put(&cache, 2, 60_000);
    assert!(cache.get_or_compile(wanted(&key(3)), |_| Err(passing("stopped"))).is_err());
    let lasting = Lasting { digest: key(3), sentence: "corrupt".into(), memory_bytes: None };
    let corrupt = Failure { error: (), lasting: Some(lasting) };
    assert!(cache.get_or_compile(wanted(&key(3)), |_| Err(corrupt)).is_err());
    assert!(cache.get_or_compile(wanted(&key(5)), writes(6, b"of another guest")).is_err());
    let counted = Counters::read(&cache.dir).unwrap();
    assert!(counted.compile_time > Duration::ZERO, "{counted:?}");
    let expected = Counters { hits: 2, misses: 5, compilations: 5, failures: 2, evictions: 1, ..counted };
    assert_eq!(counted, expected);
    // A cache that cannot count is still useful.
    fs::remove_file(cache.dir.join(COUNTERS_FILE)).unwrap();
    fs::create_dir(cache.dir.join(COUNTERS_FILE)).unwrap();
    put(&cache, 4, 10);
}

#[test]
fn entries_of_other_engines_go_first_with_what_dead_writers_left() {
    let scratch = Scratch::new();
    let cache = scratch.cache_of(35_000);
    put(&cache, 1, 10_000);
    put(&cache, 2, 10_000);
    let other = scratch.0.join("cache/wasmtime-1-skiff-0");
    fs::create_dir(&other).unwrap();
    fs::write(other.join(key(7)).with_extension(CODE_EXTENSION), vec![0; 20_000]).unwrap();
    fs::write(other.join(key(8)).with_extension(PENDING), vec![0; 20_000]).unwrap();
    put(&cache, 3, 10_000);
    assert_eq!(scratch.files(), [entry(1), entry(2), entry(3)]);
    assert!(!other.exists());
}

#[test]
fn a_lock_that_is_held_is_not_tidied_away() {
    let scratch = Scratch::new();
    let cache = scratch.cache();
    let (begun, go_on) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cache.get_or_compile(wanted(&key(1)), |output| {
                begun.wait();
                go_on.wait();
                writes(1, b"slow")(output)
            })
        });
        begun.wait();
        // A second compilation would wait for the slot of the first.
        scratch.cache().evict(Path::new("")).unwrap();
        make_private_dir(&scratch.0.join("cache").join(CODE_ID)).unwrap();
        fs::write(scratch.0.join("cache").join(entry(2)), "x").unwrap();
        assert_eq!(scratch.files().len(), 2);
        go_on.wait();
    });
    assert_eq!(scratch.files(), [entry(1), entry(2)]);
}

#[test]
fn a_full_disk_makes_room_or_says_so() {
    let scratch = Scratch::new();
    let dir = scratch.0.join("cache");
    fs::create_dir(&dir).unwrap();
    mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=700")).unwrap();
    // In a process of its own: children that other tests start briefly hold every open file, and so its blocks.
    let output = child(&scratch, "fill").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn fill(dir: &Path, cache: &Cache) {
    put(cache, 1, 400_000);
    put(cache, 2, 400_000);
    let second = File::open(dir.join(entry(2))).unwrap();
    second.set_times(fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
    drop(second);
    put(cache, 3, 400_000);
    assert_eq!(files_below(dir), [entry(1), entry(3)], "the least recently used one makes room");
    let error = host(cache.get_or_compile(wanted(&key(4)), writes(4, &[0; 2 << 20])).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let (path, sentence) = (dir.join(entry(4)), error.to_string());
    assert!(sentence.contains(path.to_str().unwrap()) && sentence.contains("the disk is full"), "{sentence}");
    assert_eq!(files_below(dir), [""; 0], "a failed write leaves nothing");
    put(cache, 5, 400_000);
}

#[test]
fn a_directory_that_others_control_is_refused() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil, &str); 6] = [
        ("foreign", |dir| chown(dir.join("a/cache"), Some(65534), None).unwrap(), "a/cache"),
        ("writable", |dir| fs::set_permissions(dir.join("a/cache"), Permissions::from_mode(0o777)).unwrap(), "a/cache"),
        ("sticky", |dir| fs::set_permissions(dir.join("a/cache"), Permissions::from_mode(0o1777)).unwrap(), "a/cache"),
        ("writable parent", |dir| fs::set_permissions(dir.join("a"), Permissions::from_mode(0o775)).unwrap(), "a"),
        ("foreign parent", |dir| chown(dir.join("a"), Some(65534), None).unwrap(), "a"),
        (
            "foreign link",
            |dir| {
                fs::rename(dir.join("a"), dir.join("b")).unwrap();
                symlink("b", dir.join("a")).unwrap();
                std::os::unix::fs::lchown(dir.join("a"), Some(65534), None).unwrap();
            },
            "a",
        ),
    ];
    for (name, spoil, culprit) in spoils {
        let scratch = Scratch::new();
        let dir = scratch.0.join("a/cache");
        Cache::open(&dir, 0).unwrap();
        spoil(&scratch.0);
        let error = Cache::open(&dir, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
        let culprit = format!("`{}` is not a safe place", scratch.0.join(culprit).display());
        assert!(error.to_string().starts_with(&culprit), "{name}: {error}");
    }
    assert_eq!(Cache::open(Path::new("cache"), 0).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn our_own_link_is_followed_and_what_it_leads_through_is_checked() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.0.join("open/deep/cache")).unwrap();
    symlink("open/deep", scratch.0.join("link")).unwrap();
    let dir = scratch.0.join("link/cache");
    Cache::open(&dir, 0).unwrap();
    fs::set_permissions(scratch.0.join("open"), Permissions::from_mode(0o777)).unwrap();
    assert_eq!(Cache::open(&dir, 0).unwrap_err().kind(), ErrorKind::PermissionDenied);
    fs::create_dir(scratch.0.join("cache")).unwrap();
}

#[test]
fn a_loop_of_links_is_an_error() {
    let scratch = Scratch::new();
    symlink("loop", scratch.0.join("loop")).unwrap();
    assert!(Cache::open(&scratch.0.join("loop/cache"), 0).is_err());
    assert!(trust::check_directory(&scratch.0.join("loop")).is_err());
}

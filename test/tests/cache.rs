//! The cache of compiled code: each guest is compiled once, by a confined process, and nothing but what skiff's own
//! compiler wrote is ever mapped.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use skiff_test::{Archive, Containerd, File, Image, SHIM, children_of, eventually, guest, programs, sha256, until};
use xxhash_rust::xxh3::xxh3_128;

/// What follows the compiled code in an entry: a name, its length, the digest, the owner, and a hash over all of it.
const TRAILER_NAME: &[u8] = b"skiffao2";
const OWNER_BYTES: usize = 64;
const TRAILER_BYTES: usize = 8 + 8 + 64 + OWNER_BYTES + 16;

/// Calls `skiff cache` for the cache of `containerd`.
fn skiff_cache(containerd: &Containerd, arguments: &[&str]) -> Output {
    let cache = containerd.own_cache();
    Command::new(programs().join("skiff")).arg("cache").args(arguments).arg("--cache-dir").arg(cache).output().unwrap()
}

/// The entries of a cache. Besides them it may hold only its counters, and the locks with which compilers take turns.
fn entries(containerd: &Containerd) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for engine in fs::read_dir(containerd.own_cache()).unwrap().flatten() {
        let name = engine.file_name();
        if name == "counters.1" || name == "digests" || name.to_string_lossy().starts_with("slot.") {
            continue;
        }
        found.extend(fs::read_dir(engine.path()).unwrap().flatten().map(|entry| entry.path()));
    }
    found.sort();
    found
}

fn the_entry(containerd: &Containerd) -> PathBuf {
    let found = entries(containerd);
    assert!(found.len() == 1 && found[0].extension().is_some_and(|kind| kind == "cwasm"), "{found:?}");
    found[0].clone()
}

/// Distinguishes a file from its successor, since inode numbers are soon used again.
fn identity(path: &Path) -> (u64, SystemTime) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.ino(), metadata.created().unwrap())
}

fn hello(containerd: &Containerd) {
    let outcome = containerd.job("c-hello").run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "hello\n"), "{outcome:?}");
}

#[test]
fn a_cache_that_was_warmed_has_the_code_that_the_first_pod_would_have_compiled() {
    let containerd = Containerd::with_own_cache();
    let digest = sha256(&fs::read(guest("c-hello")).unwrap());
    let guest = guest("c-hello");
    for what in ["compiled", "already there"] {
        let warmed = skiff_cache(&containerd, &["warm", guest.to_str().unwrap()]);
        let said = String::from_utf8(warmed.stdout).unwrap();
        assert_eq!(
            said,
            format!("{digest}  {what}  {}\n", guest.display()),
            "{}",
            String::from_utf8_lossy(&warmed.stderr)
        );
    }
    let first = identity(&the_entry(&containerd));
    hello(&containerd);
    assert_eq!(identity(&the_entry(&containerd)), first, "the pod compiles nothing");
    let listed = String::from_utf8(skiff_cache(&containerd, &["list"]).stdout).unwrap();
    assert!(listed.lines().count() == 2 && listed.contains(&digest), "{listed}");
    assert!(skiff_cache(&containerd, &["clear", "--older", "1d"]).status.success());
    assert_eq!(entries(&containerd).len(), 1);
    let cleared = skiff_cache(&containerd, &["clear"]);
    assert!(String::from_utf8_lossy(&cleared.stdout).starts_with("removed the code of 1 module,"), "{cleared:?}");
    assert!(entries(&containerd).is_empty());
    hello(&containerd);
}

#[test]
fn what_cannot_be_compiled_does_not_warm_the_cache() {
    let containerd = Containerd::with_own_cache();
    let broken = containerd.directory().join("broken.wasm");
    fs::write(&broken, b"\0asm\x01\0\0\0\xff").unwrap();
    for (file, expected) in [
        (broken.to_str().unwrap(), format!("skiff: `{}` is corrupt", broken.display())),
        ("/no/such/file.wasm", "skiff: cannot read `/no/such/file.wasm`: No such file".into()),
        ("/dev/zero", "skiff: cannot read `/dev/zero`: it is a device".into()),
    ] {
        let refused = skiff_cache(&containerd, &["warm", file]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.starts_with(&expected) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_cache_is_warmed_within_the_memory_that_is_given() {
    let containerd = Containerd::with_own_cache();
    let guest = guest("c-hello");
    let warm =
        |bytes: &str| skiff_cache(&containerd, &["warm", "--compile-memory-bytes", bytes, guest.to_str().unwrap()]);
    let refused = warm("1048576");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("exceeds its memory limit of 1 MiB"), "{said}");
    hello(&containerd);
}

#[test]
fn a_compiler_that_took_too_much_memory_is_run_again_with_one_thread() {
    let containerd = Containerd::with_own_cache();
    let guest = guest("c-hello");
    assert!(skiff_cache(&containerd, &["warm", guest.to_str().unwrap()]).status.success());
    let expected = fs::read(the_entry(&containerd)).unwrap();
    assert!(skiff_cache(&containerd, &["clear"]).status.success());
    // A shim with a compiler beside it that takes too much memory unless it has one thread, and only after it has written something.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'--threads 1'*) exec {} \"$@\";; esac\n\
         cat > /dev/null; echo half of the code; echo too much memory >&2; exit 4\n",
        programs().join("skiff").display()
    );
    let [shim, compiler] = [SHIM, "skiff"].map(|program| containerd.directory().join(program));
    // Other processes write the programs: what this one has open for writing, a child of another test may hold when they are run.
    assert!(Command::new("cp").arg(programs().join(SHIM)).arg(&shim).status().unwrap().success());
    let write = r#"printf %s "$1" > "$0" && chmod 755 "$0""#;
    assert!(Command::new("sh").args(["-c", write]).arg(&compiler).arg(script).status().unwrap().success());
    let request = serde_json::json!({
        "file": guest, "namespace": "default", "cache_dir": containerd.own_cache(), "cache_max_bytes": 1 << 30,
        "compile_memory_bytes": 2_u64 << 30,
    });
    let input = containerd.directory().join("request");
    fs::write(&input, request.to_string()).unwrap();
    let warmed = Command::new(&shim).arg("warm").stdin(fs::File::open(input).unwrap()).output().unwrap();
    assert!(warmed.status.success(), "{}", String::from_utf8_lossy(&warmed.stderr));
    assert!(fs::read(the_entry(&containerd)).unwrap() == expected, "the code is that of the second try alone");
}

#[test]
fn the_first_run_compiles_and_the_second_does_not() {
    let containerd = Containerd::with_own_cache();
    hello(&containerd);
    let entry = the_entry(&containerd);
    let name = entry.file_stem().unwrap().to_str().unwrap();
    assert_eq!(name, sha256(&fs::read(guest("c-hello")).unwrap()), "the key is the module's digest");
    let first = identity(&entry);
    hello(&containerd);
    assert_eq!(identity(&the_entry(&containerd)), first);
}

#[test]
fn the_same_module_in_another_image_and_as_a_layer_is_not_compiled_again() {
    let containerd = Containerd::with_own_cache();
    hello(&containerd);
    let first = identity(&the_entry(&containerd));
    let wasm = fs::read(guest("c-hello")).unwrap();
    let image = Archive::ordinary(&[File::program("bin/other", wasm.clone())], &["/bin/other"]).import(&containerd);
    assert_eq!(containerd.job_of(&image).run().stdout, "hello\n");
    let layer = skiff_test::Layer::new("application/wasm", wasm, Some("a.wasm"));
    let config = serde_json::json!({"architecture": "wasm", "os": "wasip1"});
    let image = Archive::of_layers("application/vnd.wasm.config.v0+json", config, vec![layer]).import(&containerd);
    assert_eq!(containerd.job_of(&image).command(["/a.wasm"]).run().stdout, "hello\n");
    assert_eq!(identity(&the_entry(&containerd)), first);
}

#[test]
fn eight_first_runs_at_once_compile_once() {
    const RUNS: usize = 8;
    let containerd = Containerd::with_own_cache();
    containerd.guest("go-hello");
    let (barrier, done) = (Barrier::new(RUNS), AtomicBool::new(false));
    let compilers = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::SeqCst) {
                seen.extend(containerd.compilers());
                until(Duration::from_millis(3), || false);
            }
            seen
        });
        let running: Vec<_> = (0..RUNS)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    containerd.job("go-hello").run().stdout
                })
            })
            .collect();
        let outputs: Vec<_> = running.into_iter().map(|run| run.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        assert!(outputs.iter().all(|output| output == "hello\n"), "{outputs:?}");
        watching.join().unwrap()
    });
    assert_eq!(compilers.len(), 1, "{compilers:?}");
    the_entry(&containerd);
}

#[test]
fn the_compiler_has_no_privileges_no_network_and_a_control_group_of_its_own() {
    let containerd = Containerd::with_own_cache();
    let job = containerd.job("go-hello");
    let status = std::thread::scope(|scope| {
        let running = scope.spawn(|| job.run());
        let status = eventually("an unprivileged compiler", || {
            containerd.compilers().into_iter().flat_map(children_of).find_map(|pid| {
                let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
                let network = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
                let status = read("status").filter(|status| status.contains("Seccomp:\t2"))?;
                Some((status, read("cgroup")?, network))
            })
        });
        assert_eq!(running.join().unwrap().stdout, "hello\n");
        status
    });
    let (status, cgroup, network) = status;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    assert!(field("Uid:").iter().all(|uid| uid != "0"), "{status}");
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert!(cgroup.contains("skiff-compile"), "{cgroup}");
    assert_ne!(network, fs::read_link("/proc/self/ns/net").unwrap());
}

#[test]
fn an_entry_that_was_tampered_with_is_compiled_again() {
    let containerd = Containerd::with_own_cache();
    hello(&containerd);
    let entry = the_entry(&containerd);
    let good = fs::read(&entry).unwrap();
    let wrong_ways: [(&str, &dyn Fn()); 7] = [
        ("a flipped bit", &|| {
            let mut bytes = good.clone();
            bytes[good.len() / 2] ^= 1;
            replace(&entry, &bytes);
        }),
        ("a truncated entry", &|| replace(&entry, &good[..good.len() / 2])),
        ("an empty entry", &|| replace(&entry, b"")),
        ("another's entry", &|| {
            replace(&entry, &good);
            nix::unistd::chown(&entry, Some(1000.into()), None).unwrap();
        }),
        ("an entry that others may write", &|| {
            replace(&entry, &good);
            fs::set_permissions(&entry, fs::Permissions::from_mode(0o666)).unwrap();
        }),
        ("an entry with another name", &|| {
            replace(&entry, &good);
            fs::hard_link(&entry, containerd.directory().join("other-name")).unwrap();
        }),
        ("a symbolic link", &|| {
            let elsewhere = containerd.directory().join("elsewhere");
            fs::write(&elsewhere, &good).unwrap();
            fs::remove_file(&entry).unwrap();
            symlink(&elsewhere, &entry).unwrap();
        }),
    ];
    for (way, tamper) in wrong_ways {
        tamper();
        let before = identity(&entry);
        hello(&containerd);
        assert_ne!(identity(&the_entry(&containerd)), before, "{way} was taken");
        assert!(fs::symlink_metadata(&entry).unwrap().is_file(), "{way} is still there");
        assert!(fs::read(&entry).unwrap() == good, "{way}: compiled as before");
    }
}

/// Replaces `path` by a new file with these bytes.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o444)).unwrap();
    fs::rename(new, path).unwrap();
}

/// An entry that verifies, with any code.
fn sealed(code: &[u8], digest: &str) -> Vec<u8> {
    let length = u64::try_from(code.len()).unwrap().to_le_bytes();
    // The owner of a container that is not in a pod is its containerd namespace.
    let mut owner = b"skiff-test".to_vec();
    owner.resize(OWNER_BYTES, 0);
    let mut bytes = [code, TRAILER_NAME, &length, digest.as_bytes(), &owner].concat();
    bytes.extend(xxh3_128(&bytes).to_le_bytes());
    bytes
}

#[test]
fn compiled_code_of_another_engine_is_compiled_again() {
    let containerd = Containerd::with_own_cache();
    hello(&containerd);
    let entry = the_entry(&containerd);
    let good = fs::read(&entry).unwrap();
    let digest = entry.file_stem().unwrap().to_str().unwrap();
    let code = &good[..good.len() - TRAILER_BYTES];
    assert!(sealed(code, digest) == good, "this test makes entries as the shim does");
    let mut of_another = code.to_vec();
    let version = b"wasmtime-48";
    let at = code.windows(version.len()).position(|window| window == version).expect("the code names its engine");
    of_another[at + version.len() - 1] = b'7';
    for code in [&of_another[..], b"no code at all"] {
        replace(&entry, &sealed(code, digest));
        let before = identity(&entry);
        hello(&containerd);
        assert_ne!(identity(&the_entry(&containerd)), before);
        assert!(fs::read(&entry).unwrap() == good);
    }
}

#[test]
fn what_a_crash_left_in_the_middle_of_a_write_does_not_matter() {
    let containerd = Containerd::with_own_cache();
    hello(&containerd);
    let entry = the_entry(&containerd);
    fs::remove_file(&entry).unwrap();
    fs::write(entry.with_extension("tmp"), "half an entry").unwrap();
    hello(&containerd);
    assert_eq!(the_entry(&containerd), entry);
}

#[test]
fn a_cache_of_somebody_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("code");
    fs::create_dir(&cache).unwrap();
    nix::unistd::chown(&cache, Some(1000.into()), None).unwrap();
    let containerd = Containerd::with_options(&format!("CacheDir = \"{}\"\n", cache.display()));
    let refused = containerd.job("c-hello").refused();
    assert!(refused.message.contains(&cache.display().to_string()), "{refused}");
}

#[test]
fn the_cache_is_for_root_alone() {
    let containerd = Containerd::with_own_cache();
    hello(&containerd);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&containerd.own_cache()), 0o700);
    assert_eq!(mode(&the_entry(&containerd)) & 0o222, 0);
}

#[test]
fn a_module_that_takes_too_much_memory_with_many_threads_is_compiled_with_one() {
    // A thread takes some 60 MiB for each of these functions.
    let line = "(local.set 0 (i32.mul (local.get 0) (i32.xor (local.get 1) (i32.const 7))))";
    let function = format!("(func (param i32 i32) (result i32) {} (local.get 0))", line.repeat(20_000));
    let text = format!("(module {} (func (export \"_start\")))", function.repeat(8));
    let containerd = Containerd::with_options(&format!("CompileMemoryBytes = {}\n", 40 << 20));
    let image = Image::of_text(&containerd, &text);
    let refused = containerd.job_of(&image).refused();
    assert!(refused.message.contains("exceeds its memory limit of 40 MiB"), "{refused}");
    let options = fs::read_to_string(containerd.options_file()).unwrap();
    fs::write(containerd.options_file(), options.replace(&(40 << 20).to_string(), &(100 << 20).to_string())).unwrap();
    assert_eq!(containerd.job_of(&image).run().code, 0, "it is tried at once with a higher limit");
}

#[test]
fn the_cache_keeps_to_its_size_and_forgets_what_was_not_used() {
    const MAX_BYTES: u64 = 300 << 10;
    let containerd = Containerd::with_options(&format!("CacheMaxBytes = {MAX_BYTES}\n"));
    for name in ["c-exit", "c-hello", "c-cat", "c-files", "c-simd", "c-sleep"] {
        let args: &[&str] = if name == "c-sleep" { &["1"] } else { &[] };
        assert_eq!(containerd.job(name).args(args.iter().copied()).run().code, 0, "{name}");
        let sizes: Vec<u64> = entries(&containerd).iter().map(|entry| fs::metadata(entry).unwrap().len()).collect();
        assert!(sizes.len() == 1 || sizes.iter().sum::<u64>() <= MAX_BYTES, "{name}: {sizes:?}");
    }
    let last = sha256(&fs::read(guest("c-sleep")).unwrap());
    assert!(entries(&containerd).iter().any(|entry| entry.file_stem().unwrap() == last.as_str()), "the newest stays");
}

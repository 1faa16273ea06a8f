//! Attacks on the engine from its container: native code of the image, variables, files that it opens, and what it was
//! handed. Each one succeeded against skiff before the walls were built.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use skiff_test::{
    Archive, Containerd, File, Image, eventually, free_port, get, guest, random_name, serving, signal, status_field,
};

/// Variables of a container that mean something to the libraries of a program.
const HOSTILE: [&str; 12] = [
    "LD_PRELOAD=/lib/evil.so",
    "LD_LIBRARY_PATH=/lib",
    "LD_AUDIT=/lib/evil.so",
    "GCONV_PATH=/lib",
    "RES_OPTIONS=debug",
    "LOCALDOMAIN=evil.test",
    "HOSTALIASES=/etc/aliases",
    "MALLOC_PERTURB_=165",
    "GLIBC_TUNABLES=glibc.malloc.check=3",
    "TZDIR=/lib",
    "LOCPATH=/lib",
    "RUST_LOG=trace",
];

/// A library whose constructor prints that it runs.
fn evil_library() -> Vec<u8> {
    const SOURCE: &str = r#"
        static const char text[] = "NATIVE CODE OF THE IMAGE RUNS IN THE ENGINE\n";
        __attribute__((constructor)) static void run(void) {
          long answer;
          __asm__ volatile("syscall" : "=a"(answer) : "a"(1L), "D"(1L), "S"(text), "d"(sizeof text - 1) : "rcx", "r11", "memory");
        }"#;
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (directory.path().join("evil.c"), directory.path().join("evil.so"));
    fs::write(&source, SOURCE).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(&library).arg(&source);
    assert!(gcc.status().expect("`gcc` can be run").success());
    fs::read(library).unwrap()
}

/// An image of an HTTP server in which `name` is this machine, and whose name service is hostile.
fn hostile_image(containerd: &Containerd, name: &str) -> Image {
    let library = evil_library();
    let mut files = vec![
        File::program("app.wasm", fs::read(guest("rust-p2-http")).unwrap()),
        File::text("etc/nsswitch.conf", "hosts: evil files dns\n"),
        File::text("etc/hosts", &format!("127.0.0.1 {name}\n")),
        File::text("etc/aliases", &format!("{name} evil.test\n")),
        File::program("lib/evil.so", library.clone()),
    ];
    for place in ["lib/x86_64-linux-gnu", "lib64", "usr/lib", "usr/lib/x86_64-linux-gnu"] {
        files.push(File::program(&format!("{place}/libnss_evil.so.2"), library.clone()));
    }
    Archive::ordinary(&files, &["/app.wasm"]).import(containerd)
}

#[test]
fn neither_a_library_nor_a_variable_of_the_image_reaches_the_engine() {
    let containerd = Containerd::shared();
    let (name, port) = (random_name("host"), free_port());
    let job =
        HOSTILE.iter().fold(containerd.job_of(&hostile_image(containerd, &name)), |job, variable| job.env(variable));
    let server = serving(job, port);
    let fetched = get(port, &format!("/fetch?url=http://{name}:{port}/")).unwrap().text();
    for output in [server.streams.stdout(), server.streams.stderr()] {
        assert!(!output.contains("NATIVE CODE"), "{output}");
    }
    assert_eq!(fetched, "hello\n", "the name is in `/etc/hosts`");
    let seen = get(port, "/env").unwrap().text();
    let engines = fs::read_to_string(format!("/proc/{}/environ", server.pid)).unwrap();
    for variable in HOSTILE {
        assert!(seen.contains(variable), "the guest has `{variable}`: {seen}");
        assert!(!engines.contains(variable), "the engine has `{variable}`");
    }
}

/// The system calls of a process that open files, also after an exec.
struct Trace {
    strace: Child,
    file: tempfile::NamedTempFile,
}

impl Trace {
    fn of(pid: u32) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-y", "-s", "200", "-e", "trace=open,openat,openat2,execve,execveat", "-p"]);
        strace.arg(pid.to_string()).arg("-o").arg(file.path()).stderr(Stdio::null());
        let strace = strace.spawn().expect("`strace` can be run");
        eventually("the process is traced", || status_field(pid, "TracerPid").filter(|tracer| tracer != "0"));
        Self { strace, file }
    }

    /// Ends the trace and returns the calls since the last exec.
    fn end(mut self) -> Vec<String> {
        signal(self.strace.id(), Signal::SIGINT).unwrap();
        self.strace.wait().unwrap();
        let text = fs::read_to_string(self.file.path()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let executed = lines.iter().rposition(|line| line.contains("exec")).expect("the engine was executed");
        lines[executed + 1..].iter().map(|line| line.to_string()).collect()
    }
}

/// What the engine may open besides the guest's own look-ups. A path that ends with a slash stands for all below it.
const OPENED: [&str; 15] = [
    // The number of processors, and where its memory is.
    "/proc/self/cgroup",
    "/proc/self/maps",
    "/proc/self/mountinfo",
    "/sys/devices/system/cpu/online",
    "/sys/fs/cgroup/",
    // The code that it was handed, to map it.
    "/proc/self/fd/",
    // Which of its own pages were written, for the pool.
    "/proc/self/pagemap",
    // Randomness.
    "/dev/random",
    "/dev/urandom",
    // The guest's view, and the rules for Landlock.
    "/dev/.skiff/root",
    "/dev/.skiff/root/dev",
    "/proc",
    "/run",
    // Name resolution.
    "/etc/hosts",
    "/etc/resolv.conf",
];

/// The path that a traced call opens, unless it is relative to an open directory.
fn absolute_path(call: &str) -> Option<&str> {
    let path = call.split('"').nth(1)?;
    (path.starts_with('/') || call.contains("AT_FDCWD")).then_some(path)
}

#[test]
fn the_engine_opens_a_few_files_and_no_other() {
    let containerd = Containerd::shared();
    let (name, port) = (random_name("host"), free_port());
    let job =
        HOSTILE.iter().fold(containerd.job_of(&hostile_image(containerd, &name)), |job, variable| job.env(variable));
    // Only there can a trace begin before the engine is executed.
    let job = job.annotation("debug.skiff.dev/launcher", "oci");
    let server = job.host_network().env(&format!("PORT={port}")).create();
    let trace = Trace::of(server.pid);
    server.start().unwrap();
    let fetched = eventually("the server answers", || get(port, &format!("/fetch?url=http://{name}:{port}/")).ok());
    let calls = trace.end();
    assert_eq!(fetched.text(), "hello\n");
    let is_known =
        |path: &&str| OPENED.iter().any(|known| path == known || known.ends_with('/') && path.starts_with(known));
    let opened: BTreeSet<_> = calls.iter().filter_map(|call| absolute_path(call)).collect();
    assert!(opened.contains("/etc/hosts"), "the trace shows the look-up: {calls:#?}");
    let strange: Vec<_> = opened.into_iter().filter(|path| !is_known(path)).collect();
    assert!(strange.is_empty(), "{strange:?}\n{calls:#?}");
}

/// The regular files that a process was handed or has opened, each with its descriptor's path. What the kernel tells it of its own pages
/// is no file that anything could be written to.
fn regular_files_of(pid: u32) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|entry| entry.path());
    let regular = entries.filter(|path| fs::metadata(path).is_ok_and(|metadata| metadata.is_file()));
    let files = regular.filter_map(|path| Some((fs::read_link(&path).ok()?, path)));
    files.filter(|(target, _)| !target.ends_with("pagemap")).collect()
}

/// Whether a file is a memfd that is sealed against resizing.
fn is_sealed(file: &fs::File) -> bool {
    // SAFETY: the call takes an open descriptor and no argument.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    let wanted = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    seals >= 0 && seals & wanted == wanted
}

#[test]
fn what_the_engine_was_handed_cannot_be_written_through_its_descriptors() {
    let containerd = Containerd::shared();
    let pod = containerd.pod_cgroup(256 << 20);
    let container = containerd.job("c-sleep").in_pod(&pod).memory(64 << 20).start();
    container.streams.wait_for_stdout("sleeping\n");
    let files = regular_files_of(container.pid);
    let limits = files.iter().filter(|(target, _)| target.to_string_lossy().contains("memory."));
    assert!(limits.count() >= 2, "the container's limit and its pod's: {files:?}");
    for (target, descriptor) in &files {
        // Only the mount that the descriptor was opened on protects the file from this process.
        match fs::File::options().write(true).open(descriptor) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{}", target.display()),
            Ok(file) => assert!(is_sealed(&file), "{} can be written", target.display()),
        }
    }
    assert_eq!(pod.cgroup().memory_limit(), Some(256 << 20));
    // The shim's own descriptor, by which the account is found.
    let account = fs::File::open(containerd.bundle(&container.id).join("account")).unwrap();
    assert!(is_sealed(&account), "the account can grow");
    drop(container);
}

/// A module whose start function, which runs during instantiation, never returns.
const NEVER_STARTED: &str = r#"(module (memory (export "memory") 1) (func (export "_start"))
    (func $start (loop $again (br $again))) (start $start))"#;

#[test]
fn neither_the_code_nor_the_control_socket_is_open_while_the_guest_runs() {
    let containerd = Containerd::shared();
    let container = containerd.job_of(&Image::of_text(containerd, NEVER_STARTED)).memory(64 << 20).start();
    let entries = fs::read_dir(format!("/proc/{}/fd", container.pid)).unwrap().flatten();
    let targets: Vec<_> = entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let files = regular_files_of(container.pid).into_iter().map(|(target, _)| target);
    let others: Vec<_> = files.filter(|target| !target.to_string_lossy().contains("memory.")).collect();
    assert!(others.len() <= 1, "besides the limits only what wasmtime maps the code from is open: {targets:?}");
    let of_kind = |text: &str| {
        targets.iter().filter(|target| target.to_string_lossy().contains(text)).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(of_kind("account"), 0, "{targets:?}");
    assert!(of_kind("socket:") <= 3, "the engine's own pair for signals, the call socket, and no other: {targets:?}");
    assert!(of_kind("pipe:") <= 1, "the way for the engine's last word: {targets:?}");
}

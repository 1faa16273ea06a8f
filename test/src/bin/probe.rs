//! A program in the engine's place, which reports what it finds in its container. It links the first stage, because the engine's
//! program is that, too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skiff_protocol::{CONTROL_FD, Reply, receive_message, wait_to_run};

/// Lines of `/proc/self/status` that say how the process was made.
const STATUS: [&str; 19] = [
    "CapAmb",
    "CapBnd",
    "CapEff",
    "CapInh",
    "CapPrm",
    "Cpus_allowed_list",
    "Gid",
    "Groups",
    "Mems_allowed_list",
    "NSpgid",
    "NSpid",
    "NSsid",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "SigBlk",
    "SigIgn",
    "Speculation_Store_Bypass",
    "Uid",
];
/// Files that show the container, the process, or the kernel as the container sees it.
const FILES: [&str; 16] = [
    "/proc/self/attr/apparmor/current",
    "/proc/self/cgroup",
    "/proc/self/limits",
    "/proc/self/mountinfo",
    "/proc/self/oom_score_adj",
    "/proc/self/timerslack_ns",
    "/proc/kcore",
    "/proc/sys/fs/mqueue/msg_max",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/msgmax",
    "/proc/sys/kernel/shm_rmid_forced",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/ip_forward",
    "/sys/class/net/lo/flags",
    "/proc/sysrq-trigger",
];
/// Where it tries to write.
const WRITTEN: [&str; 9] = ["/proc/sys/kernel", "/proc/bus", "/sys", "/", "/dev", "/run", "/tmp", "/mnt/a", "/mnt/b/c"];

/// Devices for which it tries to make nodes.
const MADE: [(libc::mode_t, u32, u32); 4] =
    [(libc::S_IFCHR, 1, 3), (libc::S_IFCHR, 10, 229), (libc::S_IFBLK, 8, 0), (libc::S_IFBLK, 7, 1)];

fn main() {
    if skiff_stage::is_asked_for() {
        std::process::exit(skiff_stage::run());
    }
    // Beside what the engine's own descriptors are.
    let found = look();
    let socket = skiff_linux::descriptors::inherit(CONTROL_FD).expect("the control socket is open");
    let socket = UnixStream::from(socket);
    let message = receive_message(&socket).expect("the shim sends a plan");
    Reply::Loaded.write_to(&message.replies).expect("the shim waits");
    wait_to_run(&socket).expect("the shim lets it run");
    writeln!(io::stdout(), "{found}").expect("the output can be written");
    Reply::Ready.write_to(&message.replies).expect("the shim waits");
    if std::env::args().any(|argument| argument == "stay") {
        drop((socket, message));
        nix::unistd::pause();
    }
}

fn look() -> Value {
    json!({
        "arguments": std::env::args().collect::<Vec<_>>(),
        "environment": std::env::vars().collect::<BTreeMap<_, _>>(),
        "directory": std::env::current_dir().map_err(|error| error.to_string()).ok(),
        "namespaces": links("/proc/self/ns"),
        "status": status(),
        "mask": umask(),
        "files": FILES.map(|path| (path, read(path))).into_iter().collect::<BTreeMap<_, _>>(),
        "written": WRITTEN.map(|path| (path, write(path))).into_iter().collect::<BTreeMap<_, _>>(),
        "descriptors": descriptors(),
        "devices": nodes(Path::new("/dev")),
        "makes": MADE.map(|(kind, major, minor)| make_node(kind, major, minor)),
        // Their text is another one each time.
        "hidden": hidden(),
        "mounted": nodes(Path::new("/mnt")),
        "keyring": keyring(),
    })
}

/// Which files of the kernel are behind `/dev/null`.
fn hidden() -> [bool; 2] {
    ["/proc/keys", "/proc/timer_list"].map(|path| read(path).is_empty())
}

fn umask() -> u32 {
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::stat::umask(mask);
    mask.bits()
}

/// The name and the permissions of the session keyring.
fn keyring() -> String {
    let mut text = [0_u8; 256];
    // SAFETY: the kernel writes no more than the bytes that there are; -3 is the session keyring.
    let length = unsafe { libc::syscall(libc::SYS_keyctl, 6, -3, text.as_mut_ptr(), text.len()) };
    let length = usize::try_from(length).unwrap_or_default().min(text.len());
    String::from_utf8_lossy(&text[..length]).into_owned()
}

fn links(directory: &str) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory can be read").flatten();
    let link = |entry: &fs::DirEntry| fs::read_link(entry.path()).unwrap_or_default();
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), link(&entry))).collect()
}

fn status() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/status").expect("the status can be read");
    let is_told = |line: &&str| line.split_once(':').is_some_and(|(name, _)| STATUS.contains(&name));
    text.lines().filter(is_told).map(str::to_owned).collect()
}

fn read(path: &str) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(1 << 16)]).into_owned(),
        Err(error) => error.to_string(),
    }
}

/// What comes of making a file there.
fn write(directory: &str) -> String {
    let file = Path::new(directory).join("probe");
    match File::create(&file) {
        Ok(_) => {
            fs::remove_file(file).expect("what was made can be removed");
            "made".into()
        }
        Err(error) => error.to_string(),
    }
}

/// What comes of making a node for this device and of opening it.
fn make_node(kind: libc::mode_t, major: u32, minor: u32) -> String {
    let path = Path::new("/dev/probe-node");
    let device = nix::sys::stat::makedev(major.into(), minor.into());
    let kind = nix::sys::stat::SFlag::from_bits_truncate(kind);
    if let Err(error) = nix::sys::stat::mknod(path, kind, nix::sys::stat::Mode::S_IRUSR, device) {
        return error.to_string();
    }
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    fs::remove_file(path).expect("what was made can be removed");
    opened.map_or_else(|error| format!("made, but {error}"), |_| "made and opened".into())
}

/// The descriptors that the process has, and whose they are.
fn descriptors() -> BTreeMap<u32, String> {
    let describe = |number: u32| {
        let file = format!("/proc/self/fd/{number}");
        let metadata = fs::metadata(&file).ok()?;
        let kind =
            fs::read_link(&file).map(|link| link.to_string_lossy().split(':').next().unwrap_or_default().to_owned());
        let flags = read(&format!("/proc/self/fdinfo/{number}"));
        let flags = flags.lines().find(|line| line.starts_with("flags:")).unwrap_or_default().to_owned();
        let place = if metadata.file_type().is_char_device() { kind.unwrap_or_default() } else { String::new() };
        // The owner of the engine's own file and of sockets is nobody's business.
        let owner = if number < 3 { (metadata.uid(), metadata.gid()) } else { (0, 0) };
        Some((number, format!("{place} {:o} {owner:?} {flags}", metadata.mode() & 0o170_000)))
    };
    // What is opened to list them is not among them.
    (0..10).filter_map(describe).collect()
}

/// Everything below `directory`: what it is, whose, and whether it can be opened.
fn nodes(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.path().symlink_metadata()) else { continue };
        let kind = metadata.file_type();
        let mut text = format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
        if kind.is_symlink() {
            text += &format!(" -> {}", fs::read_link(&path).unwrap_or_default().display());
        } else if kind.is_char_device() || kind.is_block_device() {
            let opened =
                File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&path);
            text += &format!(
                " {:x} {}",
                metadata.rdev(),
                opened.map_or_else(|error| error.to_string(), |_| "opens".into())
            );
        } else if kind.is_dir() && found.len() < 200 && !path.starts_with("/dev/.skiff/root/proc") {
            found.extend(nodes(&path));
        }
        found.insert(path, text);
    }
    found
}

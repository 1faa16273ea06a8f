//! The specification of a wasm container, rewritten for the engine, and the engine's plan.
//!
//! The engine runs as the container's process, with everything that the specification says of it. The guest sees other
//! files than the engine: the root file system and the pod's volumes, bound a second time below [`VIEW`], but neither
//! `/proc` nor `/sys` nor the rest of `/dev`, through which it could reach the engine's memory.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;
use skiff_protocol::{ENGINE_FD, EnginePlan, KERNEL_FILE_SYSTEMS, Preopen, Task};

use crate::error::{Context, Error, Result};
use crate::spec::config::{Config, Device, Mount, TMPFS};
use crate::spec::debug::Debug;
use crate::spec::{calls, http, limits, termination};

/// Where the guest's files are bound in the container: on the container's own `/dev`, which belongs to neither an image nor a
/// volume.
const VIEW: &str = "/dev/.skiff";
/// The guest's root.
pub(crate) const VIEW_ROOT: &str = "/dev/.skiff/root";
const DEV: &str = "/dev";
/// The devices that a guest finds in its `/dev`: name and minor number of the memory devices (major 1).
const MEMORY_DEVICE_NODES: [(&str, i64); 5] = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];
const MEMORY_DEVICES: i64 = 1;
/// The file system whose directories show all of the node's devices; a single file of it is a device that is bound by itself.
pub(crate) const DEVICES: &str = "devtmpfs";

/// What a wasm container runs, as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Entrypoint<'a> {
    /// The module's name in messages.
    pub(crate) module: &'a str,
    /// The export to run instead of the default entry point.
    pub(crate) function: Option<&'a str>,
}

/// What a directory of the node shows to the container that it is bound into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Files.
    Files,
    /// Files, and somewhere below them a file system of the kernel.
    KernelBelow,
    /// A file system of the kernel, of this kind.
    Kernel(String),
}

/// What the rewriting has to look at on the node.
pub(crate) struct Node<'a> {
    /// The path of a mount point in the root file system once symbolic links in it are resolved.
    pub(crate) resolve: &'a dyn Fn(&Path) -> PathBuf,
    /// What the source of a bind mount shows.
    pub(crate) shown_by: &'a dyn Fn(&Path) -> io::Result<Shown>,
}

/// Rewrites `config` for the engine.
///
/// # Errors
/// `Invalid` when the specification lacks what the engine needs, shows the guest a file system of the kernel, or has an
/// annotation that is not understood.
pub(crate) fn for_engine(
    mut config: Config,
    entrypoint: &Entrypoint<'_>,
    node: &Node<'_>,
) -> Result<(Config, EnginePlan)> {
    check_mounts(&config.mounts)?;
    let (mut view, root) = view_of(&config, node)?;
    let limits = limits::from_annotations(&config.annotations)?;
    let termination_log = termination::termination_log(&config, node.resolve);
    let on_trap = calls::on_trap(&config.annotations)?;
    let http2_authorities = http::http2_authorities(&config.annotations)?;
    let Debug { looks_are_off, core_dump, .. } = Debug::from_annotations(&config.annotations)?;
    let mut devices = devices_of(&config.linux.devices);
    if config.namespace(LinuxNamespaceType::User).is_some() {
        // Nobody makes devices in a user namespace: the OCI runtime binds the node's, which it looks for at the same path.
        view.extend(devices.drain(..).filter_map(|device| bind_of(&device)));
    }
    config.mounts.iter_mut().filter(|mount| moves(mount, node)).for_each(leave_an_empty_one);
    config.mounts.extend(view);
    config.linux.devices.extend(devices);
    config.is_rewritten = true;

    let memory_limit_bytes = config.memory_limit_bytes();
    let each_signal_stops = config.pod().is_some();
    let process = config.process.as_mut().ok_or_else(|| Error::invalid("the specification has no `process`"))?;
    let mut engine_args = vec![format!("/proc/self/fd/{ENGINE_FD}")];
    engine_args.extend(process.args.iter().cloned());
    let plan = EnginePlan {
        task: Task::Run,
        place: 0,
        module: entrypoint.module.into(),
        function: entrypoint.function.map(str::to_string),
        args: std::mem::replace(&mut process.args, engine_args),
        // The container's variables are the guest's: none may change what the engine itself does.
        env: std::mem::take(&mut process.env),
        cwd: process.cwd.to_str().filter(|cwd| cwd.starts_with('/')).unwrap_or("/").to_string(),
        preopens: vec![root],
        limits,
        termination_log,
        core_dump,
        http2_authorities,
        memory_limit_bytes,
        processors: None,
        on_trap,
        each_signal_stops,
        looks_are_off,
    };
    Ok((config, plan))
}

fn check_mounts(mounts: &[Mount]) -> Result<()> {
    let has = |place: &str, kind: &str| {
        mounts.iter().any(|mount| mount.destination.as_os_str() == OsStr::new(place) && mount.is_of_kind(kind))
    };
    if !has("/proc", "proc") {
        return Err(Error::invalid("a wasm container needs `/proc` among its mounts"));
    }
    if !has("/dev", TMPFS) {
        return Err(Error::invalid("a wasm container needs a `tmpfs` of its own at `/dev` among its mounts"));
    }
    Ok(())
}

/// The mounts that make the guest's view, and what the engine opens of it.
fn view_of(config: &Config, node: &Node<'_>) -> Result<(Vec<Mount>, Preopen)> {
    let root = Path::new(VIEW_ROOT);
    let read_only = config.root.readonly.unwrap_or(false);
    let access = if read_only { "ro" } else { "rw" };
    let mut view = vec![
        Mount::bind(root.into(), &config.root.path, &["bind", "rprivate", access]),
        // Nothing but devices and volumes: a file that is made at `/dev/stdout` would swallow what a program writes to it.
        Mount::tmpfs(place_of(DEV), &["nosuid", "noexec", "strictatime", "mode=755", "size=64k", "ro"]),
    ];
    // Landlock's rules apply all the way down, so a root that contains a writable volume is writable for it, and left to the
    // flags of its mounts.
    let mut root_is_read_only = read_only;
    for mount in &config.mounts {
        let destination = (node.resolve)(&mount.destination);
        if destination.starts_with(VIEW) {
            return Err(Error::invalid(format!(
                "the volume at `{}` is where a wasm container has its view of files (`{VIEW}`): mount it elsewhere",
                mount.destination.display()
            )));
        }
        if is_shown(mount, &destination) {
            let mut again = if mount.is_bind() { without_the_kernel(mount, node)? } else { mount.clone() };
            again.destination = place_of(&destination);
            root_is_read_only &= mount.has_option("ro") || destination.starts_with(DEV);
            view.push(again);
        }
    }
    let root = Preopen { host: VIEW_ROOT.into(), guest: "/".into(), read_only: root_is_read_only };
    Ok((view, root))
}

/// Whether the guest sees what is mounted here.
fn is_shown(mount: &Mount, destination: &Path) -> bool {
    !hidden(destination) && !mount.kind.as_deref().is_some_and(is_kernels)
}

/// Where the guest's view has what the guest sees at `path`.
fn place_of(path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    Path::new(VIEW_ROOT).join(path.strip_prefix("/").unwrap_or(path))
}

/// Whether a mount is a file system that the guest's view has alone. Not every file system can be mounted twice.
fn moves(mount: &Mount, node: &Node<'_>) -> bool {
    !mount.is_bind() && !mount.is_of_kind(TMPFS) && is_shown(mount, &(node.resolve)(&mount.destination))
}

/// Leaves an empty file system, so that the OCI runtime makes the mount point in the root file system.
fn leave_an_empty_one(mount: &mut Mount) {
    *mount = Mount::tmpfs(mount.destination.clone(), &[]);
}

/// A bind mount as the guest may have it: without the file systems of the kernel that are mounted below it.
fn without_the_kernel(mount: &Mount, node: &Node<'_>) -> Result<Mount> {
    let destination = mount.destination.display();
    let cannot = || format!("cannot find out whether the volume at `{destination}` shows the kernel's files");
    let shown = (node.shown_by)(mount.source.as_deref().unwrap_or(Path::new(""))).doing(cannot)?;
    let mut mount = mount.clone();
    match shown {
        Shown::Files => {}
        Shown::KernelBelow => {
            for option in mount.options.iter_mut().filter(|option| *option == "rbind") {
                *option = "bind".into();
            }
        }
        Shown::Kernel(kind) => {
            return Err(Error::invalid(format!(
                "the volume at `{destination}` is a file system of the kernel (`{kind}`), through which a guest could reach \
                 the memory of its engine: remove it from the wasm container"
            )));
        }
    }
    Ok(mount)
}

/// Whether a file system of this type shows the kernel or the node rather than files of the pod.
pub(crate) fn is_kernels(kind: &str) -> bool {
    kind == DEVICES || KERNEL_FILE_SYSTEMS.contains(&kind)
}

/// Whether a mount point shows the kernel: `/proc`, `/sys` and what is below, and `/dev` as a whole.
fn hidden(destination: &Path) -> bool {
    destination == Path::new(DEV) || destination.starts_with("/proc") || destination.starts_with("/sys")
}

/// The devices of the guest's `/dev`: the memory devices, and those of the pod.
fn devices_of(devices: &[Device]) -> Vec<Device> {
    let place = |name: &str| place_of(Path::new(DEV).join(name));
    let memory = MEMORY_DEVICE_NODES.iter();
    let mut found: Vec<_> =
        memory.map(|(name, minor)| Device::for_everybody(place(name), MEMORY_DEVICES, *minor)).collect();
    for device in devices {
        if let Some(name) = device.path.to_str().and_then(|path| path.strip_prefix("/dev/"))
            && !MEMORY_DEVICE_NODES.iter().any(|(known, _)| *known == name)
        {
            let mut again = device.clone();
            again.path = place(name);
            found.push(again);
        }
    }
    found
}

/// The node's device in the place of one of [`devices_of`].
fn bind_of(device: &Device) -> Option<Mount> {
    let inside = device.path.strip_prefix(VIEW_ROOT).ok()?;
    Some(Mount::bind(device.path.clone(), &Path::new("/").join(inside), &["bind", "rprivate", "rw"]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn spec(mounts: Value) -> Value {
        let mut all = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
        ];
        all.extend(mounts.as_array().unwrap().iter().cloned());
        json!({"process": {"args": ["/app.wasm", "x"], "cwd": "/work", "env": ["A=1"]}, "root": {"path": "rootfs"},
               "mounts": all, "linux": {"devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]}})
    }

    fn try_rewrite(spec: &Value) -> Result<(Value, EnginePlan)> {
        let config = Config::parse(spec.to_string().as_bytes(), Path::new("/b"))?;
        let node = Node {
            resolve: &|path| {
                if path == Path::new("/var/run/link") {
                    return Path::new(VIEW).join("root");
                }
                path.strip_prefix("/var/run").map_or(path.to_path_buf(), |rest| Path::new("/run").join(rest))
            },
            shown_by: &|path| {
                Ok(match path.to_str() {
                    Some("/") => Shown::KernelBelow,
                    Some("/proc") => Shown::Kernel("proc".into()),
                    _ => Shown::Files,
                })
            },
        };
        let (config, plan) = for_engine(config, &Entrypoint { module: "/app.wasm", function: None }, &node)?;
        Ok((serde_json::to_value(config).unwrap(), plan))
    }

    fn rewrite(spec: &Value) -> (Value, EnginePlan) {
        try_rewrite(spec).unwrap()
    }

    fn destinations(spec: &Value) -> Vec<&str> {
        spec["mounts"].as_array().unwrap().iter().skip(3).map(|mount| mount["destination"].as_str().unwrap()).collect()
    }

    #[test]
    fn the_engine_is_the_process_and_the_guest_keeps_its_arguments() {
        let (spec, plan) = rewrite(&spec(json!([])));
        assert_eq!(spec["process"]["args"], json!(["/proc/self/fd/3", "/app.wasm", "x"]));
        assert_eq!((&spec["process"]["env"], plan.env), (&json!([]), vec!["A=1".to_string()]));
        assert_eq!(spec["root"]["path"], "/b/rootfs");
        assert_eq!((plan.args, plan.cwd.as_str()), (vec!["/app.wasm".to_string(), "x".to_string()], "/work"));
    }

    #[test]
    fn volumes_are_bound_into_the_view_and_the_kernel_is_not() {
        let (spec, plan) = rewrite(&spec(json!([
            {"destination": "/etc/hosts", "type": "bind", "source": "/pod/hosts", "options": ["rbind", "ro"]},
            {"destination": "/var/run/secrets", "type": "bind", "source": "/pod/token", "options": ["rbind", "ro"]},
            {"destination": "/dev/termination-log", "type": "bind", "source": "/pod/log", "options": ["rbind", "rw"]},
            {"destination": "/proc/interrupts", "type": "bind", "source": "/x", "options": ["bind"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
            {"destination": "/disk", "type": "ext4", "source": "/dev/disk", "options": ["ro"]}
        ])));
        assert_eq!(
            destinations(&spec)[7..],
            [
                "/dev/.skiff/root",
                "/dev/.skiff/root/dev",
                "/dev/.skiff/root/etc/hosts",
                "/dev/.skiff/root/run/secrets",
                "/dev/.skiff/root/dev/termination-log",
                "/dev/.skiff/root/run",
                "/dev/.skiff/root/disk"
            ]
        );
        let mounts = spec["mounts"].as_array().unwrap();
        let kind_at = |place: &str| {
            mounts.iter().find(|mount| mount["destination"] == place).map(|mount| mount["type"].as_str().unwrap())
        };
        assert_eq!((kind_at("/run"), kind_at("/dev/.skiff/root/run")), (Some("tmpfs"), Some("tmpfs")));
        assert_eq!((kind_at("/disk"), kind_at("/dev/.skiff/root/disk")), (Some("tmpfs"), Some("ext4")));
        let root = Preopen { host: "/dev/.skiff/root".into(), guest: "/".into(), read_only: false };
        assert_eq!(plan.preopens, [root]);
    }

    #[test]
    fn a_read_only_root_is_read_only_for_the_guest_too() {
        let mut given = spec(json!([]));
        given["root"]["readonly"] = json!(true);
        let (spec, plan) = rewrite(&given);
        assert_eq!(spec["mounts"][3]["options"], json!(["bind", "rprivate", "ro"]));
        assert!(plan.preopens[0].read_only);
    }

    #[test]
    fn a_writable_volume_in_a_read_only_root_stays_writable() {
        for (place, access, expected) in
            [("/data", "ro", true), ("/data", "rw", false), ("/dev/shm", "rw", true), ("/devices", "rw", false)]
        {
            let mut given =
                spec(json!([{"destination": place, "type": "bind", "source": "/v", "options": ["rbind", access]}]));
            given["root"]["readonly"] = json!(true);
            let (_, plan) = rewrite(&given);
            assert_eq!(plan.preopens[0].read_only, expected, "{place} {access}");
        }
    }

    #[test]
    fn devices_of_the_pod_are_in_the_view() {
        let (spec, _) = rewrite(&spec(json!([])));
        let paths: Vec<_> =
            spec["linux"]["devices"].as_array().unwrap().iter().map(|d| d["path"].as_str().unwrap()).collect();
        assert!(
            paths.contains(&"/dev/fuse")
                && paths.contains(&"/dev/.skiff/root/dev/fuse")
                && paths.contains(&"/dev/.skiff/root/dev/null")
        );
    }

    #[test]
    fn in_a_user_namespace_the_nodes_devices_are_bound_into_the_view() {
        let mut given = spec(json!([]));
        given["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user", "path": "/proc/1/ns/user"}]);
        let (spec, _) = rewrite(&given);
        assert_eq!(spec["linux"]["devices"], given["linux"]["devices"]);
        let places = destinations(&spec);
        for name in ["null", "zero", "full", "random", "urandom", "fuse"] {
            let place = format!("/dev/.skiff/root/dev/{name}");
            let position = places.iter().position(|destination| *destination == place).unwrap();
            assert_eq!(spec["mounts"][position + 3]["source"], format!("/dev/{name}"));
        }
    }

    #[test]
    fn a_specification_without_proc_is_refused_by_name() {
        let mut given = spec(json!([]));
        given["mounts"].as_array_mut().unwrap().remove(0);
        let error = try_rewrite(&given).unwrap_err();
        assert!(error.to_string().contains("`/proc`"), "{error}");
    }

    #[test]
    fn no_volume_lies_where_the_view_is_also_by_a_link_of_the_image() {
        for (place, is_refused) in [
            ("/dev/.skiff", true),
            ("/dev/.skiff/root", true),
            ("/var/run/link", true),
            ("/dev/.skiffx", false),
            ("/dev/shm", false),
        ] {
            for kind in ["bind", "tmpfs"] {
                let given = spec(json!([{"destination": place, "type": kind, "source": "/v", "options": ["rbind"]}]));
                let rewritten = try_rewrite(&given);
                assert_eq!(rewritten.is_err(), is_refused, "{place} {kind}");
                if let Err(error) = rewritten {
                    assert!(error.to_string().contains(&format!("the volume at `{place}`")), "{error}");
                }
            }
        }
    }

    #[test]
    fn no_file_system_of_the_kernel_is_in_the_view() {
        let volume = |source: &str| json!([{"destination": "/host", "type": "bind", "source": source, "options": ["rbind", "rw"]}]);
        let (given, _) = rewrite(&spec(volume("/")));
        let seen =
            given["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/dev/.skiff/root/host");
        assert_eq!(seen.unwrap()["options"], json!(["bind", "rw"]));
        let error = try_rewrite(&spec(volume("/proc"))).unwrap_err().to_string();
        assert!(error.starts_with("the volume at `/host` is a file system of the kernel (`proc`)"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 200, ..ProptestConfig::default() })]
        #[test]
        fn whatever_a_specification_holds_it_is_rewritten_or_refused(
            text in any_json(),
            place in "(mounts|process|root|linux|annotations|hostname)(/(args|env|cwd|devices|namespaces|options|destination|0|1|3))?",
        ) {
            let mut given = spec(json!([
                {"destination": "/data", "type": "bind", "source": "/v", "options": ["rbind", "rw"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs"}
            ]));
            given["annotations"] = json!({"limits.skiff.dev/stack": "1Mi"});
            if let Some(there) = given.pointer_mut(&format!("/{place}")) {
                *there = text.clone();
            }
            drop(try_rewrite(&text));
            if let Ok((spec, plan)) = try_rewrite(&given) {
                // What the guest gets is the specification's or the view's, never the engine's.
                prop_assert_eq!(&spec["process"]["env"], &json!([]));
                prop_assert!(plan.preopens.iter().all(|preopen| !preopen.guest.starts_with("/proc")));
            }
        }
    }

    /// JSON as a stranger may write it, with the words that mean something here.
    fn any_json() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            Just(String::new()),
            Just("/".into()),
            Just("/proc".into()),
            Just("/dev/x".into()),
            Just("rbind".into()),
            Just("bind".into()),
            Just("..".into()),
            Just("user".into()),
            ".{0,12}",
            Just("x".repeat(5000)),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        let key = prop_oneof![
            Just("destination".to_owned()),
            Just("source".into()),
            Just("type".into()),
            Just("options".into()),
            Just("path".into()),
            Just("process".into()),
            Just("mounts".into()),
            Just("linux".into()),
            word,
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(key.clone(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }
}

//! The shim's command line, as containerd uses it: `start`, `delete`, `-info`, `-v`, and serving.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use containerd_shim::protos::api::DeleteResponse;
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use containerd_shim::{Flags, StartOpts};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::containerd::bootstrap::{self, Environment};
use crate::containerd::service;
use crate::containerd::time::timestamp;
use crate::error::{Context, Error, Result};
use crate::host::cache::Cache;
use crate::host::cgroup::Cgroup;
use crate::host::process::{FIRST_PASSED, pass_descriptors};
use crate::host::record::Record;
use crate::host::runtime::{Launcher, OciRuntime, PID_FILE};
use crate::host::{console, namespaces, pid_namespace, rootfs, shim_log};
use crate::pod::{Identity, unsigned};
use crate::settings::Settings;
use crate::spec::sandbox::pod_of;

/// The name under which containerd knows the runtime.
const RUNTIME: &str = "io.containerd.skiff.v1";
/// How long a shim that is being killed may take to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_millis(100);
/// Which type the features of an OCI runtime have in containerd.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Does what the command line says.
pub(crate) fn run() -> Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = containerd_shim::parse(&args).map_err(|error| Error::invalid(error.to_string()))?;
    if flags.version {
        return print(
            format!(
                "containerd-shim-skiff-v1:\n  Version:  {}\n  Engine:   {}\n",
                env!("CARGO_PKG_VERSION"),
                skiff_protocol::CODE_ID
            )
            .as_bytes(),
        );
    }
    if flags.info {
        return info();
    }
    match flags.action.as_str() {
        "start" => start(&flags),
        "delete" => delete(&flags),
        pid_namespace::ACTION => pid_namespace::run_init().doing(|| "cannot hold the pid namespace".into()),
        "" => serve(flags),
        other => Err(Error::invalid(format!("`{other}` is not an action of a shim"))),
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).doing(|| "cannot write the answer".into())
}

/// Describes the runtime; what the OCI runtime can do, skiff can.
fn info() -> Result<()> {
    let input = bootstrap::read_input()?;
    let options = Any::parse_from_bytes(&input).doing(|| "the options are not a message".into())?;
    let settings = Settings::from_any(Some(&options))?;
    let features = Command::new(&settings.binary_name).arg("features").stderr(Stdio::null()).output();
    let features = features.ok().filter(|output| output.status.success()).map(|output| Any {
        type_url: FEATURES_TYPE.into(),
        value: output.stdout,
        ..Any::default()
    });
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..RuntimeVersion::default() }).into(),
        options: Some(options).filter(|options| !options.type_url.is_empty()).into(),
        features: features.into(),
        ..RuntimeInfo::default()
    };
    print(&info.write_to_bytes().doing(|| "cannot encode the answer".into())?)
}

/// Starts the pod's shim, or finds it, and says where it listens.
fn start(flags: &Flags) -> Result<()> {
    let (params, protocol) = bootstrap::parse(&bootstrap::read_input()?, flags, Environment::of_process())?;
    let options = StartOpts::from(params);
    let bundle = std::env::current_dir().doing(|| "cannot find the bundle".into())?;
    let group = group_of(&bundle, &options.id)?;
    let address = options.socket_address(&group);
    let path = socket_path(&address);
    if let Some(listener) = listen(path)? {
        let spawned = spawn(&options, &address, &listener);
        if spawned.is_err() {
            drop(std::fs::remove_file(path));
        }
        spawned?;
    }
    let record = Record { namespace: options.namespace, socket: address.clone(), ..Record::default() };
    record.save(&bundle).doing(|| "cannot write the record of the container".into())?;
    print(&bootstrap::answer(&address, protocol)?)
}

/// What the shim is shared by: the pod, or else only the container itself.
fn group_of(bundle: &Path, id: &str) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Annotated {
        annotations: Option<std::collections::HashMap<String, String>>,
    }
    let text = match std::fs::read(bundle.join("config.json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.into()),
        read => read.doing(|| "cannot read the specification".into())?,
    };
    let spec: Annotated =
        serde_json::from_slice(&text).map_err(|error| Error::invalid(format!("`config.json`: {error}")))?;
    Ok(pod_of(spec.annotations.as_ref()).unwrap_or(id).into())
}

fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// Binds the socket; none when a shim serves there already. What a dead shim left is removed.
fn listen(path: &Path) -> Result<Option<UnixListener>> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o711).create(directory);
    made.doing(|| format!("cannot make `{}`", directory.display()))?;
    // Of several starts of one pod, none may take the socket that another has just bound for a dead shim's.
    let lock = File::open(directory).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.doing(|| format!("cannot lock `{}`", directory.display()))?;
    // Whoever may talk to the socket is root here, whatever containerd's umask.
    let bind = || {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map(|()| listener)
    };
    match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            std::fs::remove_file(path).doing(|| format!("cannot remove the stale socket `{}`", path.display()))?;
            bind().map(Some).doing(|| format!("cannot listen at `{}`", path.display()))
        }
        bound => bound.map(Some).doing(|| format!("cannot listen at `{}`", path.display())),
    }
}

/// Starts the serving process. It shares no stream with containerd, which waits for the end of ours.
fn spawn(options: &StartOpts, address: &str, listener: &UnixListener) -> Result<()> {
    let settings = Settings::from_any(options.extensions.iter().find(|any| any.type_url.ends_with("Options")))?;
    let own = std::env::current_exe().doing(|| "cannot find the shim's own file".into())?;
    let mut command = Command::new(own);
    command.args([
        "-namespace",
        &options.namespace,
        "-id",
        &options.id,
        "-address",
        &options.address,
        "-socket",
        address,
    ]);
    if options.debug {
        command.arg("-debug");
    }
    command.env("TTRPC_ADDRESS", &options.ttrpc_address);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let passed = listener.try_clone().doing(|| "cannot pass the socket to the shim".into())?;
    pass_descriptors(&mut command, vec![passed.into()]);
    let mut child = command.spawn().doing(|| "cannot start the shim".into())?;
    if let Err(error) = containerd_shim::cgroup::set_cgroup_and_oom_score(child.id(), &settings.shim_cgroup) {
        drop(child.kill());
        return Err(Error::host("cannot set the shim's cgroup or OOM score", error));
    }
    Ok(())
}

/// Serves the Task API until containerd has no more use for it.
fn serve(flags: Flags) -> Result<()> {
    shim_log::open(flags.debug);
    // SAFETY: `start` passes the listening socket under this number, and nothing else has touched it yet.
    let listener = unsafe { OwnedFd::from_raw_fd(FIRST_PASSED) };
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .doing(|| "the shim serves only when `start` has made its socket".into())?;
    nix::sys::prctl::set_child_subreaper(true).doing(|| "cannot become the subreaper".into())?;
    let identity = Identity { namespace: flags.namespace, containerd: flags.address, socket: flags.socket };
    let events = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let (holder, jobs) = namespaces::holder();
    let serving = std::thread::Builder::new().name("serve".into()).spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "cannot start".into())?;
        let served = runtime.block_on(service::serve(UnixListener::from(listener), identity, events, holder));
        runtime.shutdown_background();
        served
    });
    let serving = serving.doing(|| "cannot start a thread".into())?;
    jobs.serve();
    let served = serving.join().map_err(|_| Error::new(crate::error::Kind::Host, "the serving thread panicked"))?;
    if let Err(error) = &served {
        log::error!("{}", crate::error::chain(error));
    }
    served
}

/// Cleans up after a shim that is gone: whatever it had of the container `-id`, in the working directory.
fn delete(flags: &Flags) -> Result<()> {
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().doing(|| "cannot find the bundle".into())?,
        given => PathBuf::from(given),
    };
    let record = Record::load(&bundle).doing(|| "cannot read the record of the container".into())?;
    let record = match record {
        Some(record) => record,
        // The bundle may be gone already; the shim's socket lies elsewhere.
        None => Record { socket: socket_of(flags, &bundle), ..Record::default() },
    };
    clean_up(&flags.id, &bundle, &record)?;
    let pid = std::fs::read_to_string(bundle.join(PID_FILE)).ok().and_then(|text| text.trim().parse().ok());
    let response = DeleteResponse {
        pid: unsigned(pid.unwrap_or(0)),
        exit_status: unsigned(skiff_protocol::exit_code_of_signal(libc::SIGKILL)),
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..DeleteResponse::default()
    };
    print(&response.write_to_bytes().doing(|| "cannot encode the answer".into())?)
}

/// Where the shim of a container listens that has left no record.
fn socket_of(flags: &Flags, bundle: &Path) -> String {
    let options =
        StartOpts { address: flags.address.clone(), namespace: flags.namespace.clone(), ..StartOpts::default() };
    // Without a readable specification no shim was started for a pod.
    options.socket_address(&group_of(bundle, &flags.id).unwrap_or_else(|_| flags.id.clone()))
}

/// Whether a shim serves at `socket`: one that is being killed may still accept, but then hangs up.
fn is_served(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let waits = stream.set_read_timeout(Some(HANG_UP_LIMIT)).and_then(|()| stream.read(&mut [0]));
    waits.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Removes whatever there may be of a container. Every step is tried, whatever became of the others; the first error is told.
fn clean_up(id: &str, bundle: &Path, record: &Record) -> Result<()> {
    let steps = [
        clean_runtime(id, bundle, record),
        clean_cgroup(id, record),
        rootfs::unmount(&bundle.join("rootfs")).doing(|| "cannot unmount the root file system".into()),
        console::remove_sockets_of(record.shim_pid).doing(|| "cannot remove sockets of terminals".into()),
        clean_socket(&record.socket),
    ];
    steps.into_iter().collect()
}

fn clean_runtime(id: &str, bundle: &Path, record: &Record) -> Result<()> {
    if !record.in_runtime {
        return Ok(());
    }
    // A compilation for the container has ended with the shim.
    if let Ok(cache) = Cache::open(&record.settings.cache_dir, record.settings.cache_max_bytes) {
        cache.remove_unlocked().doing(|| "cannot clean the cache of compiled code".into())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "cannot start".into())?;
    let launcher = OciRuntime::new(id, &record.namespace, &record.settings, bundle)?;
    runtime.block_on(launcher.delete())
}

/// Also what the OCI runtime did not come to know of, because it was killed with the shim.
fn clean_cgroup(id: &str, record: &Record) -> Result<()> {
    let Some(path) = &record.cgroups_path else { return Ok(()) };
    let cgroup = Cgroup::from_spec(path, record.settings.systemd_cgroup, id)
        .doing(|| "cannot find the container's cgroup".into())?;
    cgroup.kill_all().and_then(|()| cgroup.remove()).doing(|| "cannot remove the container's cgroup".into())
}

fn clean_socket(address: &str) -> Result<()> {
    let socket = socket_path(address);
    if address.is_empty() || is_served(socket) {
        return Ok(());
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::host("cannot remove the shim's socket", error))
        }
        _ => Ok(()),
    }
}

//! Making a container: from containerd's request to a process that waits to be started.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use containerd_shim::protos::events::task::{TaskCreate, TaskIO};
use containerd_shim::protos::types::mount::Mount;
use protobuf::well_known_types::any::Any;
use serde_json::Value;
use skiff_protocol::{Account, EnginePlan};
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Kind, Result};
use crate::host::account;
use crate::host::cgroup::Cgroup;
use crate::host::engine::open_engine;
use crate::host::process::Process;
use crate::host::record::Record;
use crate::host::rootfs::Rootfs;
use crate::host::runtime::{Attachment, LOG_FILE, Launcher, OciRuntime};
use crate::host::stdio::{Owner, StdioPaths};
use crate::pod::config::Config;
use crate::pod::container::{Body, Checkpoint, Made, Wasm, remove_cgroup, unsigned};
use crate::pod::exec::attachment_for;
use crate::pod::guest::{Guest, Module, control_socket};
use crate::pod::member::{Attached, Member};
use crate::pod::program::{Program, read_apart};
use crate::pod::{Container, Pod};
use crate::settings::Settings;
use crate::spec::sandbox::{SandboxNamespaces, has_own_pids, held_by_the_shim, is_sandbox, shared_pids};

/// What containerd asks for.
#[derive(Debug, Default)]
pub(crate) struct CreateRequest {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) stdio: StdioPaths,
    pub(crate) checkpoint: String,
    pub(crate) options: Option<Any>,
}

impl Pod {
    /// Makes a container and gives the pid of its process. Nothing is left behind when that fails, or when the container is
    /// deleted meanwhile.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<i32> {
        let mut reservation = self.reserve(&request.id)?;
        let settings = Settings::from_any(request.options.as_ref())?;
        let config = Config::read(&request.bundle)?;
        let settings = settings.for_cgroups_path(config.cgroups_path().as_deref());
        let mut record = Record {
            settings,
            namespace: self.identity.namespace.clone(),
            socket: self.identity.socket.clone(),
            shim_pid: std::process::id(),
            cgroups_path: config.cgroups_path(),
            ..Record::default()
        };
        let is_pods_sandbox = is_sandbox(&config.spec);
        let (init, body) = match held_by_the_shim(&config.spec) {
            Some(namespaces) => {
                let cgroup = self.create_sandbox(&request, &record, namespaces).await?;
                (Member::held_by_the_shim(request.stdio.clone()), Body::Sandbox(cgroup))
            }
            None => {
                record.in_runtime = true;
                let unwanted = reservation.unwanted.clone();
                let made = tokio::select! {
                    made = self.create_process(&request, config, &record, &unwanted) => Some(made),
                    () = unwanted.cancelled() => None,
                };
                match made {
                    Some(Ok(made)) => made,
                    Some(Err(error)) => {
                        take_back(&request, &record).await;
                        return Err(error);
                    }
                    None => {
                        take_back(&request, &record).await;
                        // Its first deed is to open its log.
                        if request.bundle.join(LOG_FILE).exists() {
                            end_what_was_interrupted(&request, &record).await;
                        }
                        return Err(not_wanted(&request.id));
                    }
                }
            }
        };
        let pid = init.pid();
        let owner = self.owner_of(&request);
        let container = Container::new(request.bundle.clone(), owner, init, body, self.events.clone(), is_pods_sandbox);
        let container = Arc::new(container);
        if !reservation.fill(&container, || self.events.publish(created(&request, pid))) {
            self.undo(container, &request, &record).await;
            return Err(not_wanted(&request.id));
        }
        if container.init.has_process() {
            container.supervise(container.init.clone());
        }
        Ok(pid)
    }

    /// Undoes a container that was made and is not wanted any more.
    async fn undo(&self, container: Arc<Container>, request: &CreateRequest, record: &Record) {
        if let Body::Sandbox(_) = &container.body
            && let Err(error) = self.holder.leave().await
        {
            log::error!("cannot leave the namespaces of the pod: {error}");
        }
        if let Body::Sandbox(Some(cgroup)) = &container.body {
            tell_what_is_left(request, remove_cgroup(cgroup).await);
        }
        take_back(request, record).await;
        if let Some(process) = container.init.process() {
            process.end().await;
        }
    }

    fn owner_of(&self, request: &CreateRequest) -> Owner {
        Owner { container: request.id.clone(), namespace: self.identity.namespace.clone() }
    }

    async fn create_sandbox(
        &self,
        request: &CreateRequest,
        record: &Record,
        namespaces: SandboxNamespaces,
    ) -> Result<Option<Cgroup>> {
        record.save(&request.bundle).doing(|| "cannot write the record of the container".into())?;
        let cgroup = cgroup_of(request, record).doing(|| "cannot make the cgroup of the sandbox".into())?;
        if let Some(cgroup) = &cgroup {
            cgroup.create_empty().doing(|| "cannot make the cgroup of the sandbox".into())?;
        }
        let entered = self.holder.enter(namespaces).await.doing(|| "cannot enter the namespaces of the pod".into());
        if entered.is_err()
            && let Some(cgroup) = &cgroup
            && let Err(error) = remove_cgroup(cgroup).await
        {
            log::error!("{}", crate::error::chain(&error));
        }
        entered.map(|()| cgroup)
    }

    async fn create_process(
        self: &Arc<Self>,
        request: &CreateRequest,
        mut config: Config,
        record: &Record,
        unwanted: &CancellationToken,
    ) -> Result<(Member, Body)> {
        if let Some(namespace) = shared_pids(&mut config.text, std::process::id()) {
            namespace["path"] = serde_json::json!(self.shared_pids().await?);
            config.is_rewritten = true;
        }
        record.save(&request.bundle).doing(|| "cannot write the record of the container".into())?;
        let rootfs = mount(request, &config).await?;
        let config = Arc::new(config);
        let program = self.find_program(request, &config, &rootfs, &record.settings, unwanted).await?;
        let launcher = OciRuntime::new(&request.id, &record.namespace, &record.settings, &request.bundle)?;
        if let Program::Native = program
            && !request.checkpoint.is_empty()
        {
            return checkpointed(request, &config, record, rootfs, launcher);
        }
        let (process, attached, cgroup, guest) = self.make(request, &config, &rootfs, &launcher, program).await?;
        let made = Box::new(Made {
            launcher: Box::new(launcher),
            rootfs: Mutex::new(Some(rootfs)),
            oom_kills_before: cgroup.oom_kills_above(),
            cgroup,
            own_pids: has_own_pids(&config.spec),
            checkpoint: None,
        });
        let body = match guest {
            Some(wasm) => Body::Wasm(made, wasm),
            None => Body::Native(made),
        };
        Ok((Member::created("", request.stdio.clone(), process, attached), body))
    }

    async fn make(
        &self,
        request: &CreateRequest,
        config: &Arc<Config>,
        rootfs: &Rootfs,
        launcher: &OciRuntime,
        program: Program,
    ) -> Result<MadeProcess> {
        let (attachment, pending) = attachment_for(&request.stdio, &self.owner_of(request)).await?;
        let (process, cgroup, guest) = match program {
            Program::Native => {
                let bundle = bundle_of_native(request, config, rootfs)?;
                let (process, cgroup) = launched(launcher.create(&bundle, attachment, Vec::new()).await?)?;
                (process, cgroup, None)
            }
            Program::Wasm { module, name, function } => {
                let (config, path) = (config.clone(), rootfs.path().to_path_buf());
                let rewritten = read_apart(move || config.for_engine(&path, &name, function.as_deref()));
                let (spec, plan) = rewritten.await?;
                let bundle = write_bundle(request, &spec)?;
                let (control, theirs) = control_socket()?;
                let stderr = stderr_of(&attachment)?;
                let engine = open_engine().doing(|| "cannot open the engine".into())?;
                let preserved = vec![engine.into(), theirs];
                let (process, cgroup) = launched(launcher.create(&bundle, attachment, preserved).await?)?;
                let account = Account::create().and_then(|account| account::show_in(&request.bundle, account));
                let account = account.doing(|| "cannot make the account of the guest's memory".into())?;
                let guest = hand_over(request, *module, plan, account.clone(), &cgroup, control)?;
                let guest = tokio::sync::Mutex::new(Some(Box::new(guest)));
                (process, cgroup, Some(Wasm { guest, stderr: Mutex::new(stderr), account }))
            }
        };
        let attached = pending.complete(&request.stdio).await?;
        Ok((process, attached, cgroup, guest))
    }
}

fn not_wanted(id: &str) -> Error {
    Error::new(Kind::Conflict, format!("container `{id}` was deleted while it was made"))
}

/// The process that the OCI runtime made, and where it is.
fn launched(pid: i32) -> Result<(Process, Cgroup)> {
    let process = Process::of_child(pid).doing(|| "cannot watch the container's process".into())?;
    let cgroup = Cgroup::of_pid(pid).doing(|| "cannot find the container's cgroup".into())?;
    Ok((process, cgroup))
}

fn hand_over(
    request: &CreateRequest,
    module: Module,
    mut plan: EnginePlan,
    account: Arc<File>,
    cgroup: &Cgroup,
    control: UnixStream,
) -> Result<Guest> {
    let limits = cgroup.memory_limit_files().doing(|| "cannot open the memory limits".into())?;
    if limits.is_empty() {
        log::warn!("container `{}` has no memory cgroup: only the engine limits its memory", request.id);
    }
    plan.processors = cgroup.processors();
    Guest::hand_over(module, plan, account, limits, control)
}

/// The cgroup that the specification gives the container, if it gives one.
fn cgroup_of(request: &CreateRequest, record: &Record) -> io::Result<Option<Cgroup>> {
    let path = record.cgroups_path.as_deref();
    path.map(|path| Cgroup::from_spec(path, record.settings.systemd_cgroup, &request.id)).transpose()
}

/// Takes back whatever the OCI runtime knows of a container.
async fn take_back(request: &CreateRequest, record: &Record) {
    let taken = async {
        if record.in_runtime {
            OciRuntime::new(&request.id, &record.namespace, &record.settings, &request.bundle)?.delete().await?;
        }
        Ok(())
    };
    tell_what_is_left(request, taken.await);
}

/// Ends what the OCI runtime does not know of, because it was killed at work. Where it was not, somebody else's processes may
/// be in the cgroup, which it refuses then.
async fn end_what_was_interrupted(request: &CreateRequest, record: &Record) {
    let ended = async {
        let cgroup = cgroup_of(request, record).doing(|| "cannot find the container's cgroup".into())?;
        let Some(cgroup) = cgroup else { return Ok(()) };
        let removed = tokio::task::spawn_blocking(move || cgroup.kill_all().and_then(|()| cgroup.remove()));
        removed.await.map_err(io::Error::other).flatten().doing(|| "cannot remove the container's cgroup".into())
    };
    tell_what_is_left(request, ended.await);
}

fn tell_what_is_left(request: &CreateRequest, taken: Result<()>) {
    if let Err(error) = taken {
        log::error!("cannot remove what is left of container `{}`: {}", request.id, crate::error::chain(&error));
    }
}

async fn mount(request: &CreateRequest, config: &Config) -> Result<Rootfs> {
    let (done, mounted) = tokio::sync::oneshot::channel();
    let root = config.spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path());
    let (path, mounts) = (request.bundle.join(root), request.rootfs.clone());
    // A thread of its own: mounting many layers changes the thread's working directory for good.
    std::thread::spawn(move || drop(done.send(Rootfs::mount(path, &mounts))));
    mounted.await.doing(|| "cannot mount the root file system".into())?
}

/// A native container whose process Start makes from a checkpoint.
fn checkpointed(
    request: &CreateRequest,
    config: &Config,
    record: &Record,
    rootfs: Rootfs,
    launcher: OciRuntime,
) -> Result<(Member, Body)> {
    let bundle = bundle_of_native(request, config, &rootfs)?;
    let path = record.cgroups_path.as_deref().unwrap_or_default();
    let cgroup = Cgroup::from_spec(path, record.settings.systemd_cgroup, &request.id)
        .doing(|| "cannot find the container's cgroup".into())?;
    let made = Made {
        launcher: Box::new(launcher),
        rootfs: Mutex::new(Some(rootfs)),
        oom_kills_before: cgroup.oom_kills_above(),
        cgroup,
        own_pids: has_own_pids(&config.spec),
        checkpoint: Some(Checkpoint { image: request.checkpoint.clone().into(), bundle }),
    };
    Ok((Member::checkpointed(request.stdio.clone()), Body::Native(Box::new(made))))
}

type MadeProcess = (Process, Attached, Cgroup, Option<Wasm>);

fn stderr_of(attachment: &Attachment) -> Result<Option<File>> {
    match attachment {
        Attachment::Files(stdio) => stdio.stderr.try_clone().map(Some).doing(|| "cannot hold the stderr".into()),
        Attachment::Console(_) => Ok(None),
    }
}

/// The bundle of a native container: containerd's, unless the specification is no longer what stands there.
fn bundle_of_native(request: &CreateRequest, config: &Config, rootfs: &Rootfs) -> Result<PathBuf> {
    if !config.is_rewritten {
        return Ok(request.bundle.clone());
    }
    let mut spec = config.text.clone();
    spec["root"]["path"] = serde_json::json!(rootfs.path());
    write_bundle(request, &spec)
}

/// Writes a bundle for the OCI runtime whose specification is not containerd's; the root file system is.
fn write_bundle(request: &CreateRequest, spec: &Value) -> Result<PathBuf> {
    let bundle = request.bundle.join("runtime-bundle");
    let text = serde_json::to_vec(spec).doing(|| "cannot encode the specification".into())?;
    let written = fs::create_dir_all(&bundle).and_then(|()| fs::write(bundle.join("config.json"), text));
    written.doing(|| "cannot write the bundle for the OCI runtime".into())?;
    Ok(bundle)
}

fn created(request: &CreateRequest, pid: i32) -> TaskCreate {
    TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.to_string_lossy().into_owned(),
        rootfs: request.rootfs.clone(),
        io: Some(TaskIO {
            stdin: request.stdio.stdin.clone(),
            stdout: request.stdio.stdout.clone(),
            stderr: request.stdio.stderr.clone(),
            terminal: request.stdio.terminal,
            ..TaskIO::default()
        })
        .into(),
        checkpoint: request.checkpoint.clone(),
        pid: unsigned(pid),
        ..TaskCreate::default()
    }
}

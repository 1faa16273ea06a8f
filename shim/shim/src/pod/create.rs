//! Making a container: from containerd's request to a process that waits to be started.

use std::fs;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use containerd_shim::protos::events::task::{TaskCreate, TaskIO};
use containerd_shim::protos::types::mount::Mount;
use oci_spec::runtime::Spec;
use protobuf::well_known_types::any::Any;
use serde_json::Value;
use skiff_plan::ACCOUNT_FILE;

use crate::containerd::layers;
use crate::error::{Context, Error, Kind, Result};
use crate::host::bundle::Record;
use crate::host::cgroup::Cgroup;
use crate::host::engine::open_engine;
use crate::host::mounts::Rootfs;
use crate::host::process::Process;
use crate::host::rootfs::{FileKind, kind_of, open_file, resolve};
use crate::host::runtime::{Attachment, Launcher, OciRuntime};
use crate::host::stdio::{Owner, StdioPaths};
use crate::pod::container::{Body, Checkpoint, Made, Wasm, remove_cgroup, unsigned};
use crate::pod::exec::attachment_for;
use crate::pod::guest::{Guest, Module, control_socket};
use crate::pod::member::{Attached, Member};
use crate::pod::{Container, Pod};
use crate::settings::Settings;
use crate::task::entrypoint::{candidates, split_function};
use crate::task::sandbox::{SandboxNamespaces, has_own_pids, held_by_the_shim, shared_pids};
use crate::task::wasm;

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

/// The specification of a container, parsed and as it was written: what `Spec` does not know is kept.
struct Config {
    spec: Spec,
    text: Value,
    /// `text` is no longer what stands in the bundle.
    is_rewritten: bool,
}

/// The program of a container.
enum Program {
    Native,
    Wasm { module: Box<Module>, name: String, function: Option<String> },
}

impl Pod {
    /// Makes a container and gives the pid of its process. Nothing is left behind when that fails.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<i32> {
        let reservation = self.reserve(&request.id)?;
        let settings = Settings::from_any(request.options.as_ref())?;
        let config = Config::read(&request.bundle)?;
        let settings = settings.for_cgroups_path(config.cgroups_path().as_deref());
        let record = Record {
            settings,
            namespace: self.identity.namespace.clone(),
            socket: self.identity.socket.clone(),
            shim_pid: std::process::id(),
            cgroups_path: config.cgroups_path(),
            ..Record::default()
        };
        let (init, body) = match held_by_the_shim(&config.spec) {
            Some(namespaces) => {
                let cgroup = self.create_sandbox(&request, record, namespaces).await?;
                (Member::held_by_the_shim(request.stdio.clone()), Body::Sandbox(cgroup))
            }
            None => self.create_process(&request, config, record).await?,
        };
        let pid = init.pid();
        let container =
            Arc::new(Container::new(request.bundle.clone(), self.owner_of(&request), init, body, self.events.clone()));
        self.events.publish(created(&request, pid));
        reservation.fill(container.clone());
        if container.init.has_process() {
            container.supervise(container.init.clone());
        }
        Ok(pid)
    }

    fn owner_of(&self, request: &CreateRequest) -> Owner {
        Owner { container: request.id.clone(), namespace: self.identity.namespace.clone() }
    }

    async fn create_sandbox(
        &self,
        request: &CreateRequest,
        record: Record,
        namespaces: SandboxNamespaces,
    ) -> Result<Option<Cgroup>> {
        record.save(&request.bundle).doing(|| "could not write the record of the container".into())?;
        let cgroup = record
            .cgroups_path
            .as_deref()
            .map(|path| {
                let cgroup = Cgroup::from_spec(path, record.settings.systemd_cgroup, &request.id)?;
                cgroup.create_empty().map(|()| cgroup)
            })
            .transpose()
            .doing(|| "could not make the cgroup of the sandbox".into())?;
        let entered = self.holder.enter(namespaces).await.doing(|| "could not enter the namespaces of the pod".into());
        if entered.is_err()
            && let Some(cgroup) = &cgroup
            && let Err(error) = remove_cgroup(cgroup).await
        {
            log::error!("{}", crate::error::chain(&error));
        }
        entered.map(|()| cgroup)
    }

    async fn create_process(
        &self,
        request: &CreateRequest,
        mut config: Config,
        mut record: Record,
    ) -> Result<(Member, Body)> {
        if let Some(namespace) = shared_pids(&mut config.text, std::process::id()) {
            namespace["path"] = serde_json::json!(self.pid_namespace().await?);
            config.is_rewritten = true;
        }
        record.in_runtime = true;
        record.save(&request.bundle).doing(|| "could not write the record of the container".into())?;
        let rootfs = mount(request, &config).await?;
        let config = Arc::new(config);
        let program = self.find_program(request, &config, &rootfs, &record.settings).await?;
        let launcher = OciRuntime::new(&request.id, &record.namespace, &record.settings, &request.bundle)?;
        if let Program::Native = program
            && !request.checkpoint.is_empty()
        {
            return checkpointed(request, &config, &record, rootfs, launcher);
        }
        let made = make(request, &self.owner_of(request), &config, &rootfs, &launcher, program).await;
        let (process, attached, cgroup, guest) = match made {
            Ok(made) => made,
            Err(error) => {
                if let Err(left) = launcher.delete().await {
                    log::error!(
                        "could not remove what is left of container `{}`: {}",
                        request.id,
                        crate::error::chain(&left)
                    );
                }
                return Err(error);
            }
        };
        let made = Box::new(Made {
            launcher: Box::new(launcher),
            rootfs: Mutex::new(Some(rootfs)),
            oom_kills_before: cgroup.oom_kills_above(),
            cgroup,
            own_pids: has_own_pids(&config.spec),
            checkpoint: None,
        });
        let body = match guest {
            Some((guest, stderr)) => {
                let guest = tokio::sync::Mutex::new(Some(Box::new(guest)));
                Body::Wasm(made, Wasm { guest, stderr: Mutex::new(stderr) })
            }
            None => Body::Native(made),
        };
        Ok((Member::created("", request.stdio.clone(), process, attached), body))
    }

    /// Finds what the container runs: a file that the container will see, told by its content, or else a wasm layer of
    /// its image.
    async fn find_program(
        &self,
        request: &CreateRequest,
        config: &Arc<Config>,
        rootfs: &Rootfs,
        settings: &Settings,
    ) -> Result<Program> {
        let Some(entrypoint) = config.entrypoint() else { return Ok(Program::Native) };
        let found = {
            let (config, path) = (config.clone(), rootfs.path().to_path_buf());
            blocking(move || config.find_file(&path)).await?
        };
        let (name, function, wasm, digest) = match found {
            Some((name, function, mut file)) => {
                match kind_of(&mut file).doing(|| format!("could not read `{name}`"))? {
                    FileKind::Native => return Ok(Program::Native),
                    FileKind::Wasm => (name, function, file, None),
                }
            }
            None => {
                let (name, function) = split_function(&entrypoint);
                let Some(layer) = layers::find(&self.identity, &request.id, name).await? else {
                    return Ok(Program::Native);
                };
                let file = File::open(&layer.path).doing(|| format!("could not read the wasm layer of `{name}`"))?;
                (name.to_string(), function.map(str::to_string), file, Some(layer.digest))
            }
        };
        if !request.checkpoint.is_empty() {
            return Err(Error::new(
                Kind::Unsupported,
                format!("restore is not implemented for a wasm container (`{name}`)"),
            ));
        }
        if request.stdio.terminal {
            return Err(Error::new(
                Kind::Unsupported,
                format!("terminal is not implemented for a wasm container (`{name}`)"),
            ));
        }
        let settings = settings.clone();
        let (module, name) = blocking(move || {
            Module::load(&name, wasm, digest.as_deref(), &settings).map(|module| (Box::new(module), name))
        })
        .await?;
        Ok(Program::Wasm { module, name, function })
    }
}

impl Config {
    fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let text = fs::read(&path).doing(|| format!("could not read `{}`", path.display()))?;
        let wrong = |error: serde_json::Error| {
            Error::invalid(format!("`{}` is not an OCI specification: {error}", path.display()))
        };
        let spec = serde_json::from_slice(&text).map_err(wrong)?;
        Ok(Self { spec, text: serde_json::from_slice(&text).map_err(wrong)?, is_rewritten: false })
    }

    fn entrypoint(&self) -> Option<String> {
        self.spec.process().as_ref()?.args().as_ref()?.first().cloned()
    }

    fn cgroups_path(&self) -> Option<String> {
        let path = self.spec.linux().as_ref()?.cgroups_path().as_ref()?;
        Some(path.to_string_lossy().into_owned())
    }

    /// The file that the entry point means, with its name and the export to run.
    fn find_file(&self, rootfs: &Path) -> Result<Option<(String, Option<String>, File)>> {
        let (Some(process), Some(entrypoint)) = (self.spec.process(), self.entrypoint()) else { return Ok(None) };
        let env = process.env().clone().unwrap_or_default();
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        for candidate in candidates(&entrypoint, process.cwd(), &env) {
            let file = open_file(rootfs, mounts, &candidate.path)
                .doing(|| format!("could not look for `{}`", candidate.path.display()))?;
            if let Some(file) = file {
                return Ok(Some((candidate.path.to_string_lossy().into_owned(), candidate.function, file)));
            }
        }
        Ok(None)
    }
}

async fn mount(request: &CreateRequest, config: &Config) -> Result<Rootfs> {
    let (done, mounted) = tokio::sync::oneshot::channel();
    let root = config.spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path());
    let (path, mounts) = (request.bundle.join(root), request.rootfs.clone());
    // A thread of its own: mounting many layers changes the thread's working directory for good.
    std::thread::spawn(move || drop(done.send(Rootfs::mount(path, &mounts))));
    mounted.await.doing(|| "could not mount the root file system".into())?
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
        .doing(|| "could not find the container's cgroup".into())?;
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

type MadeProcess = (Process, Attached, Cgroup, Option<(Guest, Option<File>)>);

async fn make(
    request: &CreateRequest,
    owner: &Owner,
    config: &Arc<Config>,
    rootfs: &Rootfs,
    launcher: &OciRuntime,
    program: Program,
) -> Result<MadeProcess> {
    let (attachment, pending) = attachment_for(&request.stdio, owner)?;
    let (pid, handed) = match program {
        Program::Native => {
            let bundle = bundle_of_native(request, config, rootfs)?;
            (launcher.create(&bundle, attachment, Vec::new()).await?, None)
        }
        Program::Wasm { module, name, function } => {
            let guest = wasm::Guest { module: &name, function: function.as_deref() };
            let (spec, plan) =
                wasm::for_engine(&config.text, &guest, rootfs.path(), &|path| resolve(rootfs.path(), path))?;
            let bundle = write_bundle(request, &spec)?;
            let (control, theirs) = control_socket()?;
            let stderr = stderr_of(&attachment)?;
            let engine = open_engine().doing(|| "could not open the engine".into())?;
            let pid = launcher.create(&bundle, attachment, vec![engine.into(), theirs]).await?;
            (pid, Some((*module, plan, control, stderr)))
        }
    };
    let process = Process::of_child(pid).doing(|| "could not watch the container's process".into())?;
    let cgroup = Cgroup::of_pid(pid).doing(|| "could not find the container's cgroup".into())?;
    let guest = match handed {
        Some((module, mut plan, control, stderr)) => {
            let limits = cgroup.memory_limit_files().doing(|| "could not open the memory limits".into())?;
            if limits.is_empty() {
                log::warn!("container `{}` has no memory cgroup: only the engine limits its memory", request.id);
            }
            plan.processors = cgroup.processors();
            let account = open_account(&request.bundle)?;
            Some((Guest::hand_over(module, plan, account, limits, control)?, stderr))
        }
        None => None,
    };
    let attached = pending.complete(&request.stdio).await?;
    Ok((process, attached, cgroup, guest))
}

fn stderr_of(attachment: &Attachment) -> Result<Option<File>> {
    match attachment {
        Attachment::Files(stdio) => stdio.stderr.try_clone().map(Some).doing(|| "could not hold the stderr".into()),
        Attachment::Console(_) => Ok(None),
    }
}

fn open_account(bundle: &Path) -> Result<File> {
    let path = bundle.join(ACCOUNT_FILE);
    let opened = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
    opened.doing(|| "could not make the account of the guest's memory".into())
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
    let text = serde_json::to_vec(spec).doing(|| "could not encode the specification".into())?;
    let written = fs::create_dir_all(&bundle).and_then(|()| fs::write(bundle.join("config.json"), text));
    written.doing(|| "could not write the bundle for the OCI runtime".into())?;
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing(|| "a task of the shim ended early".into())?
}

//! Making a container, from containerd's request to a process that waits to be started: find the program, get its code, launch,
//! hand over.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::code::{Compiled, Tenant};
use crate::error::{Context, Error, Kind as ErrorKind, Result, chain};
use crate::host::layers::Layers;
use crate::host::logging_program::Owner;
use crate::host::reader::blocking;
use crate::host::record::{LauncherName, Record};
use crate::host::rootfs::Rootfs;
use crate::host::sandbox_files::SandboxFiles;
use crate::host::shim_log;
use crate::image::{self, Module, Program};
use crate::launch::{self, Choice, Launcher};
use crate::pod::Pod;
use crate::pod::container::Container;
use crate::pod::kind::Kind;
use crate::pod::launched::{Created, Parts};
use crate::pod::native::Native;
use crate::pod::process::Process;
use crate::pod::slots::Reservation;
use crate::pod::wasm::Wasm;
use crate::request::CreateRequest;
use crate::spec::config::{CONFIG_FILE, Config};
use crate::spec::sandbox::{SandboxNamespaces, is_sandbox, shared_pids};

/// The annotation with the pod's name in Kubernetes.
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
/// The annotation with the pod's namespace in Kubernetes.
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";

impl Pod {
    /// Makes a container and returns the pid of its process. Nothing is left behind when that fails, or when the container is
    /// deleted meanwhile.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<i32> {
        let reservation = self.slots.reserve(&request.id)?;
        let config = read(&request.bundle)?;
        let is_pods_sandbox = is_sandbox(&config);
        shim_log::name_pod(|| self.name_of(&request, &config));
        let created = match launch::choose(&config, &request.settings) {
            Choice::Shim(namespaces) => {
                let record = self.record_of(&request, config.linux.cgroups_path.clone(), None);
                record.save(&request.bundle).doing(|| "cannot write the record of the container".into())?;
                self.create_sandbox(&request, &record, namespaces, None).await?
            }
            Choice::Launcher(name) => {
                let record = self.record_of(&request, config.linux.cgroups_path.clone(), Some(name));
                let launcher = launch::launcher(name, &record, &request.id, &request.bundle)?;
                self.create_or_take_back(&request, config, &record, launcher, &reservation.unwanted).await?
            }
        };
        let container = Container::new(&request, created, self.events.clone(), is_pods_sandbox);
        self.announce(Arc::new(container), reservation, &request).await
    }

    /// Puts a container in its place and reports it, unless it is no longer wanted; then it is undone. Returns its pid.
    pub(super) async fn announce(
        &self,
        container: Arc<Container>,
        mut reservation: Reservation,
        request: &CreateRequest,
    ) -> Result<i32> {
        let pid = container.init.pid();
        if !reservation.fill(&container, || container.events.created(request, pid)) {
            undo(&container).await;
            // Its mounts go before its place is free.
            drop(container);
            return Err(not_wanted(&request.id));
        }
        container.supervise(container.init.clone(), None);
        Ok(pid)
    }

    pub(super) fn record_of(
        &self,
        request: &CreateRequest,
        cgroups_path: Option<String>,
        launcher: Option<LauncherName>,
    ) -> Record {
        Record {
            settings: request.settings.clone().for_cgroups_path(cgroups_path.as_deref()),
            namespace: self.identity.namespace.clone(),
            launcher,
            cgroups_path,
            socket: self.identity.socket.clone(),
            shim_pid: std::process::id(),
        }
    }

    /// Makes the pod's sandbox, and the Task API's view of it. Its bundle has a record by then.
    pub(super) async fn create_sandbox(
        &self,
        request: &CreateRequest,
        record: &Record,
        namespaces: SandboxNamespaces,
        files: Option<SandboxFiles>,
    ) -> Result<Created<Kind>> {
        let cgroup = record.cgroup(&request.id).doing(|| "cannot make the cgroup of the sandbox".into())?;
        self.sandbox.create(namespaces, cgroup, files).await?;
        let first = Process::held_by_the_shim(request.stdio.clone());
        Ok(Created { first, kind: Kind::Sandbox(self.sandbox.clone()) })
    }

    /// Makes a container with a process; what is made until a step fails, or until the container is no longer wanted, is
    /// taken back.
    async fn create_or_take_back(
        self: &Arc<Self>,
        request: &CreateRequest,
        config: Config,
        record: &Record,
        launcher: Arc<dyn Launcher>,
        unwanted: &CancellationToken,
    ) -> Result<Created<Kind>> {
        let created = tokio::select! {
            created = self.create_process(request, config, record, launcher.clone(), unwanted) => Some(created),
            () = unwanted.cancelled() => None,
        };
        match created {
            Some(Ok(created)) => Ok(created),
            Some(Err(error)) => {
                log_what_is_left(&request.id, launcher.delete().await);
                Err(error)
            }
            None => {
                log_what_is_left(&request.id, launcher.delete().await);
                log_what_is_left(&request.id, launcher.end_interrupted().await);
                Err(not_wanted(&request.id))
            }
        }
    }

    async fn create_process(
        self: &Arc<Self>,
        request: &CreateRequest,
        mut config: Config,
        record: &Record,
        launcher: Arc<dyn Launcher>,
        unwanted: &CancellationToken,
    ) -> Result<Created<Kind>> {
        if !self.sandbox.has_nodes_pids()
            && let Some(namespace) = shared_pids(&mut config, std::process::id())
        {
            namespace.path = Some(self.shared_pids().await?.into());
            config.is_rewritten = true;
        }
        if let Some(files) = self.sandbox.files() {
            files.add_to(&mut config);
        }
        record.save(&request.bundle).doing(|| "cannot write the record of the container".into())?;
        let rootfs = mount(request, &config).await?;
        let config = Arc::new(config);
        let layers = Layers::of(&request.rootfs, &request.settings);
        let program = image::find(&self.identity, &request.id, &config, layers, unwanted).await?;
        let parts = Parts { request, owner: self.owner_of(request), config: config.clone(), rootfs, launcher };
        match program {
            Program::Native if !request.checkpoint.is_empty() => Native::from_checkpoint(parts).map(Created::of_native),
            Program::Native => Native::create(parts).await.map(Created::of_native),
            Program::Wasm(module) => {
                Wasm::check(request, &module.name)?;
                let function = module.function.clone();
                let code = self.code_of(module, request, &config, record, unwanted).await?;
                Wasm::create(parts, code, function, record.settings.clone()).await.map(Created::of_wasm)
            }
        }
    }

    /// The compiled code of `module`.
    async fn code_of(
        &self,
        module: Module,
        request: &CreateRequest,
        config: &Config,
        record: &Record,
        unwanted: &CancellationToken,
    ) -> Result<Compiled> {
        let Module { name, source, digest, .. } = module;
        let (settings, tenant) = (record.settings.clone(), self.tenant_of(request, config));
        let unwanted = unwanted.clone();
        blocking(move || Compiled::load(&name, source, digest, &settings, tenant, &unwanted)).await
    }

    /// The pod's name in the log: what Kubernetes calls it, if it is one of Kubernetes.
    fn name_of(&self, request: &CreateRequest, config: &Config) -> String {
        let Tenant { namespace, pod } = self.tenant_of(request, config);
        format!("{namespace}/{}", config.annotations.get(SANDBOX_NAME).unwrap_or(&pod))
    }

    /// For whom a container's guest is compiled.
    fn tenant_of(&self, request: &CreateRequest, config: &Config) -> Tenant {
        let namespace = config.annotations.get(SANDBOX_NAMESPACE).unwrap_or(&self.identity.namespace);
        Tenant { namespace: namespace.clone(), pod: config.pod().unwrap_or(&request.id).into() }
    }

    fn owner_of(&self, request: &CreateRequest) -> Owner {
        Owner { container: request.id.clone(), namespace: self.identity.namespace.clone() }
    }
}

/// Reads the specification in `bundle`.
fn read(bundle: &Path) -> Result<Config> {
    let path = bundle.join(CONFIG_FILE);
    let text = fs::read(&path).doing(|| format!("cannot read `{}`", path.display()))?;
    Config::parse(&text, bundle)
}

async fn mount(request: &CreateRequest, config: &Config) -> Result<Rootfs> {
    let (done, mounted) = tokio::sync::oneshot::channel();
    let (path, mounts) = (config.root.path.clone(), request.rootfs.clone());
    // A thread of its own: mounting many layers changes the thread's working directory for good.
    std::thread::spawn(move || drop(done.send(Rootfs::mount(path, &mounts))));
    mounted.await.doing(|| "cannot mount the root file system".into())?
}

fn not_wanted(id: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("container `{id}` was deleted while it was being created"))
}

/// Undoes a container that was made and is no longer wanted.
async fn undo(container: &Container) {
    log_what_is_left(&container.id, container.kind.undo().await);
    if let Some(child) = container.init.child() {
        child.end().await;
    }
}

fn log_what_is_left(id: &str, undone: Result<()>) {
    if let Err(error) = undone {
        log::error!("cannot remove what is left of container `{id}`: {}", chain(&error));
    }
}

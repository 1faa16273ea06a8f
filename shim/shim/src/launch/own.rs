//! Skiff's own launcher, for wasm containers whose specification it understands completely. It leaves all others to the OCI runtime,
//! and says why in the log.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use skiff_linux::cgroup::{Cgroup, Devices, Hierarchy};
use skiff_linux::pidfd;
use skiff_protocol::bytes_and_mi;

use crate::error::{Context, Error, Kind, Result, chain};
use crate::host::engine::open_engine;
use crate::host::process::Child;
use crate::host::reader::blocking;
use crate::host::record::Record;
use crate::launch::filters::Place;
use crate::launch::launcher::{Attachment, Launched, Launcher};
use crate::launch::runc::{OciRuntime, PID_FILE};
use crate::launch::scope::Scope;
use crate::launch::stage::{Entering, Start};
use crate::request::{CheckpointOptions, StdioPaths};
use crate::spec::config::Config;
use crate::spec::launch::{self, CgroupDir, Cgroups, Further, Given, Limits, Plan, Reason, Setting, Tolerated};

/// A container of skiff's own launcher, or one that it has left to the OCI runtime.
pub(super) struct Own {
    runtime: OciRuntime,
    record: Record,
    id: String,
    directory: PathBuf,
    cgroup: Arc<Mutex<CgroupState>>,
    /// If systemd makes it.
    scope: Option<Scope>,
    made: OnceLock<Made>,
}

/// What has become of the container's cgroup.
#[derive(Debug, PartialEq, Eq)]
enum CgroupState {
    NotMade,
    Made,
    /// The container is deleted, so nothing more is made; what was made may be there still.
    Removed,
    /// The container was deleted before anything was made.
    Unwanted,
}

/// A container that this launcher has made.
struct Made {
    process: OwnedFd,
    further: Further,
    /// What the last update has left of them.
    limits: Mutex<Limits>,
}

impl Own {
    /// The container `id`, as `record` describes it, in `bundle`.
    pub(super) fn new(record: &Record, id: &str, bundle: &Path) -> Result<Self> {
        Ok(Self {
            runtime: OciRuntime::new(record, id, bundle)?,
            record: record.clone(),
            id: id.into(),
            directory: bundle.into(),
            cgroup: Arc::new(Mutex::new(CgroupState::NotMade)),
            scope: record.cgroups_path.as_deref().filter(|_| record.settings.systemd_cgroup).and_then(Scope::named),
            made: OnceLock::new(),
        })
    }

    /// How the container of `config` is made.
    fn understand(&self, config: &Config) -> Result<Plan, Reason> {
        let settings = &self.record.settings;
        if settings.no_pivot_root {
            return Err(Reason("the option `NoPivotRoot`".into()));
        }
        let cgroup = self.cgroup().map_err(|error| Reason(error.to_string()))?;
        let cgroups = cgroups_of(&cgroup)?;
        if settings.systemd_cgroup && (self.scope.is_none() || matches!(cgroups, Cgroups::V1(_))) {
            return Err(Reason("`linux.cgroupsPath`: it is not a scope of systemd on cgroup v2".into()));
        }
        let given = Given {
            id: &self.id,
            cgroups: &cgroups,
            has_scope: self.scope.is_some(),
            has_keyring: !settings.no_new_keyring,
            has_kcore: Path::new("/proc/kcore").exists(),
            has_apparmor: has_apparmor(),
        };
        launch::understand(config, given)
    }

    /// Makes the container's cgroups, with these settings and devices.
    async fn make_cgroup(&self, settings: Vec<Setting>, devices: Option<Devices>) -> Result<()> {
        let (cgroup, state) = (self.cgroup()?, self.cgroup.clone());
        let make = move || {
            if !cgroup.is_empty() {
                return Err(io::Error::new(ErrorKind::ResourceBusy, "somebody else's processes are there"));
            }
            cgroup.create_empty()?;
            limit(&cgroup, &settings, devices)
        };
        blocking(move || make_unless_deleted(&state, make).doing(|| "cannot make the container's cgroup".into())).await
    }

    /// What gets the first process into the scope `scope` with these settings and devices.
    fn entering(&self, scope: &Scope, settings: Vec<Setting>, devices: Option<Devices>) -> Result<Entering> {
        let (cgroup, state) = (self.cgroup()?, self.cgroup.clone());
        let (scope, id) = (scope.clone(), self.id.clone());
        Ok(Box::new(move |pid| {
            make_unless_deleted(&state, || {
                scope.make(&id, pid, &settings)?;
                cgroup.wait_for(pid)?;
                limit(&cgroup, &settings, devices)
            })
        }))
    }

    async fn make(&self, plan: Plan, attachment: Attachment, preserved: Vec<OwnedFd>) -> Result<Launched> {
        let Plan { settings, devices, limits, stage, further, .. } = plan;
        let (cgroup, entering) = match &self.scope {
            Some(scope) => (None, Some(self.entering(scope, settings, devices)?)),
            None => {
                self.make_cgroup(settings, devices).await?;
                (self.unified()?, None)
            }
        };
        let program = open_engine().doing(|| "cannot open the engine".into())?;
        let start = Start { program, attachment, preserved, cgroup, joined: None, entering };
        let child = start.lead(&stage).await?;
        let kept = self.keep(&child, further, limits).and_then(|()| self.cgroup());
        match kept {
            Ok(cgroup) => Ok(Launched { child, cgroup }),
            Err(error) => {
                child.end().await;
                Err(error)
            }
        }
    }

    /// Makes the first container with a seccomp profile, whose filter the OCI runtime knows how to make.
    async fn learn(
        &self,
        place: Place,
        config: &Config,
        attachment: Attachment,
        preserved: Vec<OwnedFd>,
    ) -> Result<Launched> {
        log::info!("the OCI runtime makes container `{}`: it is the first one with its seccomp profile", self.id);
        let launched = self.runtime.create(config, attachment, preserved).await?;
        if let Err(error) = place.learn(launched.child.pid()).await {
            // The next one is the runtime's, too.
            log::warn!("{}", chain(&error));
        }
        Ok(launched)
    }

    /// Keeps what later requests need of a container that is made.
    fn keep(&self, child: &Child, further: Further, limits: Limits) -> Result<()> {
        let process = pidfd::open(child.pid()).doing(|| "cannot watch the container's process".into())?;
        let recorded = fs::write(self.directory.join(PID_FILE), child.pid().to_string());
        recorded.doing(|| "cannot write down the container's process".into())?;
        let made = Made { process, further, limits: Mutex::new(limits) };
        self.made.set(made).map_err(|_| Error::new(Kind::Conflict, "the container has already been made"))
    }

    /// The container's cgroup in the unified tree, if the node has one: nothing but a birth gets a process there without a wait.
    fn unified(&self) -> Result<Option<File>> {
        let cgroup = self.cgroup()?;
        cgroup.unified_dir().map(File::open).transpose().doing(|| "cannot open the container's cgroup".into())
    }

    /// Does something with the container's cgroup, which may take long.
    async fn change(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Cgroup) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let cgroup = self.cgroup()?;
        blocking(move || change(&cgroup).doing(|| format!("cannot {doing} the container"))).await
    }
}

#[async_trait]
impl Launcher for Own {
    async fn create(&self, config: &Config, attachment: Attachment, preserved: Vec<OwnedFd>) -> Result<Launched> {
        match self.understand(config) {
            Ok(_) if matches!(attachment, Attachment::Console(_)) => {
                Err(Error::new(Kind::Invalid, "the specification describes no terminal"))
            }
            Ok(mut plan) => {
                let Some(profile) = &plan.profile else { return self.make(plan, attachment, preserved).await };
                let place = Place::of(profile, &self.record.settings);
                match place.find() {
                    Some(filter) => {
                        plan.install(&filter);
                        self.make(plan, attachment, preserved).await
                    }
                    None => self.learn(place, config, attachment, preserved).await,
                }
            }
            Err(reason) => {
                log::info!("container `{}` is left to the OCI runtime: {reason}", self.id);
                self.runtime.create(config, attachment, preserved).await
            }
        }
    }

    fn cgroup(&self) -> Result<Cgroup> {
        self.runtime.cgroup()
    }

    async fn restore(&self, config: &Config, attachment: Attachment, image: &Path) -> Result<Child> {
        self.runtime.restore(config, attachment, image).await
    }

    async fn checkpoint(&self, image: &Path, stdio: &StdioPaths, options: &CheckpointOptions) -> Result<()> {
        self.runtime.checkpoint(image, stdio, options).await
    }

    async fn start(&self) -> Result<()> {
        match self.made.get() {
            // Its engine is executed, and waits to run the guest.
            Some(_) => Ok(()),
            None => self.runtime.start().await,
        }
    }

    async fn delete(&self) -> Result<()> {
        self.runtime.delete().await?;
        let (cgroup, state, scope) = (self.cgroup(), self.cgroup.clone(), self.scope.clone());
        let remove = move || {
            // A cgroup that is being made is there before it is removed, and one that could not be removed is removed by the next try.
            let mut state = locked(&state);
            if matches!(*state, CgroupState::NotMade | CgroupState::Unwanted) {
                *state = CgroupState::Unwanted;
                return Ok(());
            }
            *state = CgroupState::Removed;
            let cgroup = cgroup?;
            let is_gone = cgroup.remove_if_empty();
            let removed = if is_gone { Ok(()) } else { cgroup.kill_all().and_then(|()| cgroup.remove()) };
            let removed = removed.and_then(|()| scope.map_or(Ok(()), |scope| scope.remove()));
            removed.doing(|| "cannot remove the container's cgroup".into())
        };
        blocking(remove).await
    }

    async fn end_interrupted(&self) -> Result<()> {
        self.runtime.end_interrupted().await
    }

    async fn pause(&self) -> Result<()> {
        match self.made.get() {
            Some(_) => self.change("pause", Cgroup::freeze).await,
            None => self.runtime.pause().await,
        }
    }

    async fn resume(&self) -> Result<()> {
        match self.made.get() {
            Some(_) => self.change("resume", Cgroup::thaw).await,
            None => self.runtime.resume().await,
        }
    }

    async fn update(&self, resources: &LinuxResources) -> Result<()> {
        let Some(made) = self.made.get() else { return self.runtime.update(resources).await };
        let resources = serde_json::to_value(resources).doing(|| "cannot read the resources".into())?;
        let cgroup = self.cgroup()?;
        let before = locked(&made.limits).clone();
        let updated = launch::update(resources, cgroup.hierarchy(), &before, cgroup.memory_limit_bytes());
        let (settings, limits) = updated.map_err(not_understood)?;
        let checked_bytes = limits.checked_bytes().filter(|_| cgroup.hierarchy() == Hierarchy::V2);
        let scope = self.scope.clone();
        let update = move |cgroup: &Cgroup| {
            check_usage(cgroup, checked_bytes)?;
            scope.map_or(Ok(()), |scope| scope.update(&settings))?;
            apply(cgroup, &settings)
        };
        self.change("update", update).await?;
        *locked(&made.limits) = limits;
        Ok(())
    }

    async fn exec(
        &self,
        process: &ProcessSpec,
        attachment: Attachment,
        exec_id: &str,
        preserved: Vec<OwnedFd>,
    ) -> Result<Child> {
        let Some(made) = self.made.get() else {
            return self.runtime.exec(process, attachment, exec_id, preserved).await;
        };
        let stage = made.further.stage(process).map_err(not_understood)?;
        if matches!(attachment, Attachment::Console(_)) != process.terminal().unwrap_or(false) {
            return Err(Error::new(Kind::Invalid, "the request and the process differ about a terminal"));
        }
        let first = made.process.try_clone().doing(|| "cannot pass on the container's process".into())?;
        let program = open_engine().doing(|| "cannot open the engine".into())?;
        let start =
            Start { program, attachment, preserved, cgroup: self.unified()?, joined: Some(first), entering: None };
        start.lead(&stage).await
    }

    fn recorded_pid(&self) -> Option<i32> {
        self.runtime.recorded_pid()
    }
}

fn cgroups_of(cgroup: &Cgroup) -> Result<Cgroups, Reason> {
    match cgroup.hierarchy() {
        Hierarchy::V1 => {
            let dirs = cgroup.v1_dirs().map(|(controllers, mountpoint, path)| CgroupDir {
                controllers: controllers.into(),
                mountpoint: mountpoint.into(),
                path: path.into(),
            });
            Ok(Cgroups::V1(dirs.collect()))
        }
        Hierarchy::V2 if cgroup.unified_dir().is_some() => Ok(Cgroups::V2),
        Hierarchy::V2 => Err(Reason("`linux.cgroupsPath`: it is not a cgroup of the container's own".into())),
    }
}

/// Whether the node applies AppArmor profiles, as the OCI runtime finds out.
fn has_apparmor() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    Path::new("/sys/kernel/security/apparmor").exists() && enabled.is_ok_and(|text| text.starts_with('Y'))
}

fn locked<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_understood(reason: Reason) -> Error {
    Error::new(Kind::Unsupported, format!("skiff's own launcher does not understand {reason}"))
}

/// Checks that the container does not use more memory than its new limit. Cgroup v1 checks that itself.
fn check_usage(cgroup: &Cgroup, limit_bytes: Option<u64>) -> io::Result<()> {
    let Some(limit_bytes) = limit_bytes else { return Ok(()) };
    let used_bytes = cgroup.memory_usage_bytes()?;
    if used_bytes <= limit_bytes {
        return Ok(());
    }
    let (limit, used) = (bytes_and_mi(limit_bytes), bytes_and_mi(used_bytes));
    Err(io::Error::new(ErrorKind::ResourceBusy, format!("a memory limit of {limit} is below what is in use: {used}")))
}

/// Makes the container's cgroups, unless the container is deleted meanwhile.
fn make_unless_deleted(state: &Mutex<CgroupState>, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut state = locked(state);
    if matches!(*state, CgroupState::Removed | CgroupState::Unwanted) {
        return Err(io::Error::other("the container is deleted"));
    }
    *state = CgroupState::Made;
    make()
}

fn limit(cgroup: &Cgroup, settings: &[Setting], devices: Option<Devices>) -> io::Result<()> {
    apply(cgroup, settings)?;
    devices.map_or(Ok(()), |devices| cgroup.limit_devices(&devices))
}

fn apply(cgroup: &Cgroup, settings: &[Setting]) -> io::Result<()> {
    settings.iter().try_for_each(|Setting { controller, file, value, tolerates }| {
        match (cgroup.set(controller, file, value), tolerates) {
            (Err(error), Some(Tolerated::Missing)) if error.kind() == ErrorKind::NotFound => Ok(()),
            (Err(error), Some(Tolerated::Early)) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            (Err(error), _) => {
                Err(io::Error::new(error.kind(), format!("cannot write `{value}` to `{file}`: {error}")))
            }
            (Ok(()), _) => Ok(()),
        }
    })
}

//! Describes and makes the containers of tests.

use std::path::Path;

use containerd_client::services::v1::CreateTaskRequest;
use serde_json::{Value, json};

use crate::api::{Description, Refused};
use crate::cgroup::{Cgroup, PodCgroup};
use crate::container::{Container, Outcome};
use crate::containerd::Containerd;
use crate::image::Image;
use crate::names::random_name;
use crate::spec;
use crate::streams::Streams;

/// A container to be made.
pub struct Job<'a> {
    containerd: &'a Containerd,
    image: Image,
    id: String,
    spec: Value,
    terminal: bool,
    has_stdin: bool,
    streams: Option<Streams>,
    log: Option<String>,
    has_rootfs: bool,
}

/// A container that containerd knows, without a task.
pub struct Described<'a> {
    containerd: &'a Containerd,
    /// Its id.
    pub id: String,
    request: CreateTaskRequest,
    streams: Streams,
    cgroup: Cgroup,
}

impl Containerd {
    /// A container of a guest; its arguments follow its own name.
    pub fn job(&self, guest: &str) -> Job<'_> {
        self.job_of(&self.guest(guest))
    }

    /// A container of this image.
    pub fn job_of(&self, image: &Image) -> Job<'_> {
        let id = random_name("t");
        let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_string()];
        env.extend(image.env.clone());
        let spec = spec::default_spec(&image.entrypoint, &env, &self.cgroups_path(&id));
        Job {
            containerd: self,
            image: image.clone(),
            id,
            spec,
            terminal: false,
            has_stdin: false,
            streams: None,
            log: None,
            has_rootfs: true,
        }
    }

    /// A container of native programs that runs `sh -c script`.
    pub fn shell(&self, script: &str) -> Job<'_> {
        self.job_of(&Image::native(self)).args(["-c", script])
    }
}

impl<'a> Job<'a> {
    /// Adds arguments after the entrypoint.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        let list = self.spec["process"]["args"].as_array_mut().expect("a list");
        list.extend(args.into_iter().map(|arg| Value::String(arg.into())));
        self
    }

    /// Runs this instead of the entrypoint.
    pub fn command<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.spec["process"]["args"] = json!([]);
        self.args(args)
    }

    /// Adds `NAME=VALUE`.
    pub fn env(mut self, variable: &str) -> Self {
        self.spec["process"]["env"].as_array_mut().expect("a list").push(json!(variable));
        self
    }

    /// Sets the working directory.
    pub fn cwd(mut self, directory: &str) -> Self {
        self.spec["process"]["cwd"] = json!(directory);
        self
    }

    /// Runs it as this user and group.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.spec["process"]["user"] = json!({"uid": uid, "gid": gid});
        self
    }

    /// Binds `source` at `destination` with `rbind` and these options.
    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        let options = [&["rbind"], options].concat();
        self.mount(destination, "bind", &source.to_string_lossy(), &options)
    }

    /// Adds a mount.
    pub fn mount(mut self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        self.spec["mounts"].as_array_mut().expect("a list").push(spec::mount(destination, kind, source, options));
        self
    }

    /// Limits its memory, in bytes.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.spec["linux"]["resources"]["memory"] = json!({"limit": bytes});
        self
    }

    /// Limits its processor time to `quota` in each `period`, both in microseconds.
    pub fn cpu_quota(mut self, quota: u64, period: u64) -> Self {
        self.spec["linux"]["resources"]["cpu"]["quota"] = json!(quota);
        self.spec["linux"]["resources"]["cpu"]["period"] = json!(period);
        self
    }

    /// Lets it run on these processors only (`0-1`).
    pub fn cpus(mut self, list: &str) -> Self {
        self.spec["linux"]["resources"]["cpu"]["cpus"] = json!(list);
        self
    }

    /// Limits its tasks.
    pub fn pids(mut self, most: u64) -> Self {
        self.spec["linux"]["resources"]["pids"] = json!({"limit": most});
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.spec["annotations"][key] = json!(value);
        self
    }

    /// Puts its cgroup below that of a pod.
    pub fn in_pod(mut self, pod: &PodCgroup) -> Self {
        self.spec["linux"]["cgroupsPath"] = json!(format!("{}/{}", pod.cgroup().path(), self.id));
        self
    }

    /// Makes the root file system read-only.
    pub fn read_only(mut self) -> Self {
        self.spec["root"]["readonly"] = json!(true);
        self
    }

    /// Uses the machine's network instead of one of its own.
    pub fn host_network(mut self) -> Self {
        let namespaces = self.spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
        self
    }

    /// Gives it a terminal.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self.spec["process"]["terminal"] = json!(true);
        self
    }

    /// Connects its standard input.
    pub fn stdin(mut self) -> Self {
        self.has_stdin = true;
        self
    }

    /// Uses these streams, which the test reads itself.
    pub fn streams(mut self, streams: Streams) -> Self {
        self.streams = Some(streams);
        self
    }

    /// Sends both outputs to this address instead.
    pub fn log(mut self, address: &str) -> Self {
        self.log = Some(address.into());
        self
    }

    /// Changes its specification where there is no other method for it.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Gives it no root file system: its bundle's directory stays empty.
    pub fn without_rootfs(mut self) -> Self {
        self.has_rootfs = false;
        self
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes this id.
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = id.into();
        self.spec["linux"]["cgroupsPath"] = json!(self.containerd.cgroups_path(id));
        self
    }

    /// Makes the container and its task, which waits to be started.
    ///
    /// # Errors
    /// containerd's or the shim's refusal; nothing of the container is left then.
    pub fn try_create(self) -> Result<Container<'a>, Refused> {
        let (containerd, id) = (self.containerd, self.id.clone());
        let created = self.create_task();
        if created.is_err() {
            containerd.forget(&id);
        }
        created
    }

    /// Makes the container and its task, and undoes nothing if that fails.
    ///
    /// # Errors
    /// containerd's or the shim's refusal.
    pub fn create_task(self) -> Result<Container<'a>, Refused> {
        let described = self.describe()?;
        let pid = described.create_task()?;
        Ok(described.into_container(pid))
    }

    /// Makes the container known to containerd.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn describe(self) -> Result<Described<'a>, Refused> {
        let make = if self.terminal { Streams::of_terminal } else { Streams::collecting };
        let streams = self.streams.unwrap_or_else(make);
        let path = |name| streams.path(name).to_string_lossy().into_owned();
        let (stdout, stderr) = match &self.log {
            Some(address) => (address.clone(), address.clone()),
            None => (path("stdout"), if self.terminal { String::new() } else { path("stderr") }),
        };
        let cgroup = Cgroup::at(self.spec["linux"]["cgroupsPath"].as_str().unwrap_or_default());
        let api = self.containerd.api();
        api.create_container(&Description {
            id: &self.id,
            image: &self.image.name,
            spec: self.spec.to_string().into_bytes(),
            options_file: &self.containerd.options_file(),
        })?;
        let mounts = api.prepare_snapshot(&self.id, &self.image.chain)?;
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: if self.has_rootfs { mounts } else { Vec::new() },
            stdin: if self.has_stdin { path("stdin") } else { String::new() },
            stdout,
            stderr,
            terminal: self.terminal,
            ..CreateTaskRequest::default()
        };
        Ok(Described { containerd: self.containerd, id: self.id, request, streams, cgroup })
    }

    /// Makes the container; a refusal is a failure of the test.
    pub fn create(self) -> Container<'a> {
        self.try_create().unwrap_or_else(|refused| panic!("the container was not made: {refused}"))
    }

    /// Makes and starts the container.
    pub fn start(self) -> Container<'a> {
        let container = self.create();
        if let Err(refused) = container.start() {
            panic!("the container did not start: {refused}");
        }
        container
    }

    /// Runs the container to its end and removes it.
    pub fn run(self) -> Outcome {
        self.start().finish()
    }

    /// Has a guest of files (`c-files` and the like) do its steps, and returns what came of each.
    pub fn outcomes(self, steps: &[&str]) -> Vec<String> {
        let outcome = self.args(steps.iter().copied()).run();
        let lines: Vec<_> =
            outcome.stdout.lines().map(|line| line.split_once(": ").unwrap_or((line, "")).1.to_string()).collect();
        assert_eq!(lines.len(), steps.len(), "{outcome:?}");
        lines
    }

    /// Makes and starts the container.
    ///
    /// # Errors
    /// containerd's or the shim's refusal; nothing of the container is left then.
    pub fn try_start(self) -> Result<Container<'a>, Refused> {
        let container = self.try_create()?;
        container.start().map(|()| container)
    }

    /// Makes and starts the container, which must fail, and returns the refusal. Nothing of it may be left.
    pub fn refused(self) -> Refused {
        match self.try_start() {
            Err(refused) => refused,
            Ok(_) => panic!("the container started"),
        }
    }
}

impl<'a> Described<'a> {
    /// Makes the task and returns its pid.
    ///
    /// # Errors
    /// containerd's or the shim's refusal.
    pub fn create_task(&self) -> Result<u32, Refused> {
        self.containerd.api().create_task(self.request.clone())
    }

    /// The container, now that its task was made.
    pub fn into_container(self, pid: u32) -> Container<'a> {
        Container::new(self.containerd, self.id, pid, self.streams, self.cgroup)
    }
}

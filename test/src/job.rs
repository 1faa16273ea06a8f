//! Containers of tests: described, made, run, ended, and looked for afterwards.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest,
    KillRequest, ListPidsRequest, MetricsRequest, PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest,
    UpdateTaskRequest, WaitRequest,
};
use containerd_client::types::v1::Process;
use prost_types::Any;
use serde_json::{Value, json};

use crate::api::{Description, Refused, exit_of, in_namespace, wait_for};
use crate::containerd::Containerd;
use crate::image::Image;
use crate::left::assert_nothing_left;
use crate::spec;
use crate::streams::Streams;
use crate::wait::random_name;

/// How long a process may take to end.
const EXIT_LIMIT: Duration = Duration::from_secs(60);
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A container to be made.
pub struct Job<'a> {
    containerd: &'a Containerd,
    image: Image,
    id: String,
    /// Its specification, for what has no method here.
    pub spec: Value,
    terminal: bool,
    has_stdin: bool,
    streams: Option<Streams>,
    log: Option<String>,
}

/// How a process ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub code: u32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A container whose task was made. Dropping it removes it, and looks for what is left of it.
pub struct Container<'a> {
    containerd: &'a Containerd,
    /// Its id.
    pub id: String,
    /// The pid of its process.
    pub pid: u32,
    /// Its streams.
    pub streams: Streams,
    is_deleted: bool,
}

/// A further process of a container.
pub struct Exec<'a> {
    container: &'a Container<'a>,
    /// Its id.
    pub id: String,
    /// Its streams.
    pub streams: Streams,
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
        let spec = spec::default(&image.entrypoint, &env, &format!("/{}/{id}", self.cgroup()));
        Job { containerd: self, image: image.clone(), id, spec, terminal: false, has_stdin: false, streams: None, log: None }
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

    /// Binds `source` at `destination` with these options, `rbind` besides.
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

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes this id.
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = id.into();
        self.spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", self.containerd.cgroup()));
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
            containerd.api().delete_container(&id)?;
            assert_nothing_left(containerd, &id);
        }
        created
    }

    /// Makes the container and its task without undoing anything when that fails.
    pub fn create_task(self) -> Result<Container<'a>, Refused> {
        let streams = self.streams.unwrap_or_else(Streams::collecting);
        let path = |name| streams.path(name).to_string_lossy().into_owned();
        let (stdout, stderr) = match &self.log {
            Some(address) => (address.clone(), address.clone()),
            None => (path("stdout"), if self.terminal { String::new() } else { path("stderr") }),
        };
        let api = self.containerd.api();
        api.create_container(&Description {
            id: &self.id,
            image: &self.image.name,
            spec: self.spec.to_string().into_bytes(),
            options_file: &self.containerd.options_file(),
        })?;
        let rootfs = api.prepare_snapshot(&self.id, &self.image.chain)?;
        let pid = api.create_task(CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs,
            stdin: if self.has_stdin { path("stdin") } else { String::new() },
            stdout,
            stderr,
            terminal: self.terminal,
            ..CreateTaskRequest::default()
        })?;
        Ok(Container { containerd: self.containerd, id: self.id, pid, streams, is_deleted: false })
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

    /// Makes and starts the container, which must fail; what was said. Nothing of it is left.
    pub fn refused(self) -> Refused {
        match self.try_create() {
            Err(refused) => refused,
            Ok(container) => match container.start() {
                Err(refused) => refused,
                Ok(()) => panic!("the container started"),
            },
        }
    }
}

impl Container<'_> {
    /// Starts it.
    pub fn start(&self) -> Result<(), Refused> {
        let request = StartRequest { container_id: self.id.clone(), ..StartRequest::default() };
        self.containerd.api().call(self.containerd.api().tasks().start(in_namespace(request))).map(drop)
    }

    /// Waits for its end; the exit code.
    pub fn wait(&self) -> u32 {
        self.wait_for(EXIT_LIMIT).unwrap_or_else(|refused| {
            panic!("container `{}` did not end: {refused}; stdout: {:?}, stderr: {:?}", self.id, self.streams.stdout(), self.streams.stderr())
        })
    }

    /// Waits for its end for no longer than `limit`; the exit code.
    pub fn wait_for(&self, limit: Duration) -> Result<u32, Refused> {
        let request = WaitRequest { container_id: self.id.clone(), ..WaitRequest::default() };
        let mut tasks = self.containerd.api().tasks();
        wait_for(limit, tasks.wait(in_namespace(request))).map(|answer| answer.exit_status)
    }

    /// Waits for its end, removes it and answers how it went. Nothing of it is left.
    pub fn finish(mut self) -> Outcome {
        let code = self.wait();
        self.streams.wait_for_the_end();
        let deleted = self.delete().unwrap_or_else(|refused| panic!("container `{}` was not deleted: {refused}", self.id));
        assert_eq!(deleted, code, "Wait and Delete tell the same exit code");
        Outcome { code, stdout: self.streams.stdout(), stderr: self.streams.stderr() }
    }

    /// Deletes task and container; the exit code. Nothing of it is left.
    pub fn delete(&mut self) -> Result<u32, Refused> {
        let code = self.delete_task()?;
        self.containerd.api().delete_container(&self.id)?;
        self.is_deleted = true;
        assert_nothing_left(self.containerd, &self.id);
        Ok(code)
    }

    /// Deletes the task alone; the exit code.
    pub fn delete_task(&self) -> Result<u32, Refused> {
        let request = DeleteTaskRequest { container_id: self.id.clone() };
        let api = self.containerd.api();
        api.call(api.tasks().delete(in_namespace(request))).map(|answer| exit_of(&answer))
    }

    /// Sends a signal to its process.
    pub fn kill(&self, signal: i32) -> Result<(), Refused> {
        self.signal("", signal, false)
    }

    /// Sends a signal to all of its processes.
    pub fn kill_all(&self, signal: i32) -> Result<(), Refused> {
        self.signal("", signal, true)
    }

    fn signal(&self, exec_id: &str, signal: i32, all: bool) -> Result<(), Refused> {
        let signal = u32::try_from(signal).expect("signals are positive");
        let request = KillRequest { container_id: self.id.clone(), exec_id: exec_id.into(), signal, all };
        let api = self.containerd.api();
        api.call(api.tasks().kill(in_namespace(request))).map(drop)
    }

    /// What containerd says of its process.
    pub fn state(&self) -> Result<Process, Refused> {
        let request = GetRequest { container_id: self.id.clone(), ..GetRequest::default() };
        let api = self.containerd.api();
        Ok(api.call(api.tasks().get(in_namespace(request)))?.process.unwrap_or_default())
    }

    /// The pids of its processes, on the machine.
    pub fn pids(&self) -> Result<Vec<u32>, Refused> {
        let request = ListPidsRequest { container_id: self.id.clone() };
        let api = self.containerd.api();
        let answer = api.call(api.tasks().list_pids(in_namespace(request)))?;
        Ok(answer.processes.into_iter().map(|process| process.pid).collect())
    }

    /// Pauses it.
    pub fn pause(&self) -> Result<(), Refused> {
        let request = PauseTaskRequest { container_id: self.id.clone() };
        let api = self.containerd.api();
        api.call(api.tasks().pause(in_namespace(request))).map(drop)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<(), Refused> {
        let request = ResumeTaskRequest { container_id: self.id.clone() };
        let api = self.containerd.api();
        api.call(api.tasks().resume(in_namespace(request))).map(drop)
    }

    /// Says that its standard input has ended.
    pub fn close_io(&self) -> Result<(), Refused> {
        let request = CloseIoRequest { container_id: self.id.clone(), exec_id: String::new(), stdin: true };
        let api = self.containerd.api();
        api.call(api.tasks().close_io(in_namespace(request))).map(drop)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Refused> {
        let request = ResizePtyRequest { container_id: self.id.clone(), exec_id: String::new(), width, height };
        let api = self.containerd.api();
        api.call(api.tasks().resize_pty(in_namespace(request))).map(drop)
    }

    /// Changes its resources.
    pub fn update(&self, resources: &Value) -> Result<(), Refused> {
        let request = UpdateTaskRequest {
            container_id: self.id.clone(),
            resources: Some(Any { type_url: RESOURCES_TYPE.into(), value: resources.to_string().into_bytes() }),
            ..UpdateTaskRequest::default()
        };
        let api = self.containerd.api();
        api.call(api.tasks().update(in_namespace(request))).map(drop)
    }

    /// Its figures, as containerd's message.
    pub fn metrics(&self) -> Result<Any, Refused> {
        let request = MetricsRequest { filters: vec![format!("id=={}", self.id)] };
        let api = self.containerd.api();
        let answer = api.call(api.tasks().metrics(in_namespace(request)))?;
        Ok(answer.metrics.into_iter().find(|metric| metric.id == self.id).and_then(|metric| metric.data).unwrap_or_default())
    }

    /// Describes a further process of the container.
    pub fn exec(&self, args: &[&str], terminal: bool) -> Result<Exec<'_>, Refused> {
        let process = json!({
            "args": args, "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal, "user": {"uid": 0, "gid": 0},
        });
        let (id, streams) = (random_name("x"), Streams::collecting());
        let path = |name| streams.path(name).to_string_lossy().into_owned();
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: id.clone(),
            stdin: path("stdin"),
            stdout: path("stdout"),
            stderr: if terminal { String::new() } else { path("stderr") },
            terminal,
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: process.to_string().into_bytes() }),
        };
        let api = self.containerd.api();
        api.call(api.tasks().exec(in_namespace(request)))?;
        Ok(Exec { container: self, id, streams })
    }

    /// Ends whatever is there, and removes it.
    fn remove(&mut self) {
        drop(self.kill(libc::SIGKILL));
        drop(self.wait_for(EXIT_LIMIT));
        drop(self.delete_task());
        drop(self.containerd.api().delete_container(&self.id));
        self.is_deleted = true;
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("container `{}`: stdout {:?}, stderr {:?}", self.id, self.streams.stdout(), self.streams.stderr());
            eprintln!("{}", self.containerd.log_of(&self.id));
        }
        if self.is_deleted {
            return;
        }
        self.remove();
        if !std::thread::panicking() {
            assert_nothing_left(self.containerd, &self.id);
        }
    }
}

impl Exec<'_> {
    /// Starts it; its pid.
    pub fn start(&self) -> Result<u32, Refused> {
        let request = StartRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        let api = self.container.containerd.api();
        api.call(api.tasks().start(in_namespace(request))).map(|answer| answer.pid)
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: i32) -> Result<(), Refused> {
        self.container.signal(&self.id, signal, false)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Refused> {
        let request = ResizePtyRequest { container_id: self.container.id.clone(), exec_id: self.id.clone(), width, height };
        let api = self.container.containerd.api();
        api.call(api.tasks().resize_pty(in_namespace(request))).map(drop)
    }

    /// Says that its standard input has ended.
    pub fn close_io(&self) -> Result<(), Refused> {
        let request = CloseIoRequest { container_id: self.container.id.clone(), exec_id: self.id.clone(), stdin: true };
        let api = self.container.containerd.api();
        api.call(api.tasks().close_io(in_namespace(request))).map(drop)
    }

    /// Waits for its end, deletes it and answers how it went.
    pub fn finish(self) -> Outcome {
        let api = self.container.containerd.api();
        let request = WaitRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        let code = wait_for(EXIT_LIMIT, api.tasks().wait(in_namespace(request))).expect("the process ends").exit_status;
        let request = DeleteProcessRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        let deleted = api.call(api.tasks().delete_process(in_namespace(request))).expect("the process can be deleted");
        assert_eq!(exit_of(&deleted), code, "Wait and Delete tell the same exit code");
        Outcome { code, stdout: self.streams.stdout(), stderr: self.streams.stderr() }
    }
}

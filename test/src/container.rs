//! A container with a task: starting it, watching it, ending it, and checking that nothing is left of it.

use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteTaskRequest, GetRequest, KillRequest, ListPidsRequest, MetricsRequest, PauseTaskRequest,
    ResizePtyRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_client::types::v1::Process;
use prost_types::Any;
use serde_json::Value;

use crate::api::{Refused, exit_of, in_namespace, wait_for};
use crate::cgroup::Cgroup;
use crate::containerd::Containerd;
use crate::left::assert_nothing_left;
use crate::streams::Streams;
use crate::wait::eventually;

/// How long a process may take to end.
pub(crate) const EXIT_LIMIT: Duration = Duration::from_secs(60);
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// How a process ended and what it printed.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub code: u32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A container with a task. Dropping it removes it, and fails the test if anything is left of it.
pub struct Container<'a> {
    containerd: &'a Containerd,
    /// Its id.
    pub id: String,
    /// The pid of its process.
    pub pid: u32,
    /// Its streams.
    pub streams: Streams,
    /// Its cgroup.
    pub cgroup: Cgroup,
    is_deleted: bool,
}

impl<'a> Container<'a> {
    pub(crate) fn new(containerd: &'a Containerd, id: String, pid: u32, streams: Streams, cgroup: Cgroup) -> Self {
        Self { containerd, id, pid, streams, cgroup, is_deleted: false }
    }

    pub(crate) fn containerd(&self) -> &'a Containerd {
        self.containerd
    }

    /// Starts it.
    pub fn start(&self) -> Result<(), Refused> {
        let request = StartRequest { container_id: self.id.clone(), ..StartRequest::default() };
        self.containerd.api().call(self.containerd.api().tasks().start(in_namespace(request))).map(drop)
    }

    /// Waits for its end and returns the exit code.
    pub fn wait(&self) -> u32 {
        self.wait_for(EXIT_LIMIT).unwrap_or_else(|refused| {
            panic!(
                "container `{}` did not end: {refused}; stdout: {:?}, stderr: {:?}",
                self.id,
                self.streams.stdout(),
                self.streams.stderr()
            )
        })
    }

    /// Waits for its end for no longer than `limit` and returns the exit code.
    pub fn wait_for(&self, limit: Duration) -> Result<u32, Refused> {
        let request = WaitRequest { container_id: self.id.clone(), ..WaitRequest::default() };
        let mut tasks = self.containerd.api().tasks();
        wait_for(limit, tasks.wait(in_namespace(request))).map(|answer| answer.exit_status)
    }

    /// Waits for its end, removes it and returns how it went. Nothing of it may be left.
    pub fn finish(mut self) -> Outcome {
        let code = self.wait();
        self.streams.wait_for_the_end();
        let deleted =
            self.delete().unwrap_or_else(|refused| panic!("container `{}` was not deleted: {refused}", self.id));
        assert_eq!(deleted, code, "Wait and Delete report the same exit code");
        Outcome { code, stdout: self.streams.stdout(), stderr: self.streams.stderr() }
    }

    /// Deletes task and container and returns the exit code. Nothing of it may be left.
    pub fn delete(&mut self) -> Result<u32, Refused> {
        // It is seen once more, so that its terminals are looked for when it is gone.
        self.containerd.shim_of(&self.id);
        let code = self.delete_task()?;
        self.containerd.api().delete_container(&self.id)?;
        self.is_deleted = true;
        assert_nothing_left(self.containerd, &self.id);
        Ok(code)
    }

    /// Removes containerd's record of it, once the task is gone. Nothing of it may be left.
    pub fn forget(&mut self) {
        self.is_deleted = true;
        self.containerd.forget(&self.id);
    }

    /// Deletes the task alone and returns the exit code.
    pub fn delete_task(&self) -> Result<u32, Refused> {
        let request = DeleteTaskRequest { container_id: self.id.clone() };
        let api = self.containerd.api();
        api.call(api.tasks().delete(in_namespace(request))).map(|answer| exit_of(&answer))
    }

    /// The pid of its shim.
    pub fn shim(&self) -> u32 {
        self.containerd.shim_of(&self.id).unwrap_or_else(|| panic!("container `{}` has no shim", self.id))
    }

    /// Sends a signal to its process.
    pub fn kill(&self, signal: i32) -> Result<(), Refused> {
        self.signal("", signal, false)
    }

    /// Sends a signal to all of its processes.
    pub fn kill_all(&self, signal: i32) -> Result<(), Refused> {
        self.signal("", signal, true)
    }

    pub(crate) fn signal(&self, exec_id: &str, signal: i32, all: bool) -> Result<(), Refused> {
        let signal = u32::try_from(signal).expect("signals are positive");
        let request = KillRequest { container_id: self.id.clone(), exec_id: exec_id.into(), signal, all };
        let api = self.containerd.api();
        api.call(api.tasks().kill(in_namespace(request))).map(drop)
    }

    /// containerd's description of its process.
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

    /// Pauses it, trying again when the OCI runtime gives up early, as it does on a busy machine.
    pub fn pause_patiently(&self) {
        eventually("the container can be frozen", || match self.pause() {
            Err(refused) if refused.message.contains("unable to freeze") => None,
            paused => Some(paused),
        })
        .unwrap_or_else(|refused| panic!("container `{}` was not paused: {refused}", self.id));
    }

    /// Resumes it.
    pub fn resume(&self) -> Result<(), Refused> {
        let request = ResumeTaskRequest { container_id: self.id.clone() };
        let api = self.containerd.api();
        api.call(api.tasks().resume(in_namespace(request))).map(drop)
    }

    /// Reports that its standard input has ended.
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
        Ok(answer
            .metrics
            .into_iter()
            .find(|metric| metric.id == self.id)
            .and_then(|metric| metric.data)
            .unwrap_or_default())
    }

    /// Kills it and removes it, whatever its state.
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
            eprintln!(
                "container `{}`: stdout {:?}, stderr {:?}",
                self.id,
                self.streams.stdout(),
                self.streams.stderr()
            );
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

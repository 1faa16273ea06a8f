//! Further processes of a container.

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use containerd_client::types::v1::Process;
use prost_types::Any;
use serde_json::{Value, json};

use crate::api::{Refused, exit_of, in_namespace, wait_for};
use crate::container::{Container, EXIT_LIMIT, Outcome};
use crate::names::random_name;
use crate::streams::Streams;

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A further process of a container.
pub struct Exec<'a> {
    container: &'a Container<'a>,
    /// Its id.
    pub id: String,
    /// Its streams.
    pub streams: Streams,
}

impl Container<'_> {
    /// Describes a further process of the container.
    pub fn exec(&self, args: &[&str], terminal: bool) -> Result<Exec<'_>, Refused> {
        self.exec_of(&json!({
            "args": args, "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal, "user": {"uid": 0, "gid": 0},
        }))
    }

    /// Describes a further process of the container by its specification.
    pub fn exec_of(&self, process: &Value) -> Result<Exec<'_>, Refused> {
        let terminal = process["terminal"] == true;
        let streams = if terminal { Streams::of_terminal() } else { Streams::collecting() };
        let id = random_name("x");
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
        let api = self.containerd().api();
        api.call(api.tasks().exec(in_namespace(request)))?;
        Ok(Exec { container: self, id, streams })
    }
}

impl Exec<'_> {
    /// Starts it and returns its pid.
    pub fn start(&self) -> Result<u32, Refused> {
        let request = StartRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        let api = self.container.containerd().api();
        api.call(api.tasks().start(in_namespace(request))).map(|answer| answer.pid)
    }

    /// containerd's description of it.
    pub fn state(&self) -> Result<Process, Refused> {
        let request = GetRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        let api = self.container.containerd().api();
        Ok(api.call(api.tasks().get(in_namespace(request)))?.process.unwrap_or_default())
    }

    /// Deletes it, whatever became of it.
    pub fn delete(&self) -> Result<(), Refused> {
        let request = DeleteProcessRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        let api = self.container.containerd().api();
        api.call(api.tasks().delete_process(in_namespace(request))).map(drop)
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: i32) -> Result<(), Refused> {
        self.container.signal(&self.id, signal, false)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Refused> {
        let request =
            ResizePtyRequest { container_id: self.container.id.clone(), exec_id: self.id.clone(), width, height };
        let api = self.container.containerd().api();
        api.call(api.tasks().resize_pty(in_namespace(request))).map(drop)
    }

    /// Reports that its standard input has ended.
    pub fn close_io(&self) -> Result<(), Refused> {
        let request = CloseIoRequest { container_id: self.container.id.clone(), exec_id: self.id.clone(), stdin: true };
        let api = self.container.containerd().api();
        api.call(api.tasks().close_io(in_namespace(request))).map(drop)
    }

    /// Waits for its end, deletes it and returns how it went.
    pub fn finish(self) -> Outcome {
        let api = self.container.containerd().api();
        let request = WaitRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        let code = wait_for(EXIT_LIMIT, api.tasks().wait(in_namespace(request))).expect("the process ends").exit_status;
        let request = DeleteProcessRequest { container_id: self.container.id.clone(), exec_id: self.id.clone() };
        self.streams.wait_for_the_end();
        let deleted = api.call(api.tasks().delete_process(in_namespace(request))).expect("the process can be deleted");
        assert_eq!(exit_of(&deleted), code, "Wait and Delete report the same exit code");
        Outcome { code, stdout: self.streams.stdout(), stderr: self.streams.stderr() }
    }
}

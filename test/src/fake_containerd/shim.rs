//! A running shim: its Task service, called over ttrpc.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::{
    DeleteRequest, KillRequest, ShutdownRequest, StartRequest, StateRequest, StateResponse, WaitRequest,
};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use nix::sys::signal::Signal;
use ttrpc::context::{Context, with_duration};

use super::bundle::Bundle;

/// How long a request may take.
const CALL: Duration = Duration::from_secs(60);

/// The context of a call, with a time-out that no call should reach.
pub fn call() -> Context {
    with_duration(CALL)
}

/// A running shim.
pub struct Shim {
    /// The address that `start` printed.
    pub address: String,
    /// The socket's path in it.
    pub socket: PathBuf,
    /// The Task service, version 3.
    pub tasks: TaskClient,
    /// The connection.
    pub client: Client,
}

impl Shim {
    /// The pid of the shim.
    pub async fn pid(&self) -> u32 {
        self.tasks.connect(call(), &Default::default()).await.unwrap().shim_pid
    }

    /// Creates the container of `bundle` and returns its pid.
    ///
    /// # Errors
    /// The shim's.
    pub async fn create(&self, bundle: &Bundle) -> ttrpc::Result<u32> {
        Ok(self.tasks.create(call(), &bundle.create_request()).await?.pid)
    }

    /// Starts it and returns its pid.
    ///
    /// # Errors
    /// The shim's.
    pub async fn run(&self, bundle: &Bundle) -> ttrpc::Result<u32> {
        let request = StartRequest { id: bundle.id.clone(), ..StartRequest::default() };
        Ok(self.tasks.start(call(), &request).await?.pid)
    }

    /// Its state.
    ///
    /// # Errors
    /// The shim's.
    pub async fn state(&self, bundle: &Bundle) -> ttrpc::Result<StateResponse> {
        self.tasks.state(call(), &StateRequest { id: bundle.id.clone(), ..StateRequest::default() }).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The shim's.
    pub async fn kill(&self, bundle: &Bundle, signal: Signal) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: bundle.id.clone(),
            signal: u32::try_from(signal as i32).unwrap(),
            ..KillRequest::default()
        };
        self.tasks.kill(call(), &request).await.map(drop)
    }

    /// Waits for its end and returns the exit code.
    pub async fn wait(&self, bundle: &Bundle) -> u32 {
        let request = WaitRequest { id: bundle.id.clone(), ..WaitRequest::default() };
        self.tasks.wait(call(), &request).await.unwrap().exit_status
    }

    /// Deletes it and returns the exit code.
    ///
    /// # Errors
    /// The shim's.
    pub async fn delete(&self, bundle: &Bundle) -> ttrpc::Result<u32> {
        let request = DeleteRequest { id: bundle.id.clone(), ..DeleteRequest::default() };
        Ok(self.tasks.delete(call(), &request).await?.exit_status)
    }

    /// Kills it and deletes it.
    pub async fn end(&self, bundle: &Bundle) {
        self.kill(bundle, Signal::SIGKILL).await.unwrap();
        self.wait(bundle).await;
        self.delete(bundle).await.unwrap();
    }

    /// Shuts the shim down on behalf of a container, as containerd does once that is gone.
    pub async fn shutdown_after(&self, bundle: &Bundle) {
        let request = ShutdownRequest { id: bundle.id.clone(), ..ShutdownRequest::default() };
        drop(self.tasks.shutdown(call(), &request).await);
    }

    /// Shuts the shim down.
    pub async fn shutdown(&self) {
        // The shim may be gone before it has sent its answer.
        drop(self.tasks.shutdown(call(), &Default::default()).await);
    }

    /// Calls `method` of the service `name` with an encoded `request` and returns the answer undecoded.
    ///
    /// # Errors
    /// The shim's.
    pub async fn raw(&self, name: &str, method: &str, request: &[u8]) -> ttrpc::Result<Vec<u8>> {
        let request = ttrpc::Request {
            service: name.into(),
            method: method.into(),
            payload: request.into(),
            timeout_nano: i64::try_from(CALL.as_nanos()).unwrap(),
            ..ttrpc::Request::default()
        };
        Ok(self.client.request(request).await?.payload)
    }
}

/// The code and the sentence of the refusal that a call must end with.
pub fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    refusal(&result.unwrap_err())
}

/// The code and the sentence of an error.
pub fn refusal(error: &ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message.clone()),
        other => panic!("not an answer of the shim: {other}"),
    }
}

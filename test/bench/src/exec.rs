//! A further process of a container, which is written to and read from.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, StartRequest, WaitRequest,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use prost_types::Any;
use serde_json::json;
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

use crate::containerd::{Containerd, request};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const PATIENCE: Duration = Duration::from_secs(60);
const STREAMS: [&str; 3] = ["in", "out", "err"];

/// A process that runs.
pub(crate) struct Exec<'a> {
    containerd: &'a Containerd,
    container_id: String,
    exec_id: String,
    pub(crate) stdin: Sender,
    pub(crate) stdout: Receiver,
    /// Open while it runs: a writer without a reader would be killed.
    stderr: Receiver,
}

impl<'a> Exec<'a> {
    /// Starts a process in a running container.
    ///
    /// # Errors
    /// When containerd refuses.
    pub(crate) async fn start(
        containerd: &'a Containerd,
        container_id: &str,
        exec_id: &str,
        args: &[&str],
    ) -> Result<Self> {
        let [stdin, stdout, stderr] = STREAMS.map(|stream| fifo(containerd, exec_id, stream));
        for fifo in [&stdin, &stdout, &stderr] {
            mkfifo(fifo, Mode::from_bits_truncate(0o600))?;
        }
        // Open for reading and writing, so that no open blocks and no end is reported.
        let mut both = OpenOptions::new();
        both.read_write(true);
        let exec = Self {
            containerd,
            container_id: container_id.into(),
            exec_id: exec_id.into(),
            stdin: both.open_sender(&stdin)?,
            stdout: both.open_receiver(&stdout)?,
            stderr: both.open_receiver(&stderr)?,
        };
        let process = json!({"args": args, "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}});
        let describe = ExecProcessRequest {
            container_id: container_id.into(),
            exec_id: exec_id.into(),
            stdin: stdin.display().to_string(),
            stdout: stdout.display().to_string(),
            stderr: stderr.display().to_string(),
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: process.to_string().into_bytes() }),
            ..ExecProcessRequest::default()
        };
        let start = StartRequest { container_id: container_id.into(), exec_id: exec_id.into() };
        let mut tasks = containerd.client().tasks();
        tasks.exec(request(describe)).await.with_context(|| format!("cannot describe `{exec_id}`"))?;
        tasks.start(request(start)).await.with_context(|| format!("cannot start `{exec_id}`"))?;
        Ok(exec)
    }

    /// Ends its input, waits for its end and removes it.
    ///
    /// # Errors
    /// When a step fails, or the exit status is not 0.
    pub(crate) async fn end(self) -> Result<()> {
        let Self { containerd, container_id, exec_id, stdin, stderr, .. } = self;
        let mut tasks = containerd.client().tasks();
        drop(stdin);
        let close = CloseIoRequest { container_id: container_id.clone(), exec_id: exec_id.clone(), stdin: true };
        tasks.close_io(request(close)).await?;
        let wait = WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
        let ended = tokio::time::timeout(PATIENCE, tasks.wait(request(wait))).await;
        let status = ended.with_context(|| format!("`{exec_id}` does not end"))??.into_inner().exit_status;
        let mut complaint = [0; 4096];
        let length = stderr.try_read(&mut complaint).unwrap_or(0);
        let complaint = String::from_utf8_lossy(&complaint[..length]);
        ensure!(status == 0, "`{exec_id}` ended with {status} and said `{complaint}`");
        tasks.delete_process(request(DeleteProcessRequest { container_id, exec_id: exec_id.clone() })).await?;
        for stream in STREAMS {
            std::fs::remove_file(fifo(containerd, &exec_id, stream))?;
        }
        Ok(())
    }
}

fn fifo(containerd: &Containerd, exec_id: &str, stream: &str) -> PathBuf {
    containerd.directory().join(format!("{exec_id}.{stream}"))
}

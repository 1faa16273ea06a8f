//! The events of containers as containerd's messages, for the queue of the [`Publisher`].

use std::path::Path;

use containerd_shim::protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};

use crate::containerd::publisher::Publisher;
use crate::containerd::wire::{timestamp, to_mount, unsigned};
use crate::events::{Events, Exit};
use crate::request::CreateRequest;

impl Events for Publisher {
    fn created(&self, request: &CreateRequest, pid: i32) {
        let io = TaskIO {
            stdin: request.stdio.stdin.clone(),
            stdout: request.stdio.stdout.clone(),
            stderr: request.stdio.stderr.clone(),
            terminal: request.stdio.terminal,
            ..TaskIO::default()
        };
        self.publish(TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.to_string_lossy().into_owned(),
            rootfs: request.rootfs.iter().map(to_mount).collect(),
            io: Some(io).into(),
            checkpoint: request.checkpoint.clone(),
            pid: unsigned(pid),
            ..TaskCreate::default()
        });
    }

    fn started(&self, id: &str, pid: i32) {
        self.publish(TaskStart { container_id: id.into(), pid: unsigned(pid), ..TaskStart::default() });
    }

    fn exec_added(&self, id: &str, exec_id: &str) {
        let (container_id, exec_id) = (id.into(), exec_id.into());
        self.publish(TaskExecAdded { container_id, exec_id, ..TaskExecAdded::default() });
    }

    fn exec_started(&self, id: &str, exec_id: &str, pid: i32) {
        let (container_id, exec_id, pid) = (id.into(), exec_id.into(), unsigned(pid));
        self.publish(TaskExecStarted { container_id, exec_id, pid, ..TaskExecStarted::default() });
    }

    fn paused(&self, id: &str) {
        self.publish(TaskPaused { container_id: id.into(), ..TaskPaused::default() });
    }

    fn resumed(&self, id: &str) {
        self.publish(TaskResumed { container_id: id.into(), ..TaskResumed::default() });
    }

    fn checkpointed(&self, id: &str, image: &Path) {
        let checkpoint = image.to_string_lossy().into_owned();
        self.publish(TaskCheckpointed { container_id: id.into(), checkpoint, ..TaskCheckpointed::default() });
    }

    fn out_of_memory(&self, id: &str) {
        self.publish(TaskOOM { container_id: id.into(), ..TaskOOM::default() });
    }

    fn exited(&self, id: &str, exec_id: &str, pid: i32, exit: Exit) {
        self.publish(TaskExit {
            container_id: id.into(),
            // containerd knows a first process by its container's id.
            id: if exec_id.is_empty() { id.into() } else { exec_id.into() },
            pid: unsigned(pid),
            exit_status: unsigned(exit.code),
            exited_at: Some(timestamp(exit.at)).into(),
            ..TaskExit::default()
        });
    }

    fn deleted(&self, id: &str, pid: i32, exit: Exit) {
        self.publish(TaskDelete {
            container_id: id.into(),
            pid: unsigned(pid),
            exit_status: unsigned(exit.code),
            exited_at: Some(timestamp(exit.at)).into(),
            ..TaskDelete::default()
        });
    }
}

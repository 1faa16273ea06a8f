//! What happens to containers, as plain verbs. Who takes note of it, and how, is left to others.

use std::path::Path;
use std::time::SystemTime;

use crate::request::CreateRequest;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) at: SystemTime,
}

/// Takes note of events, in the order in which they happen. An `exec_id` is empty for the first process of a container.
pub(crate) trait Events: Send + Sync {
    fn created(&self, request: &CreateRequest, pid: i32);
    fn started(&self, id: &str, pid: i32);
    fn exec_added(&self, id: &str, exec_id: &str);
    fn exec_started(&self, id: &str, exec_id: &str, pid: i32);
    fn paused(&self, id: &str);
    fn resumed(&self, id: &str);
    /// A checkpoint was written into the directory `image`.
    fn checkpointed(&self, id: &str, image: &Path);
    /// A process of the container was killed because memory ran out, or its guest gave up for that reason.
    fn out_of_memory(&self, id: &str);
    fn exited(&self, id: &str, exec_id: &str, pid: i32, exit: Exit);
    /// The container is gone; `pid` and `exit` are those of its first process.
    fn deleted(&self, id: &str, pid: i32, exit: Exit);
}

/// Publishes nothing: containerd would look for a container with the id of a sandbox that was made without one.
pub(crate) struct Unpublished;

impl Events for Unpublished {
    fn created(&self, _request: &CreateRequest, _pid: i32) {}
    fn started(&self, _id: &str, _pid: i32) {}
    fn exec_added(&self, _id: &str, _exec_id: &str) {}
    fn exec_started(&self, _id: &str, _exec_id: &str, _pid: i32) {}
    fn paused(&self, _id: &str) {}
    fn resumed(&self, _id: &str) {}
    fn checkpointed(&self, _id: &str, _image: &Path) {}
    fn out_of_memory(&self, _id: &str) {}
    fn exited(&self, _id: &str, _exec_id: &str, _pid: i32, _exit: Exit) {}
    fn deleted(&self, _id: &str, _pid: i32, _exit: Exit) {}
}

/// Writes events down as sentences, for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Recorder(std::sync::Mutex<Vec<String>>);

#[cfg(test)]
impl Recorder {
    /// What has happened so far.
    pub(crate) fn said(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn note(&self, parts: &[&str]) {
        self.0.lock().unwrap().push(parts.join(" "));
    }
}

#[cfg(test)]
impl Events for Recorder {
    fn created(&self, request: &CreateRequest, _pid: i32) {
        self.note(&["created", &request.id]);
    }

    fn started(&self, id: &str, _pid: i32) {
        self.note(&["started", id]);
    }

    fn exec_added(&self, id: &str, exec_id: &str) {
        self.note(&["exec added", id, exec_id]);
    }

    fn exec_started(&self, id: &str, exec_id: &str, _pid: i32) {
        self.note(&["exec started", id, exec_id]);
    }

    fn paused(&self, id: &str) {
        self.note(&["paused", id]);
    }

    fn resumed(&self, id: &str) {
        self.note(&["resumed", id]);
    }

    fn checkpointed(&self, id: &str, image: &Path) {
        self.note(&["checkpointed", id, &image.to_string_lossy()]);
    }

    fn out_of_memory(&self, id: &str) {
        self.note(&["out of memory", id]);
    }

    fn exited(&self, id: &str, exec_id: &str, _pid: i32, exit: Exit) {
        let code = exit.code.to_string();
        let parts = [id, exec_id, &code];
        let said: Vec<_> = std::iter::once("exited").chain(parts.into_iter().filter(|part| !part.is_empty())).collect();
        self.note(&said);
    }

    fn deleted(&self, id: &str, _pid: i32, exit: Exit) {
        self.note(&["deleted", id, &exit.code.to_string()]);
    }
}

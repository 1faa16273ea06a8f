//! An event of a task, in the same form whether containerd forwarded it or a shim published it.

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskPaused, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::topics;

/// Something that happened to a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The topic without its `/tasks/`.
    pub topic: String,
    /// The container.
    pub container: String,
    /// The process; the container's own name, or empty, for its first one.
    pub process: String,
    /// The pid; 0 where the event does not have one.
    pub pid: u32,
    /// The exit code, where the event has one.
    pub code: Option<u32>,
}

impl Event {
    /// Decodes the message of an event.
    pub(crate) fn decode(topic: &str, bytes: &[u8]) -> Self {
        let event = match topic {
            topics::TASK_CREATE_EVENT_TOPIC => {
                let TaskCreate { container_id, pid, .. } = parse(bytes);
                Self { container: container_id, pid, ..Self::default() }
            }
            topics::TASK_START_EVENT_TOPIC => {
                let TaskStart { container_id, pid, .. } = parse(bytes);
                Self { container: container_id, pid, ..Self::default() }
            }
            topics::TASK_EXIT_EVENT_TOPIC => {
                let TaskExit { container_id, id, pid, exit_status, .. } = parse(bytes);
                Self { container: container_id, process: id, pid, code: Some(exit_status), ..Self::default() }
            }
            topics::TASK_DELETE_EVENT_TOPIC => {
                let TaskDelete { container_id, id, pid, exit_status, .. } = parse(bytes);
                Self { container: container_id, process: id, pid, code: Some(exit_status), ..Self::default() }
            }
            topics::TASK_EXEC_ADDED_EVENT_TOPIC => {
                let TaskExecAdded { container_id, exec_id, .. } = parse(bytes);
                Self { container: container_id, process: exec_id, ..Self::default() }
            }
            topics::TASK_EXEC_STARTED_EVENT_TOPIC => {
                let TaskExecStarted { container_id, exec_id, pid, .. } = parse(bytes);
                Self { container: container_id, process: exec_id, pid, ..Self::default() }
            }
            // The others begin with the container's id as well.
            _ => Self { container: parse::<TaskPaused>(bytes).container_id, ..Self::default() },
        };
        Self { topic: topic.trim_start_matches("/tasks/").into(), ..event }
    }
}

fn parse<M: Message>(bytes: &[u8]) -> M {
    M::parse_from_bytes(bytes).expect("an event is a message of its topic")
}

//! The service that takes a shim's events, as containerd has it, and keeps them in the order of their arrival.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::Events;
use containerd_shim_protos::{events, topics};
use ttrpc::asynchronous::TtrpcContext;

use super::{NAMESPACE, PATIENCE};

/// An event that a shim has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `create`, `start`, `exit`, `delete`...
    pub topic: String,
    /// The container.
    pub container: String,
    /// The pid in it.
    pub pid: u32,
    /// The exit code in it.
    pub status: u32,
}

/// The service of events: keeps what it is sent.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    /// Everything so far.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// The topics of the events of `container` so far.
    pub fn topics(&self, container: &str) -> Vec<String> {
        self.all().into_iter().filter(|event| event.container == container).map(|event| event.topic).collect()
    }

    /// Waits until the topics of `container` are `expected`.
    pub async fn are(&self, container: &str, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while self.topics(container) != expected {
            assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", self.topics(container));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[async_trait]
impl Events for Recorder {
    async fn forward(&self, _context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        assert_eq!(envelope.namespace, NAMESPACE);
        self.0.lock().unwrap().push(decode(&envelope.topic, &envelope.event.unwrap_or_default().value));
        Ok(Empty::default())
    }
}

fn decode(topic: &str, value: &[u8]) -> Event {
    let (container, pid, status) = match topic {
        topics::TASK_CREATE_EVENT_TOPIC => {
            let event = events::task::TaskCreate::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, 0)
        }
        topics::TASK_START_EVENT_TOPIC => {
            let event = events::task::TaskStart::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, 0)
        }
        topics::TASK_EXIT_EVENT_TOPIC => {
            let event = events::task::TaskExit::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, event.exit_status)
        }
        topics::TASK_DELETE_EVENT_TOPIC => {
            let event = events::task::TaskDelete::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, event.exit_status)
        }
        // The others begin with the container's id as well.
        _ => (events::task::TaskPaused::parse_from_bytes(value).unwrap().container_id, 0, 0),
    };
    Event { topic: topic.trim_start_matches("/tasks/").into(), container, pid, status }
}

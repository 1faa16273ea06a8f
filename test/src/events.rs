//! containerd's events, as they come.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_client::events::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart,
};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use prost_types::Any;

use crate::api::{in_namespace, runtime};
use crate::containerd::Containerd;
use crate::wait::until;

/// The container of events that the harness makes itself.
const PROBE: &str = "probe";

/// Something that happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The topic without its `/tasks/`.
    pub topic: String,
    /// The container.
    pub container: String,
    /// The process; the container's own name, or empty, for its first one.
    pub process: String,
    /// The exit code, where the event has one.
    pub code: Option<u32>,
}

/// The events from the moment of asking on.
pub struct Events {
    seen: Arc<Mutex<Vec<Event>>>,
}

impl Events {
    /// Begins to listen.
    pub fn listen(containerd: &Containerd) -> Self {
        let seen = Arc::<Mutex<Vec<Event>>>::default();
        let request = SubscribeRequest { filters: vec!["topic~=\"/tasks/\"".into()] };
        let mut client = EventsClient::new(containerd.api().channel.clone());
        let (mut subscriber, sink) = (client.clone(), seen.clone());
        runtime().spawn(async move {
            let subscribed = subscriber.subscribe(in_namespace(request)).await;
            let mut stream = subscribed.expect("events can be subscribed to").into_inner();
            while let Ok(Some(envelope)) = stream.message().await {
                if let Some(payload) = envelope.event {
                    sink.lock().unwrap().push(parse(&envelope.topic, payload));
                }
            }
        });
        // containerd says nothing before the first event: make one until it arrives.
        let events = Self { seen };
        let heard = until(Duration::from_secs(10), || {
            let probe = TaskStart { container_id: PROBE.into(), pid: 0 };
            let request =
                PublishRequest { topic: "/tasks/probe".into(), event: Some(containerd_client::to_any(&probe)) };
            containerd.api().call(client.publish(in_namespace(request))).expect("events can be published");
            until(Duration::from_millis(20), || !events.of(PROBE).is_empty())
        });
        assert!(heard, "containerd's events do not come");
        events
    }

    /// The events of a container so far.
    pub fn of(&self, container: &str) -> Vec<Event> {
        self.seen.lock().unwrap().iter().filter(|event| event.container == container).cloned().collect()
    }

    /// The topics of a container's events so far, once `count` of them have come and a moment later.
    pub fn topics(&self, container: &str, count: usize) -> Vec<String> {
        until(Duration::from_secs(5), || self.of(container).len() >= count);
        // One more than expected would come now.
        until(Duration::from_millis(200), || self.of(container).len() > count);
        self.of(container).into_iter().map(|event| event.topic).collect()
    }
}

fn parse(topic: &str, mut payload: Any) -> Event {
    payload.type_url = format!("/{}", payload.type_url.trim_start_matches('/'));
    let topic = topic.trim_start_matches("/tasks/").to_string();
    let event = |container: String, process: String, code| Event { topic: topic.clone(), container, process, code };
    macro_rules! decode {
        ($kind:ty, $($field:ident)?) => {
            if let Ok(message) = payload.to_msg::<$kind>() {
                #[allow(unused_mut, unused_assignments, reason = "only some events name a process")]
                let mut process = String::new();
                $(process = message.$field;)?
                return event(message.container_id, process, None);
            }
        };
    }
    if let Ok(exit) = payload.to_msg::<TaskExit>() {
        return event(exit.container_id, exit.id, Some(exit.exit_status));
    }
    if let Ok(delete) = payload.to_msg::<TaskDelete>() {
        return event(delete.container_id, delete.id, Some(delete.exit_status));
    }
    decode!(TaskCreate,);
    decode!(TaskStart,);
    decode!(TaskOom,);
    decode!(TaskPaused,);
    decode!(TaskResumed,);
    decode!(TaskExecAdded, exec_id);
    decode!(TaskExecStarted, exec_id);
    event(String::new(), String::new(), None)
}

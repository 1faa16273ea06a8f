//! containerd's events, in the order in which a subscriber receives them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_client::events::TaskStart;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};

use crate::api::{in_namespace, runtime};
use crate::containerd::Containerd;
use crate::event::Event;
use crate::wait::until;

/// The container of events that the harness makes itself.
const PROBE: &str = "probe";

/// The events of all containers since [`Events::listen`].
pub struct Events {
    seen: Arc<Mutex<Vec<Event>>>,
}

impl Events {
    /// Subscribes to containerd's events.
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
                    sink.lock().unwrap().push(Event::decode(&envelope.topic, &payload.value));
                }
            }
        });
        // containerd does not confirm a subscription: events are made until one arrives.
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

    /// The topics of a container's events, a moment after `count` of them have arrived.
    pub fn topics(&self, container: &str, count: usize) -> Vec<String> {
        until(Duration::from_secs(5), || self.of(container).len() >= count);
        // A surplus event would arrive now.
        until(Duration::from_millis(200), || self.of(container).len() > count);
        self.of(container).into_iter().map(|event| event.topic).collect()
    }
}

//! The service that a shim publishes its events to. It keeps them in the order in which they arrive.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::Events;
use ttrpc::asynchronous::TtrpcContext;

use super::NAMESPACE;
use crate::event::Event;
use crate::wait::{PATIENCE, holds_within};

/// The service of events, which keeps what it is sent.
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
        let arrived = holds_within(PATIENCE, || self.topics(container) == expected).await;
        assert!(arrived, "{:?} instead of {expected:?}", self.topics(container));
    }
}

#[async_trait]
impl Events for Recorder {
    async fn forward(&self, _context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        assert_eq!(envelope.namespace, NAMESPACE);
        self.0.lock().unwrap().push(Event::decode(&envelope.topic, &envelope.event.unwrap_or_default().value));
        Ok(Empty::default())
    }
}

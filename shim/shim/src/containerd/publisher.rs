//! Publishes a pod's events to containerd, in the order in which they were given.
//!
//! Invariant: events go through one queue and one task, which sends the next only after the last has arrived or was
//! given up, so that containerd never sees an exit before its start. There are few: a handful for each container.

use std::time::Duration;

use containerd_shim::event::Event;
use containerd_shim::protos::shim_async::{Client, EventsClient};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{mpsc, oneshot};

use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim::events::ForwardRequest;

/// The package of all events.
const PACKAGE: &str = "containerd.events";
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// How often an event is tried that containerd refuses; while it is down, an event waits for as long as that takes.
const REFUSALS_MAX: u32 = 20;

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// The sending end of the queue.
#[derive(Clone)]
pub(super) struct Publisher {
    namespace: String,
    queue: mpsc::UnboundedSender<Item>,
}

impl Publisher {
    /// Starts the queue; it connects to `address` (containerd's ttrpc socket) with the first event.
    pub(super) fn start(address: String, namespace: String) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        tokio::spawn(forward_all(address, items));
        Self { namespace, queue }
    }

    /// Queues `event`.
    pub(super) fn publish<E: Event + Message>(&self, event: E) {
        let topic = event.topic();
        let Ok(value) = event.write_to_bytes() else {
            log::error!("cannot encode an event of `{topic}`");
            return;
        };
        // The library knows the whole name as well, but has to build descriptors of all messages for it, which takes a millisecond.
        let any = Any { type_url: format!("{PACKAGE}.{}", E::NAME), value, ..Any::default() };
        let envelope = Envelope {
            timestamp: Some(Timestamp::now()).into(),
            namespace: self.namespace.clone(),
            topic,
            event: Some(any).into(),
            ..Envelope::default()
        };
        if self.queue.send(Item::Event(Box::new(envelope))).is_err() {
            log::error!("the queue of events is closed");
        }
    }

    /// Waits until all that was queued before has been sent, at most `limit`.
    pub(super) async fn flush(&self, limit: Duration) {
        let (done, sent) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).is_ok() && tokio::time::timeout(limit, sent).await.is_err() {
            log::warn!("some events were not sent before the shim ended");
        }
    }
}

async fn forward_all(address: String, mut items: mpsc::UnboundedReceiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Event(envelope) => forward(&address, &mut client, *envelope).await,
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

async fn forward(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
    let mut refusals = 0;
    let mut is_told = false;
    while let Err(error) = try_forward(address, client, &request).await {
        *client = None;
        if !is_told {
            log::warn!("cannot publish an event of `{topic}`, will try again: {error}");
            is_told = true;
        }
        if matches!(error, ttrpc::Error::RpcStatus(_)) {
            refusals += 1;
            if refusals == REFUSALS_MAX {
                log::error!("an event of `{topic}` is lost because containerd refused it {refusals} times: {error}");
                return;
            }
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

async fn try_forward(address: &str, client: &mut Option<EventsClient>, request: &ForwardRequest) -> ttrpc::Result<()> {
    let connected = match client {
        Some(connected) => connected,
        None => client.insert(EventsClient::new(connect(address).await?)),
    };
    let context = ttrpc::context::with_duration(SEND_TIMEOUT);
    connected.forward(context, request).await?;
    Ok(())
}

async fn connect(address: &str) -> ttrpc::Result<Client> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    Client::connect(&format!("unix://{path}")).await
}

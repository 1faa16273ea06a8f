//! An instance that serves one request. Whoever waits for the response runs it, so nothing has to be woken for a short
//! one, and whoever no longer waits ends it.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_channel::oneshot::{self, Canceled};
use tokio::time::timeout;
use wasmtime::{AsContextMut, Error, Result};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{Prepared, Request, Response};

use super::instances::Instance;

/// A request in an instance of its own. The instance ends when this is dropped.
pub(super) struct Alone {
    instance: Pin<Box<dyn Future<Output = ()> + Send>>,
    response: oneshot::Receiver<Result<Response>>,
    failed: Arc<AtomicBool>,
}

/// Why there is no response.
pub(super) enum Failure {
    /// The instance ended, and that is reported.
    Ended,
    /// The guest returned an error, or nothing.
    Guest(Error),
}

/// What is left of a request whose response has begun. Dropped before the response is complete, it ends the instance.
pub(super) struct Rest {
    failed: Arc<AtomicBool>,
    complete: Option<oneshot::Sender<()>>,
}

impl Alone {
    /// Serves `request` in `instance`, whenever it is polled.
    pub(super) fn new(instance: Instance, request: Request) -> Self {
        let (sender, response) = oneshot::channel();
        let failed = Arc::default();
        Self { instance: Box::pin(serve(instance, request, sender, Arc::clone(&failed))), response, failed }
    }

    /// Runs the instance until the response begins. Once the response is complete, the instance may go on for `overtime`.
    ///
    /// # Errors
    /// If it ends without a response.
    pub(super) async fn respond(mut self, overtime: Option<Duration>) -> Result<(Response, Rest), Failure> {
        let mut is_over = false;
        let responded = poll_fn(|context| {
            is_over = is_over || self.instance.as_mut().poll(context).is_ready();
            Pin::new(&mut self.response).poll(context)
        });
        let responded = responded.await;
        if self.failed.load(Ordering::Relaxed) && !matches!(responded, Ok(Ok(_))) {
            return Err(Failure::Ended);
        }
        let response = match responded {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Failure::Guest(error)),
            Err(Canceled) => return Err(Failure::Ended),
        };
        let complete = (!is_over).then(|| {
            let (complete, completed) = oneshot::channel();
            // In a task of its own it goes on while the client does not read.
            tokio::spawn(finish(self.instance, completed, overtime));
            complete
        });
        Ok((response, Rest { failed: self.failed, complete }))
    }
}

impl Rest {
    /// Whether the instance ended before it had finished the response.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Lets the instance finish what it does after the response.
    pub(super) fn complete(&mut self) {
        if let Some(complete) = self.complete.take() {
            // It may be over already.
            let _over = complete.send(());
        }
    }
}

/// Runs one request to its end, with whatever the guest does after its response.
async fn serve(
    mut instance: Instance,
    request: Request,
    response: oneshot::Sender<Result<Response>>,
    failed: Arc<AtomicBool>,
) {
    let Instance { store, proxy, host } = &mut instance;
    let served = store.run_concurrent(async |accessor| {
        let prepared = accessor
            .with(|mut store| Prepared::new(store.as_context_mut(), proxy, request, WasiHttpView::http, response))?;
        prepared.run(accessor, pending()).await?;
        poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        Ok(())
    });
    if let Err(error) = served.await.flatten() {
        host.report_end(&error, store.data());
        // Before the store is dropped, which ends the response's body.
        failed.store(true, Ordering::Relaxed);
    }
}

/// Runs an instance until it is over, its client is gone, or `overtime` has passed since its response was complete.
async fn finish(
    mut instance: Pin<Box<dyn Future<Output = ()> + Send>>,
    mut completed: oneshot::Receiver<()>,
    overtime: Option<Duration>,
) {
    let completed = poll_fn(|context| match instance.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(false),
        Poll::Pending => Pin::new(&mut completed).poll(context).map(|sent| sent.is_ok()),
    });
    if !completed.await {
        return;
    }
    match overtime {
        Some(limit) => drop(timeout(limit, instance).await),
        None => instance.await,
    }
}

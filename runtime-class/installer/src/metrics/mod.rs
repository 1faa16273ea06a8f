//! Metrics of the node and its wasm containers, for Prometheus. Everything is read from files when it is asked for: the accounts
//! that engines keep, the cache of compiled code and its counters.

mod cache;
mod containers;
mod exposition;
mod page;
pub(crate) mod server;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OnceCell};
use tokio::task::spawn_blocking;

use self::page::Page;
use crate::error::{Context, Result};
use crate::journal::programs;
use crate::journal::record::Record;
use crate::node::files::Host;
use crate::node::{Node, Options};

/// How old the text may be: whoever asks more often gets the same again.
const AGE_MAX: Duration = Duration::from_secs(5);

/// The metrics of one node.
pub(crate) struct Metrics {
    node: Options,
    cache: PathBuf,
    /// containerd's state directory, once it is known.
    state: OnceCell<PathBuf>,
    last: Mutex<Option<(Instant, String)>>,
}

impl Metrics {
    /// Metrics of the node that `node` describes. containerd's configuration says where its state directory is unless `state`
    /// does.
    pub(crate) fn new(node: Options, state: Option<PathBuf>, cache: PathBuf) -> Self {
        Self { node, cache, state: OnceCell::new_with(state), last: Mutex::default() }
    }

    /// The metrics now, in the text format.
    ///
    /// # Errors
    /// When containerd's configuration or a directory cannot be read.
    pub(crate) async fn text(&self) -> Result<String> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < AGE_MAX
        {
            return Ok(text.clone());
        }
        let (state, cache) = (self.state().await?.clone(), self.cache.clone());
        let host = Host::new(self.node.host.clone());
        let text = spawn_blocking(move || read(&host, &state, &cache)).await.or_host("cannot read the metrics")??;
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }

    async fn state(&self) -> Result<&PathBuf> {
        let find = || async { Ok(Node::find(self.node.clone())?.dump().await?.state_directory()) };
        self.state.get_or_try_init(find).await
    }
}

fn read(host: &Host, state: &Path, cache: &Path) -> Result<String> {
    let root = Record::load(host)?.map(|record| record.programs.root);
    let page = Page {
        programs: root.and_then(|root| programs::current(host, &root)).unwrap_or_default(),
        found: containers::find(host, state)?,
        cache: cache::read(&host.place(cache)?)?,
    };
    Ok(page.text())
}

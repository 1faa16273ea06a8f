//! Metrics of the node and its wasm containers, for Prometheus. Everything is read from files when it is asked for: the accounts
//! that engines keep, the cache of compiled code and its counters.

mod cache;
mod containers;
mod exposition;
mod page;
mod places;
pub(crate) mod server;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::{Mutex, OnceCell};
use tokio::task::spawn_blocking;

use self::page::Page;
use crate::error::{Context, Result};
use crate::journal::programs;
use crate::journal::record::Record;
use crate::node::files::Host;
use crate::node::{Node, Options};

/// How old the text may be, or the error: whoever asks more often gets the same again.
const AGE_MAX: Duration = Duration::from_secs(5);

/// The metrics of one node.
pub(crate) struct Metrics {
    node: Options,
    cache: PathBuf,
    /// containerd's state directory, once it is known.
    state: OnceCell<PathBuf>,
    last: Mutex<Option<(Instant, Result<Bytes>)>>,
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
    pub(crate) async fn text(&self) -> Result<Bytes> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < AGE_MAX
        {
            return text.clone();
        }
        let text = self.read().await.map(Bytes::from);
        *last = Some((Instant::now(), text.clone()));
        text
    }

    async fn read(&self) -> Result<String> {
        let (state, cache) = (self.state().await?.clone(), self.cache.clone());
        let host = Host::new(self.node.host.clone());
        spawn_blocking(move || read(&host, &state, &cache)).await.or_host("cannot read the metrics")?
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

#[cfg(test)]
mod tests {
    use std::fs;

    use skiff_protocol::names::BUNDLES;

    use super::*;

    #[tokio::test]
    async fn an_error_is_kept_for_a_while_as_the_metrics_are() {
        let node = tempfile::tempdir().unwrap();
        let options = Options {
            host: node.path().into(),
            containerd: None,
            config: None,
            socket: None,
            unit: None,
            restart_command: None,
            restart_by_signal: false,
            limit: Duration::from_secs(1),
        };
        let bundles = node.path().join(BUNDLES);
        fs::write(&bundles, "not a directory").unwrap();
        let metrics = Metrics::new(options, Some("/".into()), "/cache".into());
        let started = Instant::now();
        let error = metrics.text().await.unwrap_err().to_string();
        fs::remove_file(bundles).unwrap();
        let again = metrics.text().await;
        if started.elapsed() < AGE_MAX {
            assert_eq!(again.unwrap_err().to_string(), error);
        }
    }
}

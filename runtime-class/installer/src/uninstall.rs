//! `uninstall`: takes skiff away from every node of the cluster, or from none.
//!
//! It changes one variable of the DaemonSet that keeps the nodes. Kubernetes then replaces each node's pod by one that removes
//! skiff and is ready when it has done so; the pod that installed has ended by then. After a refusal the variable is changed back,
//! and the nodes follow.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Kind, Result};
use crate::kube::daemon_set::DaemonSet;
use crate::say::say;
use crate::signals::Ends;
use crate::wanted::{VARIABLE, Wanted};

/// The time between two looks at the nodes.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes skiff away from every node within `patience`; otherwise every node keeps it.
pub(crate) async fn uninstall(set: &DaemonSet, patience: Duration) -> Result<()> {
    let mut ends = Ends::new()?;
    // This request is not cut short: it could be carried out after the one that takes it back.
    if let Err(error) = want(set, Wanted::Removed).await {
        // It may have been carried out anyway.
        let _taken_back = want(set, Wanted::Installed).await;
        return Err(error);
    }
    let done = tokio::select! {
        done = wait(set, patience) => done,
        () = ends.one() => Err("interrupted".to_owned()),
    };
    let Err(reason) = done else {
        say("skiff is removed from every node");
        return Ok(());
    };
    match want(set, Wanted::Installed).await {
        Ok(()) => Err(Error::refused(format!("{reason}; nothing was uninstalled, and every node gets skiff back"))),
        Err(second) => Err(Error::new(Kind::Stuck, format!("{reason}; and the change cannot be undone: {second}"))),
    }
}

async fn want(set: &DaemonSet, wanted: Wanted) -> Result<()> {
    set.set_variable(VARIABLE, wanted.word()).await
}

/// Waits until every node is done; otherwise returns why one is not.
async fn wait(set: &DaemonSet, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    loop {
        let reason = set.rest().await.unwrap_or_else(|error| Some(error.to_string()));
        let Some(reason) = reason else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(reason);
        }
        sleep(PAUSE).await;
    }
}

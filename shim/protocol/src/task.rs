//! What an engine process is for: the guest of its container, or one of the things that `kubectl exec` may ask for.

use serde::{Deserialize, Serialize};

/// What an engine process does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Runs the code of its message: the container's own guest, or a module that is executed in the container.
    #[default]
    Run,
    /// Has functions of the container's guest called: the arguments behind `invoke`.
    Invoke(Vec<String>),
    /// Shows what the container sees and what its guest does: the arguments behind `skiff`.
    Look(Vec<String>),
    /// Says this sentence on stderr, and ends with [`EXIT_NOT_FOUND`](crate::EXIT_NOT_FOUND): there is nothing to run.
    Refuse(String),
}

/// What becomes of a container when a call ends the instance that keeps its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTrap {
    /// It ends with the exit code of the call, as Kubernetes expects.
    #[default]
    Exit,
    /// A fresh instance takes the place of the one that has ended.
    Restart,
}

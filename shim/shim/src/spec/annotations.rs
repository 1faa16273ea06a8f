//! The annotations of a pod that skiff understands, by their domain: `DOMAIN/NAME` for all containers of a pod, and
//! `CONTAINER.DOMAIN/NAME` for one of them.

use std::collections::BTreeMap;

use crate::error::Error;

/// The annotation with the container's name in Kubernetes.
pub(super) const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";

/// One annotation that applies to the container.
pub(super) struct Annotation<'a> {
    key: &'a str,
    /// What is behind the domain.
    pub(super) name: &'a str,
    /// What it says.
    pub(super) value: &'a str,
}

/// The annotations of a domain that apply to the container, those of its own last: they replace those of its pod.
pub(super) fn of_domain<'a>(annotations: &'a BTreeMap<String, String>, domain: &str) -> Vec<Annotation<'a>> {
    let own = annotations.get(CONTAINER_NAME).map(|name| format!("{name}.{domain}"));
    let mut found = Vec::new();
    for prefix in [Some(domain.to_owned()), own].into_iter().flatten() {
        for (key, value) in annotations {
            if let Some(name) = key.strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('/')) {
                found.push(Annotation { key, name, value });
            }
        }
    }
    found
}

impl Annotation<'_> {
    /// The error about a value that is not understood.
    pub(super) fn refused(&self, wrong: &str) -> Error {
        let Self { key, value, .. } = self;
        Error::invalid(format!("the annotation `{key}` is `{value}`, but {wrong}"))
    }

    /// The error about a name that is none of those that are `known`.
    pub(super) fn unknown(&self, known: &[&str]) -> Error {
        let all = known.join("`, `");
        let all = all.rsplit_once(", ").map_or(all.clone(), |(others, last)| format!("{others} and {last}"));
        self.refused(&format!("there is no setting `{}`, only `{all}`", self.name))
    }
}

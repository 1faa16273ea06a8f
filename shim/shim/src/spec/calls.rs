//! The annotations of a pod about calls of the functions of its wasm containers.

use std::collections::BTreeMap;

use skiff_protocol::OnTrap;
use skiff_protocol::names::CALLS_DOMAIN;

use super::annotations::of_domain;
use crate::error::Result;

/// What becomes of a container when a call ends its live instance. A container's own annotation wins over its pod's.
///
/// # Errors
/// `Invalid` with the annotation's key when its name or its value is not understood.
pub(crate) fn on_trap(annotations: &BTreeMap<String, String>) -> Result<OnTrap> {
    let mut on_trap = OnTrap::default();
    for annotation in of_domain(annotations, CALLS_DOMAIN) {
        on_trap = match (annotation.name, annotation.value) {
            ("on-trap", "exit") => OnTrap::Exit,
            ("on-trap", "restart") => OnTrap::Restart,
            ("on-trap", _) => return Err(annotation.refused("must be `exit` or `restart`")),
            _ => return Err(annotation.unknown(&["on-trap"])),
        };
    }
    Ok(on_trap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::annotations::CONTAINER_NAME;

    fn read(all: &[(&str, &str)]) -> Result<OnTrap> {
        on_trap(&all.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn a_containers_own_word_wins() {
        assert_eq!(read(&[("example.org/on-trap", "?")]).unwrap(), OnTrap::Exit);
        for (container, expected) in [("web", OnTrap::Exit), ("other", OnTrap::Restart)] {
            let all = [
                (CONTAINER_NAME, container),
                ("calls.skiff.dev/on-trap", "restart"),
                ("web.calls.skiff.dev/on-trap", "exit"),
            ];
            assert_eq!(read(&all).unwrap(), expected, "{container}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (key, value, part) in [
            ("calls.skiff.dev/on-trap", "Restart", "must be `exit` or `restart`"),
            ("calls.skiff.dev/on-trap", "", "must be `exit` or `restart`"),
            ("calls.skiff.dev/trap", "exit", "there is no setting `trap`, only `on-trap`"),
        ] {
            let error = read(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is `{value}`")) && error.contains(part), "{error}");
        }
    }
}

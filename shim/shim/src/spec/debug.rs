//! The annotations of a pod about debugging: who may look into its containers, where the core dumps of their guests go, and who makes
//! its containers.

use std::collections::BTreeMap;

use skiff_protocol::names::DEBUG_DOMAIN;

use super::annotations::of_domain;
use crate::error::Result;

/// What the annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debug {
    /// Nobody looks into the container by the commands of `skiff`.
    pub(crate) looks_are_off: bool,
    /// The file that is made for a core dump when a guest traps.
    pub(crate) core_dump: Option<String>,
    /// The OCI runtime makes the container, whether skiff could or not.
    pub(crate) is_for_the_runtime: bool,
}

impl Debug {
    /// Reads the annotations. A container's own one replaces its pod's.
    ///
    /// # Errors
    /// `Invalid` with the annotation's key when its name or its value is not understood.
    pub(crate) fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let mut debug = Self::default();
        for annotation in of_domain(annotations, DEBUG_DOMAIN) {
            match (annotation.name, annotation.value) {
                ("look", "on") => debug.looks_are_off = false,
                ("look", "off") => debug.looks_are_off = true,
                ("look", _) => return Err(annotation.refused("must be `on` or `off`")),
                ("core-dump", path) if is_path_of_a_file(path) => debug.core_dump = Some(path.to_owned()),
                ("core-dump", _) => {
                    return Err(annotation.refused("must be the absolute path of a file, such as `/data/core.wasm`"));
                }
                ("launcher", "own") => debug.is_for_the_runtime = false,
                ("launcher", "oci") => debug.is_for_the_runtime = true,
                ("launcher", _) => return Err(annotation.refused("must be `own` or `oci`")),
                _ => return Err(annotation.unknown(&["look", "core-dump", "launcher"])),
            }
        }
        Ok(debug)
    }
}

/// Whether a path is absolute and names a file: each part of it is a name.
fn is_path_of_a_file(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|name| !["", ".", ".."].contains(&name)))
        && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(all: &[(&str, &str)]) -> Result<Debug> {
        Debug::from_annotations(&all.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn looks_are_turned_off_for_a_pod_or_for_one_of_its_containers() {
        let name = ("io.kubernetes.cri.container-name", "web");
        for (annotations, expected) in [
            (&[][..], false),
            (&[("debug.skiff.dev/look", "off")], true),
            (&[("debug.skiff.dev/look", "on")], false),
            (&[name, ("web.debug.skiff.dev/look", "off")], true),
            (&[name, ("debug.skiff.dev/look", "off"), ("web.debug.skiff.dev/look", "on")], false),
            (&[name, ("other.debug.skiff.dev/look", "off")], false),
        ] {
            assert_eq!(parse(annotations).unwrap().looks_are_off, expected, "{annotations:?}");
        }
    }

    #[test]
    fn the_oci_runtime_is_asked_for_by_a_pod_or_for_one_of_its_containers() {
        let name = ("io.kubernetes.cri.container-name", "web");
        for (annotations, expected) in [
            (&[][..], false),
            (&[("debug.skiff.dev/launcher", "oci")], true),
            (&[name, ("debug.skiff.dev/launcher", "oci"), ("web.debug.skiff.dev/launcher", "own")], false),
        ] {
            assert_eq!(parse(annotations).unwrap().is_for_the_runtime, expected, "{annotations:?}");
        }
    }

    #[test]
    fn a_container_has_its_own_file_for_a_core_dump_or_that_of_its_pod() {
        let all = [("debug.skiff.dev/core-dump", "/data/core"), ("web.debug.skiff.dev/core-dump", "/tmp/a b.wasm")];
        for (container, expected) in [("web", "/tmp/a b.wasm"), ("other", "/data/core")] {
            let read = parse(&[&all[..], &[("io.kubernetes.cri.container-name", container)]].concat()).unwrap();
            assert_eq!(read.core_dump.as_deref(), Some(expected), "{container}");
        }
        assert_eq!(parse(&[]).unwrap().core_dump, None);
        for path in ["", "/", "core", "data/core", "/data/", "/data//core", "/data/../core", "/data/.", "/a\0b"] {
            assert!(parse(&[("debug.skiff.dev/core-dump", path)]).is_err(), "{path:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (key, value, wrong) in [
            ("debug.skiff.dev/look", "no", "must be `on` or `off`"),
            ("debug.skiff.dev/look", "", "must be `on` or `off`"),
            ("debug.skiff.dev/core-dump", "core", "must be the absolute path of a file, such as `/data/core.wasm`"),
            ("debug.skiff.dev/launcher", "runc", "must be `own` or `oci`"),
            ("debug.skiff.dev/looks", "off", "there is no setting `looks`, only `look`, `core-dump` and `launcher`"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(&format!("the annotation `{key}` is `{value}`, but {wrong}")), "{error}");
        }
    }
}

//! The limits that a pod's annotations set for its wasm containers.

use std::collections::BTreeMap;
use std::time::Duration;

use skiff_protocol::Limits;
use skiff_protocol::names::LIMITS_DOMAIN;

use crate::error::{Error, Result};

/// What the annotations are called: `LIMITS_DOMAIN/NAME` for all containers of the pod, `CONTAINER.LIMITS_DOMAIN/NAME` for one.
pub(super) const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// The longest time, a year: no sum of times can overflow.
const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// More than this no stack needs; it is set up for each instance.
const STACK_BYTES_MAX: u64 = 64 << 20;
/// Less than this no guest comes far with.
const STACK_BYTES_MIN: u64 = 16 << 10;

/// The limits that the annotations of a specification set. A container's own value wins over its pod's.
///
/// # Errors
/// `Invalid` with the annotation's key when its name or its value is not understood.
pub(crate) fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Limits> {
    let own_prefix = annotations.get(CONTAINER_NAME).map(|name| format!("{name}.{LIMITS_DOMAIN}"));
    let mut limits = Limits::default();
    for prefix in [Some(LIMITS_DOMAIN.to_owned()), own_prefix].into_iter().flatten() {
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('/')) else { continue };
            set(&mut limits, name, value)
                .map_err(|wrong| Error::invalid(format!("the annotation `{key}` is `{value}`, but {wrong}")))?;
        }
    }
    Ok(limits)
}

/// Sets one limit; an error says what is wrong with its name or value.
fn set(limits: &mut Limits, name: &str, value: &str) -> Result<(), String> {
    match name {
        "run-time" => limits.run_time = Some(duration(value)?),
        "request-time" if value == "none" => limits.request_time = None,
        "request-time" => limits.request_time = Some(duration(value)?),
        "header-time" => limits.header_time = duration(value)?,
        "idle-time" => limits.idle_time = duration(value)?,
        "memory-pages" => limits.memory_pages = Some(number(value)?),
        "instances" => limits.instances = number(value)?,
        "memories" => limits.memories = number(value)?,
        "tables" => limits.tables = number(value)?,
        "table-elements" => limits.table_elements = number(value)?,
        "concurrent-requests" => limits.concurrent_requests = number(value)?,
        "stack" => limits.stack_bytes = stack(value)?,
        "output-per-second" => limits.output_bytes_per_second = Some(bytes(value)?),
        _ => return Err(format!("there is no limit `{name}`")),
    }
    Ok(())
}

fn duration(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= TIME_MAX)
        .ok_or_else(|| "must be a time such as `500ms`, `30s` or `1h30m`, at most a year".into())
}

fn number<T: TryFrom<u64>>(value: &str) -> Result<T, String> {
    value
        .parse()
        .ok()
        .filter(|number| *number > 0)
        .and_then(|number: u64| T::try_from(number).ok())
        .ok_or_else(|| "must be a number of at least 1".into())
}

/// A quantity of Kubernetes, as far as it is whole bytes.
fn bytes(value: &str) -> Result<u64, String> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match value.strip_prefix(digits).unwrap_or_default() {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => 0,
    };
    digits
        .parse()
        .ok()
        .and_then(|count: u64| count.checked_mul(factor))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "must be a number of bytes such as `65536`, `64Ki` or `1M`".into())
}

fn stack(value: &str) -> Result<usize, String> {
    bytes(value)
        .ok()
        .filter(|bytes| (STACK_BYTES_MIN..=STACK_BYTES_MAX).contains(bytes))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| "must be a number of bytes from `16Ki` to `64Mi`".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn annotations<const N: usize>(all: [(&str, &str); N]) -> BTreeMap<String, String> {
        all.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    fn limits<const N: usize>(all: [(&str, &str); N]) -> Limits {
        from_annotations(&annotations(all)).unwrap()
    }

    #[test]
    fn each_annotation_sets_its_limit() {
        let all = limits([
            ("limits.skiff.dev/run-time", "1h30m"),
            ("limits.skiff.dev/request-time", "500ms"),
            ("limits.skiff.dev/header-time", "5s"),
            ("limits.skiff.dev/idle-time", "2m"),
            ("limits.skiff.dev/memory-pages", "16"),
            ("limits.skiff.dev/instances", "2"),
            ("limits.skiff.dev/memories", "3"),
            ("limits.skiff.dev/tables", "4"),
            ("limits.skiff.dev/table-elements", "5000"),
            ("limits.skiff.dev/concurrent-requests", "64"),
            ("limits.skiff.dev/stack", "1Mi"),
            ("limits.skiff.dev/output-per-second", "64k"),
            ("example.org/run-time", "never"),
        ]);
        let expected = Limits {
            run_time: Some(Duration::from_secs(5400)),
            request_time: Some(Duration::from_millis(500)),
            header_time: Duration::from_secs(5),
            idle_time: Duration::from_secs(120),
            memory_pages: Some(16),
            instances: 2,
            memories: 3,
            tables: 4,
            table_elements: 5000,
            concurrent_requests: 64,
            stack_bytes: 1 << 20,
            output_bytes_per_second: Some(64_000),
        };
        assert_eq!(all, expected);
        assert_eq!(limits([]), Limits::default());
        assert_eq!(limits([("limits.skiff.dev/request-time", "none")]).request_time, None);
    }

    #[test]
    fn a_containers_own_value_wins() {
        for (name, expected) in [("web", 3), ("aaa", 4), ("other", 9)] {
            let all = limits([
                ("io.kubernetes.cri.container-name", name),
                ("limits.skiff.dev/tables", "9"),
                ("web.limits.skiff.dev/tables", "3"),
                ("aaa.limits.skiff.dev/tables", "4"),
            ]);
            assert_eq!(all.tables, expected, "{name}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (key, value, part) in [
            ("limits.skiff.dev/runtime", "1s", "no limit `runtime`"),
            ("limits.skiff.dev/", "1s", "no limit ``"),
            ("limits.skiff.dev/run-time", "30", "a time such as"),
            ("limits.skiff.dev/run-time", "0s", "a time such as"),
            ("limits.skiff.dev/request-time", "-1s", "a time such as"),
            ("limits.skiff.dev/run-time", "none", "a time such as"),
            ("limits.skiff.dev/request-time", "18446744073709551615s", "at most a year"),
            ("limits.skiff.dev/header-time", "0s", "a time such as"),
            ("limits.skiff.dev/idle-time", "never", "a time such as"),
            ("limits.skiff.dev/tables", "0", "a number of at least 1"),
            ("limits.skiff.dev/tables", "1.5", "a number of at least 1"),
            ("limits.skiff.dev/memory-pages", "99999999999999999999", "a number of at least 1"),
            ("limits.skiff.dev/output-per-second", "1Q", "a number of bytes"),
            ("limits.skiff.dev/output-per-second", "", "a number of bytes"),
            ("limits.skiff.dev/output-per-second", "99999999999G", "a number of bytes"),
            ("limits.skiff.dev/stack", "1Ki", "from `16Ki` to `64Mi`"),
            ("limits.skiff.dev/stack", "1Gi", "from `16Ki` to `64Mi`"),
            ("web.limits.skiff.dev/stack", "big", "from `16Ki` to `64Mi`"),
        ] {
            let annotations = annotations([("io.kubernetes.cri.container-name", "web"), (key, value)]);
            let error = from_annotations(&annotations).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is `{value}`")) && error.contains(part), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 200, ..ProptestConfig::default() })]
        #[test]
        fn whatever_an_annotation_says_it_is_a_limit_or_refused(
            name in "(run-time|request-time|header-time|idle-time|memory-pages|instances|tables|stack|output-per-second|[a-z-]{0,9})",
            value in prop_oneof!["[0-9]{1,22}(ns|ms|s|m|h|d|w|y|Ki|Mi|Gi|k|M|G)?", ".{0,40}", "[0-9 .a-zA-Z-]{0,30}"],
        ) {
            match from_annotations(&annotations([(&format!("{LIMITS_DOMAIN}/{name}"), &value)])) {
                Ok(limits) => {
                    prop_assert!(limits.run_time.into_iter().chain(limits.request_time).all(|time| time <= TIME_MAX));
                    prop_assert!(limits.header_time <= TIME_MAX && limits.idle_time <= TIME_MAX);
                    prop_assert!(limits.stack_bytes <= 64 << 20);
                }
                Err(error) => prop_assert!(error.to_string().contains(&name)),
            }
        }
    }

    /// The table of the documentation has a line for each limit, with its default.
    #[test]
    fn the_documentation_has_the_defaults() {
        let text = include_str!("../../../../docs/limits-and-exit-codes.md");
        let defaults = Limits::default();
        let none = |limit: Option<String>| limit.unwrap_or_else(|| "none".into());
        for (name, default) in [
            ("run-time", none(defaults.run_time.map(|time| format!("{time:?}")))),
            ("request-time", none(defaults.request_time.map(|time| format!("{time:?}")))),
            ("header-time", format!("{:?}", defaults.header_time)),
            ("idle-time", format!("{:?}", defaults.idle_time)),
            ("memory-pages", none(defaults.memory_pages.map(|pages| pages.to_string()))),
            ("instances", defaults.instances.to_string()),
            ("memories", defaults.memories.to_string()),
            ("tables", defaults.tables.to_string()),
            ("table-elements", defaults.table_elements.to_string()),
            ("concurrent-requests", defaults.concurrent_requests.to_string()),
            ("stack", format!("{}Ki", defaults.stack_bytes >> 10)),
            ("output-per-second", none(defaults.output_bytes_per_second.map(|bytes| bytes.to_string()))),
        ] {
            let line = text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let line = line.unwrap_or_else(|| panic!("no line for `{name}`"));
            assert!(line.ends_with(&format!("| {default} |")), "the default of `{name}` is {default}: {line}");
        }
        let rows = text.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, 12, "a row for each limit and no other");
    }
}

//! The limits that a pod's annotations set for its wasm containers.

use std::collections::BTreeMap;
use std::time::Duration;

use skiff_protocol::Limits;
use skiff_protocol::names::LIMITS_DOMAIN;

use super::annotations::of_domain;
use crate::error::Result;

/// The longest time, a year: no sum of times can overflow.
const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// More than this no stack needs; it is set up for each instance.
const STACK_BYTES_MAX: u64 = 64 << 20;
/// Less than this no guest comes far with.
const STACK_BYTES_MIN: u64 = 16 << 10;

/// Sets a limit; an error says what is wrong with its value.
type Set = fn(&mut Limits, &str) -> Result<(), String>;
/// What can be set, by name.
const LIMITS: [(&str, Set); 13] = [
    ("run-time", |limits, value| duration(value).map(|time| limits.run_time = Some(time))),
    ("request-time", |limits, value| duration_or_none(value).map(|time| limits.request_time = time)),
    ("call-time", |limits, value| duration_or_none(value).map(|time| limits.call_time = time)),
    ("header-time", |limits, value| duration(value).map(|time| limits.header_time = time)),
    ("idle-time", |limits, value| duration(value).map(|time| limits.idle_time = time)),
    ("memory-pages", |limits, value| number(value).map(|pages| limits.memory_pages = Some(pages))),
    ("instances", |limits, value| number(value).map(|count| limits.instances = count)),
    ("memories", |limits, value| number(value).map(|count| limits.memories = count)),
    ("tables", |limits, value| number(value).map(|count| limits.tables = count)),
    ("table-elements", |limits, value| number(value).map(|count| limits.table_elements = count)),
    ("concurrent-requests", |limits, value| number(value).map(|count| limits.concurrent_requests = count)),
    ("stack", |limits, value| stack(value).map(|bytes| limits.stack_bytes = bytes)),
    ("output-per-second", |limits, value| bytes(value).map(|bytes| limits.output_bytes_per_second = Some(bytes))),
];

/// The limits that the annotations of a specification set. A container's own value wins over its pod's.
///
/// # Errors
/// `Invalid` with the annotation's key when its name or its value is not understood.
pub(crate) fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Limits> {
    let mut limits = Limits::default();
    for annotation in of_domain(annotations, LIMITS_DOMAIN) {
        let found = LIMITS.iter().find(|(name, _)| *name == annotation.name);
        let (_, set) = found.ok_or_else(|| annotation.unknown(&LIMITS.map(|(name, _)| name)))?;
        set(&mut limits, annotation.value).map_err(|wrong| annotation.refused(&wrong))?;
    }
    Ok(limits)
}

fn duration(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= TIME_MAX)
        .ok_or_else(|| "must be a time such as `500ms`, `30s` or `1h30m`, at most a year".into())
}

fn duration_or_none(value: &str) -> Result<Option<Duration>, String> {
    if value == "none" { Ok(None) } else { duration(value).map(Some) }
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
            ("limits.skiff.dev/call-time", "7s"),
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
            call_time: Some(Duration::from_secs(7)),
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
        assert_eq!(limits([("limits.skiff.dev/call-time", "none")]).call_time, None);
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
            ("limits.skiff.dev/runtime", "1s", "there is no setting `runtime`, only `run-time`, `request-time`, "),
            ("limits.skiff.dev/", "1s", "there is no setting ``, only "),
            ("web.limits.skiff.dev/stacks", "1s", ", `stack` and `output-per-second`"),
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
            name in "(run-time|request-time|call-time|header-time|idle-time|memory-pages|instances|tables|stack|output-per-second|[a-z-]{0,9})",
            value in prop_oneof!["[0-9]{1,22}(ns|ms|s|m|h|d|w|y|Ki|Mi|Gi|k|M|G)?", ".{0,40}", "[0-9 .a-zA-Z-]{0,30}"],
        ) {
            match from_annotations(&annotations([(&format!("{LIMITS_DOMAIN}/{name}"), &value)])) {
                Ok(limits) => {
                    prop_assert!(limits.run_time.into_iter().chain(limits.request_time).chain(limits.call_time).all(|time| time <= TIME_MAX));
                    prop_assert!(limits.header_time <= TIME_MAX && limits.idle_time <= TIME_MAX);
                    prop_assert!(limits.stack_bytes <= 64 << 20);
                }
                Err(error) => prop_assert!(error.to_string().contains(&name)),
            }
        }
    }

    /// The table of the documentation has a line for each limit, with its default, and the chart's policy knows it.
    #[test]
    fn the_documentation_has_the_defaults() {
        let text = include_str!("../../../../docs/limits-and-exit-codes.md");
        let policy = include_str!("../../../../charts/skiff/templates/annotation-policy.yaml");
        let defaults = Limits::default();
        let none = |limit: Option<String>| limit.unwrap_or_else(|| "none".into());
        for (name, default) in [
            ("run-time", none(defaults.run_time.map(|time| format!("{time:?}")))),
            ("request-time", none(defaults.request_time.map(|time| format!("{time:?}")))),
            ("call-time", none(defaults.call_time.map(|time| format!("{time:?}")))),
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
            assert!(policy.contains(&format!("\"{name}\"")), "{name}");
        }
        let rows = text.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, LIMITS.len(), "a row for each limit and no other");
    }
}

//! Every metric that is served: its name, what it means, and where its value is from. Pure. `docs/metrics.md` has the same list.

use std::fmt::Display;

use skiff_protocol::{CODE_CLASSES, CalledFunction, DURATION_BOUNDS};

use super::cache::Cache;
use super::containers::{Found, Name, Read};
use super::exposition::Kind::{Counter, Gauge, Histogram};
use super::exposition::{Exposition, Kind};

/// What is known of the node at one moment.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// The version of the programs that new pods get; empty if skiff is not installed.
    pub(super) programs: String,
    pub(super) found: Found,
    pub(super) cache: Cache,
}

impl Page {
    /// The page in the text format.
    pub(super) fn text(&self) -> String {
        let mut text = Exposition::default();
        self.node(&mut text);
        self.memory(&mut text);
        self.activity(&mut text);
        self.calls(&mut text);
        text.finish()
    }

    fn node(&self, text: &mut Exposition) {
        text.family("skiff_info", Gauge, "The versions of skiff-node and of the programs that new pods get; always 1.");
        let versions = [("version", env!("CARGO_PKG_VERSION")), ("programs", self.programs.as_str())];
        text.sample("skiff_info", &versions, 1);
        let mut one = |name, kind, help, value: &dyn Display| {
            text.family(name, kind, help);
            text.sample(name, &[], value);
        };
        let Cache { entries, bytes, counters } = self.cache;
        one("skiff_containers", Gauge, "Wasm containers with figures here.", &self.found.containers.len());
        one("skiff_containers_omitted", Gauge, "Wasm containers without figures here.", &self.found.omitted);
        one("skiff_compilations_total", Counter, "Modules compiled, with or without success.", &counters.compilations);
        one("skiff_compilation_failures_total", Counter, "Modules that cannot be compiled.", &counters.failures);
        let seconds = counters.compile_time.as_secs_f64();
        one("skiff_compilation_seconds_total", Counter, "Time spent compiling.", &seconds);
        one("skiff_cache_bytes", Gauge, "The size of the cache of compiled code.", &bytes);
        one("skiff_cache_entries", Gauge, "Modules in the cache of compiled code.", &entries);
        one("skiff_cache_hits_total", Counter, "How often wanted code was in the cache.", &counters.hits);
        one("skiff_cache_misses_total", Counter, "How often wanted code had to be compiled.", &counters.misses);
        one("skiff_cache_evictions_total", Counter, "Modules removed to make room for others.", &counters.evictions);
    }

    fn memory(&self, text: &mut Exposition) {
        let mut each = |name, kind, help, value: fn(&Read) -> Option<u64>| self.each(text, name, kind, help, value);
        each("skiff_container_memory_bytes", Gauge, "The guest's memories, tables and GC heaps.", |(memory, _, _)| {
            Some(memory.linear_memory_bytes)
        });
        each("skiff_container_memory_peak_bytes", Gauge, "Their largest size so far.", |(memory, _, _)| {
            Some(memory.peak_bytes)
        });
        each(
            "skiff_container_memory_limit_bytes",
            Gauge,
            "The container's memory limit when the guest last grew.",
            |(memory, _, _)| memory.limit_bytes,
        );
        each("skiff_container_memory_refusals_total", Counter, "Growths that were refused.", |(memory, _, _)| {
            Some(memory.refusals)
        });
    }

    fn activity(&self, text: &mut Exposition) {
        let mut each = |name, kind, help, value: fn(&Read) -> Option<u64>| self.each(text, name, kind, help, value);
        each("skiff_container_instances", Gauge, "Instances that are alive.", |(_, activity, _)| {
            Some(activity.instances)
        });
        each("skiff_container_traps_total", Counter, "Instances that ended with a trap.", |(_, activity, _)| {
            Some(activity.traps)
        });
        let servers = || self.found.containers.iter().filter(|(_, (_, activity, _))| activity.serves);
        let name = "skiff_container_requests_total";
        text.family(name, Counter, "Requests by class of status code; `none` had no response.");
        for (container, (_, activity, _)) in servers() {
            for (class, count) in CODE_CLASSES.into_iter().zip(activity.requests) {
                text.sample(name, &[&labels(container)[..], &[("code", class)]].concat(), count);
            }
        }
        let name = "skiff_container_request_duration_seconds";
        text.family(name, Histogram, "Time from a request's head to the last byte of its response.");
        for (container, (_, activity, _)) in servers() {
            let counts = (&DURATION_BOUNDS[..], &activity.durations[..]);
            text.histogram(name, &labels(container), counts, activity.request_time);
        }
    }

    fn calls(&self, text: &mut Exposition) {
        let mut each = |name, kind, help, value: fn(&CalledFunction) -> String| {
            text.family(name, kind, help);
            for (container, (_, _, called)) in &self.found.containers {
                for (function, figures) in called {
                    let labels = [&labels(container)[..], &[("function", function)]].concat();
                    text.sample(name, &labels, value(figures));
                }
            }
        };
        each("skiff_container_calls_total", Counter, "Calls by function.", |called| called.calls.to_string());
        each("skiff_container_call_traps_total", Counter, "Calls that trapped.", |called| called.traps.to_string());
        each("skiff_container_call_seconds_total", Counter, "The time that calls took.", |called| {
            called.time.as_secs_f64().to_string()
        });
        each("skiff_container_call_seconds_max", Gauge, "The time of the longest call.", |called| {
            called.longest.as_secs_f64().to_string()
        });
    }

    fn each(&self, text: &mut Exposition, name: &str, kind: Kind, help: &str, value: fn(&Read) -> Option<u64>) {
        text.family(name, kind, help);
        for (container, read) in &self.found.containers {
            if let Some(value) = value(read) {
                text.sample(name, &labels(container), value);
            }
        }
    }
}

fn labels(name: &Name) -> [(&'static str, &str); 3] {
    [("namespace", &name.namespace), ("pod", &name.pod), ("container", &name.container)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    use skiff_protocol::{Activity, CalledFunctions, Counters, Figures};

    use super::*;

    fn page() -> Page {
        let name = |pod: &str| Name { namespace: "shop".into(), pod: pod.into(), container: "main".into() };
        let memory = Figures {
            linear_memory_bytes: 65536,
            peak_bytes: 131_072,
            refusals: 2,
            ran_out: false,
            limit_bytes: Some(1 << 24),
        };
        let mut serves = Activity { serves: true, instances: 3, traps: 1, ..Activity::default() };
        serves.requests = [1, 0, 5, 0, 2, 0];
        (serves.durations[0], serves.durations[14]) = (7, 1);
        serves.request_time = Duration::from_millis(12_250);
        let figures =
            CalledFunction { calls: 3, traps: 1, time: Duration::from_millis(1500), longest: Duration::from_secs(1) };
        let called = CalledFunctions::from([("a:b/c#d".to_owned(), figures)]);
        let job = (Figures { limit_bytes: None, ..memory }, Activity { instances: 1, ..Activity::default() }, called);
        let containers = [(name("web"), (memory, serves, CalledFunctions::new())), (name("job"), job)].into();
        let compile_time = Duration::from_millis(4500);
        let counters = Counters { hits: 9, misses: 4, compilations: 4, failures: 1, compile_time, evictions: 2 };
        Page {
            programs: "0.1.0-abc".into(),
            found: Found { containers, omitted: 1 },
            cache: Cache { entries: 3, bytes: 12_345, counters },
        }
    }

    /// The names of the families on the page.
    fn families() -> BTreeSet<String> {
        let text = page().text();
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        names.map(str::to_owned).collect()
    }

    #[test]
    fn a_page_has_a_line_for_each_number() {
        let text = page().text();
        for line in [
            "skiff_info{version=\"0.1.0\",programs=\"0.1.0-abc\"} 1",
            "skiff_containers 2",
            "skiff_containers_omitted 1",
            "skiff_compilations_total 4",
            "skiff_compilation_failures_total 1",
            "skiff_compilation_seconds_total 4.5",
            "skiff_cache_bytes 12345",
            "skiff_cache_entries 3",
            "skiff_cache_hits_total 9",
            "skiff_cache_misses_total 4",
            "skiff_cache_evictions_total 2",
            "skiff_container_memory_bytes{namespace=\"shop\",pod=\"web\",container=\"main\"} 65536",
            "skiff_container_memory_peak_bytes{namespace=\"shop\",pod=\"job\",container=\"main\"} 131072",
            "skiff_container_memory_limit_bytes{namespace=\"shop\",pod=\"web\",container=\"main\"} 16777216",
            "skiff_container_memory_refusals_total{namespace=\"shop\",pod=\"web\",container=\"main\"} 2",
            "skiff_container_instances{namespace=\"shop\",pod=\"web\",container=\"main\"} 3",
            "skiff_container_instances{namespace=\"shop\",pod=\"job\",container=\"main\"} 1",
            "skiff_container_traps_total{namespace=\"shop\",pod=\"web\",container=\"main\"} 1",
            "skiff_container_calls_total{namespace=\"shop\",pod=\"job\",container=\"main\",function=\"a:b/c#d\"} 3",
            "skiff_container_call_traps_total{namespace=\"shop\",pod=\"job\",container=\"main\",function=\"a:b/c#d\"} 1",
            "skiff_container_call_seconds_total{namespace=\"shop\",pod=\"job\",container=\"main\",function=\"a:b/c#d\"} 1.5",
            "skiff_container_call_seconds_max{namespace=\"shop\",pod=\"job\",container=\"main\",function=\"a:b/c#d\"} 1",
            "skiff_container_requests_total{namespace=\"shop\",pod=\"web\",container=\"main\",code=\"none\"} 1",
            "skiff_container_requests_total{namespace=\"shop\",pod=\"web\",container=\"main\",code=\"2xx\"} 5",
            "skiff_container_request_duration_seconds_bucket{namespace=\"shop\",pod=\"web\",container=\"main\",le=\"10\"} 7",
            "skiff_container_request_duration_seconds_bucket{namespace=\"shop\",pod=\"web\",container=\"main\",le=\"+Inf\"} 8",
            "skiff_container_request_duration_seconds_sum{namespace=\"shop\",pod=\"web\",container=\"main\"} 12.25",
            "skiff_container_request_duration_seconds_count{namespace=\"shop\",pod=\"web\",container=\"main\"} 8",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
        for name in ["skiff_container_memory_limit_bytes", "skiff_container_requests_total"] {
            let of_the_job = format!("{name}{{namespace=\"shop\",pod=\"job\"");
            assert!(!text.contains(&of_the_job), "a command without a limit has no {name}");
        }
    }

    fn file(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The names of skiff's metrics in a text.
    fn names_in(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("skiff_")).map(str::to_owned).collect()
    }

    #[test]
    fn the_page_of_the_documents_lists_exactly_what_is_served() {
        let rows = file("docs/metrics.md");
        let rows = rows.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next());
        let documented: BTreeSet<_> = rows.filter(|name| name.starts_with("skiff_")).map(str::to_owned).collect();
        assert_eq!(documented, families());
    }

    #[test]
    fn the_dashboard_asks_for_nothing_that_is_not_served() {
        let dashboard: serde_json::Value = serde_json::from_str(&file("charts/skiff/files/dashboard.json")).unwrap();
        let mut queries = Vec::new();
        let targets = dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
        queries.extend(targets.flatten().map(|target| target["expr"].as_str().unwrap().to_owned()));
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        queries.extend(variables.iter().filter_map(|variable| variable["query"].as_str().map(str::to_owned)));
        assert!(queries.len() > 10, "{queries:?}");
        let mut served = families();
        let histogram = "skiff_container_request_duration_seconds";
        served.extend(["bucket", "sum", "count"].map(|suffix| format!("{histogram}_{suffix}")));
        for query in queries {
            let unknown: Vec<_> = names_in(&query).difference(&served).cloned().collect();
            assert!(unknown.is_empty(), "{unknown:?} in `{query}`");
        }
    }
}

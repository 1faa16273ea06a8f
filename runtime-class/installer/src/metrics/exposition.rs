//! The text format of Prometheus, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::{Display, Write};
use std::time::Duration;

/// The media type of the format.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The labels of a sample.
pub(super) type Labels<'a> = [(&'static str, &'a str)];

/// What a family of samples is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A text that grows by one family after the other.
#[derive(Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family of samples.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    /// Adds a sample to the present family.
    pub(super) fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl Display) {
        self.line(format_args!("{name}{} {value}", in_braces(labels)));
    }

    /// Adds a histogram to the present family: a count for each of the `bounds`, and one for what exceeds the last.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &Labels<'_>,
        (bounds, counts): (&[Duration], &[u64]),
        sum: Duration,
    ) {
        let bounds = bounds.iter().map(|bound| bound.as_secs_f64().to_string()).chain(["+Inf".to_owned()]);
        let mut total: u64 = 0;
        for (bound, count) in bounds.zip(counts) {
            total = total.saturating_add(*count);
            self.sample(&format!("{name}_bucket"), &[labels, &[("le", bound.as_str())]].concat(), total);
        }
        self.sample(&format!("{name}_sum"), labels, sum.as_secs_f64());
        self.sample(&format!("{name}_count"), labels, total);
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.0
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "{line}");
    }
}

fn in_braces(labels: &Labels<'_>) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", labels.join(","))
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stays_one_whatever_is_in_it() {
        let mut text = Exposition::default();
        text.sample("a", &[("b", "\"} 1\n\\c"), ("d", "é")], 2);
        assert_eq!(text.finish(), "a{b=\"\\\"} 1\\n\\\\c\",d=\"é\"} 2\n");
    }

    #[test]
    fn the_buckets_of_a_histogram_add_up_to_its_count() {
        let mut text = Exposition::default();
        text.family("a", Kind::Histogram, "How long.");
        let bounds = [Duration::from_micros(500), Duration::from_secs(1)];
        text.histogram("a", &[], (&bounds, &[1, 2, 3]), Duration::from_millis(2500));
        let expected = "# HELP a How long.\n# TYPE a histogram\na_bucket{le=\"0.0005\"} 1\na_bucket{le=\"1\"} 3\n\
                        a_bucket{le=\"+Inf\"} 6\na_sum 2.5\na_count 6\n";
        assert_eq!(text.finish(), expected);
        let mut text = Exposition::default();
        text.histogram("a", &[], (&bounds, &[u64::MAX; 3]), Duration::MAX);
        assert!(text.finish().ends_with(&format!("a_count {}\n", u64::MAX)));
    }
}

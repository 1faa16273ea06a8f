//! The figures as tables and as JSON, and whether they meet their targets.

mod tables;

use anyhow::Result;
use serde::Serialize;

use crate::stats::Summary;

/// All figures of a run; times in milliseconds, sizes in megabytes of 1,000,000 bytes.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: usize,
    starts: Vec<Starts>,
    memory: Option<Memory>,
    answer: Option<AnswerRow>,
    http: Vec<HttpRow>,
    limits: Vec<LimitsRow>,
    resizes: Vec<ResizeRow>,
    calls: Vec<CallsRow>,
    execs: Vec<ExecRow>,
    figures: Vec<Figures>,
    goals: Vec<Goal>,
}

#[derive(Serialize)]
struct Machine {
    processors: usize,
    kernel: String,
    /// The load average of the last minute, at the beginning.
    load: String,
}

#[derive(Serialize)]
struct Starts {
    guest: &'static str,
    rows: Vec<StartRow>,
}

/// One contender's times.
#[derive(Serialize)]
pub(crate) struct StartRow {
    pub(crate) name: &'static str,
    pub(crate) create: Summary,
    pub(crate) start: Summary,
    /// From the request of Start to the first byte of output.
    pub(crate) speech: Summary,
    pub(crate) run: Summary,
    pub(crate) total: Summary,
    pub(crate) delete: Summary,
    /// Of all processes, from the request of Create to the reply to Delete.
    pub(crate) processor: Summary,
}

#[derive(Serialize)]
struct Memory {
    few: usize,
    many: usize,
    rows: Vec<MemoryRow>,
}

/// One contender's memory.
#[derive(Serialize)]
pub(crate) struct MemoryRow {
    pub(crate) name: &'static str,
    pub(crate) marginal_mb: f64,
    pub(crate) total_mb: f64,
    pub(crate) processes: f64,
    pub(crate) threads: f64,
    /// How often a second one of its threads is woken up.
    pub(crate) wake_ups: f64,
}

/// A server's first answer.
#[derive(Serialize)]
pub(crate) struct AnswerRow {
    pub(crate) name: &'static str,
    /// From the request of Create.
    pub(crate) ms: Summary,
    /// What its process shares with no other one by then.
    pub(crate) private_mb: Summary,
}

/// One server's figures with one number of connections.
#[derive(Serialize)]
pub(crate) struct HttpRow {
    pub(crate) name: String,
    pub(crate) connections: u32,
    pub(crate) requests: Summary,
    pub(crate) p99_ms: Summary,
    /// Microseconds of processor time for each request, of the server alone.
    pub(crate) processor_us: Summary,
}

/// How fast memory is allocated under one contender.
#[derive(Serialize)]
pub(crate) struct LimitsRow {
    pub(crate) name: &'static str,
    /// Nanoseconds of a growth by one page.
    pub(crate) grow_ns: Summary,
    /// The same with a write to each of the page's parts.
    pub(crate) grow_and_touch_ns: Summary,
    /// How long a program takes that allocates most of its memory while it is timed.
    pub(crate) trees_ms: Summary,
}

/// How long something about a resize takes.
#[derive(Serialize)]
pub(crate) struct ResizeRow {
    pub(crate) name: &'static str,
    pub(crate) ms: Summary,
}

/// Calls of functions of one guest.
#[derive(Serialize)]
pub(crate) struct CallsRow {
    pub(crate) name: &'static str,
    /// Calls a second through one exec that does not wait for results.
    pub(crate) per_second: Summary,
    /// Milliseconds of a call, from its expression to its result.
    pub(crate) alone_ms: Summary,
}

/// How long an exec takes in one contender's container.
#[derive(Serialize)]
pub(crate) struct ExecRow {
    pub(crate) name: &'static str,
    /// From the request of Exec to its end and removal, in milliseconds.
    pub(crate) ms: Summary,
    /// How much longer than the first contender's exec of the same round.
    pub(crate) beyond_ms: Summary,
}

/// A table of figures.
#[derive(Serialize)]
pub(crate) struct Figures {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<(String, Vec<f64>)>,
}

impl Figures {
    /// A table without rows.
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new() }
    }

    /// What it is about.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// The names of its columns.
    pub(crate) fn columns(&self) -> &[&'static str] {
        &self.columns
    }

    /// Its rows: a name and a figure for each column.
    pub(crate) fn rows(&self) -> &[(String, Vec<f64>)] {
        &self.rows
    }

    /// Adds a row, with a figure for each column.
    pub(crate) fn row(&mut self, name: impl Into<String>, figures: Vec<f64>) {
        self.rows.push((name.into(), figures));
    }
}

/// The bound of a figure that is better when smaller.
const AT_MOST: &str = "at most";

/// A target, and what was measured.
#[derive(Serialize)]
pub(crate) struct Goal {
    what: String,
    measured: f64,
    bound: &'static str,
    limit: f64,
    met: bool,
}

impl Goal {
    /// A figure that is better when smaller.
    pub(crate) fn at_most(what: impl Into<String>, measured: f64, limit: f64) -> Self {
        Self { what: what.into(), measured, bound: AT_MOST, limit, met: measured <= limit }
    }

    /// What it is about.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// What was measured.
    pub(crate) fn measured(&self) -> f64 {
        self.measured
    }

    /// Whether less of it is better.
    pub(crate) fn is_better_when_smaller(&self) -> bool {
        self.bound == AT_MOST
    }

    /// A figure that is better when bigger.
    pub(crate) fn at_least(what: impl Into<String>, measured: f64, limit: f64) -> Self {
        Self { what: what.into(), measured, bound: "at least", limit, met: measured >= limit }
    }
}

impl Report {
    /// An empty report of a run that begins now.
    pub(crate) fn new(rounds: usize) -> Self {
        Self {
            machine: Machine::here(),
            rounds,
            starts: Vec::new(),
            memory: None,
            answer: None,
            http: Vec::new(),
            limits: Vec::new(),
            resizes: Vec::new(),
            calls: Vec::new(),
            execs: Vec::new(),
            figures: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Adds a race of starts.
    pub(crate) fn starts(&mut self, guest: &'static str, rows: Vec<StartRow>) {
        self.starts.push(Starts { guest, rows });
    }

    /// Adds the memory of sleeping containers.
    pub(crate) fn memory(&mut self, few: usize, many: usize, rows: Vec<MemoryRow>) {
        self.memory = Some(Memory { few, many, rows });
    }

    /// Adds the first answer of a server.
    pub(crate) fn answer(&mut self, row: AnswerRow) {
        self.answer = Some(row);
    }

    /// Adds the servers.
    pub(crate) fn http(&mut self, rows: Vec<HttpRow>) {
        self.http = rows;
    }

    /// Adds the cost of limits.
    pub(crate) fn limits(&mut self, rows: Vec<LimitsRow>) {
        self.limits = rows;
    }

    /// Adds the delays of resizes.
    pub(crate) fn resizes(&mut self, rows: Vec<ResizeRow>) {
        self.resizes = rows;
    }

    /// Adds calls of functions.
    pub(crate) fn calls(&mut self, rows: Vec<CallsRow>) {
        self.calls = rows;
    }

    /// Adds the execs.
    pub(crate) fn execs(&mut self, rows: Vec<ExecRow>) {
        self.execs = rows;
    }

    /// Adds a table of figures.
    pub(crate) fn figures(&mut self, figures: Figures) {
        self.figures.push(figures);
    }

    /// Adds a target.
    pub(crate) fn goal(&mut self, goal: Goal) {
        self.goals.push(goal);
    }

    /// The targets.
    pub(crate) fn goals(&self) -> &[Goal] {
        &self.goals
    }

    /// Whether each figure that was measured meets its target.
    pub(crate) fn all_met(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
    }

    /// The tables whose titles begin with `words`.
    pub(crate) fn tables_of(&self, words: &str) -> Vec<&Figures> {
        self.figures.iter().filter(|figures| figures.title.starts_with(words)).collect()
    }

    /// The figures as JSON.
    ///
    /// # Errors
    /// None in practice: JSON can express all of a report.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The figures as tables.
    pub(crate) fn markdown(&self) -> String {
        tables::of(self)
    }
}

impl Machine {
    fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().into(),
        }
    }
}

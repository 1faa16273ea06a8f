//! The figures as tables and as JSON, and whether they meet their targets.

use std::fmt::Write;

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
    http: Vec<HttpRow>,
    limits: Vec<LimitsRow>,
    resizes: Vec<ResizeRow>,
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
    pub(crate) run: Summary,
    pub(crate) total: Summary,
    pub(crate) delete: Summary,
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
}

/// One server's figures.
#[derive(Serialize)]
pub(crate) struct HttpRow {
    pub(crate) name: String,
    pub(crate) requests: Summary,
    pub(crate) p99_ms: Summary,
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
        Self { what: what.into(), measured, bound: "at most", limit, met: measured <= limit }
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
            http: Vec::new(),
            limits: Vec::new(),
            resizes: Vec::new(),
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

    /// Adds a target.
    pub(crate) fn goal(&mut self, goal: Goal) {
        self.goals.push(goal);
    }

    /// Whether each figure that was measured meets its target.
    pub(crate) fn all_met(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
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
        let mut text = String::new();
        let machine = &self.machine;
        let rounds = self.rounds;
        let cells = [machine.processors.to_string(), machine.kernel.clone(), machine.load.clone()];
        line(&mut text, &format!("{} processors, kernel {}, load {}; {rounds} rounds", cells[0], cells[1], cells[2]));
        for starts in &self.starts {
            table_of_starts(&mut text, starts);
        }
        if let Some(memory) = &self.memory {
            table_of_memory(&mut text, memory);
        }
        if !self.http.is_empty() {
            table_of_servers(&mut text, &self.http);
        }
        if !self.limits.is_empty() {
            table_of_limits(&mut text, &self.limits);
        }
        if !self.resizes.is_empty() {
            table_of_resizes(&mut text, &self.resizes);
        }
        table_of_goals(&mut text, &self.goals);
        text
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

fn table_of_starts(text: &mut String, starts: &Starts) {
    let guest = starts.guest;
    heading(
        text,
        &format!("create + start + exit, {guest} (ms)"),
        &["target", "create", "start", "start to exit", "sum: median", "min", "p90", "× first", "delete"],
    );
    let first = starts.rows.first().map_or(1.0, |row| row.total.median);
    for row in &starts.rows {
        let StartRow { name, create, start, run, total, delete } = row;
        let (create, start, run, delete) = (create.median, start.median, run.median, delete.median);
        let ratio = total.median / first;
        let Summary { median, min, p90 } = total;
        line(
            text,
            &format!(
                "| {name} | {create:.1} | {start:.1} | {run:.1} | {median:.1} | {min:.1} | {p90:.1} | {ratio:.2} | {delete:.1} |"
            ),
        );
    }
}

fn table_of_memory(text: &mut String, memory: &Memory) {
    let Memory { few, many, rows } = memory;
    heading(
        text,
        &format!("a sleeping container, from the {few}th to the {many}th"),
        &["target", "PSS each (MB)", "PSS of all (MB)", "processes each", "threads each"],
    );
    for MemoryRow { name, marginal_mb, total_mb, processes, threads } in rows {
        line(text, &format!("| {name} | {marginal_mb:.2} | {total_mb:.1} | {processes:.1} | {threads:.1} |"));
    }
}

fn table_of_servers(text: &mut String, rows: &[HttpRow]) {
    heading(
        text,
        "HTTP, 16 connections, one thread of load",
        &["server", "requests/s: median", "min", "p90", "p99 latency (ms)"],
    );
    for HttpRow { name, requests: Summary { median, min, p90 }, p99_ms } in rows {
        line(text, &format!("| {name} | {median:.0} | {min:.0} | {p90:.0} | {:.2} |", p99_ms.median));
    }
}

fn table_of_limits(text: &mut String, rows: &[LimitsRow]) {
    heading(
        text,
        "growth under a memory limit of 1 GiB: median (min)",
        &["runtime", "grow by a page (ns)", "grow and touch (ns)", "trees (ms)"],
    );
    for LimitsRow { name, grow_ns, grow_and_touch_ns, trees_ms } in rows {
        let cells = [grow_ns, grow_and_touch_ns, trees_ms].map(|all| format!("{:.0} ({:.0})", all.median, all.min));
        line(text, &format!("| {name} | {} |", cells.join(" | ")));
    }
}

fn table_of_resizes(text: &mut String, rows: &[ResizeRow]) {
    heading(text, "a raised memory limit (ms)", &["from, to", "median", "min", "p90"]);
    for ResizeRow { name, ms: Summary { median, min, p90 } } in rows {
        line(text, &format!("| {name} | {median:.2} | {min:.2} | {p90:.2} |"));
    }
}

fn table_of_goals(text: &mut String, goals: &[Goal]) {
    heading(text, "targets", &["what", "measured", "target", "met"]);
    for Goal { what, measured, bound, limit, met } in goals {
        let met = if *met { "yes" } else { "no" };
        line(text, &format!("| {what} | {measured:.3} | {bound} {limit:.2} | {met} |"));
    }
}

fn heading(text: &mut String, title: &str, columns: &[&str]) {
    line(text, &format!("\n### {title}\n"));
    line(text, &format!("| {} |", columns.join(" | ")));
    line(text, &format!("|{}", " --- |".repeat(columns.len())));
}

fn line(text: &mut String, words: &str) {
    // Writing to a string does not fail.
    writeln!(text, "{words}").unwrap_or_default();
}

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
    answer: Option<AnswerRow>,
    http: Vec<HttpRow>,
    limits: Vec<LimitsRow>,
    resizes: Vec<ResizeRow>,
    calls: Vec<CallsRow>,
    execs: Vec<ExecRow>,
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
            answer: None,
            http: Vec::new(),
            limits: Vec::new(),
            resizes: Vec::new(),
            calls: Vec::new(),
            execs: Vec::new(),
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
        if let Some(answer) = &self.answer {
            table_of_answers(&mut text, answer);
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
        if !self.calls.is_empty() {
            table_of_calls(&mut text, &self.calls);
        }
        if !self.execs.is_empty() {
            table_of_execs(&mut text, &self.execs);
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
        &[
            "target",
            "create",
            "start",
            "start to first byte",
            "start to exit",
            "sum: median",
            "min",
            "p90",
            "× first",
            "delete",
            "processor time",
        ],
    );
    let first = starts.rows.first().map_or(1.0, |row| row.total.median);
    for row in &starts.rows {
        let StartRow { name, create, start, speech, run, total, delete, processor } = row;
        let [create, start, speech, run] = [create, start, speech, run].map(|step| step.median);
        let [delete, processor] = [delete, processor].map(|step| step.median);
        let ratio = total.median / first;
        let Summary { median, min, p90 } = total;
        line(
            text,
            &format!(
                "| {name} | {create:.1} | {start:.1} | {speech:.1} | {run:.1} | {median:.1} | {min:.1} | {p90:.1} | {ratio:.2} \
                 | {delete:.1} | {processor:.1} |"
            ),
        );
    }
}

fn table_of_memory(text: &mut String, memory: &Memory) {
    let Memory { few, many, rows } = memory;
    heading(
        text,
        &format!("a sleeping container, from the {few}th to the {many}th"),
        &["target", "PSS each (MB)", "PSS of all (MB)", "processes each", "threads each", "wake-ups a second each"],
    );
    for MemoryRow { name, marginal_mb, total_mb, processes, threads, wake_ups } in rows {
        line(
            text,
            &format!("| {name} | {marginal_mb:.2} | {total_mb:.1} | {processes:.1} | {threads:.1} | {wake_ups:.2} |"),
        );
    }
}

fn table_of_answers(text: &mut String, answer: &AnswerRow) {
    let columns = ["server", "create to first answer (ms): median", "min", "p90", "private memory (MB)"];
    heading(text, "HTTP, the first answer", &columns);
    let AnswerRow { name, ms: Summary { median, min, p90 }, private_mb } = answer;
    let private = private_mb.median;
    line(text, &format!("| {name} | {median:.1} | {min:.1} | {p90:.1} | {private:.2} |"));
}

fn table_of_servers(text: &mut String, rows: &[HttpRow]) {
    heading(
        text,
        "HTTP, one thread of load",
        &["server", "connections", "requests/s: median", "min", "p90", "p99 latency (ms)", "processor time each (µs)"],
    );
    for HttpRow { name, connections, requests: Summary { median, min, p90 }, p99_ms, processor_us } in rows {
        let (p99, each) = (p99_ms.median, processor_us.median);
        line(text, &format!("| {name} | {connections} | {median:.0} | {min:.0} | {p90:.0} | {p99:.2} | {each:.1} |"));
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

fn table_of_calls(text: &mut String, rows: &[CallsRow]) {
    heading(
        text,
        "calls of `add` in a running guest, through one exec",
        &["guest", "calls a second: median", "min", "p90", "one call alone (ms): median", "min", "p90"],
    );
    for CallsRow { name, per_second, alone_ms } in rows {
        let Summary { median, min, p90 } = per_second;
        let alone = format!("{:.3} | {:.3} | {:.3}", alone_ms.median, alone_ms.min, alone_ms.p90);
        line(text, &format!("| {name} | {median:.0} | {min:.0} | {p90:.0} | {alone} |"));
    }
}

fn table_of_execs(text: &mut String, rows: &[ExecRow]) {
    heading(
        text,
        "exec, from the request to its removal (ms)",
        &["in a container of", "median", "min", "p90", "beyond the first"],
    );
    for ExecRow { name, ms: Summary { median, min, p90 }, beyond_ms } in rows {
        line(text, &format!("| {name} | {median:.1} | {min:.1} | {p90:.1} | {:.1} |", beyond_ms.median));
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

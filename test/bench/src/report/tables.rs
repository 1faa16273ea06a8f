//! A report as tables in Markdown.

use std::fmt::Write;

use super::{
    AnswerRow, CallsRow, ExecRow, Figures, Goal, HttpRow, LimitsRow, Memory, MemoryRow, Report, ResizeRow, StartRow,
    Starts,
};
use crate::stats::Summary;

/// All tables of `report`.
pub(super) fn of(report: &Report) -> String {
    let mut text = String::new();
    let machine = &report.machine;
    let rounds = report.rounds;
    let cells = [machine.processors.to_string(), machine.kernel.clone(), machine.load.clone()];
    line(&mut text, &format!("{} processors, kernel {}, load {}; {rounds} rounds", cells[0], cells[1], cells[2]));
    for starts in &report.starts {
        table_of_starts(&mut text, starts);
    }
    if let Some(memory) = &report.memory {
        table_of_memory(&mut text, memory);
    }
    if let Some(answer) = &report.answer {
        table_of_answers(&mut text, answer);
    }
    if !report.http.is_empty() {
        table_of_servers(&mut text, &report.http);
    }
    if !report.limits.is_empty() {
        table_of_limits(&mut text, &report.limits);
    }
    if !report.resizes.is_empty() {
        table_of_resizes(&mut text, &report.resizes);
    }
    if !report.calls.is_empty() {
        table_of_calls(&mut text, &report.calls);
    }
    if !report.execs.is_empty() {
        table_of_execs(&mut text, &report.execs);
    }
    for figures in &report.figures {
        table_of_figures(&mut text, figures);
    }
    table_of_goals(&mut text, &report.goals);
    text
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

fn table_of_figures(text: &mut String, Figures { title, columns, rows }: &Figures) {
    let columns = [&[""], &columns[..]].concat();
    heading(text, title, &columns);
    for (name, figures) in rows {
        let figures: Vec<_> = figures.iter().map(|figure| format!("{figure:.2}")).collect();
        line(text, &format!("| {name} | {} |", figures.join(" | ")));
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

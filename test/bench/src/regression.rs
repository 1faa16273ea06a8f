//! Compares the ratios of a run with those of an earlier one. Only ratios: milliseconds depend on the machine and on what else it does.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::report::{Figures, Goal, Report};

/// By how much a ratio may be worse than it was: two runs of the same programs differ by less.
const TOLERATED: f64 = 0.2;
/// What is in the name of a figure that is a ratio.
const RATIO: char = '×';

/// The part of a report that is compared.
#[derive(Deserialize)]
struct Earlier {
    goals: Vec<EarlierGoal>,
}

#[derive(Deserialize)]
struct EarlierGoal {
    what: String,
    measured: f64,
}

/// Adds to `report` how its ratios compare with those of the report in the file at `path`. Returns the names of those that are worse.
///
/// # Errors
/// When the file is not a report.
pub(crate) fn compare(report: &mut Report, path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let earlier: Earlier =
        serde_json::from_str(&text).with_context(|| format!("`{}` is not a report", path.display()))?;
    let mut figures = Figures::new("compared with the earlier figures", &["earlier", "now", "change (%)"]);
    let mut worse = Vec::new();
    for goal in report.goals().iter().filter(|goal| goal.what().contains(RATIO)) {
        let Some(before) = earlier.goals.iter().find(|before| before.what == goal.what()) else { continue };
        let change = goal.measured() / before.measured - 1.0;
        figures.row(goal.what(), vec![before.measured, goal.measured(), change * 100.0]);
        if loss(goal, before.measured) > TOLERATED {
            worse.push(goal.what().to_string());
        }
    }
    report.figures(figures);
    Ok(worse)
}

/// By what part the figure of `goal` is worse than `before`; negative if it is better.
fn loss(goal: &Goal, before: f64) -> f64 {
    if goal.is_better_when_smaller() { goal.measured() / before - 1.0 } else { before / goal.measured() - 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of those that are worse than in an earlier run.
    fn worse_than(earlier: &str) -> Vec<String> {
        let mut report = Report::new(1);
        report.goal(Goal::at_most("start, × runc", 0.30, 0.2));
        report.goal(Goal::at_least("requests, × others", 1.5, 1.2));
        report.goal(Goal::at_most("time, ms", 9.0, 1.0));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), earlier).unwrap();
        compare(&mut report, file.path()).unwrap()
    }

    #[test]
    fn a_ratio_that_is_worse_than_it_was_is_named() {
        let earlier = |start: f64, requests: f64| {
            format!(
                r#"{{"goals":[{{"what":"start, × runc","measured":{start}}},{{"what":"requests, × others","measured":{requests}}},
                {{"what":"time, ms","measured":1}},{{"what":"gone, × runc","measured":1}}]}}"#
            )
        };
        assert_eq!(worse_than(&earlier(0.30, 1.5)), [""; 0]);
        assert_eq!(worse_than(&earlier(0.26, 1.7)), [""; 0], "by less than a fifth");
        assert_eq!(worse_than(&earlier(0.24, 1.5)), ["start, × runc"]);
        assert_eq!(worse_than(&earlier(0.60, 1.9)), ["requests, × others"]);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(compare(&mut Report::new(1), Path::new("/no/such/file")).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(compare(&mut Report::new(1), file.path()).is_err());
    }
}

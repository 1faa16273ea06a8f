//! How big the programs are that a node gets.

use anyhow::{Context, Result};

use crate::programs::Programs;
use crate::report::{Figures, Goal, Report};

const PROGRAMS: [&str; 3] = ["containerd-shim-skiff-v1", "skiff-engine", "skiff"];

/// The sizes of the files, in megabytes of 1,000,000 bytes.
///
/// # Errors
/// When one is missing.
pub(crate) fn sizes(programs: &Programs, report: &mut Report) -> Result<()> {
    let mut figures = Figures::new("the programs of a node (MB)", &["size"]);
    let mut all = 0.0;
    for name in PROGRAMS {
        let file = programs.skiff.join(name);
        let bytes = file.metadata().with_context(|| format!("cannot look at `{}`", file.display()))?.len();
        let size = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / 1e6;
        if name == "skiff-engine" {
            report.goal(Goal::at_most("size of the engine, MB", size, 9.0));
        }
        all += size;
        figures.row(name, vec![size]);
    }
    report.goal(Goal::at_most("size of the programs together, MB", all, 30.0));
    report.figures(figures);
    Ok(())
}

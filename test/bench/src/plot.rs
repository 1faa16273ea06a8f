//! Draws figures that depend on a number as an SVG.

use std::fmt::Write;

use crate::report::Figures;
use crate::stats::exact;

const PANEL_WIDTH: f64 = 250.0;
const PANEL_HEIGHT: f64 = 160.0;
/// Room around a panel: for the numbers at its axes, and for its title.
const MARGIN: f64 = 55.0;
const COLOURS: [&str; 2] = ["#888888", "#1f6feb"];
const TEXT: &str = "font-family=\"sans-serif\" font-size=\"11\" fill=\"#555555\"";

/// A line of one contender: a name, and points.
type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// Draws one row of panels for each group of tables, and in a row one panel for each of their columns. The tables of a group have the same
/// columns, and each of them becomes a line. A row of a table is named by its number.
pub(crate) fn svg(groups: &[Vec<&Figures>]) -> String {
    let columns = groups.iter().filter_map(|group| group.first()).map(|table| table.columns().len()).max().unwrap_or(0);
    let (width, height) = (across(columns), down(groups.len()));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (row, group) in groups.iter().enumerate() {
        let Some(first) = group.first() else { continue };
        for (column, title) in first.columns().iter().enumerate() {
            let lines: Vec<_> = group.iter().map(|table| (table.title(), points(table, column))).collect();
            panel(&mut text, (across(column), down(row)), title, &lines);
        }
    }
    text + "</svg>\n"
}

fn across(columns: usize) -> f64 {
    exact(columns) * (PANEL_WIDTH + MARGIN)
}

fn down(rows: usize) -> f64 {
    exact(rows) * (PANEL_HEIGHT + 2.0 * MARGIN)
}

fn points(table: &Figures, column: usize) -> Vec<(f64, f64)> {
    let point =
        |(name, figures): &(String, Vec<f64>)| Some((name.split(' ').next()?.parse().ok()?, *figures.get(column)?));
    table.rows().iter().filter_map(point).collect()
}

fn panel(text: &mut String, (left, top): (f64, f64), title: &str, lines: &[Line<'_>]) {
    let all = || lines.iter().flat_map(|(_, points)| points);
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (x_max, y_max) = (most(|point| point.0), most(|point| point.1) * 1.1);
    let (left, top) = (left + MARGIN * 0.8, top + MARGIN);
    let bottom = top + PANEL_HEIGHT;
    // Writing to a string does not fail.
    let mut add = |line: String| writeln!(text, "{line}").unwrap_or_default();
    add(format!("<text x=\"{left:.0}\" y=\"{:.0}\" {TEXT}>{title}</text>", top - 10.0));
    add(format!(
        "<path d=\"M{left:.0},{top:.0} V{bottom:.0} H{:.0}\" fill=\"none\" stroke=\"#bbbbbb\"/>",
        left + PANEL_WIDTH
    ));
    for part in [0.0, 0.5, 1.0] {
        let (x, y) = (left + PANEL_WIDTH * part, bottom - PANEL_HEIGHT * part);
        add(format!(
            "<text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\" {TEXT}>{:.0}</text>",
            bottom + 15.0,
            x_max * part
        ));
        add(format!(
            "<text x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"end\" {TEXT}>{}</text>",
            left - 4.0,
            short(y_max * part)
        ));
    }
    for (number, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let at = |(x, y): &(f64, f64)| (left + PANEL_WIDTH * x / x_max, bottom - PANEL_HEIGHT * y / y_max);
        let path: Vec<_> = points.iter().map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        add(format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" ")));
        let y = bottom + 32.0 + 13.0 * exact(number);
        let name = name.rsplit(": ").next().unwrap_or_default();
        add(format!(
            "<text x=\"{left:.0}\" y=\"{y:.0}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"{colour}\">{name}</text>"
        ));
    }
}

fn short(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_is_a_line_in_each_panel() {
        let mut tables =
            [Figures::new("many: runc", &["time", "memory"]), Figures::new("many: skiff", &["time", "memory"])];
        for (table, factor) in tables.iter_mut().zip([4.0, 1.0]) {
            table.row("50 pods", vec![factor, factor]);
            table.row("100 pods", vec![2.0 * factor, factor]);
        }
        let drawn = svg(&[tables.iter().collect()]);
        assert_eq!(drawn.matches("<polyline").count(), 4);
        assert_eq!(drawn.matches(">skiff</text>").count(), 2);
        // The largest figure is a little below the top, and the largest number at the right.
        assert!(drawn.contains("169.0,142.3 294.0,69.5\""), "{drawn}");
    }
}

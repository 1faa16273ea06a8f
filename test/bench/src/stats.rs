//! Order statistics of a few figures.

use serde::Serialize;

/// The summary of a series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) p90: f64,
}

impl Summary {
    /// The summary of a series; zeros when it is empty.
    pub(crate) fn of(series: &[f64]) -> Self {
        let mut sorted = series.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: median(&sorted), min: sorted.first().copied().unwrap_or(0.0), p90: ninetieth(&sorted) }
    }
}

/// A size in megabytes of 1,000,000 bytes.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    // Kilobytes of a whole machine fit.
    f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX)) * 1024.0 / 1e6
}

/// A small number as one to calculate with.
pub(crate) fn exact(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => 0.0,
        _ if sorted.len().is_multiple_of(2) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// The smallest figure that nine in ten do not exceed.
fn ninetieth(sorted: &[f64]) -> f64 {
    let rank = (sorted.len() * 9).div_ceil(10);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(series: &[f64], median: f64, min: f64, p90: f64) {
        assert_eq!(Summary::of(series), Summary { median, min, p90 });
    }

    #[test]
    fn a_series_is_told_by_three_figures() {
        check(&[], 0.0, 0.0, 0.0);
        check(&[7.0], 7.0, 7.0, 7.0);
        check(&[3.0, 1.0], 2.0, 1.0, 3.0);
        check(&[5.0, 1.0, 3.0], 3.0, 1.0, 5.0);
        check(&[10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 5.5, 1.0, 9.0);
    }
}

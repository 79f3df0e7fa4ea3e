//! Owns one row of results: medians, ratios, targets.

use std::time::Duration;

use serde::Serialize;

/// One result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Median of the runs.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Most.
    pub max: f64,
    /// Unit of the three.
    pub unit: String,
    /// The floor that was measured in the same run.
    pub floor: Option<f64>,
    /// Median over floor.
    pub ratio: Option<f64>,
    /// What is to hold, in words.
    pub target: String,
    /// Whether it does; nothing where a figure is only stated.
    pub holds: Option<bool>,
}

fn median(sorted: &[f64]) -> f64 {
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

impl Row {
    /// A row of plain figures, without a target.
    #[must_use]
    pub fn stated(name: &str, unit: &str, figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self {
            name: name.to_owned(),
            median: median(&sorted),
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
            unit: unit.to_owned(),
            floor: None,
            ratio: None,
            target: "stated".to_owned(),
            holds: None,
        }
    }

    /// A row of times.
    #[must_use]
    pub fn times(name: &str, times: &[Duration]) -> Self {
        let figures: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        Self::stated(name, "s", &figures)
    }

    /// The median is to be at most `limit`.
    #[must_use]
    pub fn at_most(self, limit: f64) -> Self {
        let (target, holds) = (format!("<= {limit} {}", self.unit), self.median <= limit);
        self.bounded(target, holds)
    }

    /// The floor and the ratio to it, in the row's own unit.
    #[must_use]
    pub fn beside(self, floor: &[f64]) -> Self {
        let floor = Self::stated("floor", &self.unit, floor).median;
        Self { floor: Some(floor), ratio: Some(self.median / floor), ..self }
    }

    /// The median is to be at most `factor` times the floor that stands beside it.
    #[must_use]
    pub fn at_most_of_floor(self, factor: f64) -> Self {
        let holds = self.ratio.is_some_and(|ratio| ratio <= factor);
        self.bounded(format!("<= {factor} x floor"), holds)
    }

    /// With one target more.
    fn bounded(self, target: String, holds: bool) -> Self {
        match self.holds {
            None => Self { target, holds: Some(holds), ..self },
            Some(others) => {
                Self { target: format!("{} and {target}", self.target), holds: Some(others && holds), ..self }
            }
        }
    }

    /// The median is to be at most `factor` times (the floor's median plus `slack`).
    #[must_use]
    pub fn against(self, floor: &[Duration], factor: f64, slack: f64) -> Self {
        let floor = Self::times("floor", floor).median;
        let bound = factor * (floor + slack);
        let target = if slack == 0.0 {
            format!("<= {factor} x floor")
        } else {
            format!("<= {factor} x (floor + {slack} s)")
        };
        let (holds, ratio) = (self.median <= bound, self.median / floor);
        Self { floor: Some(floor), ratio: Some(ratio), target, holds: Some(holds), ..self }
    }
}

/// The rows as a table.
#[must_use]
pub fn print(rows: &[Row]) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "{:32} {:>9} {:>9} {:>9} {:4} {:>9} {:>6}  {}\n",
        "name", "median", "min", "max", "unit", "floor", "ratio", "target"
    );
    for row in rows {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let verdict = match row.holds {
            Some(true) => "holds",
            Some(false) => "DOES NOT HOLD",
            None => "",
        };
        let _ = writeln!(
            text,
            "{:32} {:>9.3} {:>9.3} {:>9.3} {:4} {:>9} {:>6}  {} {verdict}",
            row.name,
            row.median,
            row.min,
            row.max,
            row.unit,
            number(row.floor),
            number(row.ratio),
            row.target
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_of_medians() {
        let seconds = |all: &[u64]| all.iter().map(|&s| Duration::from_secs(s)).collect::<Vec<_>>();
        let row = Row::times("x", &seconds(&[9, 2, 4])).against(&seconds(&[1, 2, 3]), 2.0, 0.0);
        assert_eq!(
            (row.median, row.min, row.max, row.ratio, row.holds),
            (4.0, 2.0, 9.0, Some(2.0), Some(true))
        );
        let row = Row::times("x", &seconds(&[4])).against(&seconds(&[1]), 2.0, 0.5);
        assert_eq!(row.holds, Some(false));
    }
}

//! The summary of all runs of each cell.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    figures,
    runs::{Cell, Run, Scenario},
};

/// A figure over all runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) runs: usize,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        Self {
            median: figures::median(values),
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            runs: values.len(),
        }
    }

    pub(crate) fn triple(self) -> (f64, f64, f64) {
        (self.median, self.low, self.high)
    }
}

/// Every figure of every cell.
#[derive(Debug, Default)]
pub(crate) struct Summary(pub(crate) BTreeMap<Cell, BTreeMap<String, Spread>>);

impl Summary {
    pub(crate) fn of(runs: &[Run]) -> Self {
        let mut values: BTreeMap<Cell, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
        for run in runs {
            let of_cell = values.entry(run.cell.clone()).or_default();
            for (name, value) in &run.figures {
                of_cell.entry(name.clone()).or_default().push(*value);
            }
        }
        let spread = |figures: BTreeMap<String, Vec<f64>>| {
            figures.into_iter().map(|(name, values)| (name, Spread::of(&values))).collect()
        };
        Self(values.into_iter().map(|(cell, figures)| (cell, spread(figures))).collect())
    }

    /// The number of runs of a cell.
    pub(crate) fn runs(&self, cell: &Cell) -> usize {
        self.0
            .get(cell)
            .into_iter()
            .flatten()
            .map(|(_, spread)| spread.runs)
            .max()
            .unwrap_or_default()
    }

    pub(crate) fn get(&self, cell: &Cell, figure: &str) -> Option<Spread> {
        self.0.get(cell)?.get(figure).copied()
    }

    /// The cells of one scenario for which `want` returns true.
    pub(crate) fn cells(&self, scenario: Scenario, want: impl Fn(&Cell) -> bool) -> Vec<&Cell> {
        self.0.keys().filter(|cell| cell.scenario == scenario && want(cell)).collect()
    }

    /// The figure of this scenario, contestant and service time in the usual cell.
    pub(crate) fn usual(
        &self,
        scenario: Scenario,
        contestant: &str,
        service_us: u64,
        figure: &str,
    ) -> Option<Spread> {
        let is_it = |cell: &Cell| {
            cell.contestant == contestant && cell.service_us == service_us && cell.is_usual()
        };
        self.cells(scenario, is_it).first().and_then(|cell| self.get(cell, figure))
    }
}

//! The metrics of a run, condensed to what a page can show: scalars by step, and heat maps over steps.
//!
//! Any key may be missing; what is drawn from it is then left out. Arrays: `max_logits` as `[layer][head]`,
//! `expert_load` as `[layer][expert]` with the layers' numbers in `expert_load_layers`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use train::metrics::{self, MetricsError, Record};

use super::heat::{Fold, Heat};

/// Columns of a heat map; more would not be told apart.
const COLUMNS_MAX: usize = 240;

/// (step, value)
pub type Points = Vec<(f64, f64)>;

/// Everything that the page needs to know about `metrics.jsonl`.
#[derive(Default)]
pub struct Series {
    /// Lines read.
    pub lines: usize,
    /// The last step.
    pub last_step: u64,
    /// Numbers by key.
    pub scalars: BTreeMap<String, Points>,
    /// Largest load of an expert over the mean, less 1: mean and worst of the layers, by step.
    pub max_violation: [Points; 2],
    /// Standard deviation of the loads over their mean, averaged over layers, by step.
    pub load_variation: Points,
    /// Largest attention logit, a row per layer and head, and the heads of each layer.
    pub max_logits: Option<(Heat, usize)>,
    /// Load of each expert over the mean: number and map of each layer with experts.
    pub expert_load: Vec<(usize, Heat)>,
}

impl Series {
    /// Reads a run's metrics, twice: how many steps there are decides how wide a column is.
    pub fn read(run: &Path) -> Result<Self, MetricsError> {
        let mut series = Series::default();
        let mut steps_with_arrays = 0;
        for record in metrics::read(run)? {
            let record = record?;
            series.add_scalars(&record);
            steps_with_arrays += usize::from(record.contains_key("max_logits") || record.contains_key("expert_load"));
        }
        let columns = steps_with_arrays.clamp(1, COLUMNS_MAX);
        for record in metrics::read(run)? {
            series.add_maps(&record?, columns);
        }
        Ok(series)
    }

    /// The points of one key; empty if the run does not have it.
    pub fn of(&self, key: &str) -> &[(f64, f64)] {
        self.scalars.get(key).map_or(&[], Vec::as_slice)
    }

    /// The newest value of one key.
    pub fn last(&self, key: &str) -> Option<f64> {
        self.of(key).last().map(|(_, value)| *value)
    }

    fn add_scalars(&mut self, record: &Record) {
        self.lines += 1;
        let step = step_of(record);
        self.last_step = self.last_step.max(step as u64);
        for (key, value) in record {
            let Some(value) = value.as_f64() else { continue };
            match self.scalars.get_mut(key) {
                Some(points) => points.push((step, value)),
                None => drop(self.scalars.insert(key.clone(), vec![(step, value)])),
            }
        }
    }

    fn add_maps(&mut self, record: &Record, columns: usize) {
        let step = step_of(record);
        let column = (step as usize * columns / (self.last_step as usize + 1)).min(columns - 1);
        let logits = rows(record, "max_logits");
        if let Some(heads) = logits.first().map(Vec::len) {
            let all = logits.concat();
            let (heat, _) = self.max_logits.get_or_insert_with(|| (Heat::new(all.len(), columns, Fold::Max), heads));
            heat.add_column(column, &all);
        }
        let loads = rows(record, "expert_load");
        if loads.is_empty() {
            return;
        }
        let relative: Vec<Vec<f64>> = loads.iter().map(|loads| relative_to_mean(loads)).collect();
        self.add_balance(step, &relative);
        if self.expert_load.is_empty() {
            let map = |(layer, loads): (usize, &Vec<f64>)| (layer, Heat::new(loads.len(), columns, Fold::Mean));
            self.expert_load = layer_numbers(record, loads.len()).into_iter().zip(&relative).map(map).collect();
        }
        let maps = self.expert_load.iter_mut().zip(&relative);
        maps.for_each(|((_, heat), loads)| heat.add_column(column, loads));
    }

    fn add_balance(&mut self, step: f64, relative: &[Vec<f64>]) {
        let violations = relative.iter().map(|loads| loads.iter().copied().fold(0.0, f64::max) - 1.0);
        let variation = |loads: &Vec<f64>| (mean(loads.iter().map(|load| (load - 1.0).powi(2)))).sqrt();
        self.max_violation[0].push((step, mean(violations.clone())));
        self.max_violation[1].push((step, violations.fold(f64::MIN, f64::max)));
        self.load_variation.push((step, mean(relative.iter().map(variation))));
    }
}

/// At most `limit` points: neighbours become their mean.
pub fn thin(points: &[(f64, f64)], limit: usize) -> Points {
    let group = points.len().div_ceil(limit).max(1);
    let average = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        let (x, y) = group.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / n, y / n)
    };
    points.chunks(group).map(average).collect()
}

/// The mean over `window` neighbours, as many before as behind (fewer at the ends), so that nothing is shifted.
pub fn smooth(points: &[(f64, f64)], window: usize) -> Points {
    let mut sums = vec![0.0];
    sums.extend(points.iter().scan(0.0, |sum, (_, value)| {
        *sum += value;
        Some(*sum)
    }));
    let at = |i: usize| {
        let (from, to) = (i.saturating_sub(window / 2), (i + window / 2 + 1).min(points.len()));
        (points[i].0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    (0..points.len()).map(at).collect()
}

fn step_of(record: &Record) -> f64 {
    record.get("step").and_then(Value::as_f64).unwrap_or(0.0)
}

/// An array of arrays; a null is NaN. Ragged or missing ones are as if they were not there.
fn rows(record: &Record, key: &str) -> Vec<Vec<f64>> {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let row = |row: &Value| row.as_array().map(|row| row.iter().map(number).collect());
    let rows: Option<Vec<Vec<f64>>> =
        record.get(key).and_then(Value::as_array).map(|rows| rows.iter().map_while(row).collect());
    let rows = rows.unwrap_or_default();
    let even = rows.iter().all(|row| row.len() == rows[0].len() && !row.is_empty());
    if even { rows } else { Vec::new() }
}

/// The numbers of the layers that `expert_load` is about; counted from 0 if the record does not say.
fn layer_numbers(record: &Record, layers: usize) -> Vec<usize> {
    let listed = record.get("expert_load_layers").and_then(Value::as_array);
    let listed = listed.map(|all| all.iter().filter_map(Value::as_u64).map(|layer| layer as usize).collect());
    listed.filter(|all: &Vec<usize>| all.len() == layers).unwrap_or_else(|| (0..layers).collect())
}

fn relative_to_mean(loads: &[f64]) -> Vec<f64> {
    let mean = mean(loads.iter().copied());
    loads.iter().map(|load| if mean > 0.0 { load / mean } else { 1.0 }).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

//! The router: scores, weights of the chosen experts, the balance loss, and their gradients.

use super::chooser::Chooser;
use super::isa::multiversion;
use super::lanes::{dot, max, sum};
use super::math::{exp_nonpositive, sigmoid};
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::kernels::{Balance, RouterShape, Routes, Scoring};
use crate::tensor::Tensor;

multiversion! {
    fn score(logits: &[f32], scoring: Scoring, scores: &mut [f32]) {
        match scoring {
            Scoring::Sigmoid => {
                for (s, x) in scores.iter_mut().zip(logits) {
                    *s = sigmoid(*x);
                }
            }
            Scoring::Softmax => {
                let max = max(logits);
                for (s, x) in scores.iter_mut().zip(logits) {
                    *s = exp_nonpositive(*x - max);
                }
                let sum = sum(scores);
                for s in scores {
                    *s /= sum;
                }
            }
        }
    }
}

multiversion! {
    /// Turns gradients of the scores into gradients of the logits.
    fn score_grad(ds: &mut [f32], s: &[f32], scoring: Scoring) {
        let mean = if scoring == Scoring::Softmax { dot(ds, s) } else { 0.0 };
        for (d, s) in ds.iter_mut().zip(s) {
            *d = match scoring {
                Scoring::Sigmoid => *d * s * (1.0 - s),
                Scoring::Softmax => s * (*d - mean),
            };
        }
    }
}

multiversion! {
    /// Adds the balance loss's gradient with respect to one row of scores.
    fn add_balance_grad(ds: &mut [f32], s: &[f32], frequency: &[f32], alpha: f32) {
        let sum = sum(s);
        let mean = dot(s, frequency) / sum;
        let factor = alpha / sum;
        for (d, f) in ds.iter_mut().zip(frequency) {
            *d = (f - mean).mul_add(factor, *d);
        }
    }
}

/// See [`crate::kernels::Kernels::route`].
pub fn route(isa: Isa, logits_TE: &Tensor, bias_E: &Tensor, shape: &RouterShape) -> Routes {
    let [rows, experts] = logits_TE.dims();
    let top_k = shape.top_k;
    assert_eq!((experts, bias_E.len()), (shape.experts, shape.experts), "route: {logits_TE:?}, {bias_E:?}, {shape:?}");
    let size = experts / shape.groups;
    assert!(top_k >= 1 && top_k <= size * shape.top_groups.min(shape.groups), "route: too few experts in {shape:?}");
    let mut routes = Routes {
        experts_TK: empty(isa, DType::U32, &[rows, top_k]),
        weights_TK: empty(isa, DType::F32, &[rows, top_k]),
        scores_TE: empty(isa, DType::F32, &[rows, experts]),
    };
    let (logits, bias, task_rows) = (logits_TE.host::<f32>(), bias_E.host::<f32>(), rows_per_task(8 * experts));
    let chosen = routes.experts_TK.host_mut::<u32>().chunks_mut(task_rows * top_k);
    let weights = routes.weights_TK.host_mut::<f32>().chunks_mut(task_rows * top_k);
    let scores = routes.scores_TE.host_mut::<f32>().chunks_mut(task_rows * experts);
    let outputs = chosen.zip(weights).zip(scores);
    for_each_item(logits.chunks(task_rows * experts).zip(outputs), |_, (logits, ((chosen, weights), scores))| {
        let (mut chooser, mut biased) = (Chooser::new(isa, shape), vec![0.0; experts]);
        let outputs = chosen.chunks_exact_mut(top_k).zip(weights.chunks_exact_mut(top_k));
        let rows = logits.chunks_exact(experts).zip(scores.chunks_exact_mut(experts)).zip(outputs);
        for ((logits, scores), (chosen, weights)) in rows {
            score(isa, logits, shape.scoring, scores);
            biased.iter_mut().zip(scores.iter().zip(bias)).for_each(|(b, (s, bias))| *b = s + bias);
            chooser.choose(&biased, chosen);
            weigh(scores, chosen, shape, weights);
        }
    });
    routes
}

/// Weights of the chosen experts, from the scores without bias.
fn weigh(scores: &[f32], chosen: &[u32], shape: &RouterShape, weights: &mut [f32]) {
    let divisor = if shape.normalize { chosen_sum(scores, chosen) } else { 1.0 };
    for (weight, &e) in weights.iter_mut().zip(chosen) {
        *weight = scores[e as usize] / divisor * shape.scaling as f32;
    }
}

fn chosen_sum(scores: &[f32], chosen: &[u32]) -> f32 {
    chosen.iter().map(|&e| scores[e as usize]).sum::<f32>() + 1e-20
}

/// See [`crate::kernels::Kernels::route_grad`].
pub fn route_grad(
    isa: Isa,
    routes: &Routes,
    dweights_TK: &Tensor,
    balance: Option<&Balance>,
    shape: &RouterShape,
) -> Tensor {
    let [rows, experts] = routes.scores_TE.dims();
    let mut dlogits = empty(isa, DType::F32, &[rows, experts]);
    if dlogits.is_empty() {
        return dlogits;
    }
    let chosen = routes.experts_TK.host::<u32>();
    let frequencies = balance.map(|balance| Frequencies::new(chosen, balance, shape));
    let (task_rows, top_k) = (rows_per_task(experts), shape.top_k);
    let inputs = routes.scores_TE.host::<f32>().chunks(task_rows * experts).zip(chosen.chunks(task_rows * top_k));
    let inputs = inputs.zip(dweights_TK.host::<f32>().chunks(task_rows * top_k));
    let outputs = dlogits.host_mut::<f32>().chunks_mut(task_rows * experts);
    for_each_item(inputs.zip(outputs), |task, (((scores, chosen), dweights), ds)| {
        let choices = chosen.chunks_exact(top_k).zip(dweights.chunks_exact(top_k));
        let rows = scores.chunks_exact(experts).zip(ds.chunks_exact_mut(experts)).zip(choices).enumerate();
        for (row, ((scores, ds), (chosen, dweights))) in rows {
            ds.fill(0.0);
            weigh_grad(scores, chosen, dweights, shape, ds);
            if let (Some(frequencies), Some(balance)) = (&frequencies, balance) {
                add_balance_grad(isa, ds, scores, frequencies.of_row(task * task_rows + row), balance.alpha as f32);
            }
            score_grad(isa, ds, scores, shape.scoring);
        }
    });
    dlogits
}

/// Gradient of the chosen scores from that of their weights.
fn weigh_grad(scores: &[f32], chosen: &[u32], dweights: &[f32], shape: &RouterShape, ds: &mut [f32]) {
    let sum = chosen_sum(scores, chosen);
    let mean = chosen.iter().zip(dweights).map(|(&e, d)| scores[e as usize] * d).sum::<f32>() / sum;
    for (&e, d) in chosen.iter().zip(dweights) {
        let slope = if shape.normalize { (d - mean) / sum } else { *d };
        ds[e as usize] = slope * shape.scaling as f32;
    }
}

/// For each sequence its f_E: f_e = E / (K·T) · choices of e.
struct Frequencies {
    /// Row after the last of each sequence.
    ends: Vec<usize>,
    /// One row of E per sequence.
    values: Vec<f32>,
    experts: usize,
}

impl Frequencies {
    fn new(chosen: &[u32], balance: &Balance, shape: &RouterShape) -> Self {
        let (mut ends, mut values, mut end) = (Vec::new(), Vec::new(), 0);
        for &len in &balance.lengths {
            let mut counts = vec![0u32; shape.experts];
            chosen[end * shape.top_k..(end + len) * shape.top_k].iter().for_each(|&e| counts[e as usize] += 1);
            let unit = shape.experts as f32 / (shape.top_k * len) as f32;
            values.extend(counts.iter().map(|&count| count as f32 * unit));
            end += len;
            ends.push(end);
        }
        assert_eq!(end * shape.top_k, chosen.len(), "balance: sequences must cover all tokens");
        Self { ends, values, experts: shape.experts }
    }

    fn of_row(&self, row: usize) -> &[f32] {
        let sequence = self.ends.partition_point(|&end| end <= row);
        &self.values[sequence * self.experts..][..self.experts]
    }
}

multiversion! {
    /// Mean frequency of a row's experts, weighted by its normalised scores.
    fn mean_frequency(s: &[f32], frequency: &[f32]) -> f64 {
        f64::from(dot(s, frequency)) / f64::from(sum(s))
    }
}

/// See [`crate::kernels::Kernels::balance_loss`].
pub fn balance_loss(isa: Isa, routes: &Routes, balance: &Balance, shape: &RouterShape) -> f64 {
    let frequencies = Frequencies::new(routes.experts_TK.host(), balance, shape);
    let scores = routes.scores_TE.host::<f32>().chunks_exact(shape.experts).enumerate();
    scores.map(|(row, s)| balance.alpha * mean_frequency(isa, s, frequencies.of_row(row))).sum()
}

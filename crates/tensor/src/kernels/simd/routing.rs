//! Mixture of experts: scores and choice of experts, sorting by expert, weighted sums of their outputs.

use super::isa::multiversion;
use super::lanes::{Real, dot, max, real, sum};
use super::math::{exp_nonpositive, sigmoid};
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::kernels::{Balance, Dispatch, RouterShape, Routes, Scoring};
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
    /// Writes the sum of `width` columns of rows times their weights, in the rows' order.
    fn add_weighted<A: Real>(x: &[A], rows: &[u32], weights: &[f32], sum: &mut [f32]) {
        let width = sum.len();
        sum.fill(0.0);
        let ((fours, rest), (four_weights, rest_weights)) = (rows.as_chunks::<4>(), weights.as_chunks::<4>());
        for (rows, w) in fours.iter().zip(four_weights) {
            let [a, b, c, d] = rows.map(|row| &x[row as usize * width..][..width]);
            for i in 0..width {
                let two = b[i].get().mul_add(w[1], a[i].get().mul_add(w[0], sum[i]));
                sum[i] = d[i].get().mul_add(w[3], c[i].get().mul_add(w[2], two));
            }
        }
        for (row, w) in rest.iter().zip(rest_weights) {
            let row = &x[*row as usize * width..][..width];
            for i in 0..width {
                sum[i] = row[i].get().mul_add(*w, sum[i]);
            }
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

multiversion! {
    fn dots<A: Real, B: Real>(a: &[A], b: &[B], out: &mut [f32]) {
        let width = a.len() / out.len();
        for ((a, b), out) in a.chunks_exact(width).zip(b.chunks_exact(width)).zip(out) {
            *out = dot(a, b);
        }
    }
}

/// An integer in the order of `f32::total_cmp`.
#[inline(always)]
fn order(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

multiversion! {
    /// Keys that order values, and equal ones by their place, the lower first.
    fn keys_of(values: &[f32], keys: &mut [i64]) {
        for (place, (key, value)) in keys.iter_mut().zip(values).enumerate() {
            *key = i64::from(order(*value)) << 32 | i64::from(!(place as u32));
        }
    }
}

multiversion! {
    /// The places of the largest keys, largest first.
    fn largest(keys: &[i64], chosen: &mut [u32]) {
        let mut last = i64::MAX;
        for chosen in chosen {
            // Looking for the largest below the last one needs no marks, for whose writing the reads would wait.
            let mut largest = i64::MIN;
            for key in keys {
                largest = largest.max(if *key < last { *key } else { i64::MIN });
            }
            last = largest;
            *chosen = !(largest as u32);
        }
    }
}

/// Chooses experts for one row after the other; holds the scratch that takes.
struct Chooser<'a> {
    isa: Isa,
    shape: &'a RouterShape,
    keys: Vec<i64>,
    group_scores: Vec<f32>,
    group_keys: Vec<i64>,
}

impl<'a> Chooser<'a> {
    fn new(isa: Isa, shape: &'a RouterShape) -> Self {
        let RouterShape { experts, groups, .. } = *shape;
        Self { isa, shape, keys: vec![0; experts], group_scores: vec![0.0; groups], group_keys: vec![0; groups] }
    }

    /// Writes the experts with the highest biased scores among the best groups, best first.
    fn choose(&mut self, biased: &[f32], chosen: &mut [u32]) {
        keys_of(self.isa, biased, &mut self.keys);
        if self.shape.top_groups < self.shape.groups {
            self.exclude_groups(biased);
        }
        largest(self.isa, &self.keys, chosen);
    }

    /// A group is judged by the sum of its best scores; experts of all but the best groups drop out.
    fn exclude_groups(&mut self, biased: &[f32]) {
        let RouterShape { experts, groups, top_groups, group_best, .. } = *self.shape;
        let size = experts / groups;
        let mut best = vec![0; group_best.min(size).max(top_groups)];
        for (keys, score) in self.keys.chunks_exact(size).zip(&mut self.group_scores) {
            let best = &mut best[..group_best.min(size)];
            largest(self.isa, keys, best);
            *score = best.iter().map(|&e| biased[e as usize]).sum();
        }
        keys_of(self.isa, &self.group_scores, &mut self.group_keys);
        largest(self.isa, &self.group_keys, &mut best[..top_groups]);
        for (group, keys) in self.keys.chunks_exact_mut(size).enumerate() {
            if !best[..top_groups].contains(&(group as u32)) {
                keys.fill(i64::MIN);
            }
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

/// See [`crate::kernels::Kernels::dispatch`]: a counting sort.
pub fn dispatch(isa: Isa, experts_TK: &Tensor, experts: usize) -> Dispatch {
    let chosen = experts_TK.host::<u32>();
    let mut dispatch = Dispatch {
        choice_S: empty(isa, DType::U32, &[chosen.len()]),
        row_TK: empty(isa, DType::U32, experts_TK.shape()),
        offsets: empty(isa, DType::U32, &[experts + 1]),
    };
    let offsets = dispatch.offsets.host_mut::<u32>();
    offsets.fill(0);
    chosen.iter().for_each(|&e| offsets[e as usize + 1] += 1);
    (0..experts).for_each(|e| offsets[e + 1] += offsets[e]);
    let mut next = offsets[..experts].to_vec();
    let (choices, rows) = (dispatch.choice_S.host_mut::<u32>(), dispatch.row_TK.host_mut::<u32>());
    for (choice, (&e, row)) in chosen.iter().zip(rows).enumerate() {
        *row = next[e as usize];
        choices[*row as usize] = choice as u32;
        next[e as usize] += 1;
    }
    dispatch
}

/// See [`crate::kernels::Kernels::combine`].
pub fn combine(isa: Isa, rows_SD: &Tensor, dispatch: &Dispatch, weights_TK: Option<&Tensor>) -> Tensor {
    let ([_, width], [tokens, top_k]) = (rows_SD.dims(), dispatch.row_TK.dims());
    let mut out = empty(isa, DType::F32, &[tokens, width]);
    if out.is_empty() {
        return out;
    }
    let (rows, weights, ones) = (dispatch.row_TK.host::<u32>(), weights_TK.map(Tensor::host::<f32>), vec![1.0; top_k]);
    let task_rows = rows_per_task(width * top_k);
    real!(rows_SD.dtype(), A => {
        let x = rows_SD.host::<A>();
        for_each_item(out.host_mut::<f32>().chunks_mut(task_rows * width), |task, out| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let choices = (task * task_rows + i) * top_k..(task * task_rows + i + 1) * top_k;
                let weights = weights.map_or(&ones[..], |weights| &weights[choices.clone()]);
                add_weighted(isa, x, &rows[choices], weights, out);
            }
        });
    });
    out
}

/// See [`crate::kernels::Kernels::row_dot`].
pub fn row_dot(isa: Isa, a_SC: &Tensor, b_SC: &Tensor) -> Tensor {
    let [rows, width] = a_SC.dims();
    assert_eq!(a_SC.shape(), b_SC.shape(), "row_dot: shapes differ");
    let mut out = empty(isa, DType::F32, &[rows]);
    if width == 0 {
        out.host_mut::<f32>().fill(0.0);
        return out;
    }
    let task_rows = rows_per_task(width);
    real!(a_SC.dtype(), A => real!(b_SC.dtype(), B => {
        let inputs = a_SC.host::<A>().chunks(task_rows * width).zip(b_SC.host::<B>().chunks(task_rows * width));
        let outputs = out.host_mut::<f32>().chunks_mut(task_rows);
        for_each_item(inputs.zip(outputs), |_, ((a, b), out)| dots(isa, a, b, out));
    }));
    out
}

//! Causal attention in blocks of keys with a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! A task takes some queries of one head through the blocks of keys that they see. Each query's maximum, sum and
//! output are updated block by block, counted from the segment's first key. A masked score contributes an exact
//! zero, so nothing about a query depends on which other queries share its task, or on later keys.

#![expect(unsafe_code, reason = "tasks write the columns of their head")]

use super::attention_blocks::{Blocks, Columns, Inputs, KEYS, Scratch, Steps, Tiles, check_segments};
use super::attention_few::{FEW, add_values};
use super::fold::{fold_max, fold_sum, larger};
use super::gemm::words::Order;
use super::isa::multiversion;
use super::lanes::Real;
use super::math::{exp_nonpositive, log};
use super::parallel::{empty, for_each_item};
use crate::dtype::{Bf16, DType};
use crate::kernels::simd::Isa;
use crate::kernels::{AttentionOutput, AttentionShape, Segment};
use crate::tensor::Tensor;

/// Most queries of a task: enough to make packing a block of keys cheap, few enough for the second cache.
const QUERIES: usize = 512;

/// Some queries of one head.
struct Task {
    segment: Segment,
    head: usize,
    /// First query, counted from the segment's first.
    first: usize,
    count: usize,
}

impl Task {
    /// Number of the segment's keys that the task's query `i` sees.
    fn visible(&self, i: usize) -> usize {
        self.segment.key_len - self.segment.query_len + self.first + i + 1
    }
}

/// See [`crate::kernels::Kernels::attention`].
pub fn attention(
    isa: Isa,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    shape: &AttentionShape,
    segments: &[Segment],
) -> AttentionOutput {
    let inputs = Inputs::new(isa, (q, kv, k_rope), shape);
    let (queries, heads) = (q.shape()[0], shape.heads);
    let mut output = AttentionOutput {
        out: empty(isa, q.dtype(), &[queries, heads * shape.value]),
        log_sum_exp_TH: empty(isa, DType::F32, &[queries, heads]),
        max_logit_H: empty(isa, DType::F32, &[heads]),
    };
    let (all_queries, _) = check_segments(segments, queries, kv.shape()[0], false);
    if !all_queries {
        output.out = Tensor::zeros(output.out.device(), q.dtype(), output.out.shape());
        output.log_sum_exp_TH = Tensor::zeros(output.out.device(), DType::F32, &[queries, heads]);
    }
    let blocks = Blocks::new(isa, inputs.q.dtype());
    let tasks = tasks(segments, heads);
    let mut largest = vec![f32::NEG_INFINITY; tasks.len()];
    let (out, log_sums) = (Columns::of(&mut output.out), Columns::of(&mut output.log_sum_exp_TH));
    for_each_item(tasks.iter().zip(&mut largest), |_, (task, largest)| {
        let forward = Forward::new(&blocks, &inputs, task);
        let run = if blocks.rounds_left() { Forward::run::<Bf16> } else { Forward::run::<f32> };
        *largest = run(&forward, &out, &log_sums);
    });
    let max_logit = output.max_logit_H.host_mut::<f32>();
    max_logit.fill(f32::NEG_INFINITY);
    tasks.iter().zip(largest).for_each(|(task, x)| max_logit[task.head] = max_logit[task.head].max(x));
    output
}

/// Cuts the segments' queries into tasks, the longest first.
fn tasks(segments: &[Segment], heads: usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    for segment in segments {
        let parts = segment.query_len.div_ceil(QUERIES);
        for (part, head) in (0..parts).flat_map(|part| (0..heads).map(move |head| (part, head))) {
            let [first, end] = [part, part + 1].map(|part| part * segment.query_len / parts);
            tasks.push(Task { segment: *segment, head, first, count: end - first });
        }
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.count * task.visible(task.count - 1)));
    tasks
}

/// One task at work.
struct Forward<'a> {
    blocks: &'a Blocks,
    inputs: &'a Inputs,
    task: &'a Task,
    tiles: Tiles,
    /// Steps of a score's sum.
    steps: usize,
    /// Width of the values in whole panels.
    value_padded: usize,
}

/// Running statistics of a task's queries.
struct Running {
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl<'a> Forward<'a> {
    fn new(blocks: &'a Blocks, inputs: &'a Inputs, task: &'a Task) -> Self {
        let AttentionShape { nope, rope, value, .. } = inputs.shape;
        let (steps, value_padded) = (blocks.steps(nope) + blocks.steps(rope), blocks.padded(value));
        Self { blocks, inputs, task, tiles: blocks.tiles(task.count), steps, value_padded }
    }

    /// Writes outputs and logarithms of the denominators; returns the largest scaled score. Probabilities become
    /// operands of products as `P`.
    fn run<P: Real>(&self, out: &Columns, log_sums: &Columns) -> f32 {
        let Self { blocks, inputs, task, tiles, steps, value_padded } = *self;
        let (segment, value, tile_rows) = (task.segment, inputs.shape.value, blocks.tile_rows());
        let words = [
            blocks.left_words(steps) * tiles.count(),
            blocks.right_words(KEYS, steps),
            blocks.right_words(value, blocks.steps(KEYS)),
        ];
        let floats = [tile_rows * KEYS, task.count * value_padded];
        let (mut words_memory, mut floats_memory) = (Scratch::new(&words), Scratch::new(&floats));
        let p_stride = blocks.along_stride::<P>();
        let mut p_memory = Scratch::new(&[tile_rows * p_stride]);
        let [q_words, k_words, v_words] = words_memory.split::<u32, 3>(words);
        let [scores, sums] = floats_memory.split::<f32, 2>(floats);
        let [p] = p_memory.split::<P, 1>([tile_rows * p_stride]);
        let mut running = Running { max: vec![f32::NEG_INFINITY; task.count], sum: vec![0.0; task.count] };

        self.pack_queries(q_words);
        let is_few = task.count <= FEW;
        let last = task.visible(task.count - 1);
        for start in (0..last).step_by(KEYS) {
            let keys = KEYS.min(segment.key_len - start);
            self.pack_keys(start, keys, k_words);
            if !is_few {
                let values = inputs.values(task.head, segment.key_start + start, Order::BySteps);
                blocks.pack_right(values, value, keys, Steps::all(blocks.steps(keys)), v_words);
            }
            let next = segment.key_start + (start + KEYS).min(last)..segment.key_start + (start + 2 * KEYS).min(last);
            inputs.prefetch(task.head, next);
            for tile in 0..tiles.count() {
                let rows = tiles.tile(tile);
                // Keys of this block that the tile's last query sees.
                let seen = task.visible(rows.end - 1).saturating_sub(start).min(KEYS);
                if seen == 0 {
                    continue;
                }
                let q = (&q_words[tile * blocks.left_words(steps)..], rows.len());
                blocks.multiply(q, (k_words, steps), (seen, steps), (scores, KEYS), false);
                let sums = &mut sums[rows.start * value_padded..rows.end * value_padded];
                let seen_first = task.visible(rows.start) as isize - start as isize;
                let (max, sum) = (&mut running.max[rows.clone()], &mut running.sum[rows.clone()]);
                soften(blocks.isa, scores, seen_first, inputs.shape.scale as f32, max, sum, sums, (p, p_stride));
                if is_few {
                    self.add_few(start, seen, (p, p_stride), sums);
                    continue;
                }
                let (v, extent) = ((&*v_words, blocks.steps(keys)), (value, blocks.steps(seen)));
                blocks.multiply_along((p, rows.len()), v, extent, (sums, value_padded), start > 0);
            }
        }
        self.finish(&running, sums, out, log_sums)
    }

    fn pack_queries(&self, to: &mut [u32]) {
        let first = self.task.segment.query_start + self.task.first;
        let mut at = 0;
        for (operand, width) in self.inputs.queries(self.task.head, first, Order::ByLines) {
            self.blocks.pack_left(operand, self.tiles, width, Steps { at, all: self.steps }, to);
            at += self.blocks.steps(width);
        }
    }

    /// Packs `count` keys from the segment's key `start` on.
    fn pack_keys(&self, start: usize, count: usize, k_words: &mut [u32]) {
        let (blocks, first) = (self.blocks, self.task.segment.key_start + start);
        let mut at = 0;
        for (operand, width) in self.inputs.keys(self.task.head, first, Order::ByLines) {
            blocks.pack_right(operand, count, width, Steps { at, all: self.steps }, k_words);
            at += blocks.steps(width);
        }
    }

    /// Adds the values of the block at `start` for the few queries of this task, of which the last sees `seen`.
    fn add_few<P: Real>(&self, start: usize, seen: usize, (p, p_stride): (&[P], usize), sums: &mut [f32]) {
        let (task, inputs) = (self.task, self.inputs);
        let values = inputs.values(task.head, task.segment.key_start + start, Order::BySteps);
        for (p, sums) in p.chunks(p_stride).zip(sums.chunks_exact_mut(self.value_padded)) {
            if start == 0 {
                sums.fill(0.0);
            }
            add_values(self.blocks.isa, &p[..seen], values, inputs.shape.value, sums);
        }
    }

    fn finish(&self, running: &Running, sums: &mut [f32], out: &Columns, log_sums: &Columns) -> f32 {
        let (isa, task, value) = (self.blocks.isa, self.task, self.inputs.shape.value);
        for (i, sums) in sums.chunks_exact_mut(self.value_padded).enumerate() {
            let row = task.segment.query_start + task.first + i;
            let sums = &mut sums[..value];
            scale_row(isa, sums, 1.0 / running.sum[i]);
            // SAFETY: the caller's tensors, in which this task's queries and head are its own.
            unsafe {
                out.write(isa, row, task.head * value, sums);
                log_sums.write(isa, row, task.head, &[running.max[i] + log(running.sum[i])]);
            }
        }
        running.max.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

multiversion! {
    fn scale_row(sums: &mut [f32], inverse: f32) {
        // Whether masked keys follow may change the sign of a zero; adding zero makes it positive.
        sums.iter_mut().for_each(|x| *x = x.mul_add(inverse, 0.0));
    }
}

multiversion! {
    /// Turns a tile's scores into exponentials `p` relative to the running maximum and brings the running sums up
    /// to it. Row i sees the first `seen_first + i` keys of the block.
    fn soften<P: Real>(
        scores: &mut [f32], seen_first: isize, scale: f32, max: &mut [f32], sum: &mut [f32], sums: &mut [f32],
        p: (&mut [P], usize),
    ) {
        let width = sums.len() / max.len();
        let rows = scores.as_chunks_mut::<KEYS>().0.iter_mut().zip(p.0.chunks_mut(p.1));
        for (i, ((row, p), (max, sum))) in rows.zip(max.iter_mut().zip(sum)).enumerate() {
            let seen = seen_first.saturating_add_unsigned(i).max(0) as usize;
            if seen < KEYS {
                row[seen..].fill(f32::NEG_INFINITY);
            }
            let new_max = larger(fold_max::<QUADS>(quads(row)) * scale, *max);
            if new_max != *max {
                // Zero for the first block, whose sums start from nothing.
                let shrink = exp_nonpositive(*max - new_max);
                *sum *= shrink;
                if *max != f32::NEG_INFINITY {
                    sums[i * width..][..width].iter_mut().for_each(|x| *x *= shrink);
                }
                *max = new_max;
            }
            for (x, p) in row.iter_mut().zip(p) {
                *x = exp_nonpositive(x.mul_add(scale, -new_max));
                *p = P::put(*x);
            }
            *sum += fold_sum::<QUADS>(quads(row));
        }
    }
}

const QUADS: usize = KEYS / 4;

#[inline(always)]
fn quads(row: &[f32; KEYS]) -> &[[f32; 4]; QUADS] {
    row.as_chunks().0.try_into().expect("a multiple of four")
}

//! Causal attention in blocks of keys with a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! A task takes some queries of one head through the blocks of keys that they see. Each query's maximum, sum and
//! output are updated block by block, counted from the segment's first key. A masked score contributes an exact
//! zero, so nothing about a query depends on which other queries share its task, or on later keys.

#![expect(unsafe_code, reason = "tasks write the columns of their head")]

use super::attention_blocks::{Blocks, Columns, Inputs, KEYS, Scratch, Tiles, check_segments};
use super::gemm::words::{Numbers, Operand, Order};
use super::isa::multiversion;
use super::math::{exp_nonpositive, log};
use super::parallel::{empty, for_each_item};
use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::kernels::{AttentionOutput, AttentionShape, Segment};
use crate::tensor::Tensor;

/// Most queries of a task: enough to make packing a block of keys cheap, few enough for the second cache.
const QUERIES: usize = 256;

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
    let tasks = tasks(&blocks, segments, heads);
    let mut largest = vec![f32::NEG_INFINITY; tasks.len()];
    let (out, log_sums) = (Columns::of(&mut output.out), Columns::of(&mut output.log_sum_exp_TH));
    for_each_item(tasks.iter().zip(&mut largest), |_, (task, largest)| {
        *largest = Forward::new(&blocks, &inputs, task).run(&out, &log_sums);
    });
    let max_logit = output.max_logit_H.host_mut::<f32>();
    max_logit.fill(f32::NEG_INFINITY);
    tasks.iter().zip(largest).for_each(|(task, x)| max_logit[task.head] = max_logit[task.head].max(x));
    output
}

/// Cuts the segments' queries into tasks, the longest first.
fn tasks(blocks: &Blocks, segments: &[Segment], heads: usize) -> Vec<Task> {
    let most = QUERIES - QUERIES % blocks.tile_rows();
    let mut tasks = Vec::new();
    for segment in segments {
        for (first, head) in (0..segment.query_len).step_by(most).flat_map(|first| (0..heads).map(move |h| (first, h)))
        {
            tasks.push(Task { segment: *segment, head, first, count: most.min(segment.query_len - first) });
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
    /// Query and key width.
    depth: usize,
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
        let (depth, value_padded) = (inputs.shape.nope + inputs.shape.rope, blocks.padded(inputs.shape.value));
        Self { blocks, inputs, task, tiles: blocks.tiles(task.count), depth, value_padded }
    }

    /// Writes outputs and logarithms of the denominators; returns the largest scaled score.
    fn run(&self, out: &Columns, log_sums: &Columns) -> f32 {
        let Self { blocks, inputs, task, tiles, depth, value_padded } = *self;
        let (segment, value, tile_rows) = (task.segment, inputs.shape.value, blocks.tile_rows());
        let words = [
            blocks.left_words(depth) * tiles.count(),
            blocks.right_words(KEYS, depth),
            blocks.right_words(value, KEYS),
            blocks.left_words(KEYS),
        ];
        let floats = [tile_rows * KEYS, task.count * value_padded];
        let (mut words_memory, mut floats_memory) = (Scratch::new(&words), Scratch::new(&floats));
        let [q_words, k_words, v_words, p_words] = words_memory.split::<u32, 4>(words);
        let [scores, sums] = floats_memory.split::<f32, 2>(floats);
        let (mut keys, mut running) =
            (inputs.key_block(), Running { max: vec![f32::NEG_INFINITY; task.count], sum: vec![0.0; task.count] });

        let queries = inputs.queries(task.head, segment.query_start + task.first, Order::ByLines);
        blocks.pack_left(queries, tiles, depth, q_words);
        for start in (0..task.visible(task.count - 1)).step_by(KEYS) {
            let (first, count) = (segment.key_start + start, KEYS.min(segment.key_len - start));
            inputs.copy_keys(task.head, first, count, &mut keys);
            let keys = Operand { numbers: Numbers::of(&keys), stride: depth, order: Order::ByLines };
            blocks.pack_right(keys, count, depth, k_words);
            blocks.pack_right(inputs.values(task.head, first, Order::BySteps), value, count, v_words);
            for tile in 0..tiles.count() {
                let (row, rows) = tiles.tile(tile);
                // Keys of this block that the tile's last query sees.
                let seen = task.visible(row + rows - 1).saturating_sub(start).min(KEYS);
                if seen == 0 {
                    continue;
                }
                let q = &q_words[tile * blocks.left_words(depth)..];
                blocks.multiply((q, rows), (k_words, depth), (seen, depth), (scores, KEYS), false);
                let sums = &mut sums[row * value_padded..][..rows * value_padded];
                let seen_first = task.visible(row) as isize - start as isize;
                let (max, sum) = (&mut running.max[row..row + rows], &mut running.sum[row..row + rows]);
                soften(blocks.isa, scores, seen_first, inputs.shape.scale as f32, max, sum, sums);
                let p = Operand { numbers: Numbers::F32(scores), stride: KEYS, order: Order::ByLines };
                blocks.pack_left(p, blocks.tiles(rows), seen, p_words);
                blocks.multiply((p_words, rows), (v_words, count), (value, seen), (sums, value_padded), start > 0);
            }
        }
        self.finish(&running, sums, out, log_sums)
    }

    fn finish(&self, running: &Running, sums: &mut [f32], out: &Columns, log_sums: &Columns) -> f32 {
        let (task, shape) = (self.task, self.inputs.shape);
        for (i, sums) in sums.chunks_exact_mut(self.value_padded).enumerate() {
            let row = task.segment.query_start + task.first + i;
            let (sums, inverse) = (&mut sums[..shape.value], 1.0 / running.sum[i]);
            scale_row(self.blocks.isa, sums, inverse);
            // SAFETY: the caller's tensors, in which this task's queries and head are its own.
            unsafe {
                out.write(row, task.head * shape.value, sums);
                log_sums.write(row, task.head, &[running.max[i] + log(running.sum[i])]);
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
    /// Turns a tile's scores into exponentials relative to the running maximum and brings the running sums up
    /// to it. Row i sees the first `seen_first + i` keys of the block.
    fn soften(
        scores: &mut [f32], seen_first: isize, scale: f32, max: &mut [f32], sum: &mut [f32], sums: &mut [f32],
    ) {
        let width = sums.len() / max.len();
        for (i, row) in scores.as_chunks_mut::<KEYS>().0[..max.len()].iter_mut().enumerate() {
            let seen = seen_first.saturating_add_unsigned(i).max(0) as usize;
            if seen < KEYS {
                row[seen..].fill(f32::NEG_INFINITY);
            }
            let new_max = (largest(row) * scale).max(max[i]);
            for x in row.iter_mut() {
                *x = exp_nonpositive(x.mul_add(scale, -new_max));
            }
            if new_max != max[i] {
                // Zero for the first block, whose sums start from nothing.
                let shrink = exp_nonpositive(max[i] - new_max);
                sum[i] *= shrink;
                if max[i] != f32::NEG_INFINITY {
                    sums[i * width..][..width].iter_mut().for_each(|x| *x *= shrink);
                }
                max[i] = new_max;
            }
            sum[i] += total(row);
        }
    }
}

/// Largest of a row's scores.
#[inline(always)]
fn largest(row: &[f32; KEYS]) -> f32 {
    let mut x = *row;
    let mut half = KEYS / 2;
    while half > 0 {
        for i in 0..half {
            x[i] = if x[i + half] > x[i] { x[i + half] } else { x[i] };
        }
        half /= 2;
    }
    x[0]
}

/// Sum of a row, by halves.
#[inline(always)]
fn total(row: &[f32; KEYS]) -> f32 {
    let mut x = *row;
    let mut half = KEYS / 2;
    while half > 0 {
        for i in 0..half {
            x[i] += x[i + half];
        }
        half /= 2;
    }
    x[0]
}

//! The backward pass of attention: scores are computed again from the logarithms of the denominators.
//!
//! A task is one head of one segment. It goes through blocks of keys and, for each, through the blocks of queries
//! that see them. Every gradient element is one chain of multiply-adds over ascending queries or keys of its own
//! segment. With bf16 inputs probabilities and their gradients are rounded to bf16, as operands of products.

#![expect(unsafe_code, reason = "tasks write the columns of their head")]

use std::ops::Range;

use super::attention_blocks::{Blocks, Columns, Inputs, KEYS, Scratch, Steps, check_segments};
use super::gemm::words::{Numbers, Operand, Order};
use super::isa::multiversion;
use super::lanes::{Real, dot, real};
use super::math::exp_nonpositive;
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::dtype::{Bf16, DType};
use crate::kernels::simd::Isa;
use crate::kernels::{AttentionOutput, AttentionShape, Segment};
use crate::pool;
use crate::tensor::Tensor;

/// Rows in a block of queries, at most.
const QUERY_ROWS: usize = 64;

/// See [`crate::kernels::Kernels::attention_grad`].
pub fn attention_grad(
    isa: Isa,
    (q, kv, k_rope): (&Tensor, &Tensor, &Tensor),
    output: &AttentionOutput,
    dout: &Tensor,
    shape: &AttentionShape,
    segments: &[Segment],
) -> (Tensor, Tensor, Tensor) {
    let inputs = Inputs::new(isa, (q, kv, k_rope), shape);
    let blocks = Blocks::new(isa, inputs.q.dtype());
    attention_grad_with(blocks, (q, kv), inputs, output, dout, segments)
}

/// Gradients by way of some micro-kernel.
fn attention_grad_with(
    blocks: Blocks,
    (q, kv): (&Tensor, &Tensor),
    inputs: Inputs,
    output: &AttentionOutput,
    dout: &Tensor,
    segments: &[Segment],
) -> (Tensor, Tensor, Tensor) {
    let (isa, shape) = (blocks.isa, &inputs.shape.clone());
    let (queries, keys) = (q.shape()[0], kv.shape()[0]);
    assert_eq!(output.out.shape(), [queries, shape.heads * shape.value], "attention_grad: shape of the output");
    assert_eq!(dout.shape(), output.out.shape(), "attention_grad: shape of the output's gradient");
    let (all_queries, all_keys) = check_segments(segments, queries, keys, true);
    let new = |covered: bool, dtype: DType, shape: &[usize]| {
        let out = empty(isa, dtype, shape);
        if covered { out } else { Tensor::zeros(out.device(), dtype, shape) }
    };
    let mut dq = new(all_queries, q.dtype(), q.shape());
    let mut dkv = new(all_keys, kv.dtype(), kv.shape());
    let mut dk_rope_heads = new(all_keys, DType::F32, &[shape.heads * keys, shape.rope]);
    let delta_TH = deltas(isa, &output.out, dout, shape);
    let pass = Pass {
        blocks,
        dout,
        log_sum_exp: output.log_sum_exp_TH.host(),
        delta: delta_TH.host(),
        keys,
        dq: Columns::of(&mut dq),
        dkv: Columns::of(&mut dkv),
        dk_rope: Columns::of(&mut dk_rope_heads),
        inputs,
    };
    let mut tasks: Vec<_> = segments.iter().flat_map(|s| (0..shape.heads).map(move |h| (*s, h))).collect();
    tasks.sort_by_key(|(segment, _)| std::cmp::Reverse(segment.query_len * segment.key_len));
    pool::for_each(tasks.len(), &|i| {
        let head = Head::new(&pass, tasks[i].0, tasks[i].1);
        if pass.blocks.rounds_left() { head.run::<Bf16>() } else { head.run::<f32>() }
    });
    let dk_rope = sum_heads(isa, &dk_rope_heads, shape.heads);
    (dq, dkv, dk_rope)
}

multiversion! {
    fn row_dots<A: Real, B: Real>(a: &[A], b: &[B], width: usize, out: &mut [f32]) {
        for ((a, b), out) in a.chunks_exact(width).zip(b.chunks_exact(width)).zip(out) {
            *out = dot(a, b);
        }
    }
}

/// Dot products of each head's output with its gradient, `[T, H]`.
fn deltas(isa: Isa, out: &Tensor, dout: &Tensor, shape: &AttentionShape) -> Tensor {
    let [rows, width] = out.dims();
    let mut delta = empty(isa, DType::F32, &[rows, shape.heads]);
    let task_rows = rows_per_task(width);
    real!(out.dtype(), A => real!(dout.dtype(), B => {
        let inputs = out.host::<A>().chunks(task_rows * width).zip(dout.host::<B>().chunks(task_rows * width));
        let outputs = delta.host_mut::<f32>().chunks_mut(task_rows * shape.heads);
        for_each_item(inputs.zip(outputs), |_, ((a, b), delta)| row_dots(isa, a, b, shape.value, delta));
    }));
    delta
}

multiversion! {
    fn add(sum: &mut [f32], x: &[f32]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

/// Adds up the heads' gradients of the rotary keys, heads ascending.
fn sum_heads(isa: Isa, dk_rope_heads: &Tensor, heads: usize) -> Tensor {
    let [rows, rope] = dk_rope_heads.dims();
    let mut sum = empty(isa, DType::F32, &[rows / heads, rope]);
    let (parts, len) = (dk_rope_heads.host::<f32>(), sum.len());
    let piece = rows_per_task(heads).max(1);
    for_each_item(sum.host_mut::<f32>().chunks_mut(piece), |task, sum| {
        let first = task * piece;
        sum.copy_from_slice(&parts[first..][..sum.len()]);
        (1..heads).for_each(|h| add(isa, sum, &parts[h * len + first..][..sum.len()]));
    });
    sum
}

/// What all tasks share.
struct Pass<'a> {
    blocks: Blocks,
    inputs: Inputs,
    dout: &'a Tensor,
    log_sum_exp: &'a [f32],
    delta: &'a [f32],
    /// Rows of keys in the batch.
    keys: usize,
    dq: Columns,
    dkv: Columns,
    /// One matrix of rotary keys below the other, by head.
    dk_rope: Columns,
}

/// One head of one segment.
struct Head<'a> {
    pass: &'a Pass<'a>,
    segment: Segment,
    head: usize,
    /// Query and key width.
    depth: usize,
    value: usize,
    /// Steps of the sums over query and key columns, and over value columns.
    depth_steps: usize,
    value_steps: usize,
    /// Rows in a full block of queries; even, so that bf16 pairs never straddle two.
    block_rows: usize,
    /// Statistics of the head's queries.
    log_sum_exp: Vec<f32>,
    delta: Vec<f32>,
}

/// Queries and output gradients, packed for products from both sides, block after block.
struct PackedQueries<'m> {
    q_left: &'m mut [u32],
    dout_left: &'m mut [u32],
    q_right: &'m mut [u32],
    dout_right: &'m mut [u32],
}

/// Packed keys and values of one block.
struct PackedKeys<'m> {
    count: usize,
    k_lines: &'m mut [u32],
    v_lines: &'m mut [u32],
    /// The two parts of the keys, one behind the other.
    k_steps: &'m mut [u32],
}

/// What one block of queries and one block of keys have in common: a row of `KEYS` for each query.
struct Work<'m, P> {
    scores: &'m mut [f32],
    /// Gradients of the probabilities.
    dp: &'m mut [f32],
    /// Probabilities and gradients of the scores, as operands of products; rows lie `p_stride` apart.
    p: &'m mut [P],
    ds: &'m mut [P],
    p_stride: usize,
    across: &'m mut [u32],
}

/// Unfinished sums.
struct Sums<'m> {
    /// All queries of the segment.
    dq: &'m mut [f32],
    /// The keys of one block.
    dk: &'m mut [f32],
    dv: &'m mut [f32],
}

impl<'a> Head<'a> {
    fn new(pass: &'a Pass<'a>, segment: Segment, head: usize) -> Self {
        let (shape, blocks) = (pass.inputs.shape, &pass.blocks);
        let rows = segment.query_start..segment.query_start + segment.query_len;
        let statistic = |x: &[f32]| rows.clone().map(|row| x[row * shape.heads + head]).collect();
        Self {
            pass,
            segment,
            head,
            depth: shape.nope + shape.rope,
            value: shape.value,
            depth_steps: blocks.steps(shape.nope) + blocks.steps(shape.rope),
            value_steps: blocks.steps(shape.value),
            block_rows: QUERY_ROWS / blocks.tile_rows() * blocks.tile_rows(),
            log_sum_exp: statistic(pass.log_sum_exp),
            delta: statistic(pass.delta),
        }
    }

    /// Computes all of it. Probabilities and their gradients become operands of products as `P`.
    fn run<P: Real>(&self) {
        let (blocks, shape, count) = (&self.pass.blocks, self.pass.inputs.shape, self.segment.query_len);
        let (depth, value, rows) = (self.depth, self.value, self.block_rows);
        let query_blocks = count.div_ceil(rows);
        let (key_steps, row_steps) = (blocks.steps(KEYS), blocks.steps(rows));
        let words = [
            query_blocks * self.left_block(self.depth_steps),
            query_blocks * self.left_block(self.value_steps),
            query_blocks * blocks.right_words(depth, row_steps),
            query_blocks * blocks.right_words(value, row_steps),
            blocks.right_words(KEYS, self.depth_steps),
            blocks.right_words(KEYS, self.value_steps),
            blocks.right_words(shape.nope, key_steps) + blocks.right_words(shape.rope, key_steps),
            blocks.left_words(blocks.tiles(KEYS), row_steps),
        ];
        let (depth_padded, value_padded) = (blocks.padded(depth), blocks.padded(value));
        let floats = [
            rows * KEYS,
            rows * KEYS,
            blocks.padded_rows(count) * self.dq_stride(),
            KEYS * depth_padded,
            KEYS * value_padded,
        ];
        let (mut words_memory, mut floats_memory) = (Scratch::new(&words), Scratch::new(&floats));
        let p_stride = blocks.along_stride::<P>();
        let mut p_memory = Scratch::new(&[rows * p_stride, rows * p_stride]);
        let [q_left, dout_left, q_right, dout_right, k_lines, v_lines, k_steps, across] =
            words_memory.split::<u32, 8>(words);
        let [scores, dp, dq, dk, dv] = floats_memory.split::<f32, 5>(floats);
        let [p, ds] = p_memory.split::<P, 2>([rows * p_stride; 2]);
        // Columns that do not exist are multiplied as well, and subnormal leftovers there slowly.
        [&mut *k_lines, &mut *v_lines, &mut *k_steps].into_iter().for_each(|words| words.fill(0));
        if depth_padded > depth || value_padded > value {
            q_right.fill(0);
            dout_right.fill(0);
        }
        let mut queries = PackedQueries { q_left, dout_left, q_right, dout_right };
        let mut keys = PackedKeys { count: 0, k_lines, v_lines, k_steps };
        let mut work = Work { scores, dp, p, ds, p_stride, across };
        let mut sums = Sums { dq, dk, dv };

        (0..query_blocks).for_each(|block| self.pack_queries(block, &mut queries));
        for start in (0..self.segment.key_len).step_by(KEYS) {
            self.pack_keys(start, &mut keys);
            let first = (0..query_blocks).find(|&block| self.seen(&self.rows(block), start) > 0);
            if first.is_none() {
                sums.dk.fill(0.0);
                sums.dv.fill(0.0);
            }
            for block in first.unwrap_or(query_blocks)..query_blocks {
                self.add_query_grads(block, start, &queries, &keys, &mut work, &mut sums);
                self.add_key_grads(block, keys.count, Some(block) != first, &queries, &mut work, &mut sums);
            }
            self.write_keys(start, keys.count, &sums);
        }
        self.write_queries(sums.dq);
    }

    /// Queries of a block, counted from the segment's first.
    fn rows(&self, block: usize) -> Range<usize> {
        block * self.block_rows..((block + 1) * self.block_rows).min(self.segment.query_len)
    }

    /// Keys from `start` on, at most a block, that the last of these queries sees.
    fn seen(&self, rows: &Range<usize>, start: usize) -> usize {
        (self.segment.key_len - self.segment.query_len + rows.end).saturating_sub(start).min(KEYS)
    }

    /// Words of a block of queries as left operand.
    fn left_block(&self, steps: usize) -> usize {
        self.pass.blocks.left_words(self.pass.blocks.tiles(self.block_rows), steps)
    }

    /// Columns of the queries' gradients: both parts in whole panels.
    fn dq_stride(&self) -> usize {
        let shape = self.pass.inputs.shape;
        self.pass.blocks.padded(shape.nope) + self.pass.blocks.padded(shape.rope)
    }

    fn pack_queries(&self, block: usize, to: &mut PackedQueries) {
        let (blocks, inputs, rows) = (&self.pass.blocks, &self.pass.inputs, self.rows(block));
        let (tiles, first) = (blocks.tiles(rows.len()), self.segment.query_start + rows.start);
        let stride = inputs.shape.heads * self.value;
        let numbers = Numbers::of(self.pass.dout).from(first * stride + self.head * self.value);
        let dout = |order| Operand { numbers, stride, order };
        let mut at = 0;
        for (operand, width) in inputs.queries(self.head, first, Order::ByLines) {
            let to = &mut to.q_left[block * self.left_block(self.depth_steps)..];
            blocks.pack_left(operand, tiles, width, Steps { at, all: self.depth_steps }, to);
            at += blocks.steps(width);
        }
        let to_dout = &mut to.dout_left[block * self.left_block(self.value_steps)..];
        blocks.pack_left(dout(Order::ByLines), tiles, self.value, Steps::all(self.value_steps), to_dout);
        // The second part follows the first in memory.
        let [(whole, _), _] = inputs.queries(self.head, first, Order::BySteps);
        let (steps, all) = (Steps::all(blocks.steps(rows.len())), blocks.steps(self.block_rows));
        let to_q = &mut to.q_right[block * blocks.right_words(self.depth, all)..];
        blocks.pack_right(whole, self.depth, rows.len(), steps, to_q);
        let to_dout = &mut to.dout_right[block * blocks.right_words(self.value, all)..];
        blocks.pack_right(dout(Order::BySteps), self.value, rows.len(), steps, to_dout);
    }

    fn pack_keys(&self, start: usize, to: &mut PackedKeys) {
        let (blocks, inputs, first) = (&self.pass.blocks, &self.pass.inputs, self.segment.key_start + start);
        to.count = KEYS.min(self.segment.key_len - start);
        let mut at = 0;
        for (operand, width) in inputs.keys(self.head, first, Order::ByLines) {
            blocks.pack_right(operand, to.count, width, Steps { at, all: self.depth_steps }, to.k_lines);
            at += blocks.steps(width);
        }
        let values = inputs.values(self.head, first, Order::ByLines);
        blocks.pack_right(values, to.count, self.value, Steps::all(self.value_steps), to.v_lines);
        let (steps, mut at) = (blocks.steps(to.count), 0);
        for (operand, width) in inputs.keys(self.head, first, Order::BySteps) {
            blocks.pack_right(operand, width, to.count, Steps::all(steps), &mut to.k_steps[at..]);
            at += blocks.right_words(width, steps);
        }
    }

    /// Probabilities and gradients of the scores of one block, and what they add to the queries' gradients.
    fn add_query_grads<P: Real>(
        &self,
        block: usize,
        start: usize,
        queries: &PackedQueries,
        keys: &PackedKeys,
        work: &mut Work<P>,
        sums: &mut Sums,
    ) {
        let (blocks, block_rows) = (&self.pass.blocks, self.rows(block));
        let tiles = blocks.tiles(block_rows.len());
        let q_left = &queries.q_left[block * self.left_block(self.depth_steps)..];
        let dout_left = &queries.dout_left[block * self.left_block(self.value_steps)..];
        for i in 0..tiles.count() {
            let tile = tiles.tile(i);
            let rows = block_rows.start + tile.start..block_rows.start + tile.end;
            let (count, seen) = (tile.len(), self.seen(&rows, start));
            let operands = tile.start * work.p_stride;
            let (p, ds) = (&mut work.p[operands..], &mut work.ds[operands..]);
            if seen == 0 {
                p[..count * work.p_stride].fill(P::put(0.0));
                ds[..count * work.p_stride].fill(P::put(0.0));
                continue;
            }
            let (scores, dp) = (&mut work.scores[tile.start * KEYS..], &mut work.dp[tile.start * KEYS..]);
            let q = (blocks.left_tile(q_left, tiles, i, self.depth_steps), count);
            blocks.multiply(q, (keys.k_lines, self.depth_steps), (seen, self.depth_steps), (scores, KEYS), false);
            let dout = (blocks.left_tile(dout_left, tiles, i, self.value_steps), count);
            blocks.multiply(dout, (keys.v_lines, self.value_steps), (seen, self.value_steps), (dp, KEYS), false);
            let seen_first = seen_by(&self.segment, rows.start) - start as isize;
            let statistics = (&self.log_sum_exp[rows.clone()], &self.delta[rows.clone()]);
            let scale = self.pass.inputs.shape.scale as f32;
            soften_grad(blocks.isa, scores, dp, seen_first, scale, statistics, (p, ds, work.p_stride));
            let dq = &mut sums.dq[rows.start * self.dq_stride()..];
            self.add_dq((ds, count), keys, blocks.steps(seen), dq, start > 0);
        }
    }

    /// `dq += ds · k` for one tile, part by part.
    fn add_dq<P: Real>(&self, ds: (&[P], usize), keys: &PackedKeys, steps: usize, dq: &mut [f32], load: bool) {
        let (blocks, shape) = (&self.pass.blocks, self.pass.inputs.shape);
        let (packed, (mut at, mut column)) = (blocks.steps(keys.count), (0, 0));
        for width in [shape.nope, shape.rope] {
            let (k, into) = (&keys.k_steps[at..], &mut dq[column..]);
            blocks.multiply_along(ds, (k, packed), (width, steps), (into, self.dq_stride()), load);
            at += blocks.right_words(width, packed);
            column += blocks.padded(width);
        }
    }

    /// `dv += pᵀ · dout` and `dk += dsᵀ · q` over the queries of one block.
    fn add_key_grads<P: Real>(
        &self,
        block: usize,
        key_count: usize,
        load: bool,
        queries: &PackedQueries,
        work: &mut Work<P>,
        sums: &mut Sums,
    ) {
        let (blocks, count) = (&self.pass.blocks, self.rows(block).len());
        let (tiles, steps, all) = (blocks.tiles(key_count), blocks.steps(count), blocks.steps(self.block_rows));
        let products = [
            (&*work.p, &*queries.dout_right, self.value, &mut *sums.dv),
            (&*work.ds, &*queries.q_right, self.depth, &mut *sums.dk),
        ];
        for (numbers, right, columns, into) in products {
            let across = Operand { numbers: P::numbers(numbers), stride: work.p_stride, order: Order::BySteps };
            blocks.pack_left(across, tiles, count, Steps::all(steps), work.across);
            let right = &right[block * blocks.right_words(columns, all)..];
            let stride = blocks.padded(columns);
            for i in 0..tiles.count() {
                let (left, rows) = (blocks.left_tile(work.across, tiles, i, steps), tiles.tile(i));
                let into = &mut into[rows.start * stride..];
                blocks.multiply((left, rows.len()), (right, steps), (columns, steps), (into, stride), load);
            }
        }
    }

    fn write_keys(&self, start: usize, count: usize, sums: &Sums) {
        let (pass, shape, isa) = (self.pass, self.pass.inputs.shape, self.pass.blocks.isa);
        let (dk_stride, dv_stride) = (pass.blocks.padded(self.depth), pass.blocks.padded(self.value));
        let column = self.head * (shape.nope + shape.value);
        for i in 0..count {
            let key = self.segment.key_start + start + i;
            let (nope, rope) = sums.dk[i * dk_stride..][..self.depth].split_at(shape.nope);
            // SAFETY: the caller's tensors, in which this head's columns of the segment's keys are its own.
            unsafe {
                pass.dkv.write(isa, key, column, nope);
                pass.dkv.write(isa, key, column + shape.nope, &sums.dv[i * dv_stride..][..shape.value]);
                pass.dk_rope.write(isa, self.head * pass.keys + key, 0, rope);
            }
        }
    }

    fn write_queries(&self, dq: &[f32]) {
        let (pass, shape, isa) = (self.pass, self.pass.inputs.shape, self.pass.blocks.isa);
        for (i, dq) in dq.chunks_exact(self.dq_stride()).take(self.segment.query_len).enumerate() {
            let (row, column) = (self.segment.query_start + i, self.head * self.depth);
            let (nope, rope) = (&dq[..shape.nope], &dq[pass.blocks.padded(shape.nope)..][..shape.rope]);
            // SAFETY: the caller's tensor, in which this head's columns of the segment's queries are its own.
            unsafe {
                pass.dq.write(isa, row, column, nope);
                pass.dq.write(isa, row, column + shape.nope, rope);
            }
        }
    }
}

/// Number of the segment's keys that its query `i` sees.
fn seen_by(segment: &Segment, i: usize) -> isize {
    (segment.key_len - segment.query_len + i + 1) as isize
}

multiversion! {
    /// Probabilities from scores, and gradients of the unscaled scores from those of the probabilities.
    /// Row i sees the first `seen_first + i` keys of the block; the others get zeros.
    fn soften_grad<P: Real>(
        scores: &[f32], dp: &[f32], seen_first: isize, scale: f32, statistics: (&[f32], &[f32]),
        outputs: (&mut [P], &mut [P], usize),
    ) {
        let inputs = scores.as_chunks::<KEYS>().0.iter().zip(dp.as_chunks::<KEYS>().0);
        let (p, ds, stride) = outputs;
        let outputs = p.chunks_mut(stride).zip(ds.chunks_mut(stride));
        let statistics = statistics.0.iter().zip(statistics.1);
        for (i, (((scores, dp), (p, ds)), (log_sum_exp, delta))) in inputs.zip(outputs).zip(statistics).enumerate() {
            let (p, ds) = (&mut p[..KEYS], &mut ds[..KEYS]);
            for j in 0..KEYS {
                let probability = exp_nonpositive(scores[j].mul_add(scale, -log_sum_exp));
                p[j] = P::put(probability);
                ds[j] = P::put(probability * (dp[j] - delta) * scale);
            }
            let seen = seen_first.saturating_add_unsigned(i).max(0) as usize;
            if seen < KEYS {
                p[seen..].fill(P::put(0.0));
                ds[seen..].fill(P::put(0.0));
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::attention::attention_with;
    use super::super::{amx, gemm::micro::Micro};
    use super::*;
    use crate::device::Device;
    use crate::kernels::Kernels;
    use crate::kernels::reference::Reference;

    const SHAPE: AttentionShape = AttentionShape { heads: 2, nope: 19, rope: 6, value: 35, scale: 0.2 };

    /// Products by way of AMX tiles, computed by software.
    fn blocks() -> Blocks {
        Blocks::with(Isa::Avx512Bf16, amx::micro(Micro::of(Isa::Avx512Bf16, DType::Bf16), amx::tests::software))
    }

    fn random(device: Device, shape: [usize; 2], seed: u32) -> Tensor {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 23) - 1.0
        };
        let values: Vec<_> = (0..shape[0] * shape[1]).map(|_| next()).collect();
        Tensor::from_f64(device, DType::Bf16, &shape, &values)
    }

    fn inputs(device: Device, rows: usize) -> [Tensor; 3] {
        let AttentionShape { heads, nope, rope, value, .. } = SHAPE;
        let widths = [heads * (nope + rope), heads * (nope + value), rope];
        [1, 2, 3].map(|i| random(device, [rows, widths[i - 1]], i as u32))
    }

    #[test]
    fn both_passes_by_way_of_tiles_agree_with_the_reference() {
        if !Isa::Avx512Bf16.is_supported() {
            return; // The layout of its operands belongs to these kernels.
        }
        let (lengths, rows) = ([1, 70, 33], 104);
        let segments = Segment::from_lengths(&lengths);
        let device = Device::cpu_with(Isa::Avx512Bf16).expect("just asked");
        let ([q, kv, k_rope], dout) = (inputs(device, rows), random(device, [rows, 70], 4));
        let fast = || Inputs::new(Isa::Avx512Bf16, (&q, &kv, &k_rope), &SHAPE);
        let output = attention_with(&blocks(), (&q, &kv), &fast(), &segments);
        let (dq, dkv, dk_rope) = attention_grad_with(blocks(), (&q, &kv), fast(), &output, &dout, &segments);
        let plain = Reference.attention(&q, &kv, &k_rope, &SHAPE, &segments);
        let grads = Reference.attention_grad((&q, &kv, &k_rope), &plain, &dout, &SHAPE, &segments);
        let pairs = [(output.out, plain.out), (dq, grads.0), (dkv, grads.1), (dk_rope, grads.2)];
        for (i, (fast, plain)) in pairs.iter().enumerate() {
            let (fast, plain) = (fast.to_vec_f64(), plain.to_vec_f64());
            let bound = 1e-2 * plain.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            for (a, b) in fast.iter().zip(&plain) {
                assert!((a - b).abs() <= bound, "result {i}: {a} for {b}");
            }
        }
    }

    #[test]
    fn chunks_by_way_of_tiles_give_the_bits_of_one_pass() {
        if !Isa::Avx512Bf16.is_supported() {
            return;
        }
        let device = Device::cpu_with(Isa::Avx512Bf16).expect("just asked");
        let [q, kv, k_rope] = inputs(device, 90);
        let run = |first: usize, end: usize| {
            let (q, kv, k_rope) = (q.rows(first..end), kv.rows(0..end), k_rope.rows(0..end));
            let inputs = Inputs::new(Isa::Avx512Bf16, (&q, &kv, &k_rope), &SHAPE);
            let segment = Segment { query_start: 0, query_len: end - first, key_start: 0, key_len: end };
            attention_with(&blocks(), (&q, &kv), &inputs, &[segment]).out
        };
        let whole = run(0, 90);
        for chunk in [1, 13, 40] {
            for first in (0..90).step_by(chunk) {
                let end = (first + chunk).min(90);
                assert_eq!(run(first, end).to_bytes(), whole.rows(first..end).to_bytes(), "{first}..{end}");
            }
        }
    }
}

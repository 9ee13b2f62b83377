//! One head of one segment on its way backward.

#![expect(unsafe_code, reason = "tasks write the columns of their head")]

use std::ops::Range;

use super::KEYS;
use super::backward::Pass;
use super::blocks::Steps;
use super::memory::Scratch;
use crate::kernels::Segment;
use crate::kernels::simd::gemm::words::{Numbers, Operand, Order};
use crate::kernels::simd::isa::multiversion;
use crate::kernels::simd::lanes::Real;
use crate::kernels::simd::math::exp_nonpositive;

/// Rows in a block of queries, at most.
const QUERY_ROWS: usize = 64;

/// One head of one segment.
pub struct Head<'a> {
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
    /// One of `pass`'s tasks.
    pub fn new(pass: &'a Pass<'a>, segment: Segment, head: usize) -> Self {
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
    pub fn run<P: Real>(&self) {
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

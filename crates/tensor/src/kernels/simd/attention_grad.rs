//! The backward pass of attention: scores are computed again from the logarithms of the denominators.
//!
//! A task is one head of one segment. It goes through blocks of keys and, for each, through the blocks of queries
//! that see them. Every gradient element is one chain of multiply-adds over ascending queries or keys of its own
//! segment. With bf16 inputs probabilities and their gradients are rounded to bf16, as operands of products.

#![expect(unsafe_code, reason = "tasks write the columns of their head")]

use std::ops::Range;

use super::attention_blocks::{Blocks, Columns, Inputs, KEYS, Scratch, check_segments};
use super::gemm::words::{Numbers, Operand, Order};
use super::isa::multiversion;
use super::lanes::{Real, dot, real};
use super::math::exp_nonpositive;
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::kernels::{AttentionOutput, AttentionShape, Segment};
use crate::pool;
use crate::tensor::Tensor;

/// Row tiles in a block of queries.
const QUERY_TILES: usize = 4;

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
        blocks: Blocks::new(isa, inputs.q.dtype()),
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
    pool::for_each(tasks.len(), &|i| Head::new(&pass, tasks[i].0, tasks[i].1).run());
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
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
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
    k_lines: &'m mut [u32],
    v_lines: &'m mut [u32],
    k_steps: &'m mut [u32],
}

/// What one block of queries and one block of keys have in common.
struct Work<'m> {
    /// Scores, then probabilities: one row of `KEYS` for each query of the block.
    p: &'m mut [f32],
    /// Gradients of the probabilities, then of the scores.
    ds: &'m mut [f32],
    ds_left: &'m mut [u32],
    p_across: &'m mut [u32],
    ds_across: &'m mut [u32],
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
        let shape = pass.inputs.shape;
        let rows = segment.query_start..segment.query_start + segment.query_len;
        let statistic = |x: &[f32]| rows.clone().map(|row| x[row * shape.heads + head]).collect();
        Self {
            pass,
            segment,
            head,
            depth: shape.nope + shape.rope,
            value: shape.value,
            block_rows: (pass.blocks.tile_rows() * QUERY_TILES).next_multiple_of(2),
            log_sum_exp: statistic(pass.log_sum_exp),
            delta: statistic(pass.delta),
        }
    }

    fn run(&self) {
        let (blocks, count) = (&self.pass.blocks, self.segment.query_len);
        let (depth, value, rows) = (self.depth, self.value, self.block_rows);
        let query_blocks = count.div_ceil(rows);
        let across = blocks.left_words(rows) * blocks.tiles(KEYS).count();
        let tiles = blocks.tiles(rows).count();
        let words = [
            query_blocks * tiles * blocks.left_words(depth),
            query_blocks * tiles * blocks.left_words(value),
            query_blocks * blocks.right_words(depth, rows),
            query_blocks * blocks.right_words(value, rows),
            blocks.right_words(KEYS, depth),
            blocks.right_words(KEYS, value),
            blocks.right_words(depth, KEYS),
            blocks.left_words(KEYS),
            across,
            across,
        ];
        let (depth_padded, value_padded) = (blocks.padded(depth), blocks.padded(value));
        let floats = [rows * KEYS, rows * KEYS, count * depth_padded, KEYS * depth_padded, KEYS * value_padded];
        let (mut words_memory, mut floats_memory) = (Scratch::new(&words), Scratch::new(&floats));
        let [q_left, dout_left, q_right, dout_right, k_lines, v_lines, k_steps, ds_left, p_across, ds_across] =
            words_memory.split::<u32, 10>(words);
        let [p, ds, dq, dk, dv] = floats_memory.split::<f32, 5>(floats);
        let mut queries = PackedQueries { q_left, dout_left, q_right, dout_right };
        let mut keys = PackedKeys { k_lines, v_lines, k_steps };
        let mut work = Work { p, ds, ds_left, p_across, ds_across };
        let mut sums = Sums { dq, dk, dv };

        (0..query_blocks).for_each(|block| self.pack_queries(block, &mut queries));
        let mut key_block = self.pass.inputs.key_block();
        for start in (0..self.segment.key_len).step_by(KEYS) {
            let key_count = KEYS.min(self.segment.key_len - start);
            self.pack_keys(start, key_count, &mut key_block, &mut keys);
            let first = (0..query_blocks).find(|&block| self.seen(self.rows(block), start) > 0);
            if first.is_none() {
                sums.dk.fill(0.0);
                sums.dv.fill(0.0);
            }
            for block in first.unwrap_or(query_blocks)..query_blocks {
                self.scores(block, start, &queries, &keys, key_count, &mut work, &mut sums);
                self.add_key_grads(block, key_count, Some(block) != first, &queries, &mut work, &mut sums);
            }
            self.write_keys(start, key_count, &sums);
        }
        self.write_queries(sums.dq);
    }

    /// Queries of a block, counted from the segment's first.
    fn rows(&self, block: usize) -> Range<usize> {
        block * self.block_rows..((block + 1) * self.block_rows).min(self.segment.query_len)
    }

    /// Keys from `start` on, at most a block, that the last of these queries sees.
    fn seen(&self, rows: Range<usize>, start: usize) -> usize {
        (self.segment.key_len - self.segment.query_len + rows.end).saturating_sub(start).min(KEYS)
    }

    fn pack_queries(&self, block: usize, to: &mut PackedQueries) {
        let (blocks, rows) = (&self.pass.blocks, self.rows(block));
        let (tiles, first) = (blocks.tiles(rows.len()), self.segment.query_start + rows.start);
        let stride = self.pass.inputs.shape.heads * self.value;
        let numbers = Numbers::of(self.pass.dout).from(first * stride + self.head * self.value);
        let dout = |order| Operand { numbers, stride, order };
        let q = |order| self.pass.inputs.queries(self.head, first, order);
        let place = |words: usize| block * words..(block + 1) * words;
        let each = blocks.tiles(self.block_rows).count();
        blocks.pack_left(
            q(Order::ByLines),
            tiles,
            self.depth,
            &mut to.q_left[place(each * blocks.left_words(self.depth))],
        );
        blocks.pack_left(
            dout(Order::ByLines),
            tiles,
            self.value,
            &mut to.dout_left[place(each * blocks.left_words(self.value))],
        );
        let q_right = &mut to.q_right[place(blocks.right_words(self.depth, self.block_rows))];
        blocks.pack_right(q(Order::BySteps), self.depth, rows.len(), q_right);
        let dout_right = &mut to.dout_right[place(blocks.right_words(self.value, self.block_rows))];
        blocks.pack_right(dout(Order::BySteps), self.value, rows.len(), dout_right);
    }

    fn pack_keys(&self, start: usize, count: usize, memory: &mut Tensor, to: &mut PackedKeys) {
        let (blocks, inputs, first) = (&self.pass.blocks, &self.pass.inputs, self.segment.key_start + start);
        inputs.copy_keys(self.head, first, count, memory);
        let keys = |order| Operand { numbers: Numbers::of(memory), stride: self.depth, order };
        blocks.pack_right(keys(Order::ByLines), count, self.depth, to.k_lines);
        blocks.pack_right(keys(Order::BySteps), self.depth, count, to.k_steps);
        blocks.pack_right(inputs.values(self.head, first, Order::ByLines), count, self.value, to.v_lines);
    }

    /// Probabilities and gradients of the scores of one block, and what they add to the queries' gradients.
    fn scores(
        &self,
        block: usize,
        start: usize,
        queries: &PackedQueries,
        keys: &PackedKeys,
        key_count: usize,
        work: &mut Work,
        sums: &mut Sums,
    ) {
        let (blocks, block_rows) = (&self.pass.blocks, self.rows(block));
        let (tiles, each) = (blocks.tiles(block_rows.len()), blocks.tiles(self.block_rows).count());
        let (q_words, dout_words) = (blocks.left_words(self.depth), blocks.left_words(self.value));
        for tile in 0..tiles.count() {
            let (offset, count) = tiles.tile(tile);
            let rows = block_rows.start + offset..block_rows.start + offset + count;
            let seen = self.seen(rows.clone(), start);
            let (p, ds) = (&mut work.p[offset * KEYS..][..count * KEYS], &mut work.ds[offset * KEYS..][..count * KEYS]);
            if seen == 0 {
                p.fill(0.0);
                ds.fill(0.0);
                continue;
            }
            let q = (&queries.q_left[(block * each + tile) * q_words..], count);
            blocks.multiply(q, (keys.k_lines, self.depth), (seen, self.depth), (p, KEYS), false);
            let dout = (&queries.dout_left[(block * each + tile) * dout_words..], count);
            blocks.multiply(dout, (keys.v_lines, self.value), (seen, self.value), (ds, KEYS), false);
            let seen_first = seen_by(&self.segment, rows.start) - start as isize;
            let statistics = (&self.log_sum_exp[rows.clone()], &self.delta[rows.clone()]);
            soften_grad(blocks.isa, p, ds, seen_first, self.pass.inputs.shape.scale as f32, statistics);
            let ds = Operand { numbers: Numbers::F32(ds), stride: KEYS, order: Order::ByLines };
            blocks.pack_left(ds, blocks.tiles(count), seen, work.ds_left);
            let stride = blocks.padded(self.depth);
            let dq = &mut sums.dq[rows.start * stride..rows.end * stride];
            blocks.multiply(
                (work.ds_left, count),
                (keys.k_steps, key_count),
                (self.depth, seen),
                (dq, stride),
                start > 0,
            );
        }
    }

    /// `dv += pᵀ · dout` and `dk += dsᵀ · q` over the queries of one block.
    fn add_key_grads(
        &self,
        block: usize,
        key_count: usize,
        load: bool,
        queries: &PackedQueries,
        work: &mut Work,
        sums: &mut Sums,
    ) {
        let (blocks, count) = (&self.pass.blocks, self.rows(block).len());
        let (tiles, words) = (blocks.tiles(key_count), blocks.left_words(count));
        let products = [
            (&*work.p, &mut *work.p_across, &*queries.dout_right, self.value, &mut *sums.dv),
            (&*work.ds, &mut *work.ds_across, &*queries.q_right, self.depth, &mut *sums.dk),
        ];
        for (numbers, packed, right, columns, into) in products {
            let across = Operand { numbers: Numbers::F32(numbers), stride: KEYS, order: Order::BySteps };
            blocks.pack_left(across, tiles, count, packed);
            let right = &right[block * blocks.right_words(columns, self.block_rows)..];
            let stride = blocks.padded(columns);
            for tile in 0..tiles.count() {
                let (first, rows) = tiles.tile(tile);
                let into = &mut into[first * stride..(first + rows) * stride];
                blocks.multiply(
                    (&packed[tile * words..], rows),
                    (right, count),
                    (columns, count),
                    (into, stride),
                    load,
                );
            }
        }
    }

    fn write_keys(&self, start: usize, count: usize, sums: &Sums) {
        let (pass, shape) = (self.pass, self.pass.inputs.shape);
        let (dk_stride, dv_stride) = (pass.blocks.padded(self.depth), pass.blocks.padded(self.value));
        let column = self.head * (shape.nope + shape.value);
        for i in 0..count {
            let key = self.segment.key_start + start + i;
            let (nope, rope) = sums.dk[i * dk_stride..][..self.depth].split_at(shape.nope);
            // SAFETY: the caller's tensors, in which this head's columns of the segment's keys are its own.
            unsafe {
                pass.dkv.write(key, column, nope);
                pass.dkv.write(key, column + shape.nope, &sums.dv[i * dv_stride..][..shape.value]);
                pass.dk_rope.write(self.head * pass.keys + key, 0, rope);
            }
        }
    }

    fn write_queries(&self, dq: &[f32]) {
        for (i, dq) in dq.chunks_exact(self.pass.blocks.padded(self.depth)).enumerate() {
            // SAFETY: the caller's tensor, in which this head's columns of the segment's queries are its own.
            unsafe { self.pass.dq.write(self.segment.query_start + i, self.head * self.depth, &dq[..self.depth]) };
        }
    }
}

/// Number of the segment's keys that its query `i` sees.
fn seen_by(segment: &Segment, i: usize) -> isize {
    (segment.key_len - segment.query_len + i + 1) as isize
}

multiversion! {
    /// Turns scores into probabilities, and the probabilities' gradients into those of the unscaled scores.
    /// Row i sees the first `seen_first + i` keys of the block; the others get zeros.
    fn soften_grad(p: &mut [f32], ds: &mut [f32], seen_first: isize, scale: f32, statistics: (&[f32], &[f32])) {
        let rows = p.as_chunks_mut::<KEYS>().0.iter_mut().zip(ds.as_chunks_mut::<KEYS>().0);
        for (i, ((p, ds), (log_sum_exp, delta))) in rows.zip(statistics.0.iter().zip(statistics.1)).enumerate() {
            for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
                *p = exp_nonpositive(p.mul_add(scale, -log_sum_exp));
                *ds = *p * (*ds - delta) * scale;
            }
            let seen = seen_first.saturating_add_unsigned(i).max(0) as usize;
            if seen < KEYS {
                p[seen..].fill(0.0);
                ds[seen..].fill(0.0);
            }
        }
    }
}

//! Whole operands, packed: the columns (or rows) that a micro-kernel takes at once, step by step.

#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

use std::ops::Range;

use super::blocks::{tile_rows, tiles};
use super::micro::Micro;
use super::product::{packed_row_words, packed_tile_words};
use super::transpose::{Source, transpose};
use super::words::{LINES, Lines, Operand, Order, Target, Word};
use crate::kernels::simd::isa::Isa;
use crate::pool;
use crate::storage::Buffer;

/// Words that a task packs at least.
const GRAIN: usize = 32 << 10;

/// Words of a buffer whose place in the cache matters more than a little unused memory.
const SMALL: usize = 1 << 18;

/// A matrix to be packed.
pub struct Matrix<'a> {
    /// Where the numbers are.
    pub operand: Operand<'a>,
    /// Length of the sums.
    pub depth: usize,
}

/// Packed matrices, all with the same number of lines.
pub struct Panels {
    words: Buffer,
    /// First word of each matrix, then the end.
    starts: Vec<usize>,
}

struct Words(*mut u32);
// SAFETY: tasks write disjoint panels.
unsafe impl Sync for Words {}
impl Words {
    fn at(&self, offset: usize) -> *mut u32 {
        self.0.wrapping_add(offset)
    }
}

impl Panels {
    /// Packs right operands of `columns` columns each, in panels.
    pub fn right(isa: Isa, micro: &Micro, matrices: &[Matrix], columns: usize) -> Self {
        let panels = columns.div_ceil(micro.width);
        Self::new(
            micro,
            matrices,
            panels,
            |steps| steps * micro.width,
            |matrix, steps, some, to| {
                // SAFETY: the words of these panels, which no other task touches.
                unsafe { pack_right(isa, micro, matrix, steps, some, columns, to) }
            },
        )
    }

    /// Packs left operands of `rows` rows each, whose lines lie across memory, in tiles.
    pub fn left(isa: Isa, micro: &Micro, matrices: &[Matrix], rows: usize) -> Self {
        let words = |steps| packed_tile_words(micro, steps);
        Self::new(micro, matrices, tiles(micro, rows), words, |matrix, steps, some, to| {
            // SAFETY: the words of these tiles, which no other task touches.
            unsafe { pack_left(isa, micro, matrix, steps, some, rows, to) }
        })
    }

    /// Packs `parts` parts of `words(steps)` words of every matrix; `pack` does some parts of one.
    fn new(
        micro: &Micro,
        matrices: &[Matrix],
        parts: usize,
        words: impl Fn(usize) -> usize,
        pack: impl Fn(&Matrix, usize, Range<usize>, *mut u32) + Sync,
    ) -> Self {
        let steps: Vec<_> = matrices.iter().map(|m| micro.steps(m.depth)).collect();
        let mut starts = vec![0];
        let sizes: Vec<_> = steps.iter().map(|&steps| words(steps)).collect();
        for size in &sizes {
            starts.push(starts[starts.len() - 1] + size * parts);
        }
        let total = starts[matrices.len()];
        // In powers of two, so that a small group finds the memory that the last one has left in the cache.
        let capacity = if total <= SMALL { total.next_power_of_two() } else { total };
        let mut buffer = Buffer::recycled(capacity * size_of::<u32>());
        let target = Words(buffer.slice_mut::<u32>().as_mut_ptr());
        // Tasks take a few parts of one matrix: rows of memory across them are then read in long pieces.
        let grain = (GRAIN * parts * matrices.len()).div_ceil(total.max(1)).clamp(1, parts.max(1));
        let tasks = parts.div_ceil(grain);
        pool::for_each(tasks * matrices.len(), &|task| {
            let (m, first) = (task / tasks, task % tasks * grain);
            let some = first..(first + grain).min(parts);
            pack(&matrices[m], steps[m], some, target.at(starts[m] + first * sizes[m]));
        });
        Self { words: buffer, starts }
    }

    /// The packed words of one matrix.
    pub fn of(&self, matrix: usize) -> &[u32] {
        &self.words.slice::<u32>()[self.starts[matrix]..self.starts[matrix + 1]]
    }
}

/// Packs some panels of one right operand, each `steps * width` words, from `to` on.
unsafe fn pack_right(
    isa: Isa,
    micro: &Micro,
    matrix: &Matrix,
    steps: usize,
    panels: Range<usize>,
    columns: usize,
    to: *mut u32,
) {
    let (width, depth) = (micro.width, (0, matrix.depth));
    let end = (panels.end * width).min(columns);
    // SAFETY: the caller's promise on the words of these panels.
    unsafe {
        if end < panels.end * width {
            // Subnormal leftovers in columns that do not exist would be multiplied slowly.
            let last = to.add((panels.len() - 1) * steps * width);
            std::slice::from_raw_parts_mut(last, steps * width).fill(0);
        }
        match matrix.operand.order {
            Order::ByLines => {
                for (i, panel) in panels.enumerate() {
                    let lines = (panel * width, width.min(columns - panel * width));
                    let target = Target { at: to.add(i * steps * width), stride: width, word: micro.right };
                    matrix.operand.pack(isa, lines, depth, (width, steps), target);
                }
            }
            Order::BySteps => {
                let first = panels.start * width;
                let group = |line: usize| {
                    let (panel, inside) = ((line - first) / width, (line - first) % width);
                    Lines { first: line, count: LINES.min(end - line), at: to.add(panel * steps * width + inside) }
                };
                let groups: Vec<_> = (first..end).step_by(LINES).map(group).collect();
                matrix.operand.pack_across(isa, &groups, depth, width, micro.right);
                let filled = micro.right.steps(matrix.depth);
                for panel in 0..panels.len() {
                    let missing = to.add((panel * steps + filled) * width);
                    std::slice::from_raw_parts_mut(missing, (steps - filled) * width).fill(0);
                }
            }
        }
    }
}

/// Packs some tiles of one left operand, from `to` on.
unsafe fn pack_left(
    isa: Isa,
    micro: &Micro,
    matrix: &Matrix,
    steps: usize,
    tiles: Range<usize>,
    rows: usize,
    to: *mut u32,
) {
    let (words, stride) = (packed_tile_words(micro, steps), micro.left_stride);
    let tile_start = |i: usize| (tile_rows(micro, rows, tiles.start + i), to.wrapping_add(i * words));
    if micro.run_unit.is_some() {
        for (rows, to) in (0..tiles.len()).map(tile_start) {
            // SAFETY: the caller's promise on the words of this tile.
            unsafe { pack_turned(isa, matrix, steps, rows, to) };
        }
        return;
    }
    let filled = micro.left.steps(matrix.depth);
    let mut groups = Vec::with_capacity(tiles.len());
    for (tile, at) in (0..tiles.len()).map(tile_start) {
        // Whole vectors are as cheap as parts of them; the kernel ignores the surplus.
        groups.push(Lines { first: tile.start, count: stride.min(rows - tile.start), at });
        // SAFETY: the caller's promise on the words of these tiles.
        unsafe {
            let missing = steps * micro.left_steps() - filled;
            std::slice::from_raw_parts_mut(at.add(filled * stride), missing * stride).fill(0);
        }
    }
    // SAFETY: as above.
    unsafe { matrix.operand.pack_across(isa, &groups, (0, matrix.depth), stride, micro.left) };
}

/// Packs one tile of rows, which lie across memory, along memory: squares of words are transposed.
///
/// # Safety
/// `to` holds the rows in whole sixteens, [`packed_row_words`] apart, and nobody else uses them.
pub unsafe fn pack_turned(isa: Isa, matrix: &Matrix, steps: usize, rows: Range<usize>, to: *mut u32) {
    let stride = packed_row_words(steps);
    for (i, first) in rows.clone().step_by(LINES).enumerate() {
        for step in (0..steps).step_by(LINES) {
            let mut square = [0u32; LINES * LINES];
            let depth = ((2 * step).min(matrix.depth), (2 * (step + LINES)).min(matrix.depth));
            let group = Lines { first, count: LINES.min(rows.end - first), at: square.as_mut_ptr() };
            let from = Source { at: square.as_ptr().cast(), stride: LINES * size_of::<u32>() };
            // SAFETY: the square holds sixteen steps of sixteen lines; the caller's promise on the tile.
            unsafe {
                matrix.operand.pack_across(isa, &[group], depth, LINES, Word::Pair);
                transpose(isa, from, (LINES, LINES), LINES, to.add(i * LINES * stride + step), stride);
            }
        }
    }
}

//! Products of many pairs of matrices as one set of tasks.
//!
//! A task computes a block of one product: it packs its rows of the left operand and multiplies them with the
//! packed panels of the right one, a slice of the depth at a time, so that a panel's slice stays in the first
//! cache and the rows' slice in the second. Sums that go on in the next slice are kept as f32, which is exact.
//! How a product is cut into blocks and slices therefore never shows in its bits.

#![expect(unsafe_code, reason = "threads write disjoint blocks of one result through raw pointers")]

use std::ops::Range;

use super::blocks::{Block, GROUP_PANELS, PACKED_SLICES, Slicing, cut, tile_rows};
use super::micro::Micro;
use super::scratch::with_scratch;
use super::words::{Numbers, Operand, Word};
use crate::dtype::Bf16;
use crate::kernels::simd::isa::{Isa, multiversion};
use crate::kernels::simd::lanes::Real;
use crate::pool;

/// The largest tile of any micro-kernel, in elements.
const TILE: usize = TILE_ROWS * TILE_COLUMNS;
/// Its rows.
const TILE_ROWS: usize = 32;
/// Its columns.
const TILE_COLUMNS: usize = 32;

/// The elements of a result; rows lie `columns` elements apart.
#[derive(Clone, Copy)]
pub enum Elements {
    /// Single precision.
    F32(*mut f32),
    /// Half the width.
    Bf16(*mut Bf16),
}

// SAFETY: only unsafe code follows the pointers; it promises that tasks write disjoint parts.
unsafe impl Sync for Elements {}

impl Elements {
    /// From element `offset` on.
    pub fn from(self, offset: usize) -> Self {
        match self {
            Self::F32(at) => Self::F32(at.wrapping_add(offset)),
            Self::Bf16(at) => Self::Bf16(at.wrapping_add(offset)),
        }
    }
}

/// Where a product goes, and what becomes of its sums before they are rounded, once, at the end.
#[derive(Clone, Copy)]
pub struct Out<'a> {
    /// First element.
    pub at: Elements,
    /// What is added.
    pub add: Add<'a>,
}

/// What is added to a product's sums.
#[derive(Clone, Copy)]
pub enum Add<'a> {
    /// Nothing.
    Nothing,
    /// The sums start from what the (f32) result holds.
    Result,
    /// The result is `factors.0 * base + factors.1 * sum`.
    Blend {
        /// A matrix of the result's shape and type.
        base: Numbers<'a>,
        /// The factors.
        factors: (f32, f32),
    },
}

impl Out<'_> {
    /// Whether sums are kept in the result itself until they are complete.
    pub fn holds_sums(&self) -> bool {
        matches!((self.at, self.add), (Elements::F32(_), Add::Nothing | Add::Result))
    }
}

/// The left operand, whose lines are the product's rows.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Rows along memory, packed by each task for itself.
    Rows(Operand<'a>),
    /// All tiles, packed before: [`super::panels::left_words`] each.
    Packed(&'a [u32]),
}

/// One product of a row operand with a panelled column operand.
pub struct Product<'a> {
    /// The left operand.
    pub left: Left<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Number of columns.
    pub columns: usize,
    /// The right operand: panels of `steps(depth) * width` words.
    pub panels: &'a [u32],
    /// The result.
    pub out: Out<'a>,
    /// Whether only the lower triangle is wanted, diagonal included: what lies above may or may not be computed.
    pub lower: bool,
}

/// Computes all products on all threads.
///
/// # Safety
/// Every `out` is valid for `rows * columns` elements that overlap with nothing else.
pub unsafe fn compute(isa: Isa, micro: &Micro, products: &[Product]) {
    let blocks = cut(micro, products);
    pool::for_each(blocks.len(), &|i| {
        let (block, product) = (&blocks[i], &products[blocks[i].product]);
        let work = Work { isa, micro, product, block, slicing: Slicing::new(micro, product, block) };
        // SAFETY: the caller's promise; blocks are disjoint.
        unsafe { work.run() };
    });
}

/// A thread's work on one block.
struct Work<'a> {
    isa: Isa,
    micro: &'a Micro,
    product: &'a Product<'a>,
    block: &'a Block,
    slicing: Slicing,
}

/// Some rows and columns of the result in one slice of the depth.
struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
    steps: usize,
    first_slice: bool,
    last_slice: bool,
}

impl Work<'_> {
    unsafe fn run(&self) {
        let (slicing, panels) = (&self.slicing, &self.block.panels);
        let left_words = match self.product.left {
            Left::Rows(_) => slicing.left_words(),
            Left::Packed(_) => 0,
        };
        let kept_words = slicing.kept * self.micro.rows * self.micro.width;
        with_scratch(left_words + kept_words, |scratch| {
            let sums = scratch.wrapping_add(left_words).cast();
            for packed in (0..slicing.count).step_by(PACKED_SLICES) {
                let slices = packed..(packed + PACKED_SLICES).min(slicing.count);
                // The scratch holds some packed slices of the block's rows, then the kept sums.
                let left = |slice: usize| scratch.wrapping_add((slice - packed) * slicing.slice_words);
                // SAFETY: the caller's promise on the result.
                unsafe {
                    if let Left::Rows(rows) = self.product.left {
                        slices.clone().for_each(|slice| self.pack_rows(rows, slice, left(slice)));
                    }
                    for first in panels.clone().step_by(GROUP_PANELS) {
                        for slice in slices.clone() {
                            for panel in first..(first + GROUP_PANELS).min(panels.end) {
                                self.compute_panel(slice, panel, left(slice), sums);
                            }
                        }
                    }
                }
            }
        });
    }

    fn tile_rows(&self, tile: usize) -> Range<usize> {
        tile_rows(self.micro, self.product.rows, tile)
    }

    /// Packs one slice of the block's rows, tile by tile.
    unsafe fn pack_rows(&self, operand: Operand, slice: usize, to: *mut u32) {
        let (micro, steps, end) = (self.micro, self.slicing.steps(slice), self.product.depth);
        let per_step = if micro.right == Word::Pair { 2 } else { 1 };
        let depth = ((steps.start * per_step).min(end), (steps.end * per_step).min(end));
        for (i, tile) in self.block.tiles.clone().enumerate() {
            let rows = self.tile_rows(tile);
            if self.direct(operand, &rows, steps.start).is_some() {
                continue;
            }
            let to = (to.wrapping_add(i * self.slicing.tile_words), micro.along_stride, micro.left);
            let lines = (rows.start, rows.len());
            // SAFETY: the words of the tile's slice, which belong to this thread.
            unsafe { operand.pack_along(self.isa, lines, depth, steps.len() * micro.left_steps(), to) };
        }
    }

    /// One slice of one panel with all rows of the block.
    unsafe fn compute_panel(&self, slice: usize, panel: usize, left: *const u32, sums: *mut f32) {
        let (micro, slicing) = (self.micro, &self.slicing);
        let steps = slicing.steps(slice);
        let columns = panel * micro.width..((panel + 1) * micro.width).min(self.product.columns);
        for (i, index) in self.block.tiles.clone().enumerate() {
            let rows = self.tile_rows(index);
            if self.product.lower && columns.start >= rows.end {
                continue;
            }
            let tile = Tile {
                rows,
                columns: columns.clone(),
                steps: steps.len(),
                first_slice: slice == 0,
                last_slice: slice + 1 == slicing.count,
            };
            // SAFETY: the panel has all steps of the depth, packed rows have those of the slice.
            unsafe {
                let right = self.product.panels.as_ptr().add((panel * slicing.all_steps + steps.start) * micro.width);
                let left = match self.product.left {
                    Left::Rows(operand) => self
                        .direct(operand, &tile.rows, steps.start)
                        .unwrap_or((left.add(i * slicing.tile_words), micro.along_stride)),
                    Left::Packed(words) => {
                        let start = packed_start(micro, slicing.all_steps, index, steps.start);
                        (words.as_ptr().add(start), packed_row_words(slicing.all_steps))
                    }
                };
                let sums = sums.add(slicing.kept_index(self.block, i, panel) * micro.rows * micro.width);
                self.compute_tile(&tile, left, right, sums);
            }
        }
    }

    /// Rows that a matrix unit can load as they lie in memory, from `step` on: words of the right kind, whole tiles,
    /// and a depth that ends with a tile.
    fn direct(&self, operand: Operand, rows: &Range<usize>, step: usize) -> Option<(*const u32, usize)> {
        let whole = self.product.depth == 2 * self.slicing.all_steps && rows.len().is_multiple_of(self.micro.row_unit);
        match operand.numbers {
            Numbers::Bf16(x) if self.micro.run_unit.is_some() && whole && operand.stride.is_multiple_of(2) => {
                let part =
                    &x[rows.start * operand.stride + 2 * step..(rows.end - 1) * operand.stride + self.product.depth];
                Some((part.as_ptr().cast(), operand.stride / 2))
            }
            _ => None,
        }
    }

    /// Computes a tile on the result itself where it has the kernel's shape, or by way of `sums`.
    unsafe fn compute_tile(&self, tile: &Tile, left: (*const u32, usize), right: *const u32, sums: *mut f32) {
        let (micro, stride, out) = (self.micro, self.product.columns, self.product.out);
        let (rows, columns) = (tile.rows.len(), tile.columns.len());
        let at = tile.rows.start * stride + tile.columns.start;
        // SAFETY: the caller's promises; a tile's rows and columns lie inside the result.
        unsafe {
            let (Elements::F32(result), true) = (out.at, out.holds_sums()) else {
                self.run_kernel(tile, left, right, (sums, micro.width), !tile.first_slice);
                return self.finish(tile, sums);
            };
            let (result, load) = (result.add(at), matches!(out.add, Add::Result) || !tile.first_slice);
            if columns == micro.width && rows.is_multiple_of(micro.row_unit) {
                return self.run_kernel(tile, left, right, (result, stride), load);
            }
            let mut whole = [0.0; TILE];
            if load {
                copy(result, stride, whole.as_mut_ptr(), micro.width, rows, columns);
            }
            self.run_kernel(tile, left, right, (whole.as_mut_ptr(), micro.width), load);
            copy(whole.as_ptr(), micro.width, result, stride, rows, columns);
        }
    }

    /// Blends and rounds the sums of a tile whose depth is done.
    unsafe fn finish(&self, tile: &Tile, sums: *const f32) {
        if !tile.last_slice {
            return;
        }
        let (isa, stride, width) = (self.isa, self.product.columns, self.micro.width);
        let (start, columns) = (tile.rows.start * stride + tile.columns.start, tile.columns.len());
        // SAFETY: the caller's promises; a tile's rows and columns lie inside the result, and are this thread's.
        unsafe {
            let sums = std::slice::from_raw_parts(sums, tile.rows.len() * width);
            match self.product.out.at {
                Elements::Bf16(at) => {
                    let mut to = rows_of(at.add(start), stride, tile.rows.len(), columns);
                    let to = &mut to[..tile.rows.len()];
                    match self.product.out.add {
                        Add::Blend { base: Numbers::Bf16(base), factors } => {
                            blend(isa, sums, width, factors, &base[start..], stride, to);
                        }
                        _ => round(isa, sums, width, to),
                    }
                }
                Elements::F32(at) => {
                    let mut to = rows_of(at.add(start), stride, tile.rows.len(), columns);
                    let Add::Blend { base: Numbers::F32(base), factors } = self.product.out.add else {
                        unreachable!("an f32 result holds its sums, or has an f32 base");
                    };
                    blend(isa, sums, width, factors, &base[start..], stride, &mut to[..tile.rows.len()]);
                }
            }
        }
    }

    unsafe fn run_kernel(
        &self,
        tile: &Tile,
        left: (*const u32, usize),
        right: *const u32,
        (sums, stride): (*mut f32, usize),
        load: bool,
    ) {
        let (micro, rows, steps) = (self.micro, tile.rows.len(), tile.steps);
        // SAFETY: the caller's promises on operands and sums.
        unsafe {
            match (self.product.left, micro.run_unit) {
                (_, Some(run)) => run(rows, steps, left, right, sums, stride, load),
                (Left::Rows(_), None) => (micro.run_along)(rows, steps, left.0, right, sums, stride, load),
                (Left::Packed(_), None) => (micro.run)(rows, steps, left.0, right, sums, stride, load),
            }
        }
    }
}

/// Words from one row to the next of a left operand that is packed as a whole for a matrix unit: a cache line more
/// than needed, so that a tile's rows do not compete for the same places in the cache.
pub fn packed_row_words(all_steps: usize) -> usize {
    all_steps + 16
}

/// Words of one tile of a left operand that is packed as a whole.
pub fn packed_tile_words(micro: &Micro, all_steps: usize) -> usize {
    if micro.run_unit.is_some() {
        micro.rows * packed_row_words(all_steps)
    } else {
        all_steps * micro.left_steps() * micro.left_stride
    }
}

/// Where step `step` of a tile starts in such an operand.
fn packed_start(micro: &Micro, all_steps: usize, tile: usize, step: usize) -> usize {
    let inside = if micro.run_unit.is_some() { step } else { step * micro.left_steps() * micro.left_stride };
    tile * packed_tile_words(micro, all_steps) + inside
}

unsafe fn copy(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize, rows: usize, columns: usize) {
    for row in 0..rows {
        // SAFETY: the caller's promise on both tiles.
        unsafe { std::ptr::copy_nonoverlapping(from.add(row * from_stride), to.add(row * to_stride), columns) };
    }
}

/// The rows of a tile of the result.
unsafe fn rows_of<'a, T>(at: *mut T, stride: usize, rows: usize, columns: usize) -> [&'a mut [T]; TILE_ROWS] {
    let mut all: [&mut [T]; TILE_ROWS] = std::array::from_fn(|_| &mut [][..]);
    for (row, slice) in all.iter_mut().enumerate().take(rows) {
        // SAFETY: the caller's promise on the result; rows do not overlap.
        *slice = unsafe { std::slice::from_raw_parts_mut(at.add(row * stride), columns) };
    }
    all
}

multiversion! {
    /// Rounds a tile of sums.
    fn round(sums: &[f32], width: usize, to: &mut [&mut [Bf16]]) {
        for (sums, to) in sums.chunks(width).zip(to) {
            if let (Some(sums), Some(to)) = (sums.first_chunk::<TILE_COLUMNS>(), to.first_chunk_mut::<TILE_COLUMNS>()) {
                for i in 0..TILE_COLUMNS {
                    to[i] = Bf16::from_f32(sums[i]);
                }
                continue;
            }
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = Bf16::from_f32(*sum);
            }
        }
    }
}

multiversion! {
    /// `factors.0 * base + factors.1 * sum` for a tile of sums, rounded once.
    fn blend<T: Real>(
        sums: &[f32],
        width: usize,
        factors: (f32, f32),
        base: &[T],
        stride: usize,
        to: &mut [&mut [T]],
    ) {
        for ((sums, base), to) in sums.chunks(width).zip(base.chunks(stride)).zip(to) {
            for ((to, base), sum) in to.iter_mut().zip(base).zip(sums) {
                *to = T::put(factors.0.mul_add(base.get(), factors.1 * sum));
            }
        }
    }
}

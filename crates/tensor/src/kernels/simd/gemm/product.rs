//! Products of many pairs of matrices as one set of tasks.
//!
//! A task computes a block of one product: it packs its rows of the left operand and multiplies them with the
//! packed panels of the right one, a slice of the depth at a time, so that a panel's slice stays in the first
//! cache and the rows' slice in the second. Sums that go on in the next slice are kept as f32, which is exact.
//! How a product is cut into blocks and slices therefore never shows in its bits.

#![expect(unsafe_code, reason = "threads write disjoint blocks of one result through raw pointers")]

use std::ops::Range;

use super::micro::{Micro, SLICE_STEPS};
use super::scratch::with_scratch;
use super::words::{Lines, Operand, Order, Word};
use crate::dtype::Bf16;
use crate::kernels::simd::isa::{Isa, multiversion};
use crate::pool;

/// Slices of the depth whose left operand is packed at once; the packed rows of a block stay in the second cache,
/// or at least in the third.
const PACKED_SLICES: usize = 8;
/// Most tiles of rows in a block: a panel's slice, once in the first cache, is used that often.
const BLOCK_TILES: usize = 16;
/// Panels that go through the packed rows slice by slice: their slices stay in the second cache meanwhile.
const GROUP_PANELS: usize = 8;
/// The largest tile of any micro-kernel, in elements.
const TILE: usize = 32 * 32;

/// Where a product goes; rows lie `columns` elements apart.
#[derive(Clone, Copy)]
pub enum Out {
    /// f32, added to what is there if asked.
    F32 {
        /// First element.
        at: *mut f32,
        /// Whether the sums start from what is there.
        accumulate: bool,
    },
    /// Rounded once, at the end.
    Bf16(*mut Bf16),
}

/// One product of a row operand with a panelled column operand.
pub struct Product<'a> {
    /// The left operand; its lines are the product's rows.
    pub left: Operand<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Number of columns.
    pub columns: usize,
    /// The right operand: panels of `steps(depth) * width` words.
    pub panels: &'a [u32],
    /// The result.
    pub out: Out,
}
// SAFETY: `out` points to memory that only this product's tasks touch, and they touch disjoint parts.
unsafe impl Sync for Product<'_> {}

/// A block of a product: some of its row tiles times some of its panels.
struct Block {
    product: usize,
    tiles: Range<usize>,
    panels: Range<usize>,
}

/// Computes all products on all threads.
///
/// # Safety
/// Every `out` is valid for `rows * columns` elements that overlap with nothing else.
pub unsafe fn compute(isa: Isa, micro: &Micro, products: &[Product]) {
    let blocks = cut(micro, products);
    pool::for_each(blocks.len(), &|i| {
        let block = &blocks[i];
        // SAFETY: the caller's promise; blocks are disjoint.
        unsafe { products[block.product].compute_block(isa, micro, block) };
    });
}

/// Part `index` of `0..len` cut into `parts` nearly equal parts.
fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    index * len / parts..(index + 1) * len / parts
}

/// Cuts products into blocks that take about equally long, enough of them for many threads.
fn cut(micro: &Micro, products: &[Product]) -> Vec<Block> {
    // In cycles, for either bound: 64 multiply-adds or four bytes of a panel from memory in each.
    let cost = |p: &Product| p.depth.max(1) * p.columns * p.rows.max(16) / 64;
    let total: usize = products.iter().filter(|p| p.rows > 0).map(cost).sum();
    let target = (total / 64).clamp(30_000, 4_000_000);
    let mut blocks = Vec::new();
    for (product, p) in products.iter().enumerate().filter(|(_, p)| p.rows > 0 && p.columns > 0) {
        let (tiles, panels) = (p.rows.div_ceil(micro.rows), p.columns.div_ceil(micro.width));
        // Packing its rows costs a block about 16 / columns of its time, fetching its columns about 7 / rows.
        let area = target * 64 / p.depth.max(1);
        let square = ((area as f64 * 16.0 / 7.0).sqrt() as usize).clamp(micro.width, p.columns.max(micro.width));
        let rows = (area / square).clamp(1, BLOCK_TILES * micro.rows);
        let row_blocks = tiles.div_ceil(rows.div_ceil(micro.rows));
        let columns = area / p.rows.div_ceil(row_blocks).max(16);
        let column_blocks = panels.div_ceil((columns / micro.width).max(1));
        for i in 0..row_blocks {
            for j in 0..column_blocks {
                blocks.push(Block {
                    product,
                    tiles: part(tiles, row_blocks, i),
                    panels: part(panels, column_blocks, j),
                });
            }
        }
    }
    blocks
}

/// How a block's depth is cut into slices, and what is kept in scratch memory.
struct Slicing {
    /// Steps of the whole depth.
    all_steps: usize,
    /// Steps of a slice; the last may have fewer.
    slice_steps: usize,
    /// Number of slices, at least one.
    count: usize,
    /// Words of one tile's slice of the left operand.
    tile_words: usize,
    /// Words of one slice of all the block's tiles.
    slice_words: usize,
    /// Tiles of unfinished sums that are kept: those of a bf16 result. An f32 result holds its own.
    kept: usize,
}

impl Slicing {
    fn new(micro: &Micro, product: &Product, block: &Block) -> Self {
        let all_steps = micro.right.steps(product.depth);
        let count = all_steps.div_ceil(SLICE_STEPS).max(1);
        let slice_steps = all_steps.div_ceil(count);
        let tile_words = match product.left.order {
            Order::ByLines => micro.rows * micro.along_stride,
            Order::BySteps => slice_steps * micro.left_steps() * micro.left_stride,
        };
        let kept = match (product.out, count) {
            (Out::F32 { .. }, _) => 0,
            (_, 1) => 1,
            (_, count) if count <= PACKED_SLICES => block.tiles.len() * GROUP_PANELS,
            _ => block.tiles.len() * block.panels.len(),
        };
        Self { all_steps, slice_steps, count, tile_words, slice_words: block.tiles.len() * tile_words, kept }
    }

    fn left_words(&self) -> usize {
        self.slice_words * self.count.min(PACKED_SLICES)
    }

    fn steps(&self, slice: usize) -> Range<usize> {
        (slice * self.slice_steps).min(self.all_steps)..((slice + 1) * self.slice_steps).min(self.all_steps)
    }
}

/// Some rows and columns of the result, and where their sums are kept.
struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
    first_slice: bool,
    last_slice: bool,
}

impl Product<'_> {
    fn tile_rows(&self, micro: &Micro, tile: usize) -> Range<usize> {
        part(self.rows, self.rows.div_ceil(micro.rows), tile)
    }

    unsafe fn compute_block(&self, isa: Isa, micro: &Micro, block: &Block) {
        let slicing = Slicing::new(micro, self, block);
        let kept_words = slicing.kept * micro.rows * micro.width;
        with_scratch(slicing.left_words() + kept_words, |left| {
            let sums = left.wrapping_add(slicing.left_words()).cast();
            for packed in (0..slicing.count).step_by(PACKED_SLICES) {
                let slices = packed..(packed + PACKED_SLICES).min(slicing.count);
                // SAFETY: the scratch holds the packed slices of the block's rows, then the kept sums.
                unsafe {
                    for slice in slices.clone() {
                        let to = left.add((slice - packed) * slicing.slice_words);
                        self.pack_rows(isa, micro, block, &slicing, slice, to);
                    }
                    for first in block.panels.clone().step_by(GROUP_PANELS) {
                        let panels = first..(first + GROUP_PANELS).min(block.panels.end);
                        for slice in slices.clone() {
                            let left = left.add((slice - packed) * slicing.slice_words);
                            for panel in panels.clone() {
                                self.compute_panel(isa, micro, block, &slicing, (slice, panel), left, sums);
                            }
                        }
                    }
                }
            }
        });
    }

    /// Packs one slice of the block's rows, tile by tile.
    unsafe fn pack_rows(&self, isa: Isa, micro: &Micro, block: &Block, slicing: &Slicing, slice: usize, to: *mut u32) {
        let steps = slicing.steps(slice);
        let per_step = if micro.right == Word::Pair { 2 } else { 1 };
        let depth = ((steps.start * per_step).min(self.depth), (steps.end * per_step).min(self.depth));
        let count = steps.len() * micro.left_steps();
        let rows = |tile| self.tile_rows(micro, tile);
        let at = |i: usize| to.wrapping_add(i * slicing.tile_words);
        // SAFETY: the words of the slice's tiles, which belong to this thread.
        unsafe {
            match self.left.order {
                Order::ByLines => {
                    for (i, tile) in block.tiles.clone().enumerate() {
                        let lines = (rows(tile).start, rows(tile).len());
                        self.left.pack_along(isa, lines, depth, count, (at(i), micro.along_stride, micro.left));
                    }
                }
                Order::BySteps => {
                    // Whole vectors are as cheap as parts of them; the kernel ignores the surplus.
                    let lines = |first: usize| micro.left_stride.min(self.rows - first);
                    let mut groups = [Lines { first: 0, count: 0, at: to }; BLOCK_TILES];
                    for (i, tile) in block.tiles.clone().enumerate() {
                        let first = rows(tile).start;
                        groups[i] = Lines { first, count: lines(first), at: at(i) };
                        for step in micro.left.steps(depth.1 - depth.0)..count {
                            let last = at(i).add(step * micro.left_stride);
                            std::slice::from_raw_parts_mut(last, micro.left_stride).fill(0);
                        }
                    }
                    let groups = &groups[..block.tiles.len()];
                    self.left.pack_across(isa, groups, depth, micro.left_stride, micro.left);
                }
            }
        }
    }

    /// One slice of one panel with all rows of the block.
    unsafe fn compute_panel(
        &self,
        isa: Isa,
        micro: &Micro,
        block: &Block,
        slicing: &Slicing,
        (slice, panel): (usize, usize),
        left: *const u32,
        sums: *mut f32,
    ) {
        let steps = slicing.steps(slice);
        let columns = panel * micro.width..((panel + 1) * micro.width).min(self.columns);
        let (tiles, tile_size) = (block.tiles.len(), micro.rows * micro.width);
        for (i, tile) in block.tiles.clone().enumerate() {
            let keep = ((panel - block.panels.start) * tiles + i) % slicing.kept.max(1);
            let tile = Tile {
                rows: self.tile_rows(micro, tile),
                columns: columns.clone(),
                first_slice: slice == 0,
                last_slice: slice + 1 == slicing.count,
            };
            // SAFETY: the panel has all steps of the depth, the left operand those of the slice.
            unsafe {
                let right = self.panels.as_ptr().add((panel * slicing.all_steps + steps.start) * micro.width);
                let (left, sums) = (left.add(i * slicing.tile_words), sums.add(keep * tile_size));
                self.compute_tile(isa, micro, &tile, steps.len(), left, right, sums);
            }
        }
    }

    /// Runs the micro-kernel on the result itself where it has the kernel's shape, or by way of `sums`.
    unsafe fn compute_tile(
        &self,
        isa: Isa,
        micro: &Micro,
        tile: &Tile,
        steps: usize,
        left: *const u32,
        right: *const u32,
        sums: *mut f32,
    ) {
        let (rows, columns) = (tile.rows.len(), tile.columns.len());
        let at = tile.rows.start * self.columns + tile.columns.start;
        let run = if self.left.order == Order::ByLines { micro.run_along } else { micro.run };
        // SAFETY: the caller's promises; a tile's rows and columns lie inside the result.
        unsafe {
            match self.out {
                Out::F32 { at: out, accumulate } => {
                    let (out, load) = (out.add(at), accumulate || !tile.first_slice);
                    if columns == micro.width {
                        return run(rows, steps, left, right, out, self.columns, load);
                    }
                    let mut whole = [0.0; TILE];
                    if load {
                        copy(out, self.columns, whole.as_mut_ptr(), micro.width, rows, columns);
                    }
                    run(rows, steps, left, right, whole.as_mut_ptr(), micro.width, load);
                    copy(whole.as_ptr(), micro.width, out, self.columns, rows, columns);
                }
                Out::Bf16(out) => {
                    run(rows, steps, left, right, sums, micro.width, !tile.first_slice);
                    if tile.last_slice {
                        for row in 0..rows {
                            let from = std::slice::from_raw_parts(sums.add(row * micro.width), columns);
                            let to = std::slice::from_raw_parts_mut(out.add(at + row * self.columns), columns);
                            round(isa, from, to);
                        }
                    }
                }
            }
        }
    }
}

unsafe fn copy(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize, rows: usize, columns: usize) {
    for row in 0..rows {
        // SAFETY: the caller's promise on both tiles.
        unsafe { std::ptr::copy_nonoverlapping(from.add(row * from_stride), to.add(row * to_stride), columns) };
    }
}

multiversion! {
    fn round(from: &[f32], to: &mut [Bf16]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = Bf16::from_f32(*from));
    }
}

//! Products of many pairs of matrices as one set of tasks.
//!
//! A task computes a block of one product: it packs its rows of the left operand and multiplies them with the
//! packed panels of the right one, a slice of the depth at a time, so that a panel's slice stays in the first
//! cache and the rows' slice in the second. Sums that go on in the next slice are kept as f32, which is exact.
//! How a product is cut into blocks and slices therefore never shows in its bits.

#![expect(unsafe_code, reason = "threads write disjoint blocks of one result through raw pointers")]

use std::ops::Range;

use super::micro::Micro;
use super::scratch::with_scratch;
use super::words::{Operand, Order, Target, Word};
use crate::dtype::Bf16;
use crate::kernels::simd::isa::{Isa, multiversion};
use crate::pool;

/// Steps in a slice of the depth: a panel's slice takes 32 KiB.
const SLICE_STEPS: usize = 256;
/// Tiles of rows in a block.
const BLOCK_TILES: usize = 8;
/// Columns in a block: packing the rows costs little beside that many columns.
const BLOCK_COLUMNS: usize = 512;
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

/// Cuts products into blocks that take about equally long.
fn cut(micro: &Micro, products: &[Product]) -> Vec<Block> {
    // In cycles, for either bound: 64 multiply-adds or four bytes of a panel from memory in each.
    let panel_cost = |p: &Product, rows: usize| p.depth * micro.width * rows.max(16) / 64;
    let whole = |p: &Product| panel_cost(p, p.rows) * p.columns.div_ceil(micro.width);
    let total: usize = products.iter().filter(|p| p.rows > 0).map(whole).sum();
    let target = (total / 32).clamp(30_000, 400_000);
    let mut blocks = Vec::new();
    for (product, p) in products.iter().enumerate().filter(|(_, p)| p.rows > 0) {
        let tiles = p.rows.div_ceil(micro.rows);
        let panels = p.columns.div_ceil(micro.width);
        let row_blocks = tiles.div_ceil(BLOCK_TILES);
        let wanted = target / panel_cost(p, p.rows / row_blocks).max(1);
        let column_blocks = panels.div_ceil(wanted.clamp(1, BLOCK_COLUMNS / micro.width));
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
        let panel_steps = micro.right.steps(self.depth);
        let slices = panel_steps.div_ceil(SLICE_STEPS).max(1);
        let slice_steps = panel_steps.div_ceil(slices).next_multiple_of(2);
        let tile_words = slice_steps * micro.left_steps() * micro.left_stride;
        let left_words = block.tiles.len() * tile_words;
        // Unfinished sums of a bf16 result; an f32 result holds its own.
        let tile_size = micro.rows * micro.width;
        let kept =
            if slices > 1 && matches!(self.out, Out::Bf16(_)) { block.tiles.len() * block.panels.len() } else { 1 };
        with_scratch(left_words + kept * tile_size, |scratch| {
            for slice in 0..slices {
                let steps = slice * slice_steps..((slice + 1) * slice_steps).min(panel_steps);
                // SAFETY: the scratch holds the block's tiles, then the kept sums.
                unsafe {
                    self.pack_rows(isa, micro, block, &steps, tile_words, scratch);
                    for (j, panel) in block.panels.clone().enumerate() {
                        let columns = panel * micro.width..((panel + 1) * micro.width).min(self.columns);
                        let right = self.panels.as_ptr().add((panel * panel_steps + steps.start) * micro.width);
                        for (i, tile) in block.tiles.clone().enumerate() {
                            let keep = if kept == 1 { 0 } else { (j * block.tiles.len() + i) * tile_size };
                            let tile = Tile {
                                rows: self.tile_rows(micro, tile),
                                columns: columns.clone(),
                                first_slice: slice == 0,
                                last_slice: slice + 1 == slices,
                            };
                            let left = scratch.add(i * tile_words);
                            let sums = scratch.add(left_words + keep).cast();
                            self.compute_tile(isa, micro, &tile, steps.len(), left, right, sums);
                        }
                    }
                }
            }
        });
    }

    /// Packs one slice of the block's rows, tile by tile.
    unsafe fn pack_rows(
        &self,
        isa: Isa,
        micro: &Micro,
        block: &Block,
        steps: &Range<usize>,
        tile_words: usize,
        to: *mut u32,
    ) {
        // Rows of memory that lie across the tiles are read once for all tiles, a few at a time.
        let grain = if self.left.order == Order::ByLines { steps.len() } else { 32 };
        let per_step = if micro.right == Word::Pair { 2 } else { 1 };
        for first in steps.clone().step_by(grain.max(1)) {
            let last = (first + grain).min(steps.end);
            let depth = (first * per_step, (last * per_step).min(self.depth));
            let left_steps = micro.left_steps();
            for (i, tile) in block.tiles.clone().enumerate() {
                let rows = self.tile_rows(micro, tile);
                // Across memory, whole vectors are as cheap as parts of them; the kernel ignores the surplus.
                let lines = match self.left.order {
                    Order::ByLines => rows.len(),
                    Order::BySteps => micro.left_stride.min(self.rows - rows.start),
                };
                let offset = i * tile_words + (first - steps.start) * left_steps * micro.left_stride;
                let extent = (micro.left_stride, (last - first) * left_steps);
                // SAFETY: a tile's words, which belong to this thread.
                unsafe {
                    let target = Target { at: to.add(offset), stride: micro.left_stride, word: micro.left };
                    self.left.pack(isa, (rows.start, lines), depth, extent, target);
                }
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
        // SAFETY: the caller's promises; a tile's rows and columns lie inside the result.
        unsafe {
            match self.out {
                Out::F32 { at: out, accumulate } => {
                    let (out, load) = (out.add(at), accumulate || !tile.first_slice);
                    if columns == micro.width {
                        return (micro.run)(rows, steps, left, right, out, self.columns, load);
                    }
                    let mut whole = [0.0; TILE];
                    if load {
                        copy(out, self.columns, whole.as_mut_ptr(), micro.width, rows, columns);
                    }
                    (micro.run)(rows, steps, left, right, whole.as_mut_ptr(), micro.width, load);
                    copy(whole.as_ptr(), micro.width, out, self.columns, rows, columns);
                }
                Out::Bf16(out) => {
                    (micro.run)(rows, steps, left, right, sums, micro.width, !tile.first_slice);
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

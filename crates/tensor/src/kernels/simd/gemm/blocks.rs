//! How products are cut: into blocks, which are the tasks of the threads, and their depth into slices.

use std::ops::Range;

use super::micro::{Micro, SLICE_STEPS};
use super::product::Product;

/// Slices of the depth whose left operand is packed at once; the packed rows of a block stay in the second cache,
/// or at least in the third.
pub const PACKED_SLICES: usize = 8;
/// Most tiles of rows in a block: a panel's slice, once in the first cache, is used that often.
pub const BLOCK_TILES: usize = 16;
/// Panels that go through the packed rows slice by slice: their slices stay in the second cache meanwhile.
pub const GROUP_PANELS: usize = 8;

/// A block of a product: some of its row tiles times some of its panels.
pub struct Block {
    /// Which product.
    pub product: usize,
    /// Tiles of rows.
    pub tiles: Range<usize>,
    /// Panels of columns.
    pub panels: Range<usize>,
}

/// Part `index` of `0..len` cut into `parts` nearly equal parts.
pub fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    index * len / parts..(index + 1) * len / parts
}

/// Number of tiles that `rows` rows are cut into.
pub fn tiles(micro: &Micro, rows: usize) -> usize {
    rows.div_ceil(micro.rows)
}

/// Rows of tile `index`: nearly equal numbers, in whole units but for the last tile.
pub fn tile_rows(micro: &Micro, rows: usize, index: usize) -> Range<usize> {
    let units = part(rows.div_ceil(micro.row_unit), tiles(micro, rows), index);
    units.start * micro.row_unit..(units.end * micro.row_unit).min(rows)
}

/// Cuts products into blocks that take about equally long, enough of them for many threads.
pub fn cut(micro: &Micro, products: &[Product]) -> Vec<Block> {
    // In cycles, for either bound: multiply-adds, or some eight bytes of a panel from memory in each.
    let rows_min = micro.rate / 4;
    let cost = |p: &Product| p.depth.max(1) * p.columns * p.rows.max(rows_min) / micro.rate;
    let total: usize = products.iter().filter(|p| p.rows > 0).map(cost).sum();
    let target = (total / 32).clamp(30_000, 4_000_000);
    let mut blocks = Vec::new();
    for (product, p) in products.iter().enumerate().filter(|(_, p)| p.rows > 0 && p.columns > 0) {
        let (tiles, panels) = (tiles(micro, p.rows), p.columns.div_ceil(micro.width));
        // Packing its rows costs a block about 16 / columns of its time, fetching its columns about 7 / rows.
        let area = target * micro.rate / p.depth.max(1);
        let columns = ((area as f64 * 16.0 / 7.0).sqrt() as usize).clamp(micro.width, p.columns.max(micro.width));
        let rows = (area / columns).clamp(1, BLOCK_TILES * micro.rows);
        let row_blocks = tiles.div_ceil(rows.div_ceil(micro.rows));
        // Where rows are few, columns make up for them.
        let columns = area / p.rows.div_ceil(row_blocks).max(rows_min);
        let column_blocks = panels.div_ceil((columns / micro.width).max(1));
        for (i, j) in (0..row_blocks).flat_map(|i| (0..column_blocks).map(move |j| (i, j))) {
            let (tiles, panels) = (part(tiles, row_blocks, i), part(panels, column_blocks, j));
            let rows_end = tile_rows(micro, p.rows, tiles.end - 1).end;
            if !p.lower || panels.start * micro.width < rows_end {
                blocks.push(Block { product, tiles, panels });
            }
        }
    }
    blocks
}

/// How a block's depth is cut, and what is kept in scratch memory.
pub struct Slicing {
    /// Steps of the whole depth.
    pub all_steps: usize,
    /// Steps of a slice; the last may have fewer.
    slice_steps: usize,
    /// Number of slices, at least one.
    pub count: usize,
    /// Words of one slice of one tile of packed rows.
    pub tile_words: usize,
    /// Words of one slice of all the block's tiles.
    pub slice_words: usize,
    /// Tiles of unfinished sums that are kept here because the result cannot hold them.
    pub kept: usize,
}

impl Slicing {
    /// Cuts the depth of a block.
    pub fn new(micro: &Micro, product: &Product, block: &Block) -> Self {
        let all_steps = micro.steps(product.depth);
        let count = all_steps.div_ceil(SLICE_STEPS).max(1);
        let slice_steps = all_steps.div_ceil(count).next_multiple_of(micro.step_unit);
        let tile_words = micro.rows * micro.along_stride;
        let kept = match (product.out.holds_sums(), count) {
            (true, _) => 0,
            (_, 1) => 1,
            (_, count) if count <= PACKED_SLICES => block.tiles.len() * GROUP_PANELS,
            _ => block.tiles.len() * block.panels.len(),
        };
        Self { all_steps, slice_steps, count, tile_words, slice_words: block.tiles.len() * tile_words, kept }
    }

    /// Words of packed rows that a block needs at once.
    pub fn left_words(&self) -> usize {
        self.slice_words * self.count.min(PACKED_SLICES)
    }

    /// The steps of a slice.
    pub fn steps(&self, slice: usize) -> Range<usize> {
        (slice * self.slice_steps).min(self.all_steps)..((slice + 1) * self.slice_steps).min(self.all_steps)
    }

    /// Where the unfinished sums of the block's tile `tile` and panel `panel` are kept.
    pub fn kept_index(&self, block: &Block, tile: usize, panel: usize) -> usize {
        ((panel - block.panels.start) * block.tiles.len() + tile) % self.kept.max(1)
    }
}

//! Products of packed blocks, which both passes share.
//!
//! They run on the matrix kernels of [`crate::kernels::simd::gemm`]: an element is one chain of multiply-adds over
//! ascending depth (on a matrix unit, of its steps), so neither the size of a block nor its place shows in the bits.

#![expect(unsafe_code, reason = "calls micro-kernels on packed slices")]

use std::ops::Range;

use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::kernels::simd::gemm::micro::{Micro, Run};
use crate::kernels::simd::gemm::panels::{Matrix, pack_turned};
use crate::kernels::simd::gemm::product::packed_row_words;
use crate::kernels::simd::gemm::words::{Operand, Order, Target, Word};
use crate::kernels::simd::lanes::Real;

/// Rows cut into tiles that a micro-kernel takes at once.
#[derive(Clone, Copy)]
pub struct Tiles {
    rows: usize,
    count: usize,
    /// Rows of every tile but the last; without it, tiles are nearly equal.
    each: Option<usize>,
}

impl Tiles {
    /// Number of tiles.
    pub fn count(self) -> usize {
        self.count
    }

    /// Rows of a tile.
    pub fn tile(self, i: usize) -> Range<usize> {
        match self.each {
            Some(each) => i * each..((i + 1) * each).min(self.rows),
            None => i * self.rows / self.count..(i + 1) * self.rows / self.count,
        }
    }
}

/// Some of the steps of a packed operand.
#[derive(Clone, Copy)]
pub struct Steps {
    /// First of them.
    pub at: usize,
    /// Steps of the whole operand.
    pub all: usize,
}

impl Steps {
    /// An operand packed at once.
    pub fn all(all: usize) -> Self {
        Self { at: 0, all }
    }
}

/// Block products of one dtype on one instruction set.
#[derive(Clone, Copy)]
pub struct Blocks {
    /// The instruction set.
    pub isa: Isa,
    micro: Micro,
}

impl Blocks {
    /// Products with operands of `dtype`.
    pub fn new(isa: Isa, dtype: DType) -> Self {
        Self::with(isa, Micro::of(isa, dtype))
    }

    /// Products by way of this micro-kernel.
    pub fn with(isa: Isa, micro: Micro) -> Self {
        Self { isa, micro }
    }

    /// Rows of a full tile.
    pub fn tile_rows(&self) -> usize {
        self.micro.rows
    }

    /// Whether left operands are rounded to bf16.
    pub fn rounds_left(&self) -> bool {
        self.micro.left == Word::Pair
    }

    /// Whether every element's sum is one chain over single steps, which other code can repeat.
    pub fn sums_in_chains(&self) -> bool {
        self.micro.run_unit.is_none()
    }

    /// Columns in whole panels.
    pub fn padded(&self, columns: usize) -> usize {
        columns.next_multiple_of(self.micro.width)
    }

    /// Rows that results and left operands must have room for.
    pub fn padded_rows(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.micro.row_unit)
    }

    /// Cuts rows into tiles; results of a matrix unit start at whole units, so that none spills into the next.
    pub fn tiles(&self, rows: usize) -> Tiles {
        let each = self.micro.run_unit.map(|_| self.micro.rows);
        Tiles { rows, count: rows.div_ceil(self.micro.rows), each }
    }

    /// Steps of a sum over `depth` numbers.
    pub fn steps(&self, depth: usize) -> usize {
        self.micro.steps(depth)
    }

    /// Words of packed rows.
    pub fn left_words(&self, tiles: Tiles, steps: usize) -> usize {
        match self.micro.run_unit {
            Some(_) => self.padded_rows(tiles.rows) * packed_row_words(steps),
            None => tiles.count * self.tile_words(steps),
        }
    }

    /// The words of tile `i`.
    pub fn left_tile<'w>(&self, words: &'w [u32], tiles: Tiles, i: usize, steps: usize) -> &'w [u32] {
        match self.micro.run_unit {
            Some(_) => &words[tiles.tile(i).start * packed_row_words(steps)..],
            None => &words[i * self.tile_words(steps)..],
        }
    }

    fn tile_words(&self, steps: usize) -> usize {
        steps * self.micro.left_steps() * self.micro.left_stride
    }

    /// Words of a packed right operand.
    pub fn right_words(&self, columns: usize, steps: usize) -> usize {
        steps * self.padded(columns)
    }

    /// Packs lines of an operand, tile by tile. Where they lie across memory, whole vectors of lines must exist.
    pub fn pack_left(&self, operand: Operand, tiles: Tiles, depth: usize, steps: Steps, to: &mut [u32]) {
        if self.micro.run_unit.is_some() {
            return self.pack_rows(operand, tiles, depth, steps, to);
        }
        let (stride, words) = (self.micro.left_stride, self.tile_words(steps.all));
        let count = self.steps(depth) * self.micro.left_steps();
        for i in 0..tiles.count() {
            let rows = tiles.tile(i);
            let to = &mut to[i * words + self.tile_words(steps.at)..][..count * stride];
            let target = Target { at: to.as_mut_ptr(), stride, word: self.micro.left };
            // Across memory, whole vectors are cheaper than parts of them; the kernel ignores the surplus.
            let lines = if operand.order == Order::BySteps { stride } else { rows.len() };
            // SAFETY: `to` holds `count` steps of `stride` lines, and is borrowed here alone.
            unsafe { operand.pack(self.isa, (rows.start, lines), (0, depth), (stride, count), target) };
        }
    }

    /// Packs rows for a matrix unit, one after the other.
    fn pack_rows(&self, operand: Operand, tiles: Tiles, depth: usize, steps: Steps, to: &mut [u32]) {
        let (stride, count) = (packed_row_words(steps.all), self.steps(depth));
        assert!(to.len() >= self.left_words(tiles, steps.all) && steps.at + count <= steps.all);
        let at = to[steps.at..].as_mut_ptr();
        // SAFETY: `to` holds all rows in whole units, and is borrowed here alone.
        unsafe {
            match operand.order {
                Order::ByLines => {
                    let target = (at, stride, self.micro.left);
                    operand.pack_along(self.isa, (0, tiles.rows), (0, depth), count, target);
                }
                Order::BySteps => {
                    assert_eq!(count, steps.all, "rows are turned as a whole");
                    pack_turned(self.isa, &Matrix { operand, depth }, count, 0..tiles.rows, at);
                }
            }
        }
    }

    /// Packs the operand's first `columns` lines, panel by panel.
    pub fn pack_right(&self, operand: Operand, columns: usize, depth: usize, steps: Steps, to: &mut [u32]) {
        let (width, count) = (self.micro.width, self.steps(depth));
        for first in (0..columns).step_by(width) {
            let to = &mut to[first * steps.all + steps.at * width..][..count * width];
            let target = Target { at: to.as_mut_ptr(), stride: width, word: self.micro.right };
            let lines = (first, width.min(columns - first));
            // SAFETY: `to` holds `count` steps of `width` lines, and is borrowed here alone.
            unsafe { operand.pack(self.isa, lines, (0, depth), (width, count), target) };
        }
    }

    /// Elements from one row to the next of a left operand that lies along memory.
    pub fn along_stride<P>(&self) -> usize {
        self.micro.along_stride * size_of::<u32>() / size_of::<P>()
    }

    /// `c (+)= left · right` for one packed tile of `rows` rows and the panels that hold the first `columns`
    /// columns. The sums go over the first `steps` steps, of `packed` in either operand.
    pub fn multiply(
        &self,
        (left, rows): (&[u32], usize),
        (right, packed): (&[u32], usize),
        extent: (usize, usize),
        c: (&mut [f32], usize),
        load: bool,
    ) {
        let stride = packed_row_words(packed);
        let words = match self.micro.run_unit {
            Some(_) => (self.padded_rows(rows) - 1) * stride + extent.1,
            None => self.tile_words(extent.1),
        };
        assert!(left.len() >= words);
        let left = (left.as_ptr(), stride, rows);
        self.multiply_with(self.micro.run, left, (right, packed), extent, c, load);
    }

    /// The same for rows that lie along memory as they are: f32, or bf16 where the kernel takes pairs.
    pub fn multiply_along<P: Real>(
        &self,
        (left, rows): (&[P], usize),
        right: (&[u32], usize),
        extent: (usize, usize),
        c: (&mut [f32], usize),
        load: bool,
    ) {
        let (stride, words) = (self.micro.along_stride, extent.1 * self.micro.left_steps());
        assert!(words <= stride);
        assert!(size_of_val(left) >= ((self.padded_rows(rows) - 1) * stride + words) * size_of::<u32>());
        let left = (left.as_ptr().cast(), stride, rows);
        self.multiply_with(self.micro.run_along, left, right, extent, c, load);
    }

    fn multiply_with(
        &self,
        run: Run,
        (left, left_stride, rows): (*const u32, usize, usize),
        (right, packed): (&[u32], usize),
        (columns, steps): (usize, usize),
        (c, stride): (&mut [f32], usize),
        load: bool,
    ) {
        let width = self.micro.width;
        assert!(rows >= 1 && rows <= self.micro.rows && steps <= packed && steps.is_multiple_of(self.micro.step_unit));
        for panel in 0..columns.div_ceil(width) {
            let (right, c) = (&right[panel * packed * width..][..steps * width], &mut c[panel * width..]);
            assert!(c.len() >= (self.padded_rows(rows) - 1) * stride + width);
            let (right, c) = (right.as_ptr(), c.as_mut_ptr());
            // SAFETY: all lengths were just checked, and the kernel set exists only where its instructions do.
            unsafe {
                match self.micro.run_unit {
                    Some(run) => run(rows, steps, (left, left_stride), right, c, stride, load),
                    None => run(rows, steps, left, right, c, stride, load),
                }
            }
        }
    }
}

//! What both passes of attention share: the inputs by head, and products of packed blocks.
//!
//! Products run on the matrix kernels of [`super::gemm`]: an element is one chain of multiply-adds over
//! ascending depth, so neither the size of a block nor its place shows in the bits.

#![expect(unsafe_code, reason = "calls micro-kernels on packed slices, and heads write interleaved columns")]

use std::ops::Range;

use super::cast::cast;
use super::gemm::micro::{Micro, Run};
use super::gemm::panels::{Matrix, pack_turned};
use super::gemm::product::packed_row_words;
use super::gemm::words::{Numbers, Operand, Order, Target, Word};
use super::isa::multiversion;
use super::lanes::{Real, real};
use crate::dtype::{Bf16, DType, Element};
use crate::kernels::simd::Isa;
use crate::kernels::{AttentionShape, Segment};
use crate::storage::Buffer;
use crate::tensor::Tensor;

/// Keys in a block, counted from the segment's first key. Part of the arithmetic: a running maximum is updated
/// once per block.
pub const KEYS: usize = 64;

/// Queries, keys and values in one dtype.
pub struct Inputs {
    /// `[T, H * (nope + rope)]`.
    pub q: Tensor,
    /// `[S, H * (nope + value)]`.
    pub kv: Tensor,
    /// `[S, rope]`.
    pub k_rope: Tensor,
    /// Head geometry.
    pub shape: AttentionShape,
}

impl Inputs {
    /// Checks shapes; inputs of different dtypes are all widened.
    pub fn new(isa: Isa, (q, kv, k_rope): (&Tensor, &Tensor, &Tensor), shape: &AttentionShape) -> Self {
        let AttentionShape { heads, nope, rope, value, .. } = *shape;
        assert_eq!(q.dims::<2>()[1], heads * (nope + rope), "attention: q {q:?} for {shape:?}");
        assert_eq!(kv.dims::<2>()[1], heads * (nope + value), "attention: kv {kv:?} for {shape:?}");
        assert_eq!(k_rope.shape(), [kv.shape()[0], rope], "attention: k_rope {k_rope:?} for {shape:?}");
        assert!(nope + rope > 0 && value > 0, "attention: empty heads in {shape:?}");
        let dtype = if kv.dtype() == q.dtype() && k_rope.dtype() == q.dtype() { q.dtype() } else { DType::F32 };
        let alike = |x: &Tensor| if x.dtype() == dtype { x.clone() } else { cast(isa, x, dtype) };
        Self { q: alike(q), kv: alike(kv), k_rope: alike(k_rope), shape: *shape }
    }

    /// The two parts of a head's queries from `first` on, without position and rotary, and their widths.
    pub fn queries(&self, h: usize, first: usize, order: Order) -> [(Operand<'_>, usize); 2] {
        let AttentionShape { heads, nope, rope, .. } = self.shape;
        let (stride, start) = (heads * (nope + rope), h * (nope + rope));
        let part = |column| operand(&self.q, stride, first, start + column, order);
        [(part(0), nope), (part(nope), rope)]
    }

    /// The two parts of a head's keys.
    pub fn keys(&self, h: usize, first: usize, order: Order) -> [(Operand<'_>, usize); 2] {
        let AttentionShape { heads, nope, rope, value, .. } = self.shape;
        let plain = operand(&self.kv, heads * (nope + value), first, h * (nope + value), order);
        [(plain, nope), (operand(&self.k_rope, rope, first, 0, order), rope)]
    }

    /// A head's values.
    pub fn values(&self, h: usize, first: usize, order: Order) -> Operand<'_> {
        let AttentionShape { heads, nope, value, .. } = self.shape;
        operand(&self.kv, heads * (nope + value), first, h * (nope + value) + nope, order)
    }

    /// Asks for a head's keys and values ahead of their use: the rows of one head lie too far apart for the
    /// hardware to notice that they follow each other.
    pub fn prefetch(&self, h: usize, rows: Range<usize>) {
        let AttentionShape { heads, nope, value, .. } = self.shape;
        real!(self.kv.dtype(), T => {
            let kv = self.kv.host::<T>();
            for row in rows {
                prefetch(&kv[(row * heads + h) * (nope + value)..][..nope + value]);
            }
        });
    }
}

/// Rows of `x` (`stride` wide) from `first` on, without the columns before `column`.
fn operand(x: &Tensor, stride: usize, first: usize, column: usize, order: Order) -> Operand<'_> {
    // Past the last element only where there is nothing to read.
    let start = (first * stride + column).min(x.len());
    Operand { numbers: Numbers::of(x).from(start), stride, order }
}

/// Asks for the cache lines of a slice.
fn prefetch<T>(x: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint about an address inside the slice; every x86-64 CPU has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// Panics unless the segments lie inside their tensors and no two share a query. `keys_too`: nor a key.
/// Returns whether they cover all queries and all keys.
pub fn check_segments(segments: &[Segment], queries: usize, keys: usize, keys_too: bool) -> (bool, bool) {
    for segment in segments {
        assert!(segment.query_len <= segment.key_len, "{segment:?}: more queries than keys");
        let ends = (segment.query_start + segment.query_len, segment.key_start + segment.key_len);
        assert!(ends.0 <= queries && ends.1 <= keys, "{segment:?}: only {queries} queries and {keys} keys");
    }
    let disjoint = |mut ranges: Vec<(usize, usize)>| {
        ranges.sort_unstable();
        ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
    };
    let query_ranges = segments.iter().map(|s| (s.query_start, s.query_len)).filter(|range| range.1 > 0).collect();
    assert!(disjoint(query_ranges), "attention: segments share queries");
    if keys_too {
        let key_ranges = segments.iter().map(|s| (s.key_start, s.key_len)).filter(|range| range.1 > 0).collect();
        assert!(disjoint(key_ranges), "attention_grad: segments share keys; give each its own copy");
    }
    let sum = |len: fn(&Segment) -> usize| segments.iter().map(len).sum::<usize>();
    (sum(|s| s.query_len) == queries, sum(|s| s.key_len) == keys)
}

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

multiversion! {
    fn round(x: &[f32], out: &mut [Bf16]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = Bf16::from_f32(*x);
        }
    }
}

/// Working memory of a task, handed out piece by piece; contents are arbitrary.
pub struct Scratch(Buffer);

impl Scratch {
    /// Memory for pieces of these sizes, in words.
    pub fn new(pieces: &[usize]) -> Self {
        let words: usize = pieces.iter().map(|piece| piece.next_multiple_of(16)).sum();
        Self(Buffer::recycled(words * size_of::<u32>()))
    }

    /// The pieces as integers (packed operands) or floats.
    pub fn split<T: Element, const N: usize>(&mut self, pieces: [usize; N]) -> [&mut [T]; N] {
        let mut rest = self.0.slice_mut::<T>();
        pieces.map(|piece| {
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(piece.next_multiple_of(16));
            rest = others;
            &mut mine[..piece]
        })
    }
}

/// A matrix whose rows are shared by tasks, each of which writes columns of its own.
pub struct Columns {
    at: Start,
    rows: usize,
    width: usize,
}

/// First element of a matrix.
enum Start {
    F32(*mut f32),
    Bf16(*mut Bf16),
}
// SAFETY: tasks write disjoint parts (see `write`).
unsafe impl Sync for Columns {}

impl Columns {
    /// The matrix `x`, which the caller keeps alive and leaves alone meanwhile.
    pub fn of(x: &mut Tensor) -> Self {
        let [rows, width] = x.dims();
        let at = match x.dtype() {
            DType::F32 => Start::F32(x.host_mut::<f32>().as_mut_ptr()),
            DType::Bf16 => Start::Bf16(x.host_mut::<Bf16>().as_mut_ptr()),
            other => panic!("attention on this device gives f32 or bf16, not {other:?}"),
        };
        Self { at, rows, width }
    }

    /// Rounds `values` into columns of a row.
    ///
    /// # Safety
    /// The matrix is alive, and no two threads write the same element.
    pub unsafe fn write(&self, isa: Isa, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.width);
        let start = row * self.width + column;
        // SAFETY: inside the matrix, and the caller's promise.
        unsafe {
            match self.at {
                Start::F32(at) => std::slice::from_raw_parts_mut(at.add(start), values.len()).copy_from_slice(values),
                Start::Bf16(at) => round(isa, values, std::slice::from_raw_parts_mut(at.add(start), values.len())),
            }
        }
    }
}

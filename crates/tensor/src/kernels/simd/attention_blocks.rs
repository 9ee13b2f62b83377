//! What both passes of attention share: the inputs by head, and products of packed blocks.
//!
//! Products run on the matrix kernels of [`super::gemm`]: an element is one chain of multiply-adds over
//! ascending depth, so neither the size of a block nor its place shows in the bits.

#![expect(unsafe_code, reason = "calls micro-kernels on packed slices, and heads write interleaved columns")]

use super::cast::cast;
use super::gemm::micro::Micro;
use super::gemm::words::{Numbers, Operand, Order, Target};
use super::lanes::real;
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

    /// Memory for a block of keys.
    pub fn key_block(&self) -> Tensor {
        Tensor::empty(self.q.device(), self.q.dtype(), &[KEYS, self.shape.nope + self.shape.rope])
    }

    /// Puts the keys `first .. first + count` of a head, whole, one after the other.
    pub fn copy_keys(&self, h: usize, first: usize, count: usize, to: &mut Tensor) {
        let AttentionShape { heads, nope, rope, value, .. } = self.shape;
        real!(self.q.dtype(), T => {
            let (kv, k_rope) = (self.kv.host::<T>(), self.k_rope.host::<T>());
            for (key, to) in (first..first + count).zip(to.host_mut::<T>().chunks_exact_mut(nope + rope)) {
                to[..nope].copy_from_slice(&kv[(key * heads + h) * (nope + value)..][..nope]);
                to[nope..].copy_from_slice(&k_rope[key * rope..][..rope]);
            }
        });
    }

    /// The queries of a head from `first` on.
    pub fn queries(&self, h: usize, first: usize, order: Order) -> Operand<'_> {
        let width = self.shape.nope + self.shape.rope;
        let (stride, start) = (self.shape.heads * width, h * width);
        Operand { numbers: Numbers::of(&self.q).from(first * stride + start), stride, order }
    }

    /// The values of a head from `first` on.
    pub fn values(&self, h: usize, first: usize, order: Order) -> Operand<'_> {
        let AttentionShape { heads, nope, value, .. } = self.shape;
        let (stride, start) = (heads * (nope + value), h * (nope + value) + nope);
        Operand { numbers: Numbers::of(&self.kv).from(first * stride + start), stride, order }
    }
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

/// Rows cut into nearly equal tiles that a micro-kernel takes at once.
#[derive(Clone, Copy)]
pub struct Tiles {
    rows: usize,
    each: usize,
}

impl Tiles {
    /// Number of tiles.
    pub fn count(self) -> usize {
        self.rows.div_ceil(self.each.max(1))
    }

    /// First row and number of rows of a tile.
    pub fn tile(self, i: usize) -> (usize, usize) {
        (i * self.each, self.each.min(self.rows - i * self.each))
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
    /// Products with operands of `dtype`. Tiles of a matrix unit are too large for a head's blocks, so that
    /// bf16 dot products serve there as well.
    pub fn new(isa: Isa, dtype: DType) -> Self {
        Self { isa, micro: Micro::of(isa.min(Isa::Avx512Bf16), dtype) }
    }

    /// Rows of a full tile.
    pub fn tile_rows(&self) -> usize {
        self.micro.rows
    }

    /// Columns in whole panels.
    pub fn padded(&self, columns: usize) -> usize {
        columns.next_multiple_of(self.micro.width)
    }

    /// Cuts rows into tiles.
    pub fn tiles(&self, rows: usize) -> Tiles {
        Tiles { rows, each: rows.div_ceil(rows.div_ceil(self.micro.rows).max(1)) }
    }

    /// Words of one packed tile of rows.
    pub fn left_words(&self, depth: usize) -> usize {
        self.micro.right.steps(depth) * self.micro.left_steps() * self.micro.left_stride
    }

    /// Words of a packed right operand.
    pub fn right_words(&self, columns: usize, depth: usize) -> usize {
        self.micro.right.steps(depth) * self.padded(columns)
    }

    /// Packs the operand's first `tiles.rows` lines, tile by tile.
    pub fn pack_left(&self, operand: Operand, tiles: Tiles, depth: usize, to: &mut [u32]) {
        let (stride, words) = (self.micro.left_stride, self.left_words(depth));
        for i in 0..tiles.count() {
            let (first, rows) = tiles.tile(i);
            let to = &mut to[i * words..][..words];
            let target = Target { at: to.as_mut_ptr(), stride, word: self.micro.left };
            // SAFETY: `to` holds all steps of `stride` lines, and is borrowed here alone.
            unsafe { operand.pack(self.isa, (first, rows), (0, depth), (stride, words / stride), target) };
        }
    }

    /// Packs the operand's first `columns` lines, panel by panel.
    pub fn pack_right(&self, operand: Operand, columns: usize, depth: usize, to: &mut [u32]) {
        let (width, steps) = (self.micro.width, self.micro.right.steps(depth));
        for first in (0..columns).step_by(width) {
            let to = &mut to[first * steps..][..width * steps];
            let target = Target { at: to.as_mut_ptr(), stride: width, word: self.micro.right };
            let lines = (first, width.min(columns - first));
            // SAFETY: `to` holds all steps of `width` lines, and is borrowed here alone.
            unsafe { operand.pack(self.isa, lines, (0, depth), (width, steps), target) };
        }
    }

    /// `c (+)= left · right` for one tile of `rows` rows and the panels that hold the first `columns` columns.
    /// The sums go over the first `depth` numbers; `right` was packed for `packed_depth`.
    pub fn multiply(
        &self,
        (left, rows): (&[u32], usize),
        (right, packed_depth): (&[u32], usize),
        (columns, depth): (usize, usize),
        (c, stride): (&mut [f32], usize),
        load: bool,
    ) {
        let (width, steps) = (self.micro.width, self.micro.right.steps(depth));
        let panel_words = self.micro.right.steps(packed_depth) * width;
        assert!(rows >= 1 && rows <= self.micro.rows && left.len() >= self.left_words(depth) && depth <= packed_depth);
        for panel in 0..columns.div_ceil(width) {
            let (right, c) = (&right[panel * panel_words..][..steps * width], &mut c[panel * width..]);
            assert!(c.len() >= (rows - 1) * stride + width);
            // SAFETY: the lengths were just checked, and the kernel set exists only where its instructions do.
            unsafe { (self.micro.run)(rows, steps, left.as_ptr(), right.as_ptr(), c.as_mut_ptr(), stride, load) };
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
    pub unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.width);
        let start = row * self.width + column;
        // SAFETY: inside the matrix, and the caller's promise.
        unsafe {
            match self.at {
                Start::F32(at) => std::slice::from_raw_parts_mut(at.add(start), values.len()).copy_from_slice(values),
                Start::Bf16(at) => {
                    let out = std::slice::from_raw_parts_mut(at.add(start), values.len());
                    out.iter_mut().zip(values).for_each(|(out, x)| *out = Bf16::from_f32(*x));
                }
            }
        }
    }
}

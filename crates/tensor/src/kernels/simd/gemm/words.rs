//! Operands as 32-bit words, in the order in which the micro-kernels read them.
//!
//! A product's sums run over *steps*. A word is what one operand contributes to one step of one line (a row of
//! the left operand, a column of the right one): an f32, or two neighbouring bf16. Packing turns numbers into
//! words and puts the words of one step side by side: `panel[step * stride + line]`. Lines may lie along the
//! rows of memory (*by lines*: words are transposed) or across them (*by steps*: two rows are interleaved).

#![expect(unsafe_code, reason = "transposes with intrinsics and writes panels from several threads")]

use crate::dtype::{Bf16, DType};
use crate::kernels::simd::isa::{Isa, multiversion};
use crate::tensor::Tensor;

/// Lines that are packed at once.
pub const LINES: usize = 16;
/// Steps that are packed at once: lines times steps fit the first-level cache many times.
const CHUNK: usize = 64;
type Block = [u32; LINES * CHUNK];

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// One f32.
    Single,
    /// Two bf16 of neighbouring depth, the first in the lower half.
    Pair,
}

impl Word {
    /// Steps of a sum over `depth` numbers; the last pair may be half empty.
    pub fn steps(self, depth: usize) -> usize {
        match self {
            Self::Single => depth,
            Self::Pair => depth.div_ceil(2),
        }
    }
}

/// Row-major numbers in memory, f32 or bf16.
#[derive(Clone, Copy)]
pub enum Numbers<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half the width.
    Bf16(&'a [Bf16]),
}

impl<'a> Numbers<'a> {
    /// All elements of a tensor.
    pub fn of(tensor: &'a Tensor) -> Self {
        match tensor.dtype() {
            DType::F32 => Self::F32(tensor.host()),
            DType::Bf16 => Self::Bf16(tensor.host()),
            other => panic!("products on this device take f32 or bf16, got {other:?}; cast first"),
        }
    }

    /// From element `start` on.
    pub fn from(self, start: usize) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[start..]),
            Self::Bf16(x) => Self::Bf16(&x[start..]),
        }
    }
}

/// How lines lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A row of memory is a line.
    ByLines,
    /// A row of memory is one depth of all lines.
    BySteps,
}

/// An operand: numbers, the distance between rows of memory, and what a row is.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// The elements, from the operand's first one on.
    pub numbers: Numbers<'a>,
    /// Elements from one row of memory to the next.
    pub stride: usize,
    /// What a row of memory is.
    pub order: Order,
}

/// Where words go: `at[step * stride + line]`.
#[derive(Clone, Copy)]
pub struct Target {
    /// First word.
    pub at: *mut u32,
    /// Words from one step to the next; a multiple of eight.
    pub stride: usize,
    /// What a word holds.
    pub word: Word,
}

impl Operand<'_> {
    /// Packs `lines` lines from `line` on and depths `depth.0 .. depth.1` (starting at a whole word) into
    /// `target`: `steps` steps, zero where the depth is over, of `width` lines (8 or a multiple of 16), of which
    /// those beyond `lines` are arbitrary.
    ///
    /// # Safety
    /// `target.at` is valid for `steps * stride` words, `width <= stride`, and nobody else uses them.
    pub unsafe fn pack(
        &self,
        isa: Isa,
        (line, lines): (usize, usize),
        depth: (usize, usize),
        (width, steps): (usize, usize),
        target: Target,
    ) {
        let per_word = if target.word == Word::Pair { 2 } else { 1 };
        let mut block: Block = [0; LINES * CHUNK];
        for at in (0..width).step_by(LINES) {
            let some = lines.saturating_sub(at).min(LINES);
            for step in (0..steps).step_by(CHUNK) {
                let count = CHUNK.min(steps - step);
                let first = (depth.0 + step * per_word).min(depth.1);
                let last = (depth.0 + (step + count) * per_word).min(depth.1);
                let from = match self.order {
                    Order::ByLines => (line + at) * self.stride + first,
                    Order::BySteps => first * self.stride + line + at,
                };
                let from = if some == 0 || first == last { 0 } else { from };
                let extent = (some, last - first);
                let out = width - at;
                // SAFETY: the caller's promise; steps and lines stay inside.
                unsafe {
                    let to = target.at.add(step * target.stride + at);
                    match self.order {
                        Order::ByLines => {
                            gather(isa, self.numbers.from(from), self.stride, extent, count, target.word, &mut block);
                            transpose(isa, &block, count, out.min(LINES), to, target.stride);
                        }
                        Order::BySteps => {
                            let to = std::slice::from_raw_parts_mut(to, (count - 1) * target.stride + out.min(LINES));
                            interleave(isa, self.numbers.from(from), self.stride, extent, (out, count), target, to);
                        }
                    }
                }
            }
        }
    }
}

/// Fills `block[line * CHUNK + step]` from lines along memory; zeros where there are none.
fn gather(
    isa: Isa,
    x: Numbers,
    stride: usize,
    (lines, depth): (usize, usize),
    steps: usize,
    word: Word,
    block: &mut Block,
) {
    // Missing lines may hold anything: their sums are thrown away. Missing depth must add nothing.
    if word.steps(depth) < steps {
        block.fill(0);
    }
    if lines == 0 || depth == 0 {
        return;
    }
    match (x, word) {
        (Numbers::F32(x), Word::Single) => gather_f32(isa, x, stride, lines, depth, block),
        (Numbers::Bf16(x), Word::Single) => gather_wide(isa, x, stride, lines, depth, block),
        (Numbers::F32(x), Word::Pair) => gather_rounded(isa, x, stride, lines, depth, block),
        (Numbers::Bf16(x), Word::Pair) => gather_pairs(isa, x, stride, lines, depth, block),
    }
}

fn pair(low: Bf16, high: Bf16) -> u32 {
    u32::from(low.0) | u32::from(high.0) << 16
}

multiversion! {
    fn gather_f32(x: &[f32], stride: usize, lines: usize, depth: usize, block: &mut Block) {
        for (line, out) in block.chunks_exact_mut(CHUNK).take(lines).enumerate() {
            let x = &x[line * stride..][..depth];
            out.iter_mut().zip(x).for_each(|(word, x)| *word = x.to_bits());
        }
    }
}

multiversion! {
    fn gather_wide(x: &[Bf16], stride: usize, lines: usize, depth: usize, block: &mut Block) {
        for (line, out) in block.chunks_exact_mut(CHUNK).take(lines).enumerate() {
            let x = &x[line * stride..][..depth];
            out.iter_mut().zip(x).for_each(|(word, x)| *word = u32::from(x.0) << 16);
        }
    }
}

multiversion! {
    fn gather_rounded(x: &[f32], stride: usize, lines: usize, depth: usize, block: &mut Block) {
        for (line, out) in block.chunks_exact_mut(CHUNK).take(lines).enumerate() {
            let x = &x[line * stride..][..depth];
            let pairs = x.chunks_exact(2);
            if let [last] = pairs.remainder() {
                out[depth / 2] = pair(Bf16::from_f32(*last), Bf16(0));
            }
            out.iter_mut().zip(pairs).for_each(|(word, x)| *word = pair(Bf16::from_f32(x[0]), Bf16::from_f32(x[1])));
        }
    }
}

multiversion! {
    fn gather_pairs(x: &[Bf16], stride: usize, lines: usize, depth: usize, block: &mut Block) {
        for (line, out) in block.chunks_exact_mut(CHUNK).take(lines).enumerate() {
            let x = &x[line * stride..][..depth];
            let pairs = x.chunks_exact(2);
            if let [last] = pairs.remainder() {
                out[depth / 2] = pair(*last, Bf16(0));
            }
            out.iter_mut().zip(pairs).for_each(|(word, x)| *word = pair(x[0], x[1]));
        }
    }
}

/// Fills `to[step * stride + line]` from lines across memory; zeros where there are none.
fn interleave(
    isa: Isa,
    x: Numbers,
    stride: usize,
    (lines, depth): (usize, usize),
    (width, steps): (usize, usize),
    target: Target,
    to: &mut [u32],
) {
    let width = width.min(LINES);
    // Missing lines may hold anything: their sums are thrown away. Missing depth must add nothing.
    for step in target.word.steps(depth)..steps {
        to[step * target.stride..][..width].fill(0);
    }
    if lines == 0 || depth == 0 {
        return;
    }
    let lines = lines.min(width);
    match (x, target.word) {
        (Numbers::F32(x), Word::Single) => spread_f32(isa, x, stride, lines, depth, target.stride, to),
        (Numbers::Bf16(x), Word::Single) => spread_wide(isa, x, stride, lines, depth, target.stride, to),
        (Numbers::F32(x), Word::Pair) => spread_rounded(isa, x, stride, lines, depth, target.stride, to),
        (Numbers::Bf16(x), Word::Pair) => spread_pairs(isa, x, stride, lines, depth, target.stride, to),
    }
}

/// One row of lines, for full and for partial ones; the full ones become straight-line vector code.
macro_rules! spread_rows {
    ($lines:expr, $each:expr) => {
        if $lines == LINES { (0..LINES).for_each($each) } else { (0..$lines).for_each($each) }
    };
}

multiversion! {
    fn spread_f32(x: &[f32], stride: usize, lines: usize, depth: usize, out_stride: usize, to: &mut [u32]) {
        for k in 0..depth {
            let (x, out) = (&x[k * stride..][..lines], &mut to[k * out_stride..][..lines]);
            spread_rows!(lines, |i| out[i] = x[i].to_bits());
        }
    }
}

multiversion! {
    fn spread_wide(x: &[Bf16], stride: usize, lines: usize, depth: usize, out_stride: usize, to: &mut [u32]) {
        for k in 0..depth {
            let (x, out) = (&x[k * stride..][..lines], &mut to[k * out_stride..][..lines]);
            spread_rows!(lines, |i| out[i] = u32::from(x[i].0) << 16);
        }
    }
}

multiversion! {
    fn spread_rounded(x: &[f32], stride: usize, lines: usize, depth: usize, out_stride: usize, to: &mut [u32]) {
        for step in 0..depth.div_ceil(2) {
            let (low, out) = (&x[2 * step * stride..][..lines], &mut to[step * out_stride..][..lines]);
            if 2 * step + 1 < depth {
                let high = &x[(2 * step + 1) * stride..][..lines];
                spread_rows!(lines, |i| out[i] = pair(Bf16::from_f32(low[i]), Bf16::from_f32(high[i])));
            } else {
                spread_rows!(lines, |i| out[i] = pair(Bf16::from_f32(low[i]), Bf16(0)));
            }
        }
    }
}

multiversion! {
    fn spread_pairs(x: &[Bf16], stride: usize, lines: usize, depth: usize, out_stride: usize, to: &mut [u32]) {
        for step in 0..depth.div_ceil(2) {
            let (low, out) = (&x[2 * step * stride..][..lines], &mut to[step * out_stride..][..lines]);
            if 2 * step + 1 < depth {
                let high = &x[(2 * step + 1) * stride..][..lines];
                spread_rows!(lines, |i| out[i] = pair(low[i], high[i]));
            } else {
                spread_rows!(lines, |i| out[i] = pair(low[i], Bf16(0)));
            }
        }
    }
}

/// Writes `to[step * stride + line] = block[line * CHUNK + step]` for the first `width` lines (8 or 16).
///
/// # Safety
/// `to` is valid for `steps` rows of `width` words, `stride` apart.
unsafe fn transpose(isa: Isa, block: &Block, steps: usize, width: usize, to: *mut u32, stride: usize) {
    debug_assert!(width == 8 || width == 16, "panels are multiples of eight lines");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the set exists only where its instructions do; the caller's promise on `to`.
    unsafe {
        if isa >= Isa::Avx512 && width == 16 {
            return transpose_avx512(block, steps, to, stride);
        }
        if isa >= Isa::Avx2 {
            for half in 0..width / 8 {
                transpose_avx2(&block[half * 8 * CHUNK..], steps, to.add(half * 8), stride);
            }
            return;
        }
    }
    let _ = isa;
    for (step, line) in (0..steps).flat_map(|step| (0..width).map(move |line| (step, line))) {
        // SAFETY: the caller's promise.
        unsafe { *to.add(step * stride + line) = block[line * CHUNK + step] };
    }
}

/// # Safety
/// As for [`transpose`], with eight lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2(block: &[u32], steps: usize, to: *mut u32, stride: usize) {
    use std::arch::x86_64::*;
    assert!(block.len() >= 8 * CHUNK && steps <= CHUNK);
    for first in (0..steps).step_by(8) {
        let mut x = [_mm256_setzero_ps(); 8];
        for i in 0..8 {
            // SAFETY: eight lines of CHUNK words, and first + 8 <= CHUNK.
            x[i] = unsafe { _mm256_loadu_ps(block.as_ptr().add(i * CHUNK + first).cast()) };
        }
        // Inside each 128-bit lane, four lines at a time.
        let mut quads = [[_mm256_setzero_ps(); 4]; 2];
        for (g, quad) in quads.iter_mut().enumerate() {
            let (a, b, c, d) = (x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]);
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab2, cd2) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            *quad = [
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xee>(ab, cd),
                _mm256_shuffle_ps::<0x44>(ab2, cd2),
                _mm256_shuffle_ps::<0xee>(ab2, cd2),
            ];
        }
        let mut rows = [_mm256_setzero_ps(); 8];
        for j in 0..4 {
            rows[j] = _mm256_permute2f128_ps::<0x20>(quads[0][j], quads[1][j]);
            rows[j + 4] = _mm256_permute2f128_ps::<0x31>(quads[0][j], quads[1][j]);
        }
        for (i, row) in rows.into_iter().enumerate() {
            if first + i < steps {
                // SAFETY: the caller's promise.
                unsafe { _mm256_storeu_ps(to.add((first + i) * stride).cast(), row) };
            }
        }
    }
}

/// # Safety
/// As for [`transpose`], with sixteen lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(block: &Block, steps: usize, to: *mut u32, stride: usize) {
    use std::arch::x86_64::*;
    assert!(steps <= CHUNK);
    for first in (0..steps).step_by(16) {
        let mut x = [_mm512_setzero_si512(); 16];
        for i in 0..16 {
            // SAFETY: sixteen lines of CHUNK words, and first + 16 <= CHUNK.
            x[i] = unsafe { _mm512_loadu_si512(block.as_ptr().add(i * CHUNK + first).cast()) };
        }
        // Inside each 128-bit lane, four lines at a time: quads[g][j] holds step 4 * lane + j of lines 4g..4g + 4.
        let mut quads = [[_mm512_setzero_si512(); 4]; 4];
        for (g, quad) in quads.iter_mut().enumerate() {
            let (a, b, c, d) = (x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]);
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            *quad = [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab2, cd2),
                _mm512_unpackhi_epi64(ab2, cd2),
            ];
        }
        // Then a 4x4 transpose of the lanes.
        let mut rows = [_mm512_setzero_si512(); 16];
        for j in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x44>(quads[0][j], quads[1][j]);
            let low2 = _mm512_shuffle_i32x4::<0xee>(quads[0][j], quads[1][j]);
            let high = _mm512_shuffle_i32x4::<0x44>(quads[2][j], quads[3][j]);
            let high2 = _mm512_shuffle_i32x4::<0xee>(quads[2][j], quads[3][j]);
            rows[j] = _mm512_shuffle_i32x4::<0x88>(low, high);
            rows[j + 4] = _mm512_shuffle_i32x4::<0xdd>(low, high);
            rows[j + 8] = _mm512_shuffle_i32x4::<0x88>(low2, high2);
            rows[j + 12] = _mm512_shuffle_i32x4::<0xdd>(low2, high2);
        }
        for (i, row) in rows.into_iter().enumerate() {
            if first + i < steps {
                // SAFETY: the caller's promise.
                unsafe { _mm512_storeu_si512(to.add((first + i) * stride).cast(), row) };
            }
        }
    }
}

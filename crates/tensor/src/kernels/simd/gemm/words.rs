//! Operands as 32-bit words, in the order in which the micro-kernels read them.
//!
//! A product's sums run over *steps*. A word is what one operand contributes to one step of one line (a row of
//! the left operand, a column of the right one): an f32, or two neighbouring bf16. Packing turns numbers into
//! words and puts the words of one step side by side: `panel[step * stride + line]`. Lines may lie along the
//! rows of memory (*by lines*: words are transposed) or across them (*by steps*: two rows are interleaved).

#![expect(unsafe_code, reason = "transposes with intrinsics and writes panels from several threads")]

use super::transpose::{Source, transpose};
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
    /// those beyond `lines` are arbitrary: their sums are thrown away.
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
        let filled = target.word.steps(depth.1.saturating_sub(depth.0)).min(steps);
        // SAFETY: the caller's promise; `filled` of the steps have numbers.
        unsafe {
            for step in filled..steps {
                std::slice::from_raw_parts_mut(target.at.add(step * target.stride), width).fill(0);
            }
            if filled == 0 {
                return;
            }
            for at in (0..lines).step_by(LINES) {
                let (some, width, to) = ((lines - at).min(LINES), (width - at).min(LINES), target.at.add(at));
                match self.order {
                    Order::ByLines => {
                        let x = self.numbers.from((line + at) * self.stride + depth.0);
                        let part = Part { x, stride: self.stride, lines: some, depth: depth.1 - depth.0 };
                        pack_transposed(isa, part, width, Target { at: to, ..target });
                    }
                    Order::BySteps => {
                        let group = Lines { first: line + at, count: some, at: to };
                        self.pack_across(isa, &[group], depth, target.stride, target.word);
                    }
                }
            }
        }
    }

    /// Packs lines that lie along memory, one after the other: line i's words start at `to + i * stride`, and
    /// beyond the depth there are zeros up to `steps`.
    ///
    /// # Safety
    /// `to` is valid for `lines` lines of `stride >= steps` words that nobody else uses.
    pub unsafe fn pack_along(
        &self,
        isa: Isa,
        (line, lines): (usize, usize),
        depth: (usize, usize),
        steps: usize,
        (to, stride, word): (*mut u32, usize, Word),
    ) {
        assert_eq!(self.order, Order::ByLines);
        let depth = (depth.0, depth.1.max(depth.0));
        for i in 0..lines {
            // SAFETY: the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), steps) };
            out[word.steps(depth.1 - depth.0)..].fill(0);
            convert_line(isa, self.numbers.from((line + i) * self.stride + depth.0), depth.1 - depth.0, word, out);
        }
    }

    /// Packs groups of lines that lie across memory, reading each row of memory once for all groups. Fills the
    /// steps of the depth, `stride` words apart.
    ///
    /// # Safety
    /// Every group has room for that.
    pub unsafe fn pack_across(&self, isa: Isa, groups: &[Lines], depth: (usize, usize), stride: usize, word: Word) {
        assert_eq!(self.order, Order::BySteps);
        let (rows, row) = (depth.1 - depth.0, self.stride);
        match (self.numbers.from(depth.0 * row), word) {
            (Numbers::F32(x), Word::Single) => across_f32(isa, x, row, rows, groups, stride),
            (Numbers::Bf16(x), Word::Single) => across_widened(isa, x, row, rows, groups, stride),
            (Numbers::F32(x), Word::Pair) => across_rounded(isa, x, row, rows, groups, stride),
            (Numbers::Bf16(x), Word::Pair) => across_bf16(isa, x, row, rows, groups, stride),
        }
    }
}

/// At most sixteen lines across memory, and where their words go.
#[derive(Clone, Copy)]
pub struct Lines {
    /// First line.
    pub first: usize,
    /// Number of lines.
    pub count: usize,
    /// First word of the first step.
    pub at: *mut u32,
}

/// At most sixteen lines of an operand, and all of the depth that is wanted.
#[derive(Clone, Copy)]
struct Part<'a> {
    x: Numbers<'a>,
    stride: usize,
    lines: usize,
    depth: usize,
}

/// Packs lines that lie along memory: their words are transposed, after a conversion where one is needed.
///
/// # Safety
/// `to` has room for all steps of `width` lines.
unsafe fn pack_transposed(isa: Isa, part: Part, width: usize, to: Target) {
    let Part { x, stride, lines, depth } = part;
    // SAFETY: the slices hold `lines` lines of `depth` numbers, `stride` apart.
    unsafe {
        match (x, to.word) {
            (Numbers::F32(x), Word::Single) => {
                assert!((lines - 1) * stride + depth <= x.len());
                transpose(
                    isa,
                    Source { at: x.as_ptr().cast(), stride: stride * 4 },
                    (lines, depth),
                    width,
                    to.at,
                    to.stride,
                );
            }
            (Numbers::Bf16(x), Word::Pair) => {
                assert!((lines - 1) * stride + depth <= x.len());
                transpose(
                    isa,
                    Source { at: x.as_ptr().cast(), stride: stride * 2 },
                    (lines, depth / 2),
                    width,
                    to.at,
                    to.stride,
                );
                if depth % 2 == 1 {
                    for line in 0..lines {
                        let last = x[line * stride + depth - 1];
                        *to.at.add(depth / 2 * to.stride + line) = pair(last, Bf16(0));
                    }
                }
            }
            _ => {
                let (mut block, per_word) = ([0; LINES * CHUNK], if to.word == Word::Pair { 2 } else { 1 });
                let from = Source { at: block.as_ptr().cast(), stride: CHUNK * 4 };
                for step in (0..to.word.steps(depth)).step_by(CHUNK) {
                    let first = step * per_word;
                    let depth = (depth - first).min(CHUNK * per_word);
                    convert(isa, Part { x: x.from(first), depth, ..part }, to.word, &mut block);
                    let to = Target { at: to.at.add(step * to.stride), ..to };
                    transpose(isa, from, (lines, to.word.steps(depth)), width, to.at, to.stride);
                }
            }
        }
    }
}

fn pair(low: Bf16, high: Bf16) -> u32 {
    u32::from(low.0) | u32::from(high.0) << 16
}

/// Fills `block[line * CHUNK + step]` with converted words.
fn convert(isa: Isa, part: Part, word: Word, block: &mut Block) {
    for (line, out) in block.chunks_exact_mut(CHUNK).take(part.lines).enumerate() {
        convert_line(isa, part.x.from(line * part.stride), part.depth, word, out);
    }
}

/// Converts `depth` numbers to the words of one line.
fn convert_line(isa: Isa, x: Numbers, depth: usize, word: Word, out: &mut [u32]) {
    match (x, word) {
        (Numbers::F32(x), Word::Single) => line_f32(isa, &x[..depth], out),
        (Numbers::Bf16(x), Word::Single) => line_widened(isa, &x[..depth], out),
        (Numbers::F32(x), Word::Pair) => line_rounded(isa, &x[..depth], out),
        (Numbers::Bf16(x), Word::Pair) => line_pairs(isa, &x[..depth], out),
    }
}

multiversion! {
    fn line_f32(x: &[f32], out: &mut [u32]) {
        for (word, x) in out.iter_mut().zip(x) {
            *word = x.to_bits();
        }
    }
}

multiversion! {
    fn line_widened(x: &[Bf16], out: &mut [u32]) {
        for (word, x) in out.iter_mut().zip(x) {
            *word = u32::from(x.0) << 16;
        }
    }
}

multiversion! {
    fn line_rounded(x: &[f32], out: &mut [u32]) {
        let pairs = x.chunks_exact(2);
        if let [last] = pairs.remainder() {
            out[x.len() / 2] = pair(Bf16::from_f32(*last), Bf16(0));
        }
        for (word, x) in out.iter_mut().zip(pairs) {
            *word = pair(Bf16::from_f32(x[0]), Bf16::from_f32(x[1]));
        }
    }
}

multiversion! {
    fn line_pairs(x: &[Bf16], out: &mut [u32]) {
        let pairs = x.chunks_exact(2);
        if let [last] = pairs.remainder() {
            out[x.len() / 2] = pair(*last, Bf16(0));
        }
        for (word, x) in out.iter_mut().zip(pairs) {
            *word = pair(x[0], x[1]);
        }
    }
}

/// `$out[i] = $word` for every line; sixteen of them become straight-line vector code.
macro_rules! for_lines {
    ($lines:expr, $out:ident[$i:ident] = $word:expr) => {
        if $lines == LINES {
            for $i in 0..LINES {
                $out[$i] = $word;
            }
        } else {
            for $i in 0..$lines {
                $out[$i] = $word;
            }
        }
    };
}

/// Defines a function that packs lines across memory, one row of memory to a step, with `$word` of one number.
macro_rules! across_single {
    ($name:ident, $number:ty, |$x:ident| $word:expr) => {
        multiversion! {
            fn $name(x: &[$number], stride: usize, depth: usize, groups: &[Lines], out_stride: usize) {
                for k in 0..depth {
                    for group in groups {
                        let row = &x[k * stride + group.first..][..group.count];
                        // SAFETY: a group has room for all steps.
                        let out = unsafe { std::slice::from_raw_parts_mut(group.at.add(k * out_stride), group.count) };
                        for_lines!(group.count, out[i] = { let $x = row[i]; $word });
                    }
                }
            }
        }
    };
}
across_single!(across_f32, f32, |x| x.to_bits());
across_single!(across_widened, Bf16, |x| u32::from(x.0) << 16);

/// Defines a function that packs lines across memory, two rows of memory to a step, with `$round` of each number.
macro_rules! across_pairs {
    ($name:ident, $number:ty, $round:expr) => {
        multiversion! {
            fn $name(x: &[$number], stride: usize, depth: usize, groups: &[Lines], out_stride: usize) {
                for step in 0..depth.div_ceil(2) {
                    for group in groups {
                        let low = &x[2 * step * stride + group.first..][..group.count];
                        // SAFETY: a group has room for all steps.
                        let out = unsafe { std::slice::from_raw_parts_mut(group.at.add(step * out_stride), group.count) };
                        if 2 * step + 1 < depth {
                            let high = &x[(2 * step + 1) * stride + group.first..][..group.count];
                            for_lines!(group.count, out[i] = pair($round(low[i]), $round(high[i])));
                        } else {
                            for_lines!(group.count, out[i] = pair($round(low[i]), Bf16(0)));
                        }
                    }
                }
            }
        }
    };
}
across_pairs!(across_rounded, f32, Bf16::from_f32);
across_pairs!(across_bf16, Bf16, std::convert::identity);

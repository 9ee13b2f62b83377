//! Micro-kernels for AVX-512: 14 rows of 32 columns in 28 registers.

#![expect(unsafe_code, reason = "intrinsics on raw panels; chosen only where the CPU has the instructions")]

use std::arch::x86_64::*;

use super::micro::{ALONG, ALONG_WIDENED, Micro, by_rows};
use super::words::Word;

/// Words between two steps of the left operand, if it is packed by steps: a cache line, two words of it unused.
const LEFT: usize = 16;
/// Columns of a tile.
const WIDTH: usize = 32;

/// f32 against f32.
pub const F32: Micro = Micro {
    rows: 14,
    row_unit: 1,
    width: WIDTH,
    rate: 32,
    step_unit: 1,
    left_stride: LEFT,
    along_stride: ALONG,
    left: Word::Single,
    right: Word::Single,
    run: f32,
    run_along: f32_along,
    run_unit: None,
};
/// bf16, widened to f32.
pub const WIDENED: Micro =
    Micro { right: Word::Pair, along_stride: ALONG_WIDENED, run: widened, run_along: widened_along, ..F32 };
/// bf16 dot products.
pub const PAIRS: Micro =
    Micro { rate: 64, left: Word::Pair, right: Word::Pair, run: pairs, run_along: pairs_along, ..F32 };

/// Words between two rows and between two steps of the left operand.
const fn left_strides(along: bool, stride: usize) -> (usize, usize) {
    if along { (stride, 1) } else { (1, LEFT) }
}

/// How many steps ahead the operands are asked for: a panel's first use waits for the third cache, and the
/// hardware's own look-ahead ends at every page, which is 32 steps.
const AHEAD: usize = 20;

/// Asks for the panel (and a left operand that is packed by steps) some steps ahead.
#[inline(always)]
fn prefetch<const IS_ALONG: bool>(a: *const u32, b: *const u32) {
    // SAFETY: a hint, which no address makes fail; every x86-64 CPU has the instruction.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * WIDTH).cast());
        _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * WIDTH + 16).cast());
        if !IS_ALONG {
            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD * LEFT).cast());
        }
    }
}

type Sums<const R: usize> = [[__m512; 2]; R];

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn begin<const R: usize>(c: *const f32, ldc: usize, load: bool) -> Sums<R> {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    if load {
        for r in 0..R {
            // SAFETY: the caller's promise on the tile.
            sums[r] = unsafe { [_mm512_loadu_ps(c.add(r * ldc)), _mm512_loadu_ps(c.add(r * ldc + 16))] };
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const R: usize>(sums: Sums<R>, c: *mut f32, ldc: usize) {
    for r in 0..R {
        // SAFETY: the caller's promise on the tile.
        unsafe {
            _mm512_storeu_ps(c.add(r * ldc), sums[r][0]);
            _mm512_storeu_ps(c.add(r * ldc + 16), sums[r][1]);
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn f32_tile<const R: usize, const IS_ALONG: bool>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    ldc: usize,
    load: bool,
) {
    // SAFETY: the caller's promise on panels and tile.
    unsafe {
        let (row, next) = left_strides(IS_ALONG, ALONG);
        let mut sums = begin::<R>(c, ldc, load);
        let (a, b) = (a.cast::<f32>(), b.cast::<f32>());
        for step in 0..steps {
            let (a, b) = (a.add(step * next), b.add(step * WIDTH));
            prefetch::<IS_ALONG>(a.cast(), b.cast());
            let right = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
            for r in 0..R {
                let left = _mm512_set1_ps(*a.add(r * row));
                sums[r][0] = _mm512_fmadd_ps(left, right[0], sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(left, right[1], sums[r][1]);
            }
        }
        finish(sums, c, ldc);
    }
}

/// bf16 columns against rows that were widened when they were packed: two left steps to a right one.
#[target_feature(enable = "avx512f")]
unsafe fn widened_tile<const R: usize, const IS_ALONG: bool>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    ldc: usize,
    load: bool,
) {
    // SAFETY: the caller's promise on panels and tile.
    unsafe {
        let (row, next) = left_strides(IS_ALONG, ALONG_WIDENED);
        let mut sums = begin::<R>(c, ldc, load);
        let a = a.cast::<f32>();
        for step in 0..steps {
            let (a, b) = (a.add(2 * step * next), b.add(step * WIDTH));
            prefetch::<IS_ALONG>(a.add(next).cast(), b);
            let pairs = [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast())];
            let even = pairs.map(|pair| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair)));
            for r in 0..R {
                let left = _mm512_set1_ps(*a.add(r * row));
                sums[r][0] = _mm512_fmadd_ps(left, even[0], sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(left, even[1], sums[r][1]);
            }
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let odd = pairs.map(|pair| _mm512_castsi512_ps(_mm512_and_si512(pair, upper)));
            for r in 0..R {
                let left = _mm512_set1_ps(*a.add(next + r * row));
                sums[r][0] = _mm512_fmadd_ps(left, odd[0], sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(left, odd[1], sums[r][1]);
            }
        }
        finish(sums, c, ldc);
    }
}

/// `vdpbf16ps`: two products and two additions per lane. It flushes subnormals to zero.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pairs_tile<const R: usize, const IS_ALONG: bool>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    ldc: usize,
    load: bool,
) {
    // SAFETY: the caller's promise on panels and tile; the casts only rename vectors of the same bits.
    unsafe {
        let (row, next) = left_strides(IS_ALONG, ALONG);
        let mut sums = begin::<R>(c, ldc, load);
        let a = a.cast::<i32>();
        for step in 0..steps {
            let (a, b) = (a.add(step * next), b.add(step * WIDTH));
            prefetch::<IS_ALONG>(a.cast(), b);
            let b = b.cast::<__m512bh>();
            let right = [b.read_unaligned(), b.add(1).read_unaligned()];
            for r in 0..R {
                let left = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a.add(r * row)));
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], left, right[0]);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], left, right[1]);
            }
        }
        finish(sums, c, ldc);
    }
}

by_rows! {
    /// f32 against f32.
    f32, f32_along, f32_tile, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
}
by_rows! {
    /// bf16, widened to f32.
    widened, widened_along, widened_tile, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
}
by_rows! {
    /// bf16 dot products.
    pairs, pairs_along, pairs_tile, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
}

//! Micro-kernels for AVX2 with FMA: 6 rows of 16 columns in 12 registers.

#![expect(unsafe_code, reason = "intrinsics on raw panels; chosen only where the CPU has the instructions")]

use std::arch::x86_64::*;

use super::micro::{ALONG, ALONG_WIDENED, Micro, by_rows};
use super::words::Word;

/// Words between two steps of the left operand, if it is packed by steps.
const LEFT: usize = 8;
/// Columns of a tile.
const WIDTH: usize = 16;

/// f32 against f32.
pub const F32: Micro = Micro {
    rows: 6,
    row_unit: 1,
    width: WIDTH,
    rate: 16,
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

/// Words between two rows and between two steps of the left operand.
const fn left_strides(along: bool, stride: usize) -> (usize, usize) {
    if along { (stride, 1) } else { (1, LEFT) }
}

type Sums<const R: usize> = [[__m256; 2]; R];

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn begin<const R: usize>(c: *const f32, ldc: usize, load: bool) -> Sums<R> {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    if load {
        for r in 0..R {
            // SAFETY: the caller's promise on the tile.
            sums[r] = unsafe { [_mm256_loadu_ps(c.add(r * ldc)), _mm256_loadu_ps(c.add(r * ldc + 8))] };
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn finish<const R: usize>(sums: Sums<R>, c: *mut f32, ldc: usize) {
    for r in 0..R {
        // SAFETY: the caller's promise on the tile.
        unsafe {
            _mm256_storeu_ps(c.add(r * ldc), sums[r][0]);
            _mm256_storeu_ps(c.add(r * ldc + 8), sums[r][1]);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
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
            let right = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for r in 0..R {
                let left = _mm256_broadcast_ss(&*a.add(r * row));
                sums[r][0] = _mm256_fmadd_ps(left, right[0], sums[r][0]);
                sums[r][1] = _mm256_fmadd_ps(left, right[1], sums[r][1]);
            }
        }
        finish(sums, c, ldc);
    }
}

/// bf16 columns against rows that were widened when they were packed: two left steps to a right one.
#[target_feature(enable = "avx2,fma")]
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
        let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        for step in 0..steps {
            let (a, b) = (a.add(2 * step * next), b.add(step * WIDTH).cast::<__m256i>());
            let even = [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(b))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(b.add(1)))),
            ];
            for r in 0..R {
                let left = _mm256_broadcast_ss(&*a.add(r * row));
                sums[r][0] = _mm256_fmadd_ps(left, even[0], sums[r][0]);
                sums[r][1] = _mm256_fmadd_ps(left, even[1], sums[r][1]);
            }
            let odd = [
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(b), upper)),
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(b.add(1)), upper)),
            ];
            for r in 0..R {
                let left = _mm256_broadcast_ss(&*a.add(next + r * row));
                sums[r][0] = _mm256_fmadd_ps(left, odd[0], sums[r][0]);
                sums[r][1] = _mm256_fmadd_ps(left, odd[1], sums[r][1]);
            }
        }
        finish(sums, c, ldc);
    }
}

by_rows! {
    /// f32 against f32.
    f32, f32_along, f32_tile, [1 2 3 4 5 6]
}
by_rows! {
    /// bf16, widened to f32.
    widened, widened_along, widened_tile, [1 2 3 4 5 6]
}

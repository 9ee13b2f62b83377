//! Micro-kernels in plain Rust, 4 rows of 16 columns, which the compiler vectorises with what the target has.

#![expect(unsafe_code, reason = "raw panels, as the other micro-kernels")]

use super::micro::{ALONG, ALONG_WIDENED, Micro, by_rows};
use super::words::Word;

/// Words between two steps of the left operand, if it is packed by steps.
const LEFT: usize = 8;
/// Columns of a tile.
const WIDTH: usize = 16;

/// f32 against f32.
pub const F32: Micro = Micro {
    rows: 4,
    row_unit: 1,
    width: WIDTH,
    rate: 8,
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

/// Multiplies one step of R rows by one step of the panel.
#[inline(always)]
fn step<const R: usize>(sums: &mut [[f32; WIDTH]; R], left: [f32; R], right: [f32; WIDTH]) {
    for r in 0..R {
        for j in 0..WIDTH {
            sums[r][j] = left[r].mul_add(right[j], sums[r][j]);
        }
    }
}

/// One step of the left operand.
#[inline(always)]
unsafe fn left<const R: usize, const IS_ALONG: bool>(a: *const u32, step: usize, stride: usize) -> [f32; R] {
    let (row, next) = if IS_ALONG { (stride, 1) } else { (1, LEFT) };
    // SAFETY: the caller's promise on the panel.
    std::array::from_fn(|r| unsafe { f32::from_bits(*a.add(step * next + r * row)) })
}

#[inline(always)]
unsafe fn tile<const R: usize>(c: *mut f32, ldc: usize, load: bool, sum_up: impl FnOnce(&mut [[f32; WIDTH]; R])) {
    let mut sums = [[0.0; WIDTH]; R];
    // SAFETY: the caller's promise on the tile.
    unsafe {
        if load {
            for r in 0..R {
                sums[r] = c.add(r * ldc).cast::<[f32; WIDTH]>().read();
            }
        }
        sum_up(&mut sums);
        for r in 0..R {
            c.add(r * ldc).cast::<[f32; WIDTH]>().write(sums[r]);
        }
    }
}

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
        let b = std::slice::from_raw_parts(b.cast::<[f32; WIDTH]>(), steps);
        tile::<R>(c, ldc, load, |sums| {
            for (s, b) in b.iter().enumerate() {
                step(sums, left::<R, IS_ALONG>(a, s, ALONG), *b);
            }
        });
    }
}

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
        let b = std::slice::from_raw_parts(b.cast::<[u32; WIDTH]>(), steps);
        tile::<R>(c, ldc, load, |sums| {
            for (s, b) in b.iter().enumerate() {
                step(sums, left::<R, IS_ALONG>(a, 2 * s, ALONG_WIDENED), b.map(|pair| f32::from_bits(pair << 16)));
                step(
                    sums,
                    left::<R, IS_ALONG>(a, 2 * s + 1, ALONG_WIDENED),
                    b.map(|pair| f32::from_bits(pair & 0xffff_0000)),
                );
            }
        });
    }
}

by_rows! {
    /// f32 against f32.
    f32, f32_along, f32_tile, [1 2 3 4]
}
by_rows! {
    /// bf16, widened to f32.
    widened, widened_along, widened_tile, [1 2 3 4]
}

//! Folding a few vectors into one number, in one fixed order: by halves.
//!
//! Left to itself the compiler takes such a tree apart into scalars (or gathers columns of several), so vectors are
//! spelled out where every CPU of the architecture has them; the operations are the same elsewhere.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "SSE, which every x86-64 CPU has"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// `x` if it is larger than `max`: one instruction, unlike `f32::max`.
#[inline(always)]
pub fn larger(x: f32, max: f32) -> f32 {
    if x > max { x } else { max }
}

/// Sum of some quads of numbers; their count is a power of two.
#[inline(always)]
pub fn fold_sum<const N: usize>(x: &[[f32; 4]; N]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has SSE.
    return fold(x, |a, b| unsafe { _mm_add_ps(a, b) });
    #[cfg(not(target_arch = "x86_64"))]
    fold(x, |a, b| a + b)
}

/// The largest number of some quads; what comes of NaN is open.
#[inline(always)]
pub fn fold_max<const N: usize>(x: &[[f32; 4]; N]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has SSE.
    return fold(x, |a, b| unsafe { _mm_max_ps(a, b) });
    #[cfg(not(target_arch = "x86_64"))]
    fold(x, larger)
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fold<const N: usize>(x: &[[f32; 4]; N], operation: impl Fn(__m128, __m128) -> __m128) -> f32 {
    // SAFETY: loads of four floats each; every x86-64 CPU has SSE.
    let mut quads: [__m128; N] = std::array::from_fn(|i| unsafe { _mm_loadu_ps(x[i].as_ptr()) });
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            quads[i] = operation(quads[i], quads[i + half]);
        }
        half /= 2;
    }
    // SAFETY: as above.
    unsafe {
        let pair = operation(quads[0], _mm_movehl_ps(quads[0], quads[0]));
        _mm_cvtss_f32(operation(pair, _mm_shuffle_ps::<1>(pair, pair)))
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn fold<const N: usize>(x: &[[f32; 4]; N], operation: impl Fn(f32, f32) -> f32) -> f32 {
    let (mut quads, mut half) = (*x, N / 2);
    while half > 0 {
        for i in 0..half {
            quads[i] = std::array::from_fn(|j| operation(quads[i][j], quads[i + half][j]));
        }
        half /= 2;
    }
    let [a, b, c, d] = quads[0];
    operation(operation(a, c), operation(b, d))
}

//! The sum of values for a few queries, straight from the rows of memory.
//!
//! Packing a block of values pays when many queries share it. While decoding there is one, and the bound is how
//! fast keys and values can be read; so rows are multiplied where they lie. An element's chain of multiply-adds is
//! that of the packed product, and so are its bits.

#![expect(unsafe_code, reason = "intrinsics on slices; chosen only where the CPU has the instructions")]

use crate::dtype::Bf16;
use crate::kernels::simd::Isa;
use crate::kernels::simd::gemm::words::{Numbers, Operand};
use crate::kernels::simd::isa::multiversion;
use crate::kernels::simd::lanes::Real;

/// Most queries for which this is faster than packing.
pub const FEW: usize = 3;

/// `sums[column] += sum over rows of p[row] * values[row, column]`, rows ascending; `sums` has whole vectors.
pub fn add_values<P: Real>(isa: Isa, p: &[P], values: Operand, columns: usize, sums: &mut [f32]) {
    match (P::numbers(p), values.numbers) {
        (Numbers::F32(p), Numbers::F32(x)) => add_rows(isa, p, x, values.stride, &mut sums[..columns]),
        (Numbers::F32(p), Numbers::Bf16(x)) => add_rows(isa, p, x, values.stride, &mut sums[..columns]),
        (Numbers::Bf16(p), Numbers::Bf16(x)) => add_pairs(isa, p, x, values.stride, columns, sums),
        (Numbers::Bf16(_), Numbers::F32(_)) => unreachable!("probabilities are rounded only for bf16 values"),
    }
}

multiversion! {
    fn add_rows<V: Real>(p: &[f32], x: &[V], stride: usize, sums: &mut [f32]) {
        let (fours, rest) = p.as_chunks::<4>();
        for (i, p) in fours.iter().enumerate() {
            let rows = [0, 1, 2, 3].map(|j| &x[(4 * i + j) * stride..][..sums.len()]);
            for (c, sum) in sums.iter_mut().enumerate() {
                let two = p[1].mul_add(rows[1][c].get(), p[0].mul_add(rows[0][c].get(), *sum));
                *sum = p[3].mul_add(rows[3][c].get(), p[2].mul_add(rows[2][c].get(), two));
            }
        }
        for (i, p) in rest.iter().enumerate() {
            let row = &x[(4 * fours.len() + i) * stride..][..sums.len()];
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum = p.mul_add(x.get(), *sum);
            }
        }
    }
}

/// bf16 dot products of two rows at a time.
fn add_pairs(isa: Isa, p: &[Bf16], x: &[Bf16], stride: usize, columns: usize, sums: &mut [f32]) {
    assert!(isa >= Isa::Avx512Bf16, "only bf16 dot products round probabilities");
    assert!(p.is_empty() || x.len() >= (p.len() - 1) * stride + columns);
    #[cfg(target_arch = "x86_64")]
    for (part, sums) in sums.as_chunks_mut::<32>().0.iter_mut().enumerate().take(columns.div_ceil(32)) {
        let first = part * 32;
        // SAFETY: `isa` has the instructions; every row has `columns` elements, of which those from `first` are read.
        unsafe { add_pairs_32(p, x.as_ptr().add(first), stride, (columns - first).min(32), sums) };
    }
}

/// 32 columns (or the `columns` that are left); rows of `x` lie `stride` apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_pairs_32(p: &[Bf16], x: *const Bf16, stride: usize, columns: usize, sums: &mut [f32; 32]) {
    use std::arch::x86_64::*;
    let mask = u32::MAX >> (32 - columns);
    // SAFETY: the mask keeps loads inside the row; the casts only rename vectors of the same bits.
    let row = |i: usize| unsafe { _mm512_maskz_loadu_epi16(mask, x.add(i * stride).cast()) };
    let multiply = |sums: __m512, p: __m512i, x: __m512i| unsafe {
        _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(p), std::mem::transmute::<__m512i, __m512bh>(x))
    };
    // Interleaving two rows leaves columns 8g .. 8g + 4 of each group of eight in one vector, the others in another.
    let low_columns = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    let high_columns = _mm512_add_epi32(low_columns, _mm512_set1_epi32(4));
    // SAFETY: 32 floats.
    let halves = unsafe { [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums.as_ptr().add(16))] };
    let mut low = _mm512_permutex2var_ps(halves[0], low_columns, halves[1]);
    let mut high = _mm512_permutex2var_ps(halves[0], high_columns, halves[1]);
    let (pairs, rest) = p.as_chunks::<2>();
    for (i, [a, b]) in pairs.iter().enumerate() {
        let p = _mm512_set1_epi32((u32::from(a.0) | u32::from(b.0) << 16) as i32);
        let (a, b) = (row(2 * i), row(2 * i + 1));
        low = multiply(low, p, _mm512_unpacklo_epi16(a, b));
        high = multiply(high, p, _mm512_unpackhi_epi16(a, b));
    }
    if let [last] = rest {
        let (p, a) = (_mm512_set1_epi32(i32::from(last.0)), row(p.len() - 1));
        low = multiply(low, p, _mm512_unpacklo_epi16(a, _mm512_setzero_si512()));
        high = multiply(high, p, _mm512_unpackhi_epi16(a, _mm512_setzero_si512()));
    }
    let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    // SAFETY: 32 floats.
    unsafe {
        _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_permutex2var_ps(low, first, high));
        _mm512_storeu_ps(sums.as_mut_ptr().add(16), _mm512_permutex2var_ps(low, second, high));
    }
}

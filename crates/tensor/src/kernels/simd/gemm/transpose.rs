//! Transposes of 32-bit words: lines along memory become lines side by side.

#![expect(unsafe_code, reason = "intrinsics on raw rows; chosen only where the CPU has the instructions")]

use crate::kernels::simd::isa::Isa;

/// Lines of words, not necessarily aligned.
#[derive(Clone, Copy)]
pub struct Source {
    /// First byte of the first line.
    pub at: *const u8,
    /// Bytes from one line to the next.
    pub stride: usize,
}

impl Source {
    unsafe fn word(self, line: usize, step: usize) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { self.at.add(line * self.stride).cast::<u32>().add(step).read_unaligned() }
    }
}

/// Writes `to[step * stride + line]` for every step and line; of `width` lines (8 or 16), those beyond `lines`
/// may get anything.
///
/// # Safety
/// `from` holds `lines` lines of `steps` words, and `to` has room for `steps` rows of `width` words.
pub unsafe fn transpose(
    isa: Isa,
    from: Source,
    (lines, steps): (usize, usize),
    width: usize,
    to: *mut u32,
    stride: usize,
) {
    debug_assert!(lines <= width && (width == 8 || width == 16), "panels are multiples of eight lines");
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the set exists only where its instructions do; the caller's promise on both sides.
    unsafe {
        if isa >= Isa::Avx512 && width == 16 {
            return avx512(from, lines, steps, to, stride);
        }
        if isa >= Isa::Avx2 {
            done = steps / 8 * 8;
            for first in (0..lines).step_by(8) {
                let from = Source { at: from.at.add(first * from.stride), ..from };
                avx2(from, (lines - first).min(8), done, to.add(first), stride);
            }
        }
    }
    let _ = isa;
    for (step, line) in (done..steps).flat_map(|step| (0..lines).map(move |line| (step, line))) {
        // SAFETY: the caller's promise.
        unsafe { *to.add(step * stride + line) = from.word(line, step) };
    }
}

/// Blocks of eight by eight; `steps` is a multiple of eight.
///
/// # Safety
/// As for [`transpose`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(from: Source, lines: usize, steps: usize, to: *mut u32, stride: usize) {
    use std::arch::x86_64::*;
    for first in (0..steps).step_by(8) {
        let mut x = [_mm256_setzero_ps(); 8];
        for (i, x) in x.iter_mut().enumerate().take(lines) {
            // SAFETY: the line has first + 8 words.
            *x = unsafe { _mm256_loadu_ps(from.at.add(i * from.stride).cast::<f32>().add(first)) };
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
        for j in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(quads[0][j], quads[1][j]);
            let high = _mm256_permute2f128_ps::<0x31>(quads[0][j], quads[1][j]);
            // SAFETY: the caller's promise.
            unsafe {
                _mm256_storeu_ps(to.add((first + j) * stride).cast(), low);
                _mm256_storeu_ps(to.add((first + j + 4) * stride).cast(), high);
            }
        }
    }
}

/// Blocks of sixteen by sixteen, the last of them masked.
///
/// # Safety
/// As for [`transpose`] with a width of 16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(from: Source, lines: usize, steps: usize, to: *mut u32, stride: usize) {
    use std::arch::x86_64::*;
    for first in (0..steps).step_by(16) {
        let mask = u16::MAX >> (16 - (steps - first).min(16));
        let mut x = [_mm512_setzero_si512(); 16];
        for (i, x) in x.iter_mut().enumerate() {
            if i < lines {
                let line = from.at.wrapping_add(i * from.stride).cast::<i32>().wrapping_add(first);
                // The hardware does not foresee sixteen interleaved streams.
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(64).cast());
                // SAFETY: the mask keeps the load inside the line.
                *x = unsafe { _mm512_maskz_loadu_epi32(mask, line) };
            }
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

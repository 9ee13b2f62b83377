//! What this machine could do at most, measured now: multiply-adds from registers, and reading memory.
//!
//! Speed drifts by a factor of two between minutes on shared machines, so a kernel's speed only means something
//! beside a peak of the same minute. This is the one place in the crate that looks at the clock; no result of a
//! kernel depends on it.

#![expect(unsafe_code, reason = "intrinsics; called only where the CPU has the instructions")]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::isa::Isa;
use crate::device::Device;
use crate::dtype::DType;

/// How long one measurement takes.
const DURATION: Duration = Duration::from_millis(60);
/// Independent sums: enough to hide the latency of any multiply-add.
const SUMS: usize = 24;
/// Multiply-adds per sum between two looks at the clock.
const ROUNDS: usize = 20_000;
/// Read by each thread for the bandwidth: larger than its share of any cache.
const READ_BYTES: usize = 128 << 20;

impl Device {
    /// FLOP/s of this kernel set's multiply-adds on operands of `dtype`, from registers only, on `threads` threads
    /// at once; takes about 60 ms. `None` for the reference kernels, which have no such limit to name.
    pub fn measured_peak(self, dtype: DType, threads: usize) -> Option<f64> {
        let isa = Isa::ALL.into_iter().find(|isa| Self::cpu_with(*isa) == Some(self))?;
        Some(measured_matrix_peak(isa, dtype, threads))
    }
}

/// FLOP/s (a multiply-add counts two) of a loop over registers on `threads` threads at once; about 60 ms.
///
/// bf16 without bf16 instructions runs as f32, so the peak is that of f32. Panics if the CPU lacks `isa`.
pub fn measured_matrix_peak(isa: Isa, dtype: DType, threads: usize) -> f64 {
    assert!(isa.is_supported(), "this CPU has no {}", isa.name());
    let burst = Burst::of(isa, dtype);
    per_second(threads, |_| {
        (burst.run)(ROUNDS);
        burst.flops_per_round * ROUNDS as f64
    })
}

/// Bytes per second that `threads` threads read from memory, 128 MiB each.
pub fn measured_bandwidth(threads: usize) -> f64 {
    let memory: Vec<_> = (0..threads.max(1)).map(|i| vec![i as u64 | 1; READ_BYTES / 8]).collect();
    per_second(threads, |thread| {
        black_box(memory[thread].iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
        READ_BYTES as f64
    })
}

/// Work per second of `threads` threads that do it at once until the time is over.
fn per_second(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let threads = threads.max(1);
    let barrier = Barrier::new(threads);
    let (barrier, work) = (&barrier, &work);
    let run = move |thread: usize| {
        barrier.wait();
        work(thread); // Wakes the vector units and the clock.
        let (begin, mut done) = (Instant::now(), 0.0);
        while begin.elapsed() < DURATION {
            done += work(thread);
        }
        done / begin.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        run(0) + others.into_iter().map(|other| other.join().expect("the loop does not panic")).sum::<f64>()
    })
}

/// A loop over registers.
struct Burst {
    run: fn(usize),
    flops_per_round: f64,
}

impl Burst {
    fn of(isa: Isa, dtype: DType) -> Self {
        let lanes = |lanes: usize| (SUMS * lanes * 2) as f64;
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Portable => {}
            Isa::Avx2 => {
                // SAFETY: the caller has checked that the CPU has the instructions.
                return Self { run: |rounds| unsafe { avx2(rounds) }, flops_per_round: lanes(8) / 2.0 };
            }
            Isa::Amx if dtype == DType::Bf16 => {
                // SAFETY: as above.
                return Self { run: |rounds| unsafe { amx::burst(rounds) }, flops_per_round: amx::BURST_FLOPS };
            }
            Isa::Avx512Bf16 if dtype == DType::Bf16 => {
                // SAFETY: as above.
                return Self { run: |rounds| unsafe { avx512_pairs(rounds) }, flops_per_round: lanes(32) };
            }
            _ => {
                // SAFETY: as above.
                return Self { run: |rounds| unsafe { avx512(rounds) }, flops_per_round: lanes(16) };
            }
        }
        let _ = (isa, dtype);
        Self { run: portable, flops_per_round: lanes(4) }
    }
}

fn portable(rounds: usize) {
    let (a, b) = black_box((0.5f32, 1e-3f32));
    let mut sums = [[1.0f32; 4]; SUMS];
    for _ in 0..rounds {
        sums.iter_mut().flatten().for_each(|sum| *sum = a.mul_add(*sum, b));
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: usize) {
    use std::arch::x86_64::*;
    // Sixteen registers hold twelve sums and the factors.
    let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1e-3)));
    let mut sums = [_mm256_set1_ps(black_box(1.0)); SUMS / 2];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(a, *sum, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(rounds: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1e-3)));
    let mut sums = [_mm512_set1_ps(black_box(1.0)); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(a, *sum, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_pairs(rounds: usize) {
    use std::arch::x86_64::*;
    // SAFETY: vectors of the same bits.
    let one = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(black_box(0x3f80_3f80))) };
    let mut sums = [_mm512_set1_ps(black_box(1.0)); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, one, one);
        }
    }
    black_box(sums);
}

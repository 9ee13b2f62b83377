//! Newton-Schulz on every kernel set: close to the reference, and the same bits for a matrix alone, in a batch,
//! and on any number of threads.

use chogori_tensor::{DType, Device, Tensor, pool};

/// The coefficients that Muon uses (Jordan et al., 2024).
const MUON: [f64; 3] = [3.4445, -4.7750, 2.0315];

fn random(device: Device, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let values: Vec<_> = (0..shape.iter().product::<usize>()).map(|_| next()).collect();
    Tensor::from_f64(device, DType::F32, shape, &values)
}

fn solve(device: Device, shape: &[usize], steps: usize, dtype: DType) -> Tensor {
    device.kernels().newton_schulz(&random(device, shape, 3), &vec![MUON; steps], dtype)
}

/// Size of the difference relative to the size of the truth.
fn relative_error(fast: &Tensor, truth: &Tensor) -> f64 {
    let (fast, truth) = (fast.to_vec_f64(), truth.to_vec_f64());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut fast.iter().zip(&truth).map(|(a, b)| a - b)) / norm(&mut truth.iter().copied())
}

#[test]
fn every_kernel_set_agrees_with_the_reference() {
    // The last one is too large for the way of small matrices.
    for (shape, steps) in
        [(vec![1, 1], 5), (vec![3, 17, 45], 5), (vec![2, 65, 33], 5), (vec![40, 7], 5), (vec![270, 980], 1)]
    {
        for dtype in [DType::F32, DType::Bf16] {
            let truth = solve(Device::reference(), &shape, steps, dtype);
            // Each step multiplies a rounding error by up to about 3.4; both sides round to bf16 at the same places,
            // but a sum that falls beside a boundary may go the other way.
            let bound = if dtype == DType::F32 { 1e-5 } else { 0.03 };
            for device in Device::all().into_iter().skip(1) {
                let fast = solve(device, &shape, steps, dtype);
                assert_eq!((fast.shape(), fast.dtype()), (truth.shape(), dtype));
                let error = relative_error(&fast, &truth);
                assert!(error < bound, "{shape:?} {dtype:?} on {}: off by {error}", device.name());
            }
        }
    }
}

#[test]
fn singular_values_come_close_to_one() {
    let x = solve(Device::cpu(), &[24, 60], 5, DType::F32).to_vec_f64();
    // The trace of X·Xᵀ is the sum of squared singular values, which Muon's coefficients bring into 0.68 .. 1.13.
    let mean = x.iter().map(|v| v * v).sum::<f64>() / 24.0;
    assert!((0.46..1.28).contains(&mean), "mean squared singular value {mean}");
}

#[test]
fn a_matrix_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads() {
    for device in Device::all().into_iter().skip(1) {
        for (shape, dtype) in [([5, 40, 90], DType::Bf16), ([5, 90, 40], DType::F32), ([2, 300, 900], DType::Bf16)] {
            if device.name() == "portable" && shape[1] == 300 {
                continue; // Emulated multiply-adds would take seconds and run the same code.
            }
            let kernels = device.kernels();
            let batch = random(device, &shape, 5);
            let run = |x: &Tensor, threads| {
                pool::set_threads(threads);
                kernels.newton_schulz(x, &[MUON; 2], dtype)
            };
            let all = run(&batch, 1);
            for threads in [2, 3, 0] {
                assert_eq!(run(&batch, threads).to_bytes(), all.to_bytes(), "{threads} threads on {}", device.name());
            }
            let last = shape[0] - 1..shape[0];
            assert_eq!(run(&batch.rows(last.clone()), 0).to_bytes(), all.rows(last).to_bytes(), "{}", device.name());
        }
    }
}

//! Muon against plain f64 loops written from the Moonlight paper, and the properties of its orthogonalisation.

mod support;

use chogori_optim::{OptimizerConfig, Precision, Rule};
use support::*;
use tensor::Device;

/// `X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X` five times on `M / ‖M‖`, never transposed (arXiv 2502.16982, equation 2).
fn orthogonalised(m: &[f64], n: usize, k: usize) -> Vec<f64> {
    let norm = m.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mut x: Vec<f64> = m.iter().map(|v| v / (norm + 1e-7)).collect();
    for _ in 0..5 {
        let gram = product(&x, &transpose(&x, n, k), n, k, n);
        let third = product(&gram, &x, n, n, k);
        let fifth = product(&gram, &third, n, n, k);
        x = (0..n * k).map(|i| 3.4445 * x[i] - 4.7750 * third[i] + 2.0315 * fifth[i]).collect();
    }
    x
}

/// One matrix and its momentum.
struct Plain {
    w: Vec<f64>,
    m: Vec<f64>,
}

impl Plain {
    fn step(&mut self, g: &[f64], [n, k]: [usize; 2], nesterov: bool, lr: f64) {
        self.m = self.m.iter().zip(g).map(|(m, g)| 0.95 * m + g).collect();
        let seen: Vec<f64> = match nesterov {
            true => self.m.iter().zip(g).map(|(m, g)| 0.95 * m + g).collect(),
            false => self.m.clone(),
        };
        let update = orthogonalised(&seen, n, k);
        let scale = 0.2 * (n.max(k) as f64).sqrt();
        self.w = self.w.iter().zip(&update).map(|(w, u)| w - lr * (scale * u + 0.1 * w)).collect();
    }
}

fn config(nesterov: bool, precision: Precision) -> OptimizerConfig {
    let k2 = OptimizerConfig::kimi_k2();
    OptimizerConfig { nesterov, newton_schulz_dtype: precision, gradient_clip: 0.0, ..k2 }
}

/// Six steps; the momentum matters after the first, and the rate changes.
fn check(shape: &[usize], nesterov: bool, device: Device) {
    let [n, k] = [shape[shape.len() - 2], shape[shape.len() - 1]];
    let mut random = Random(1 + nesterov as u64);
    let elements = shape.iter().product();
    let start = random.normal(elements, 0.02);
    let mut muon = [owned(7, "w", Rule::Muon, shape, &start, device)];
    let mut optimizer = optimizer(&config(nesterov, Precision::F32), &mut muon);
    let mut plain: Vec<_> = start.chunks(n * k).map(|w| Plain { w: w.to_vec(), m: vec![0.0; n * k] }).collect();
    for t in 0..6 {
        let g = random.normal(elements, 10f64.powi(t - 4));
        let lr = 1e-2 / f64::from(t + 1);
        let before = plain.iter().flat_map(|p| p.w.clone()).collect::<Vec<_>>();
        plain.iter_mut().zip(g.chunks(n * k)).for_each(|(p, g)| p.step(g, [n, k], nesterov, lr));
        let report = step(&mut optimizer, &mut muon, &[g], lr);
        let expected: Vec<_> = plain.iter().flat_map(|p| p.w.clone()).collect();
        let case = format!("{shape:?} nesterov {nesterov} step {t} on {}", device.name());
        // f32 rounding of products, amplified by up to 3.4445^5 in directions that the gradient hardly has.
        let error = relative_error(&values(&muon[0]), &expected);
        assert!(error < 2e-5, "{case}: {error:e}");
        let update: Vec<_> = before.iter().zip(&expected).map(|(b, e)| (b * (1.0 - 0.1 * lr) - e) / lr).collect();
        let reported = report.update_rms(|update| update.rule == Rule::Muon).unwrap();
        assert!((reported / rms(&update) - 1.0).abs() < 1e-4, "{case}: {reported} {}", rms(&update));
    }
}

#[test]
fn six_steps_equal_the_paper() {
    for device in devices() {
        for shape in
            [&[5, 12][..], &[12, 5], &[9, 9], &[1, 6], &[6, 1], &[3, 4, 7], &[2, 8, 3], &[2, 33, 17], &[9, 2, 3]]
        {
            for nesterov in [true, false] {
                check(shape, nesterov, device);
            }
        }
    }
}

/// Weight that one step of rate 1 without decay takes away from zero, so minus the scaled update.
fn update(g: &[f64], shape: &[usize], precision: Precision, device: Device) -> Vec<f64> {
    let mut zero = [owned(0, "w", Rule::Muon, shape, &vec![0.0; g.len()], device)];
    let mut optimizer = optimizer(&config(true, precision), &mut zero);
    step(&mut optimizer, &mut zero, &[g.to_vec()], 1.0);
    values(&zero[0]).iter().map(|v| -v).collect()
}

#[test]
fn singular_values_come_near_one_and_the_update_near_its_rms() {
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            for (n, k, least) in [(24, 96, 0.6), (96, 24, 0.6), (48, 80, 0.6), (48, 48, 0.0)] {
                let case = format!("[{n}, {k}] {precision:?} on {}", device.name());
                let g = Random(3).normal(n * k, 1.0);
                let update = update(&g, &[n, k], precision, device);
                let scale = 0.2 * (n.max(k) as f64).sqrt();
                let singular: Vec<_> = singular_values(&update, n, k).iter().map(|s| s / scale).collect();
                let (max, min) = (singular[0], singular[singular.len() - 1]);
                assert!(max < 1.3 && min > least, "{case}: singular values {min} to {max}");
                // A Gaussian square matrix has a few directions that five iterations do not lift to 1.
                let low = singular.iter().filter(|&&s| s < 0.6).count();
                assert!(low * 10 <= singular.len(), "{case}: {low} of {} singular values are low", singular.len());
                let rms = rms(&update);
                // Singular values of 0.68 to 1.13 instead of 1; K2-like shapes give 0.17 to 0.18.
                assert!((0.16..0.18).contains(&rms), "{case}: update RMS {rms}");
            }
        }
    }
}

#[test]
fn an_update_ignores_the_size_of_the_gradient_and_follows_its_transposition() {
    for device in devices() {
        for (n, k) in [(10, 24), (24, 10), (16, 16)] {
            let g = Random(5).normal(n * k, 1.0);
            let plain = update(&g, &[n, k], Precision::F32, device);
            for size in [1e-3, 1e4] {
                let scaled: Vec<_> = g.iter().map(|g| g * size).collect();
                let error = relative_error(&update(&scaled, &[n, k], Precision::F32, device), &plain);
                // 1e-7 is added to the norm.
                assert!(error < 2e-5, "[{n}, {k}] times {size}: {error:e}");
            }
            let turned = update(&transpose(&g, n, k), &[k, n], Precision::F32, device);
            let error = relative_error(&transpose(&turned, k, n), &plain);
            assert!(error < 2e-5, "[{n}, {k}] transposed: {error:e}");
        }
    }
}

#[test]
fn an_expert_is_updated_as_if_it_were_alone() {
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let g = Random(6).normal(3 * 8 * 20, 1.0);
            let together = update(&g, &[3, 8, 20], precision, device);
            let alone: Vec<_> = g.chunks(160).flat_map(|g| update(g, &[8, 20], precision, device)).collect();
            assert_eq!(together, alone, "{precision:?} on {}", device.name());
        }
    }
}

#[test]
fn an_expert_without_tokens_only_decays() {
    for device in devices() {
        let mut random = Random(8);
        let start = random.normal(2 * 6 * 4, 1.0);
        let mut experts = [owned(0, "experts", Rule::Muon, &[2, 6, 4], &start, device)];
        let mut optimizer = optimizer(&config(true, Precision::Bf16), &mut experts);
        let g = [random.normal(24, 1.0), vec![0.0; 24]].concat();
        step(&mut optimizer, &mut experts, &[g], 0.5);
        for (w, start) in values(&experts[0]).iter().zip(&start).skip(24) {
            assert!((w / (start * 0.95) - 1.0).abs() < 2e-7, "{w}, started at {start}");
        }
    }
}

#[test]
fn decay_uses_the_unscaled_rate() {
    for device in devices() {
        let start = Random(9).normal(40 * 3, 1.0);
        for (rule, shape) in [(Rule::Muon, &[40, 3][..]), (Rule::Muon, &[3, 40]), (Rule::AdamW, &[120])] {
            let mut w = [owned(0, "w", rule, shape, &start, device)];
            let mut optimizer = optimizer(&config(true, Precision::Bf16), &mut w);
            let rates = [0.3, 0.2, 0.1];
            for lr in rates {
                step(&mut optimizer, &mut w, &[vec![0.0; 120]], lr);
            }
            let kept: f64 = rates.iter().map(|lr| 1.0 - lr * 0.1).product();
            let expected: Vec<_> = start.iter().map(|w| w * kept).collect();
            assert!(relative_error(&values(&w[0]), &expected) < 2e-7, "{rule:?} {shape:?}");
        }
    }
}

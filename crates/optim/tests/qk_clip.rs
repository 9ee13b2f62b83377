//! QK-Clip on attention that the test computes itself: a clipped head's logits shrink by gamma, others keep their bits.
//!
//! T tokens · H heads · D latent width · P plain and R rotary rows per head · V value rows per head

mod support;

use chogori_optim::{HeadRows, KeyRows, LogitMax, Optimizer, OptimizerConfig, QkClipReport, QueryRows, Rule, qk_clip};
use support::*;
use tensor::{Device, Tensor, Weight};

const T: usize = 9;
const H: usize = 5;
const D: usize = 12;
const P: usize = 4;
const R: usize = 2;
const V: usize = 3;
const TAU: f64 = 20.0;

struct Layer {
    query: Owned,
    key: Owned,
    x_TD: Vec<f64>,
    rotary_key_TR: Vec<f64>,
}

impl Layer {
    fn new(seed: u64, device: Device) -> Self {
        let mut random = Random(seed);
        let query_rows = random.normal(H * (P + R) * D, 1.0);
        let key_rows = random.normal(H * (P + V) * D, 1.0);
        Self {
            query: owned(0, "q", Rule::Muon, &[H * (P + R), D], &query_rows, device),
            key: owned(1, "kv", Rule::Muon, &[H * (P + V), D], &key_rows, device),
            x_TD: random.normal(T * D, 1.0),
            rotary_key_TR: random.normal(T * R, 1.0),
        }
    }

    fn heads(&mut self) -> HeadRows<'_> {
        HeadRows {
            query: &mut self.query.weight,
            key: &mut self.key.weight,
            query_rows: QueryRows { plain: P, rotary: R },
            key_rows: KeyRows { plain: P, value: V },
        }
    }

    /// Scaled logits of every visible pair, by head.
    fn logits(&self) -> Vec<Vec<f64>> {
        let (q_width, kv_width) = (H * (P + R), H * (P + V));
        let q = product(&self.x_TD, &transpose(&values(&self.query), q_width, D), T, D, q_width);
        let kv = product(&self.x_TD, &transpose(&values(&self.key), kv_width, D), T, D, kv_width);
        let logit = |h: usize, i: usize, j: usize| {
            let q = &q[i * q_width + h * (P + R)..][..P + R];
            let k = &kv[j * kv_width + h * (P + V)..][..P];
            let k_rotary = &self.rotary_key_TR[j * R..][..R];
            let dot: f64 = q.iter().zip(k.iter().chain(k_rotary)).map(|(q, k)| q * k).sum();
            dot / ((P + R) as f64).sqrt()
        };
        (0..H).map(|h| (0..T).flat_map(|i| (0..=i).map(move |j| logit(h, i, j))).collect()).collect()
    }

    fn values(&self) -> Vec<f64> {
        values(&self.key)
            .chunks(D)
            .enumerate()
            .filter(|(row, _)| row % (P + V) >= P)
            .flat_map(|(_, r)| r.to_vec())
            .collect()
    }
}

fn largest(logits: &[f64]) -> f32 {
    logits.iter().fold(f64::NEG_INFINITY, |max, &logit| max.max(logit)) as f32
}

fn record(maxima: &mut LogitMax, layer: usize, max_logit_H: &[f32]) {
    maxima.record(layer, &Tensor::from_slice(Device::reference(), &[max_logit_H.len()], max_logit_H));
}

#[test]
fn logits_of_clipped_heads_scale_by_gamma_and_no_other_bit_changes() {
    for device in devices() {
        let mut layers = [Layer::new(31, device), Layer::new(32, device)];
        let before: Vec<_> = layers.iter().map(Layer::logits).collect();
        let value_rows: Vec<_> = layers.iter().map(Layer::values).collect();
        let mut maxima = LogitMax::new(2, H);
        for (l, logits_H) in before.iter().enumerate() {
            record(&mut maxima, l, &logits_H.iter().map(|logits| largest(logits)).collect::<Vec<_>>());
        }
        let report = qk_clip(&mut layers.each_mut().map(Layer::heads), &maxima, TAU);
        assert!(report.not_finite.is_empty());
        assert!((1..2 * H).contains(&report.clipped), "the seeds give clipped and unclipped heads: {report:?}");
        for (l, layer) in layers.iter().enumerate() {
            for (h, (after, before)) in layer.logits().iter().zip(&before[l]).enumerate() {
                let (largest_before, gamma) = (f64::from(largest(before)), report.factors_LH[l][h]);
                assert_eq!(gamma, if largest_before > TAU { TAU / largest_before } else { 1.0 });
                match gamma {
                    1.0 => assert_eq!(after, before, "head {h} of layer {l} is not above tau"),
                    _ => {
                        let expected: Vec<_> = before.iter().map(|logit| logit * gamma).collect();
                        // The scaled rows are rounded to f32.
                        assert!(relative_error(after, &expected) < 2e-7, "head {h} of layer {l}");
                        assert!((f64::from(largest(after)) / TAU - 1.0).abs() < 1e-6);
                    }
                }
            }
            assert_eq!(layer.values(), value_rows[l]);
        }
    }
}

#[test]
fn rows_take_the_published_powers_of_gamma() {
    let mut layer = Layer::new(33, Device::reference());
    let (query, key) = (values(&layer.query), values(&layer.key));
    let mut maxima = LogitMax::new(1, H);
    record(&mut maxima, 0, &[1.0, 80.0, 20.0, -90.0, 20.000002]);
    let report = qk_clip(&mut [layer.heads()], &maxima, TAU);
    // 80 is four times tau: gamma 1/4 and its root 1/2 are exact.
    assert_eq!((report.clipped, report.factors_LH[0][1]), (2, 0.25));
    let expect = |before: &[f64], rows: usize, plain: usize, rest: f64| -> Vec<f64> {
        let factor = |row: usize| match (row / rows, row % rows < plain) {
            (1, true) => 0.5,
            (1, false) => rest,
            _ => 1.0,
        };
        before[..4 * rows * D].iter().enumerate().map(|(i, w)| w * factor(i / D)).collect()
    };
    assert_eq!(values(&layer.query)[..4 * (P + R) * D], expect(&query, P + R, P, 0.25));
    assert_eq!(values(&layer.key)[..4 * (P + V) * D], expect(&key, P + V, P, 1.0));
}

/// Whether a weight still has the packed form that it had.
fn packed(weight: &Weight) -> *const u8 {
    std::ptr::from_ref(weight.packed(tensor::kernels::Form::Forward)).cast()
}

#[test]
fn nothing_is_touched_when_no_head_is_above_tau() {
    for device in devices() {
        let mut layer = Layer::new(34, device);
        let before = (packed(&layer.query.weight), packed(&layer.key.weight), layer.logits());
        let check = |layer: &mut Layer, max_logit_H: [f32; H], not_finite: &[(usize, usize)]| {
            let mut maxima = LogitMax::new(1, H);
            record(&mut maxima, 0, &max_logit_H);
            let report = qk_clip(&mut [layer.heads()], &maxima, TAU);
            let expected = QkClipReport { factors_LH: vec![vec![1.0; H]], clipped: 0, not_finite: not_finite.into() };
            assert_eq!(report, expected);
            assert_eq!((packed(&layer.query.weight), packed(&layer.key.weight), layer.logits()), before);
        };
        check(&mut layer, [TAU as f32, 19.99, 0.0, -0.0, 1e-30], &[]);
        check(&mut layer, [-1.0, -50.0, f32::MIN, f32::NEG_INFINITY, -0.1], &[]);
        check(&mut layer, [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN], &[(0, 0), (0, 2), (0, 4)]);
    }
}

#[test]
fn a_head_that_is_not_finite_does_not_keep_others_from_being_clipped() {
    let mut layer = Layer::new(35, Device::reference());
    let before = layer.logits();
    let mut maxima = LogitMax::new(1, H);
    record(&mut maxima, 0, &[f32::NAN, 40.0, f32::INFINITY, 1.0, 1.0]);
    let report = qk_clip(&mut [layer.heads()], &maxima, TAU);
    assert_eq!((report.factors_LH[0].as_slice(), report.clipped), (&[1.0, 0.5, 1.0, 1.0, 1.0][..], 1));
    assert_eq!(report.not_finite, [(0, 0), (0, 2)]);
    for (h, (after, before)) in layer.logits().iter().zip(&before).enumerate() {
        assert_eq!(after == before, h != 1);
    }
}

#[test]
fn the_maximum_is_signed_over_all_micro_batches_and_keeps_a_nan() {
    let mut maxima = LogitMax::new(2, 3);
    assert_eq!(maxima.max(), f32::NEG_INFINITY);
    record(&mut maxima, 1, &[-7.0, 2.0, f32::NEG_INFINITY]);
    record(&mut maxima, 1, &[-9.0, 5.0, -3.0]);
    assert_eq!(maxima.layer(0), [f32::NEG_INFINITY; 3]);
    assert_eq!(maxima.layer(1), [-7.0, 5.0, -3.0]);
    assert_eq!(maxima.max(), 5.0);
    let mut other_rank = LogitMax::new(2, 3);
    record(&mut other_rank, 0, &[1.0, f32::NAN, 3.0]);
    record(&mut other_rank, 0, &[2.0, 4.0, 1.0]);
    maxima.merge(&other_rank);
    assert_eq!((maxima.layer(0)[0], maxima.layer(0)[2], maxima.layer(1)[1]), (2.0, 3.0, 5.0));
    assert!(maxima.layer(0)[1].is_nan() && maxima.max().is_nan());
    maxima.reset();
    assert_eq!(maxima, LogitMax::new(2, 3));
}

#[test]
fn only_muonclip_clips_and_momentum_stays() {
    use chogori_optim::Algorithm::*;
    for (algorithm, clipped) in [(MuonClip, 1), (Muon, 0), (AdamW, 0)] {
        let mut layer = Layer::new(36, Device::reference());
        let config = OptimizerConfig { algorithm, ..OptimizerConfig::kimi_k2() };
        let mut both = [&mut layer.query, &mut layer.key];
        let parameters: Vec<_> = both
            .iter_mut()
            .map(|o| chogori_optim::Parameter { name: &o.name, weight: &mut o.weight, rule: Rule::Muon })
            .collect();
        let optimizer = Optimizer::new(config, &parameters).unwrap();
        let moments = || optimizer.export().1.into_iter().map(|(_, t)| t.to_bytes()).collect::<Vec<_>>();
        let before = moments();
        let mut maxima = LogitMax::new(1, H);
        record(&mut maxima, 0, &[1.0, 2.0, 400.0, 3.0, 99.0]);
        assert_eq!(optimizer.qk_clip(&mut [layer.heads()], &maxima).clipped, clipped);
        assert_eq!(moments(), before);
    }
}

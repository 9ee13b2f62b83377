//! Rotary positions and their YaRN extension (arXiv 2309.00071, as DeepSeek-V3 and Kimi K2 use it).
//!
//! Pure f64 mathematics, nothing else: the table of frequencies, what the cosines and sines are multiplied by, and
//! what the softmax scale is multiplied by. The rope part of a head is stored as *interleaved* pairs (2i, 2i+1);
//! pair i turns by `position * inverse_frequencies[i]` radians.

use std::f64::consts::PI;

/// Rotary embedding of one model: its base, and YaRN if the context was extended.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric frequencies (`rope_theta`).
    pub theta: f64,
    /// Context extension; `None` means plain RoPE.
    pub yarn: Option<Yarn>,
}

/// YaRN's parameters under their HF names.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer the context is than the original one.
    pub factor: f64,
    /// Positions that the model was trained on before the extension.
    pub original_max_position_embeddings: usize,
    /// Pairs that turn at least this often within the original context keep their frequency.
    pub beta_fast: f64,
    /// Pairs that turn at most this often are slowed by the whole factor.
    pub beta_slow: f64,
    /// Weight of ln(factor) in the numerator of the cos/sin multiplier.
    pub mscale: f64,
    /// Weight of ln(factor) in its denominator, and in the softmax scale; 0 switches both off.
    pub mscale_all_dim: f64,
    /// Set explicitly, it replaces the cos/sin multiplier.
    pub attention_factor: Option<f64>,
}

impl Rope {
    /// Radians per position of each of the `dim / 2` pairs.
    ///
    /// `transformers` rounds this table to f32 before it multiplies by the position, which at position p moves an
    /// angle by up to p * 2^-24 of itself; whoever compares with it at long contexts rounds the table likewise.
    pub fn inverse_frequencies(&self, dim: usize) -> Vec<f64> {
        let plain = |pair: usize| self.theta.powf(-((2 * pair) as f64) / dim as f64);
        match &self.yarn {
            None => (0..dim / 2).map(plain).collect(),
            Some(yarn) => {
                let (low, high) = yarn.ramp_bounds(self.theta, dim);
                let slowed = |pair: usize| {
                    let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain(pair) * (ramp / yarn.factor + (1.0 - ramp))
                };
                (0..dim / 2).map(slowed).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by: 1 for all published models of the family.
    pub fn rotation_multiplier(&self) -> f64 {
        let Some(yarn) = &self.yarn else { return 1.0 };
        let ratio = magnitude(yarn.factor, yarn.mscale) / magnitude(yarn.factor, yarn.mscale_all_dim);
        yarn.attention_factor.unwrap_or(ratio)
    }

    /// What the softmax scale `(dn + dr)^-1/2` is multiplied by: m squared under YaRN, else 1.
    pub fn softmax_multiplier(&self) -> f64 {
        self.yarn.as_ref().map_or(1.0, |yarn| magnitude(yarn.factor, yarn.mscale_all_dim).powi(2))
    }
}

impl Yarn {
    /// The pair indices between which frequencies go from unchanged to divided by the factor.
    pub fn ramp_bounds(&self, theta: f64, dim: usize) -> (f64, f64) {
        let pair_turning = |turns: f64| {
            let positions_per_radian = self.original_max_position_embeddings as f64 / (2.0 * PI * turns);
            dim as f64 * positions_per_radian.ln() / (2.0 * theta.ln())
        };
        let low = pair_turning(self.beta_fast).floor().max(0.0);
        let high = pair_turning(self.beta_slow).ceil().min(dim as f64 - 1.0);
        // Equal bounds would divide zero by zero; any positive width gives the same step.
        (low, if high > low { high } else { low + 0.001 })
    }
}

/// YaRN's magnitude correction `0.1 * weight * ln(factor) + 1`; 1 where the context is not extended.
fn magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn k2(factor: f64, beta_fast: f64) -> Rope {
        let yarn = Yarn {
            factor,
            original_max_position_embeddings: 4096,
            beta_fast,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
            attention_factor: None,
        };
        Rope { theta: 50000.0, yarn: Some(yarn) }
    }

    #[test]
    fn k2_slows_pairs_from_20_on_by_the_whole_factor() {
        let plain = Rope { theta: 50000.0, yarn: None }.inverse_frequencies(64);
        let extended = k2(32.0, 1.0).inverse_frequencies(64);
        assert_eq!(k2(32.0, 1.0).yarn.unwrap().ramp_bounds(50000.0, 64), (19.0, 20.0));
        for (pair, (plain, extended)) in plain.iter().zip(&extended).enumerate() {
            let expected = if pair < 20 { *plain } else { plain / 32.0 };
            assert!((extended / expected - 1.0).abs() < 1e-15, "pair {pair}: {extended} instead of {expected}");
        }
    }

    #[test]
    fn a_fast_beta_of_32_makes_a_smooth_ramp_from_pair_8_to_20() {
        let rope = k2(64.0, 32.0);
        assert_eq!(rope.yarn.as_ref().unwrap().ramp_bounds(50000.0, 64), (8.0, 20.0));
        let plain = Rope { yarn: None, ..rope.clone() }.inverse_frequencies(64);
        let slowed: Vec<f64> = rope.inverse_frequencies(64).iter().zip(&plain).map(|(y, p)| p / y).collect();
        assert_eq!(slowed[8], 1.0);
        assert!((slowed[14] - 1.0 / (0.5 + 0.5 / 64.0)).abs() < 1e-12);
        assert!((slowed[20] - 64.0).abs() < 1e-12);
    }

    #[test]
    fn equal_bounds_make_a_step_and_no_nan() {
        let mut rope = k2(4.0, 1.0);
        rope.yarn.as_mut().unwrap().original_max_position_embeddings = 1;
        assert!(rope.inverse_frequencies(8).iter().all(|frequency| frequency.is_finite()));
    }

    #[test]
    fn multipliers_are_those_of_the_published_models() {
        assert!((k2(32.0, 1.0).softmax_multiplier() - 1.81326).abs() < 5e-6);
        assert!((k2(64.0, 1.0).softmax_multiplier() - 2.00474).abs() < 5e-6);
        assert_eq!(k2(32.0, 1.0).rotation_multiplier(), 1.0);
        let plain = Rope { theta: 50000.0, yarn: None };
        assert_eq!((plain.softmax_multiplier(), plain.rotation_multiplier()), (1.0, 1.0));
        let mut one_sided = k2(32.0, 1.0);
        one_sided.yarn.as_mut().unwrap().mscale_all_dim = 0.0;
        assert_eq!(one_sided.softmax_multiplier(), 1.0);
        assert!((one_sided.rotation_multiplier() - 1.34657).abs() < 5e-6);
    }

    #[test]
    fn plain_frequencies_are_geometric() {
        let table = Rope { theta: 10000.0, yarn: None }.inverse_frequencies(4);
        assert_eq!(table[0], 1.0);
        assert!((table[1] - 0.01).abs() < 1e-16);
    }
}

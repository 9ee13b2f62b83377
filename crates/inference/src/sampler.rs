//! Choosing the next token: temperature, top-k, top-p, min-p, and a seeded generator.
//!
//! Randomness is a pure function of (seed, place of the token), so a text can be sampled again from its middle.

use serde::{Deserialize, Serialize};

use crate::score::best;

/// How to sample. The default is Kimi K2's recommendation for general use: temperature 0.6, nothing cut off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token always.
    pub temperature: f64,
    /// Keeps the likeliest tokens whose probabilities just reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keeps that many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Drops tokens less likely than this share of the likeliest one; 0 drops none.
    pub min_p: f64,
    /// Seed of the choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.6, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 }
    }
}

/// A value that cannot be sampled with.
#[derive(Debug, thiserror::Error)]
#[error("{name} = {value}: it must lie in {range}")]
pub struct SamplingError {
    name: &'static str,
    value: f64,
    range: &'static str,
}

/// Draws tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
}

impl Sampler {
    /// # Errors
    /// [`SamplingError`] names the value that is out of range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        let Sampling { temperature, top_p, min_p, .. } = sampling;
        let check =
            |name, value: f64, good: bool, range| if good { Ok(()) } else { Err(SamplingError { name, value, range }) };
        check("temperature", temperature, (0.0..=100.0).contains(&temperature), "0 ..= 100")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "0 < top_p <= 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 ..= 1")?;
        Ok(Self { sampling })
    }

    /// The token at `place` of a text, given the logits there. NaN logits are never chosen.
    pub fn choose(&self, logits: &[f32], place: usize) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, seed } = self.sampling;
        let finite = |id: &u32| !logits[*id as usize].is_nan();
        if temperature == 0.0 {
            return best(logits, logits.len()).into_iter().find(finite).unwrap_or(0);
        }
        let mut ids = best(logits, if top_k == 0 { logits.len() } else { top_k.min(logits.len()) });
        ids.retain(finite);
        let Some(&first) = ids.first() else { return 0 };
        let top = f64::from(logits[first as usize]);
        let weight = |id: &u32| ((f64::from(logits[*id as usize]) - top) / temperature).exp();
        let mut weights: Vec<f64> = ids.iter().map(weight).take_while(|weight| *weight >= min_p).collect();
        cut_nucleus(&mut weights, top_p);
        let mut rest = uniform(seed, place) * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        ids[chosen.unwrap_or(weights.len() - 1)]
    }
}

/// Keeps the leading weights whose sum just reaches the share `top_p` of all.
fn cut_nucleus(weights: &mut Vec<f64>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let goal = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= goal
    });
    weights.truncate(reached.map_or(weights.len(), |last| last + 1));
}

/// A number in [0, 1) for each place (SplitMix64).
fn uniform(seed: u64, place: usize) -> f64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (place as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        z = (z ^ (z >> 29)).wrapping_mul(multiplier);
    }
    ((z ^ (z >> 32)) >> 11) as f64 * 2f64.powi(-53)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling).expect("valid")
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.0f32, 1.0, 2.0, f32::NEG_INFINITY];
        let sampler = sampler(Sampling { temperature: 1.0, seed: 3, ..Sampling::default() });
        let mut counts = [0.0f64; 4];
        (0..20_000).for_each(|place| counts[sampler.choose(&logits, place) as usize] += 1.0 / 20_000.0);
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        for (count, logit) in counts.iter().zip(logits) {
            assert!((count - f64::from(logit).exp() / sum).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn cuts_keep_only_the_likeliest() {
        let logits = [0.0f32, 3.0, 2.0, 1.0];
        let cases = [
            Sampling { temperature: 0.0, ..Sampling::default() },
            Sampling { temperature: 5.0, top_k: 1, ..Sampling::default() },
            Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() },
            Sampling { temperature: 1.0, min_p: 0.5, ..Sampling::default() },
        ];
        for sampling in cases {
            let sampler = sampler(sampling);
            assert!((0..200).all(|place| sampler.choose(&logits, place) == 1), "{sampling:?}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        let error = Sampler::new(Sampling { top_p: 0.0, ..Sampling::default() }).unwrap_err().to_string();
        assert!(error.contains("top_p"), "{error}");
    }
}

//! What can be chosen about the optimizer.
//!
//! The K2 report publishes the update's scale, the weight decay and QK-Clip's tau; the rest is Moonlight's, or
//! customary, and has no default. The keys are those of a recipe's
//! `[optimizer]` section.

use serde::{Deserialize, Serialize};
use tensor::DType;
use tensor::kernels::NEWTON_SCHULZ;

/// What updates the matrices; embedding, head and vectors always take AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Muon with QK-Clip (K2).
    MuonClip,
    /// Muon alone.
    Muon,
    /// AdamW for the matrices too.
    AdamW,
}

/// The type of the operands in Newton-Schulz products; sums are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16 (Moonlight).
    #[default]
    Bf16,
    /// 32-bit floats.
    F32,
}

/// Everything about the optimizer but its rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The one switch: `muonclip`, `muon` or `adamw`.
    pub algorithm: Algorithm,
    /// Muon's momentum M = momentum * M + G (classic, not an average).
    pub momentum: f64,
    /// Whether Newton-Schulz gets momentum * M + G or M.
    pub nesterov: bool,
    /// Newton-Schulz iterations.
    pub newton_schulz_steps: usize,
    /// Operands of their products.
    #[serde(default)]
    pub newton_schulz_dtype: Precision,
    /// An update is `update_rms * sqrt(max(rows, columns))` times the orthogonalised momentum. The realised
    /// root mean square is about 0.85 to 0.9 of this number, as five iterations leave singular values of 0.7 to 1.2.
    /// K2: 0.2, the default.
    #[serde(default = "k2_update_rms")]
    pub update_rms: f64,
    /// Decoupled: each step first multiplies a parameter, gains included, by 1 - rate * weight_decay.
    /// K2: 0.1, the default.
    #[serde(default = "k2_weight_decay")]
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub gradient_clip: f64,
    /// QK-Clip's cap on attention logits; read by `muonclip` only. K2: 100, the default.
    #[serde(default = "k2_qk_clip_tau")]
    pub qk_clip_tau: f64,
    /// `[optimizer.adamw]`
    pub adamw: AdamWConfig,
}

fn k2_update_rms() -> f64 {
    0.2
}

fn k2_weight_decay() -> f64 {
    0.1
}

fn k2_qk_clip_tau() -> f64 {
    100.0
}

/// Numbers of AdamW, for whatever Muon does not update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Its rate as a multiple of the schedule's; its weight decay follows.
    pub learning_rate_multiplier: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// A number in the config that makes no sense.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("`optimizer.{key}` is {found}: it must be {expected}")]
pub struct ConfigError {
    /// The key, dotted.
    pub key: &'static str,
    /// The number.
    pub found: f64,
    /// What would be right.
    pub expected: &'static str,
}

impl OptimizerConfig {
    /// K2: update scale 0.2, decay 0.1, tau 100. Momentum, Nesterov and iterations are Moonlight's, the clip is
    /// DeepSeek-V3's, AdamW's numbers are customary: the K2 report does not give them.
    pub fn kimi_k2() -> Self {
        Self {
            algorithm: Algorithm::MuonClip,
            momentum: 0.95,
            nesterov: true,
            newton_schulz_steps: 5,
            newton_schulz_dtype: Precision::Bf16,
            update_rms: k2_update_rms(),
            weight_decay: k2_weight_decay(),
            gradient_clip: 1.0,
            qk_clip_tau: k2_qk_clip_tau(),
            adamw: AdamWConfig { learning_rate_multiplier: 1.0, beta1: 0.9, beta2: 0.95, epsilon: 1e-8 },
        }
    }

    /// Refuses numbers with which no step could be made.
    pub fn check(&self) -> Result<(), ConfigError> {
        let adamw = &self.adamw;
        let decays = [("momentum", self.momentum), ("adamw.beta1", adamw.beta1), ("adamw.beta2", adamw.beta2)];
        let positive = [
            ("newton_schulz_steps", self.newton_schulz_steps as f64),
            ("update_rms", self.update_rms),
            ("qk_clip_tau", self.qk_clip_tau),
            ("adamw.epsilon", adamw.epsilon),
        ];
        let not_negative = [
            ("weight_decay", self.weight_decay),
            ("gradient_clip", self.gradient_clip),
            ("adamw.learning_rate_multiplier", adamw.learning_rate_multiplier),
        ];
        require(&decays, "at least 0 and below 1", |x| (0.0..1.0).contains(&x))?;
        require(&positive, "finite and above 0", |x| x.is_finite() && x > 0.0)?;
        require(&not_negative, "finite and not negative", |x| x.is_finite() && x >= 0.0)
    }

    /// Whether matrices take Muon.
    pub fn uses_muon(&self) -> bool {
        self.algorithm != Algorithm::AdamW
    }

    /// QK-Clip's cap, if the algorithm has one.
    pub fn tau(&self) -> Option<f64> {
        (self.algorithm == Algorithm::MuonClip).then_some(self.qk_clip_tau)
    }

    /// The published coefficients, once per iteration.
    pub(crate) fn newton_schulz_coefficients(&self) -> Vec<[f64; 3]> {
        vec![NEWTON_SCHULZ; self.newton_schulz_steps]
    }
}

impl Precision {
    /// The tensor's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::Bf16,
            Self::F32 => DType::F32,
        }
    }
}

fn require(numbers: &[(&'static str, f64)], expected: &'static str, good: fn(f64) -> bool) -> Result<(), ConfigError> {
    match numbers.iter().find(|(_, number)| !good(*number)) {
        Some(&(key, found)) => Err(ConfigError { key, found, expected }),
        None => Ok(()),
    }
}

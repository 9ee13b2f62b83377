//! The sections of the pre-training recipe, key by key.
//!
//! What the K2 report publishes is a default and is named in the field's documentation; what it leaves
//! open (clipping, balance speed, ...) has no default and must stand in the file. `[optimizer]` and the curves of
//! `[schedule]` are the optimizer crate's own types.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tensor::DType;
use tensor::saved::Action;

/// `[tokenizer]`: exactly one of the two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenizer {
    /// An existing tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `[tokenizer.train]`: learn one from the corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<TokenizerTraining>,
}

/// `[tokenizer.train]`: byte-level BPE with K2's pre-tokenisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerTraining {
    /// Ids in all, reserved ones included; K2: 163,840.
    pub vocab_size: usize,
    /// Ids at the end for special tokens; K2: 256.
    pub reserved: usize,
    /// Bytes of the corpus that merges are learned from.
    pub sample_bytes: u64,
}

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum Corpus {
    /// `"registry"`: sources of the packages that Cargo.lock pins, found in Cargo's registry.
    Registry,
    /// A folder or file.
    Path(PathBuf),
}

impl From<PathBuf> for Corpus {
    fn from(path: PathBuf) -> Self {
        match path.to_str() {
            Some("registry") => Corpus::Registry,
            _ => Corpus::Path(path),
        }
    }
}

impl From<Corpus> for PathBuf {
    fn from(corpus: Corpus) -> Self {
        match corpus {
            Corpus::Registry => "registry".into(),
            Corpus::Path(path) => path,
        }
    }
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// `"registry"`, or a folder or file.
    pub corpus: Corpus,
    /// The field (JSONL) or column (Parquet) that holds the text.
    pub text_field: String,
    /// Share of the documents kept for evaluation, chosen by a hash of their path.
    pub held_out_fraction: f64,
    /// Longer documents are left out.
    pub max_document_bytes: u64,
}

/// `[batch]`: over all ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Tokens per sequence; K2: 4096.
    pub sequence_length: usize,
    /// Sequences that go through the network together.
    pub sequences_per_micro_batch: usize,
    /// Micro-batches whose gradients make one step.
    pub micro_batches_per_step: usize,
}

impl Batch {
    /// Tokens of one optimizer step; K2: 67,108,864.
    pub fn tokens_per_step(&self) -> u64 {
        let sequences = self.sequences_per_micro_batch * self.micro_batches_per_step;
        sequences as u64 * self.sequence_length as u64
    }
}

/// `[router]`: how experts are kept in balance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Step of the selection bias towards balance, per optimizer step; 0 leaves the bias alone.
    pub bias_update_speed: f64,
    /// Whether the biases of a layer are shifted to mean 0 after each update (selection does not change).
    pub recentre: bool,
    /// Weight of the sequence-wise balance loss; 0 leaves it out.
    pub sequence_balance_loss: f64,
}

/// What becomes of an activation that backward needs; the words of a recipe for [`Action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Kept as computed.
    Keep,
    /// Dropped, and computed again.
    Recompute,
    /// Kept as FP8 E4M3 in tiles of 1x128 with f32 scales.
    Fp8,
    /// Moved to slower memory, and fetched before it is needed.
    Offload,
}

impl From<Activation> for Action {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Keep => Action::Keep,
            Activation::Recompute => Action::Recompute,
            Activation::Fp8 => Action::Fp8,
            Activation::Offload => Action::Offload,
        }
    }
}

/// The type that matrices are multiplied in; master weights and sums are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16 (K2).
    Bf16,
    /// 32-bit floats.
    F32,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => DType::Bf16,
            Dtype::F32 => DType::F32,
        }
    }
}

/// `[compute]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// `bf16` or `f32`.
    pub dtype: Dtype,
    /// Threads; 0 takes one per core. Results do not depend on it.
    pub threads: usize,
}

/// `[run]`: exactly one of `steps` and `minutes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Optimizer steps in all, annealing included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// As many steps as fit; the trainer measures a few and then fixes `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minutes: Option<f64>,
    /// Decides initial weights and data order.
    pub seed: u64,
    /// Steps between checkpoints; the last step is always saved.
    pub save_every_steps: u64,
    /// Checkpoints that stay on disk, the newest ones.
    pub keep_checkpoints: usize,
    /// Steps between evaluations on held-out text; 0 evaluates only at the end.
    pub evaluate_every_steps: u64,
    /// Held-out bytes per evaluation during the run; the last one takes all.
    pub evaluate_bytes: u64,
    /// Steps between samples written to `samples/`; 0 writes none.
    pub sample_every_steps: u64,
    /// Steps in a row whose loss or gradient is not finite before the run stops; each of them is skipped.
    pub non_finite_steps_max: u64,
}

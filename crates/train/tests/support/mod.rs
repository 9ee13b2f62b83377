//! A tiny K2 in training: its sizes, a text that it can learn, and all its bits.

#![allow(dead_code, reason = "each test file uses a part")]

#[path = "../../../model/tests/common/seeded.rs"]
pub mod seeded;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chogori_train::{StepConfig, StepOutcome, Trainer};
use data::{Batch, IGNORE};
use model::{Config, Model, init};
use optim::{AdamWConfig, Algorithm, OptimizerConfig};
use serde_json::json;
use tensor::saved::Policy;
use tensor::{DType, Device};

/// Documents of each row of [`batch`]; what they leave of a row is padding.
const DOCUMENTS: [&[usize]; 2] = [&[31, 17, 13], &[40, 24]];
const ROW: usize = 64;
const VOCABULARY: u32 = 97;

/// One dense layer and two with experts. Fresh weights are large enough for gradients to be lively from the start.
pub fn config() -> Config {
    config_with(8)
}

/// The same with another number of experts.
pub fn config_with(experts: usize) -> Config {
    let value = json!({
        "model_type": "kimi_k2", "vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 3,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "intermediate_size": 72, "moe_intermediate_size": 24,
        "n_routed_experts": experts, "num_experts_per_tok": 2, "n_shared_experts": 1, "num_attention_heads": 3,
        "num_key_value_heads": 3, "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 8, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "norm_topk_prob": true, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.0, "rms_norm_eps": 1e-6,
        "rope_theta": 50000.0, "max_position_embeddings": 512, "tie_word_embeddings": false, "hidden_act": "silu",
        "attention_bias": false, "attention_dropout": 0.0, "initializer_range": 0.1, "num_nextn_predict_layers": 0,
        "torch_dtype": "bfloat16",
    });
    Config::from_value(value).expect("the sizes fit each other")
}

/// K2's optimizer as `algorithm`.
pub fn optimizer(algorithm: Algorithm) -> OptimizerConfig {
    OptimizerConfig { algorithm, ..OptimizerConfig::kimi_k2() }
}

/// An optimizer after whose first step the moments are the gradients: AdamW's first moment (or Muon's momentum), no
/// clipping.
pub fn optimizer_that_keeps_gradients() -> OptimizerConfig {
    let k2 = OptimizerConfig::kimi_k2();
    OptimizerConfig { gradient_clip: 0.0, adamw: AdamWConfig { beta1: 0.0, ..k2.adamw.clone() }, ..k2 }
}

/// Everything that a step can do, switched on.
pub fn step_config() -> StepConfig {
    StepConfig {
        policy: Policy::recompute_cheap(),
        bias_update_speed: 1e-2,
        recentre: true,
        sequence_balance_loss: 1e-2,
    }
}

/// A trainer with fresh weights.
pub fn trainer(optimizer: OptimizerConfig, compute: DType) -> Trainer {
    trainer_of(config(), optimizer, compute)
}

/// The same for another model.
pub fn trainer_of(config: Config, optimizer: OptimizerConfig, compute: DType) -> Trainer {
    let device = Device::cpu();
    let fresh = |spec: &_| Ok::<_, String>(init::fresh(&config, spec, 1, device, DType::F32));
    let model = Model::build(config.clone(), device, compute, fresh).expect("fresh weights have the right shapes");
    Trainer::new(model, optimizer, step_config()).expect("the optimizer's numbers make sense")
}

/// Micro-batch number `index` of an endless text: two rows of documents, padding after the first row's.
pub fn batch(index: u64) -> Batch {
    let mut batch = Batch { rows: DOCUMENTS.len(), sequence_length: ROW, ..Batch::default() };
    for (row, documents) in DOCUMENTS.iter().enumerate() {
        for (document, &len) in documents.iter().enumerate() {
            let text = seeded::stream(len + 1, VOCABULARY, 100 * index + 10 * row as u64 + document as u64);
            push(&mut batch, &text[..len], &text[1..]);
        }
        let padding = ROW - documents.iter().sum::<usize>();
        if padding > 0 {
            push(&mut batch, &vec![0; padding], &vec![IGNORE; padding]);
        }
    }
    batch
}

fn push(batch: &mut Batch, tokens: &[u32], targets: &[u32]) {
    batch.tokens.extend_from_slice(tokens);
    batch.targets.extend_from_slice(targets);
    batch.positions.extend(0..tokens.len() as u32);
    batch.segments.push(tokens.len());
}

/// Many micro-batches as one.
pub fn large_batch(indices: std::ops::Range<u64>) -> Batch {
    indices.map(batch).fold(Batch { sequence_length: ROW, ..Batch::default() }, |mut all, batch| {
        all.rows += batch.rows;
        all.tokens.extend(batch.tokens);
        all.targets.extend(batch.targets);
        all.positions.extend(batch.positions);
        all.segments.extend(batch.segments);
        all
    })
}

/// The micro-batches of a step.
pub fn batches(step: u64, micro_batches: u64) -> Vec<Batch> {
    (0..micro_batches).map(|at| batch(step * micro_batches + at)).collect()
}

/// Steps until `end` has been reached, as one long run would.
pub fn train(trainer: &mut Trainer, end: u64, micro_batches: u64, lr: f64) -> Vec<StepOutcome> {
    let rest = trainer.step..end;
    rest.map(|step| trainer.step(&batches(step, micro_batches), lr)).collect()
}

/// Weights and moments by name, as bytes.
pub fn bits(trainer: &Trainer) -> BTreeMap<String, Vec<u8>> {
    let (_, tensors) = trainer.export(None, 0.0);
    tensors.into_iter().map(|(name, tensor)| (name, tensor.to_bytes())).collect()
}

/// Names of what is not the same in both.
pub fn differences(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names = a.keys().chain(b.keys()).collect::<std::collections::BTreeSet<_>>();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

/// The right to set the number of threads. Two tests that share the pool would each run on one thread much of the time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

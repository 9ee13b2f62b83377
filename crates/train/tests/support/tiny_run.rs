//! A tiny run as a user would make one: recipe, corpus, run folder.

#![allow(dead_code, reason = "each test file uses a part")]

use std::path::Path;

use chogori_train::prepare::{PrepareError, PreparedData, prepare};
use chogori_train::recipe::{Pretrain, parse};
use data::corpus::{CorpusError, Document};

use super::seeded;

const RECIPE: &str = r#"
    [model]
    model_type = "kimi_k2"
    vocab_size = 320
    hidden_size = 32
    num_hidden_layers = 2
    first_k_dense_replace = 1
    moe_layer_freq = 1
    intermediate_size = 48
    moe_intermediate_size = 16
    n_routed_experts = 4
    num_experts_per_tok = 2
    n_shared_experts = 1
    num_attention_heads = 2
    num_key_value_heads = 2
    q_lora_rank = 12
    kv_lora_rank = 12
    qk_nope_head_dim = 8
    qk_rope_head_dim = 4
    v_head_dim = 8
    scoring_func = "sigmoid"
    topk_method = "noaux_tc"
    norm_topk_prob = true
    n_group = 1
    topk_group = 1
    routed_scaling_factor = 2.0
    rms_norm_eps = 1e-6
    rope_theta = 50000.0
    max_position_embeddings = 64
    tie_word_embeddings = false
    hidden_act = "silu"
    attention_bias = false
    attention_dropout = 0.0
    initializer_range = 0.1
    num_nextn_predict_layers = 0
    torch_dtype = "bfloat16"

    [tokenizer.train]
    vocab_size = 320
    reserved = 32
    sample_bytes = 10_000

    [data]
    corpus = "made up"
    text_field = "text"
    held_out_fraction = 0.2
    max_document_bytes = 10_000

    [batch]
    sequence_length = 48
    sequences_per_micro_batch = 2
    micro_batches_per_step = 2

    [schedule]
    kind = "wsd"
    peak = 1e-2
    final = 1e-3
    warmup_steps = 2
    decay_steps = "40%"

    [optimizer]
    algorithm = "muonclip"
    momentum = 0.95
    nesterov = true
    newton_schulz_steps = 5
    gradient_clip = 1.0
    qk_clip_tau = 0.5

    [optimizer.adamw]
    learning_rate_multiplier = 1.0
    beta1 = 0.9
    beta2 = 0.95
    epsilon = 1e-8

    [router]
    bias_update_speed = 1e-2
    recentre = true
    sequence_balance_loss = 1e-2

    [activations]

    [compute]
    dtype = "bf16"
    threads = 1

    [run]
    steps = 14
    seed = 1
    save_every_steps = 1
    keep_checkpoints = 2
    evaluate_every_steps = 4
    evaluate_bytes = 400
    sample_every_steps = 0
    non_finite_steps_max = 3
"#;

/// The recipe with changes, checked as a file would be.
pub fn recipe(overrides: &[String]) -> Pretrain {
    let recipe: Pretrain = parse(RECIPE, overrides).expect("the recipe parses");
    recipe.check().expect("the recipe can run");
    recipe
}

/// Sixty documents of made-up words.
fn documents() -> impl Iterator<Item = Result<Document, CorpusError>> {
    const WORDS: [&str; 8] = ["attention", "router", "expert", "muon", "clip", "token", "the", "a"];
    (0..60).map(|number| {
        let words = seeded::tokens(10 + number % 30, WORDS.len() as u32, number as u64);
        let words: Vec<&str> = words.into_iter().map(|word| WORDS[word as usize]).collect();
        Ok(Document { id: format!("document-{number}"), text: words.join(" ") })
    })
}

/// The data folder, as far as it is not there yet.
pub fn prepared(recipe: &Pretrain, folder: &Path) -> Result<PreparedData, PrepareError> {
    prepare(recipe, folder, &|| Ok(Box::new(documents())), 1, &mut |_| ())
}

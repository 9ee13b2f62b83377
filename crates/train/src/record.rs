//! What a run writes into `metrics.jsonl`.

use serde_json::{Value, json};

use crate::metrics::{Record, number};
use crate::run::{HeldOut, Progress};
use crate::trainer::Trainer;

/// The line of one training step. `step` counts steps done.
pub(crate) fn of_step(trainer: &Trainer, progress: &Progress) -> Record {
    let outcome = progress.outcome;
    let per_layer = |values: &[f32]| Value::from(values.iter().map(|&value| number(value)).collect::<Vec<_>>());
    let max_logits: Vec<Value> = outcome.logits.layers().map(per_layer).collect();
    let load: Vec<&Vec<u64>> = outcome.load.layers.iter().map(|(_, loads)| loads).collect();
    let load_layers: Vec<usize> = outcome.load.layers.iter().map(|(layer, _)| *layer).collect();
    let violation = outcome.load.max_violation();
    let mut record = object(json!({
        "step": outcome.step + 1,
        "tokens": trainer.tokens,
        "loss": finite(outcome.loss),
        "balance_loss": finite(outcome.balance_loss),
        "lr": progress.lr,
        "gradient_norm": outcome.gradient_norm,
        "update_rms_muon": outcome.update_rms.0,
        "update_rms_adamw": outcome.update_rms.1,
        "max_logit": number(outcome.logits.max()),
        "max_logits": max_logits,
        "clip_events": outcome.clip.as_ref().map_or(0, |clip| clip.clipped),
        "heads_ever_clipped": trainer.share_ever_clipped(),
        "expert_load": load,
        "expert_load_layers": load_layers,
        "max_violation": violation.iter().copied().fold(0.0, f64::max),
        "seconds": progress.elapsed,
        "tokens_per_s": progress.tokens as f64 / progress.seconds.max(1e-9),
        "tflop_per_s": progress.flops / progress.seconds.max(1e-9) / 1e12,
        "total_steps": progress.total_steps,
        "peak_memory_bytes": crate::memory::peak_bytes(),
    }));
    if let Some(clip) = outcome.clip.as_ref().filter(|clip| clip.clipped > 0) {
        record.insert("clip_factors".into(), json!(clip.factors_LH));
    }
    if let Some(reason) = &outcome.skipped {
        record.insert("skipped".into(), json!(reason));
    }
    record
}

/// The line of an evaluation.
pub(crate) fn of_evaluation(step: u64, held_out: &HeldOut) -> Record {
    object(json!({
        "step": step,
        "held_out_loss": finite(held_out.loss),
        "held_out_bits_per_byte": finite(held_out.bits_per_byte),
        "held_out_tokens": held_out.tokens,
        "held_out_complete": held_out.complete,
    }))
}

fn finite(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { Value::Null }
}

fn object(value: Value) -> Record {
    match value {
        Value::Object(record) => record,
        _ => unreachable!("written as an object above"),
    }
}

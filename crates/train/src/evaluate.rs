//! Loss on held-out text, with the training kernels.

use data::{Batches, StoreError};
use model::Model;
use tensor::Tape;

use crate::trainer::Inputs;

/// Result over some rows of a packing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Sum of the negative log-probabilities, in nats.
    pub nats: f64,
    /// Number of targets.
    pub targets: u64,
}

impl Evaluation {
    /// Mean negative log-probability per target.
    pub fn loss(self) -> f64 {
        self.nats / self.targets.max(1) as f64
    }
}

/// Evaluates up to `rows_max` rows, spread evenly over the packing.
///
/// # Errors
/// [`StoreError`] if the token store is damaged.
pub fn evaluate(model: &Model, batches: &Batches, rows_max: usize) -> Result<Evaluation, StoreError> {
    let all = batches.packing().rows();
    let rows = all.min(rows_max);
    let step = batches.shape().rows_per_micro_batch;
    let mut result = Evaluation { nats: 0.0, targets: 0 };
    for first in (0..rows).step_by(step) {
        let batch = batches.rows((first..(first + step).min(rows)).map(|i| i * all / rows))?;
        let inputs = Inputs::new(model.device(), &batch, 1.0);
        let tape = Tape::inference();
        let hidden_TD = model.forward(&tape, inputs.model_input(None)).hidden_TD;
        let loss = tape.cross_entropy(&hidden_TD, model.head(), &inputs.targets, &inputs.factors);
        result.nats += model.device().kernels().sum(&loss.losses_T);
        result.targets += batch.len_targets() as u64;
    }
    Ok(result)
}

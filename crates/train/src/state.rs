//! Everything that a run needs to continue bit by bit, as named tensors and one JSON document.
//!
//! Weights have their names, moments the optimizer's (`name.momentum`, …). The data cursor is the step, because the
//! order of samples is a pure function of (seed, step); there is no other randomness in training.

use std::collections::BTreeMap;

use optim::{OptimizerState, StateError};
use serde::{Deserialize, Serialize};
use tensor::{DType, Tensor};

use crate::trainer::Trainer;

/// What is not a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Steps begun.
    pub step: u64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Steps in a row that were skipped.
    pub non_finite_streak: u64,
    /// Which heads were ever clipped.
    pub ever_clipped: Vec<Vec<bool>>,
    /// The optimizer's numbers.
    pub optimizer: OptimizerState,
    /// Length of the run in steps, once it is fixed.
    pub total_steps: Option<u64>,
    /// Seconds of training so far.
    pub seconds: f64,
}

/// Why a state does not fit this run; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A weight is not there.
    #[error("the checkpoint lacks {0}: it belongs to another model")]
    Missing(String),
    /// A weight does not fit.
    #[error("the checkpoint has {name} as {found:?}, the model needs F32{shape:?}: it belongs to another model")]
    Mismatch {
        /// The weight.
        name: String,
        /// Its shape in the model.
        shape: Vec<usize>,
        /// What was found.
        found: Tensor,
    },
    /// Its document is another program's.
    #[error("the checkpoint's state cannot be read: {0}")]
    Document(serde_json::Error),
    /// The optimizer's part.
    #[error(transparent)]
    Optimizer(#[from] StateError),
}

impl Trainer {
    /// The state after the last step. Tensors share storage with the trainer until it takes the next one.
    pub fn export(&self, total_steps: Option<u64>, seconds: f64) -> (TrainingState, Vec<(String, Tensor)>) {
        let (optimizer, moments) = self.optimizer.export();
        let weights = self.model.parameters().map(|(spec, weight)| (spec.name.clone(), weight.master().clone()));
        let state = TrainingState {
            step: self.step,
            tokens: self.tokens,
            non_finite_streak: self.non_finite_streak,
            ever_clipped: self.ever_clipped.clone(),
            optimizer,
            total_steps,
            seconds,
        };
        (state, weights.chain(moments).collect())
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// [`RestoreError`] if it belongs to another model or optimizer.
    pub fn restore(&mut self, state: TrainingState, tensors: Vec<(String, Tensor)>) -> Result<(), RestoreError> {
        let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        let mut weights = Vec::new();
        for (spec, _) in self.model.parameters() {
            let tensor = tensors.remove(&spec.name).ok_or_else(|| RestoreError::Missing(spec.name.clone()))?;
            if tensor.shape() != spec.shape || tensor.dtype() != DType::F32 {
                let (name, shape) = (spec.name.clone(), spec.shape.clone());
                return Err(RestoreError::Mismatch { name, shape, found: tensor });
            }
            weights.push(tensor);
        }
        // The optimizer refuses what is left over and what is missing before it changes anything.
        self.optimizer.import(&state.optimizer, tensors)?;
        for ((_, weight), saved) in self.model.parameters_mut().zip(weights) {
            weight.update(|master| *master = saved);
        }
        self.step = state.step;
        self.tokens = state.tokens;
        self.non_finite_streak = state.non_finite_streak;
        self.ever_clipped = state.ever_clipped;
        Ok(())
    }
}

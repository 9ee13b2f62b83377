//! The optimizer's state as named tensors and a few numbers, for checkpoints.
//!
//! A parameter `name` has `name.momentum` under Muon, `name.adam_m` and `name.adam_v` under AdamW. Loading is all or
//! nothing, and continues the run bit by bit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tensor::{DType, Tensor};

use crate::config::Algorithm;
use crate::optimizer::{Moments, Optimizer, Slot};

/// What is not a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerState {
    /// What made the moments.
    pub algorithm: Algorithm,
    /// Steps made so far; AdamW's bias correction depends on it.
    pub steps_taken: u64,
}

/// Why a state was refused; the optimizer is as it was.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Its matrices were updated by another rule.
    #[error("the state was saved by {saved:?} and the run uses {wanted:?}: keep the algorithm, or start without it")]
    Algorithm {
        /// In the state.
        saved: Algorithm,
        /// In the config.
        wanted: Algorithm,
    },
    /// A tensor is not there.
    #[error("the optimizer state lacks {0}: it belongs to another model, or was not saved whole")]
    Missing(String),
    /// A tensor that no parameter has a use for.
    #[error("the optimizer state holds {0}, which this model does not have (or holds it twice)")]
    Extra(String),
    /// A tensor that does not fit its parameter.
    #[error("the optimizer state has {name} as {found_dtype:?}{found:?}, the model needs {dtype:?}{shape:?}")]
    Mismatch {
        /// The tensor.
        name: String,
        /// Shape of the parameter.
        shape: Vec<usize>,
        /// Its moments' dtype.
        dtype: DType,
        /// Shape in the state.
        found: Vec<usize>,
        /// Dtype in the state.
        found_dtype: DType,
    },
}

impl Optimizer {
    /// The state. Tensors share storage with the optimizer until its next step, which copies what is still held.
    pub fn export(&self) -> (OptimizerState, Vec<(String, Tensor)>) {
        let state = OptimizerState { algorithm: self.config.algorithm, steps_taken: self.steps_taken };
        let tensors = self.slots.values().flat_map(|slot| {
            let named = |(suffix, moment): (&str, &Tensor)| (format!("{}.{suffix}", slot.name), moment.clone());
            slot.moments.tensors().into_iter().map(named).collect::<Vec<_>>()
        });
        (state, tensors.collect())
    }

    /// Takes over a state that [`Self::export`] gave for the same parameters; tensors may come in any order.
    pub fn import(
        &mut self,
        state: &OptimizerState,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<(), StateError> {
        let (saved, wanted) = (state.algorithm, self.config.algorithm);
        if (saved == Algorithm::AdamW) != (wanted == Algorithm::AdamW) {
            return Err(StateError::Algorithm { saved, wanted });
        }
        let mut named = BTreeMap::new();
        for (name, tensor) in tensors {
            if named.insert(name.clone(), tensor).is_some() {
                return Err(StateError::Extra(name));
            }
        }
        let moments: Vec<_> = self.slots.values().map(|slot| slot.take(&mut named)).collect::<Result<_, _>>()?;
        if let Some((name, _)) = named.pop_first() {
            return Err(StateError::Extra(name));
        }
        self.slots.values_mut().zip(moments).for_each(|(slot, moments)| slot.moments = moments);
        self.steps_taken = state.steps_taken;
        Ok(())
    }
}

impl Moments {
    fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Muon { momentum } => vec![("momentum", momentum)],
            Self::AdamW { first, second } => vec![("adam_m", first), ("adam_v", second)],
        }
    }

    fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        match self {
            Self::Muon { momentum } => vec![("momentum", momentum)],
            Self::AdamW { first, second } => vec![("adam_m", first), ("adam_v", second)],
        }
    }
}

impl Slot {
    /// Moments like these, from the named tensors.
    fn take(&self, named: &mut BTreeMap<String, Tensor>) -> Result<Moments, StateError> {
        let mut moments = self.moments.clone();
        for (suffix, moment) in moments.tensors_mut() {
            let name = format!("{}.{suffix}", self.name);
            let Some(found) = named.remove(&name) else { return Err(StateError::Missing(name)) };
            if (found.shape(), found.dtype()) != (moment.shape(), moment.dtype()) {
                let (shape, dtype) = (moment.shape().to_vec(), moment.dtype());
                let (found, found_dtype) = (found.shape().to_vec(), found.dtype());
                return Err(StateError::Mismatch { name, shape, dtype, found, found_dtype });
            }
            *moment = found.to_device(moment.device());
        }
        Ok(moments)
    }
}

//! The language-model head with its cross-entropy, in chunks of tokens: all logits never exist at once.

use crate::kernels::{Form, Kernels};
use crate::tape::{Backward, Tape, Var, wide};
use crate::tensor::Tensor;
use crate::weight::Weight;

/// Rows whose logits are held at once. Part of the arithmetic: the head's gradient sums chunk by chunk.
const CHUNK_ROWS: usize = 256;

/// A loss to walk back from.
pub struct Loss {
    /// Negative log-probability of each target in nats, `[T]`; 0 where the factor is 0.
    pub losses_T: Tensor,
    /// Start of the backward pass; its seed is ignored, the factors carry the scale.
    pub root: Var,
}

impl Tape {
    /// Cross-entropy of `x_TD · head_VDᵀ` against `targets_T` (u32). The gradient is that of
    /// `sum_t factors_T[t] * loss_t` (factors f32; 0 leaves a token out).
    ///
    /// On a recording tape gradients are computed chunk by chunk here, while the logits are at hand.
    pub fn cross_entropy(&self, x_TD: &Var, head_VD: &Weight, targets_T: &Tensor, factors_T: &Tensor) -> Loss {
        let x = x_TD.tensor().to_dtype(head_VD.compute());
        let [rows, _] = x.dims();
        let kernels = x.device().kernels();
        let (mut losses, mut dx) = (Vec::new(), Vec::new());
        let mut dhead = None;
        for first in (0..rows).step_by(CHUNK_ROWS) {
            let range = first..(first + CHUNK_ROWS).min(rows);
            let mut logits_CV = logits(kernels, &x.rows(range.clone()), head_VD);
            let (targets, factors) = (targets_T.rows(range.clone()), factors_T.rows(range.clone()));
            losses.push(kernels.cross_entropy(&mut logits_CV, &targets, &factors, self.is_recording()));
            if self.is_recording() {
                let dlogits = logits_CV.to_dtype(head_VD.compute());
                dx.push(kernels.matmul(&dlogits, None, head_VD.packed(Form::InputGrad), wide(x.dtype())));
                let first_chunk = dhead.is_none();
                let empty = || Tensor::empty(x.device(), wide(x.dtype()), head_VD.master().shape());
                kernels.weight_grad(&dlogits, &x.rows(range), None, dhead.get_or_insert_with(empty), !first_chunk);
            }
        }
        let losses_T = Tensor::concat_rows(&losses);
        let id = head_VD.id();
        let backward = move |_: &Tensor, context: &mut Backward| {
            context.input(0, Tensor::concat_rows(&dx));
            if let Some(dhead) = dhead {
                context.weights(move |gradients| gradients.add(id, dhead));
            }
        };
        Loss { root: self.record(losses_T.clone(), &[x_TD], backward), losses_T }
    }

    /// Logits `[T, V]` in f32, for sampling and scoring: the numbers that [`Self::cross_entropy`] sees.
    pub fn logits(&self, x_TD: &Tensor, head_VD: &Weight) -> Tensor {
        logits(x_TD.device().kernels(), &x_TD.to_dtype(head_VD.compute()), head_VD)
    }
}

fn logits(kernels: &dyn Kernels, x: &Tensor, head_VD: &Weight) -> Tensor {
    kernels.matmul(x, None, head_VD.packed(Form::Forward), wide(head_VD.compute()))
}

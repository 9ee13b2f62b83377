//! The linear layer, `y = x · wᵀ`, with weights in HF's `[out, in]` layout.

use crate::dtype::DType;
use crate::kernels::Form;
use crate::saved::{Recipe, Role};
use crate::tape::{Tape, Var, wide};
use crate::tensor::Tensor;
use crate::weight::Weight;

impl Tape {
    /// `x_TK · w_NKᵀ`: operands rounded to the weight's compute dtype, sums in f32, result rounded to `out`.
    pub fn linear(&self, x_TK: &Var, w_NK: &Weight, out: DType) -> Var {
        self.linear_as(x_TK, w_NK, out, Role::Other)
    }

    /// [`Self::linear`] whose result has a role of its own for the save policy.
    pub fn linear_as(&self, x_TK: &Var, w_NK: &Weight, out: DType, role: Role) -> Var {
        let compute = w_NK.compute();
        let kernels = x_TK.tensor().device().kernels();
        let y_TN = kernels.matmul(&x_TK.tensor().to_dtype(compute), None, w_NK.packed(Form::Forward), out);
        if !self.is_recording() {
            return self.constant(y_TN);
        }
        let (saved, w) = (self.save(x_TK), w_NK.clone());
        let recipe = (saved.clone(), w.clone());
        let again: Recipe = std::sync::Arc::new(move || {
            let (x, w) = &recipe;
            kernels.matmul(&x.load().to_dtype(compute), None, w.packed(Form::Forward), out)
        });
        let backward = move |dy: &Tensor, context: &mut crate::tape::Backward| {
            let dy_TN = dy.to_dtype(compute);
            if context.wants(0) {
                context.input(0, kernels.matmul(&dy_TN, None, w.packed(Form::InputGrad), wide(compute)));
            }
            context.weights(move |gradients| {
                let x_TK = saved.load().to_dtype(compute);
                gradients.write(w.id(), w.master(), |into, accumulate| {
                    kernels.weight_grad(&dy_TN, &x_TK, None, into, accumulate);
                });
            });
        };
        self.record(y_TN, &[x_TK], backward).with_role(role, Some(again))
    }
}

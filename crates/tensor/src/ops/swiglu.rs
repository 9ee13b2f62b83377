//! SwiGLU (Shazeer 2020): `silu(gate) * up`.

use crate::saved::{Recipe, Role};
use crate::tape::{Backward, Tape, Var};
use crate::tensor::Tensor;

impl Tape {
    /// `silu(gate) * up`, in the inputs' dtype.
    pub fn swiglu(&self, gate_TN: &Var, up_TN: &Var) -> Var {
        let kernels = gate_TN.tensor().device().kernels();
        let y_TN = kernels.swiglu(gate_TN.tensor(), up_TN.tensor());
        if !self.is_recording() {
            return self.constant(y_TN);
        }
        let (gate, up) = (self.save(gate_TN), self.save(up_TN));
        let recipe = (gate.clone(), up.clone());
        let again: Recipe = std::sync::Arc::new(move || kernels.swiglu(&recipe.0.load(), &recipe.1.load()));
        let backward = move |dy: &Tensor, context: &mut Backward| {
            let (dgate, dup) = kernels.swiglu_grad(&gate.load(), &up.load(), dy);
            context.input(0, dgate);
            context.input(1, dup);
        };
        self.record(y_TN, &[gate_TN, up_TN], backward).with_role(Role::SwigluOutput, Some(again))
    }
}

//! RMSNorm (Zhang and Sennrich 2019).

use crate::dtype::DType;
use crate::saved::{Recipe, Role};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::weight::Weight;

impl Tape {
    /// `x / sqrt(mean(x²) + eps) * gain` by rows, rounded to `out`. The sum of squares is f32 in a fixed order.
    pub fn rms_norm(&self, x_TD: &Var, gain_D: &Weight, eps: f64, out: DType) -> Var {
        let kernels = x_TD.tensor().device().kernels();
        let y_TD = kernels.rms_norm(x_TD.tensor(), gain_D.master(), eps, out);
        if !self.is_recording() {
            return self.constant(y_TD);
        }
        let (saved, gain) = (self.save(x_TD), gain_D.clone());
        let recipe = (saved.clone(), gain.clone());
        let again: Recipe =
            std::sync::Arc::new(move || kernels.rms_norm(&recipe.0.load(), recipe.1.master(), eps, out));
        let backward = move |dy: &Tensor, context: &mut crate::tape::Backward| {
            let (dx, dgain) = kernels.rms_norm_grad(&saved.load(), gain.master(), dy, eps);
            context.input(0, dx);
            context.weights(move |gradients| gradients.add(gain.id(), dgain));
        };
        self.record(y_TD, &[x_TD], backward).with_role(Role::NormOutput, Some(again))
    }
}

//! Cheap operations on rows: the residual sum and the choice of columns.

use crate::saved::Role;
use crate::tape::{Backward, Tape, Var, wide};
use crate::tensor::Tensor;

impl Tape {
    /// `a + b` in f32: the residual connection.
    pub fn add(&self, a_TD: &Var, b_TD: &Var) -> Var {
        let (a, b) = (a_TD.tensor(), b_TD.tensor());
        let sum = a.device().kernels().add(a, b, wide(a.dtype()));
        let backward = |dy: &Tensor, context: &mut Backward| {
            context.input(0, dy.clone());
            context.input(1, dy.clone());
        };
        self.record(sum, &[a_TD, b_TD], backward).with_role(Role::Residual, None)
    }

    /// Columns `start .. start + width` of each row.
    pub fn columns(&self, x_TC: &Var, start: usize, width: usize) -> Var {
        let kernels = x_TC.tensor().device().kernels();
        let [rows, all] = x_TC.tensor().dims();
        let backward = move |dy: &Tensor, context: &mut Backward| {
            let zeros = |columns: usize| Tensor::zeros(dy.device(), dy.dtype(), &[rows, columns]);
            context.input(0, kernels.concat_columns(&[&zeros(start), dy, &zeros(all - start - width)]));
        };
        self.record(kernels.columns(x_TC.tensor(), start, width), &[x_TC], backward)
    }
}

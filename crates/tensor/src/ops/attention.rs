//! MLA's attention core and its rotary embedding.

use crate::kernels::{AttentionShape, RopeLayout, Segment};
use crate::saved::{Recipe, Role};
use crate::tape::{Backward, Tape, Var};
use crate::tensor::Tensor;

impl Tape {
    /// Rotates interleaved pairs of columns (see [`crate::kernels::Kernels::rope`]).
    ///
    /// `table` is `[positions, rope dim]` with cosine and sine of pair i at columns 2i and 2i + 1. A table with a
    /// magnitude other than one (YaRN's cos/sin multiplier) has the same linear gradient.
    pub fn rope(&self, x_TC: &Var, layout: RopeLayout, table: &Tensor, positions_T: &Tensor) -> Var {
        let kernels = x_TC.tensor().device().kernels();
        let y_TC = kernels.rope(x_TC.tensor(), layout, table, positions_T, false);
        if !self.is_recording() {
            return self.constant(y_TC);
        }
        let (table, positions) = (table.clone(), positions_T.clone());
        // The input is not needed backward, so nothing is saved; it is only kept if a policy asks to recompute.
        let recipe = x_TC_recipe(self, x_TC, layout, &table, &positions);
        let backward = move |dy: &Tensor, context: &mut Backward| {
            context.input(0, kernels.rope(dy, layout, &table, &positions, true));
        };
        self.record(y_TC, &[x_TC], backward).with_role(Role::MlaUpProjection, recipe)
    }

    /// Causal attention inside each segment; also returns each head's largest scaled logit, `[H]`, for QK-Clip.
    /// Shapes as in [`crate::kernels::Kernels::attention`].
    pub fn attention(
        &self,
        q: &Var,
        kv: &Var,
        k_rope: &Var,
        shape: &AttentionShape,
        segments: &[Segment],
    ) -> (Var, Tensor) {
        let kernels = q.tensor().device().kernels();
        let output = kernels.attention(q.tensor(), kv.tensor(), k_rope.tensor(), shape, segments);
        let max_logit_H = output.max_logit_H.clone();
        if !self.is_recording() {
            return (self.constant(output.out), max_logit_H);
        }
        let saved = [q, kv, k_rope].map(|input| self.save(input));
        let var = self.constant(output.out.clone()).with_role(Role::AttentionOutput, None);
        let (saved_out, shape, segments) = (self.save(&var), *shape, segments.to_vec());
        let mut statistics = output;
        statistics.out = Tensor::empty(max_logit_H.device(), max_logit_H.dtype(), &[0]);
        let backward = move |dy: &Tensor, context: &mut Backward| {
            let [q, kv, k_rope] = saved.map(|input| input.load());
            let output = crate::kernels::AttentionOutput { out: saved_out.load(), ..statistics };
            let (dq, dkv, dk_rope) = kernels.attention_grad((&q, &kv, &k_rope), &output, dy, &shape, &segments);
            context.input(0, dq);
            context.input(1, dkv);
            context.input(2, dk_rope);
        };
        let out = self.record(var.tensor().clone(), &[q, kv, k_rope], backward);
        (out.with_role(Role::AttentionOutput, None), max_logit_H)
    }
}

fn x_TC_recipe(tape: &Tape, x_TC: &Var, layout: RopeLayout, table: &Tensor, positions: &Tensor) -> Option<Recipe> {
    if !tape.recomputes(Role::MlaUpProjection) {
        return None;
    }
    let (saved, table, positions) = (tape.save(x_TC), table.clone(), positions.clone());
    let kernels = x_TC.tensor().device().kernels();
    Some(std::sync::Arc::new(move || kernels.rope(&saved.load(), layout, &table, &positions, false)))
}

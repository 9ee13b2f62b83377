//! The rotary embedding.

use super::isa::multiversion;
use super::lanes::{Real, real};
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::kernels::RopeLayout;
use crate::kernels::simd::Isa;
use crate::tensor::Tensor;

multiversion! {
    /// Turns the rotary columns of one row; `angle` holds (cos, sin) pairs.
    fn rotate<A: Real>(x: &[A], layout: RopeLayout, angle: &[f32], sign: f32, out: &mut [A]) {
        out.copy_from_slice(x);
        for (x, out) in x.chunks_exact(layout.head_dim).zip(out.chunks_exact_mut(layout.head_dim)) {
            let pairs = x[layout.start..][..layout.dim].chunks_exact(2).zip(angle.chunks_exact(2));
            for (out, (x, angle)) in out[layout.start..][..layout.dim].chunks_exact_mut(2).zip(pairs) {
                let (a, b, cos, sin) = (x[0].get(), x[1].get(), angle[0], sign * angle[1]);
                out[0] = A::put(a.mul_add(cos, -(b * sin)));
                out[1] = A::put(a.mul_add(sin, b * cos));
            }
        }
    }
}

/// See [`crate::kernels::Kernels::rope`].
pub fn rope(
    isa: Isa,
    x_TC: &Tensor,
    layout: RopeLayout,
    table: &Tensor,
    positions_T: &Tensor,
    inverse: bool,
) -> Tensor {
    let ([rows, width], [_, table_dim]) = (x_TC.dims(), table.dims());
    assert_eq!(width, layout.heads * layout.head_dim, "rope: {layout:?} on {x_TC:?}");
    assert_eq!(positions_T.len(), rows, "rope: one position per row");
    assert!(layout.dim <= table_dim, "rope: {layout:?} with a table of {table_dim} columns");
    let mut out = empty(isa, x_TC.dtype(), x_TC.shape());
    if out.is_empty() {
        return out;
    }
    let (table, positions, task_rows) = (table.host::<f32>(), positions_T.host::<u32>(), rows_per_task(width));
    let sign = if inverse { -1.0 } else { 1.0 };
    real!(x_TC.dtype(), A => {
        let piece = task_rows * width;
        let inputs = x_TC.host::<A>().chunks(piece).zip(positions.chunks(task_rows));
        for_each_item(out.host_mut::<A>().chunks_mut(piece).zip(inputs), |_, (out, (x, positions))| {
            let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
            for ((out, x), &position) in rows.zip(positions) {
                let angle = &table[position as usize * table_dim..][..layout.dim];
                rotate(isa, x, layout, angle, sign, out);
            }
        });
    });
    out
}

//! RMSNorm, forward and backward.

use super::isa::multiversion;
use super::lanes::{Real, dot, real};
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::dtype::DType;
use crate::kernels::simd::{Isa, cast};
use crate::tensor::Tensor;

/// Rows whose contributions to the gain's gradient are summed before they join the others. Part of the
/// arithmetic: the sum's order depends on the number of rows alone.
const GAIN_ROWS: usize = 32;
/// Columns of the gain's gradient per task.
const GAIN_COLUMNS: usize = 1024;

#[inline(always)]
fn inverse_rms<A: Real>(x: &[A], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

multiversion! {
    fn normalize<A: Real, O: Real>(x: &[A], gain: &[f32], eps: f32, out: &mut [O]) {
        for (x, out) in x.chunks_exact(gain.len()).zip(out.chunks_exact_mut(gain.len())) {
            let inverse = inverse_rms(x, eps);
            for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                *out = O::put(x.get() * inverse * gain);
            }
        }
    }
}

multiversion! {
    /// Writes the rows' input gradients and the sum of their contributions to the gain's.
    fn normalize_grad<A: Real, B: Real>(
        x: &[A], gain: &[f32], dy: &[B], eps: f32, dx: &mut [f32], dgain: &mut [f32],
    ) {
        let width = gain.len();
        dgain.fill(0.0);
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let inverse = inverse_rms(x, eps);
            for ((dx, dy), gain) in dx.iter_mut().zip(dy).zip(gain) {
                *dx = dy.get() * gain;
            }
            let shrink = dot(dx, x) * inverse * inverse / width as f32;
            for (((dx, x), dy), dgain) in dx.iter_mut().zip(x).zip(dy).zip(dgain.iter_mut()) {
                *dx = inverse * x.get().mul_add(-shrink, *dx);
                *dgain = (dy.get() * inverse).mul_add(x.get(), *dgain);
            }
        }
    }
}

multiversion! {
    /// Sums rows of `width` into the first `sum.len()` columns starting at `start`, ascending.
    fn add_rows(rows: &[f32], width: usize, start: usize, sum: &mut [f32]) {
        sum.fill(0.0);
        for row in rows.chunks_exact(width) {
            for (sum, x) in sum.iter_mut().zip(&row[start..]) {
                *sum += x;
            }
        }
    }
}

/// The gain as f32.
fn gain_f32(isa: Isa, gain_D: &Tensor, width: usize) -> Tensor {
    assert_eq!(gain_D.len(), width, "rms_norm: gain {gain_D:?} for rows of {width}");
    if gain_D.dtype() == DType::F32 { gain_D.clone() } else { cast::cast(isa, gain_D, DType::F32) }
}

/// See [`crate::kernels::Kernels::rms_norm`].
pub fn rms_norm(isa: Isa, x_TD: &Tensor, gain_D: &Tensor, eps: f64, dtype: DType) -> Tensor {
    let [_, width] = x_TD.dims();
    let (gain, mut out) = (gain_f32(isa, gain_D, width), empty(isa, dtype, x_TD.shape()));
    let piece = rows_per_task(width) * width.max(1);
    real!(x_TD.dtype(), A => real!(dtype, O => {
        let pieces = out.host_mut::<O>().chunks_mut(piece).zip(x_TD.host::<A>().chunks(piece));
        for_each_item(pieces, |_, (out, x)| normalize(isa, x, gain.host(), eps as f32, out));
    }));
    out
}

/// See [`crate::kernels::Kernels::rms_norm_grad`].
pub fn rms_norm_grad(isa: Isa, x_TD: &Tensor, gain_D: &Tensor, dy_TD: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let [rows, width] = x_TD.dims();
    assert_eq!(x_TD.shape(), dy_TD.shape(), "rms_norm_grad: shapes of x and dy");
    let gain = gain_f32(isa, gain_D, width);
    let mut dx = empty(isa, DType::F32, x_TD.shape());
    let mut partial = empty(isa, DType::F32, &[rows.div_ceil(GAIN_ROWS), width]);
    let piece = GAIN_ROWS * width.max(1);
    real!(x_TD.dtype(), A => real!(dy_TD.dtype(), B => {
        let inputs = x_TD.host::<A>().chunks(piece).zip(dy_TD.host::<B>().chunks(piece));
        let outputs = dx.host_mut::<f32>().chunks_mut(piece).zip(partial.host_mut::<f32>().chunks_mut(width.max(1)));
        for_each_item(inputs.zip(outputs), |_, ((x, dy), (dx, dgain))| {
            normalize_grad(isa, x, gain.host(), dy, eps as f32, dx, dgain);
        });
    }));
    let mut dgain = empty(isa, DType::F32, gain_D.shape());
    for_each_item(dgain.host_mut::<f32>().chunks_mut(GAIN_COLUMNS), |part, sum| {
        add_rows(isa, partial.host(), width, part * GAIN_COLUMNS, sum);
    });
    (dx, dgain)
}

//! Conversion between f32 and bfloat16.

use super::isa::multiversion;
use super::lanes::{Real, real};
use super::parallel::{GRAIN, empty, for_each_item};
use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::tensor::Tensor;

multiversion! {
    fn convert<A: Real, B: Real>(x: &[A], out: &mut [B]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = B::put(x.get());
        }
    }
}

/// See [`crate::kernels::Kernels::cast`].
pub fn cast(isa: Isa, x: &Tensor, dtype: DType) -> Tensor {
    let mut out = empty(isa, dtype, x.shape());
    real!(x.dtype(), A => real!(dtype, B => {
        let pieces = out.host_mut::<B>().chunks_mut(GRAIN).zip(x.host::<A>().chunks(GRAIN));
        for_each_item(pieces, |_, (out, x)| convert(isa, x, out));
    }));
    out
}

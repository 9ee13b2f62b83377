//! Newton-Schulz orthogonalisation (Muon), one matrix after the other or, where they are small, side by side.
//!
//! The Gram matrix is taken on the shorter side, X·Xᵀ or Xᵀ·X, so nothing is transposed: for tall matrices the same
//! polynomial multiplies from the right. It and its square are symmetric, so half of each is computed. A small matrix
//! goes through all steps in one task: everything it needs stays in that core's cache.

use super::gemm::symmetric::{gram, product};
use super::gemm::words::Order;
use super::isa::multiversion;
use super::lanes::{Real, dot, real};
use super::parallel::{GRAIN, empty, for_each_item};
use crate::dtype::DType;
use crate::kernels::reference::matrices;
use crate::kernels::simd::Isa;
use crate::tensor::Tensor;

/// Elements of a matrix that fits one core's second cache together with its Gram matrix and packed copies.
const SMALL: usize = 1 << 18;

multiversion! {
    fn sum_squares<A: Real>(x: &[A]) -> f32 {
        dot(x, x)
    }
}

multiversion! {
    fn scale<A: Real, B: Real>(x: &[A], factor: f32, out: &mut [B]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = B::put(x.get() * factor);
        }
    }
}

/// See [`crate::kernels::Kernels::newton_schulz`].
pub fn newton_schulz(isa: Isa, x_ENK: &Tensor, coefficients: &[[f64; 3]], dtype: DType) -> Tensor {
    let [groups, n, k] = matrices(x_ENK);
    let mut all = empty(isa, dtype, x_ENK.shape());
    let x_ENK = x_ENK.reshape(&[groups, n, k]);
    if all.is_empty() {
        return all;
    }
    real!(dtype, T => {
        let solve = |e: usize, out: &mut [T]| {
            let x = orthogonalized(isa, &x_ENK.rows(e..e + 1).reshape(&[n, k]), coefficients, dtype);
            for_each_item(out.chunks_mut(GRAIN).zip(x.host::<T>().chunks(GRAIN)), |_, (out, x)| out.copy_from_slice(x));
        };
        let outs = all.host_mut::<T>().chunks_mut(n * k);
        if n * k <= SMALL {
            for_each_item(outs, solve);
        } else {
            outs.enumerate().for_each(|(e, out)| solve(e, out));
        }
    });
    all
}

/// All steps of one matrix.
fn orthogonalized(isa: Isa, x_NK: &Tensor, coefficients: &[[f64; 3]], dtype: DType) -> Tensor {
    let [n, k] = x_NK.dims();
    let (side, wide) = (n.min(k), n <= k);
    let lines = if wide { Order::ByLines } else { Order::BySteps };
    let mut x = normalized(isa, x_NK, dtype);
    let mut next = empty(isa, dtype, &[n, k]);
    let [mut gram_MM, mut polynomial_MM] = [0, 1].map(|_| empty(isa, dtype, &[side, side]));
    for &[a, b, c] in coefficients {
        gram(isa, &x, lines, None, &mut gram_MM);
        gram(isa, &gram_MM, Order::ByLines, Some((&gram_MM, [b, c])), &mut polynomial_MM);
        if wide {
            product(isa, &polynomial_MM, &x, Order::BySteps, Some((&x, [a, 1.0])), &mut next);
        } else {
            product(isa, &x, &polynomial_MM, Order::ByLines, Some((&x, [a, 1.0])), &mut next);
        }
        std::mem::swap(&mut x, &mut next);
    }
    x
}

/// `x / (‖x‖ + 1e-7)`, rounded. The norm is summed in pieces of fixed size.
fn normalized(isa: Isa, x: &Tensor, dtype: DType) -> Tensor {
    let mut out = empty(isa, dtype, x.shape());
    real!(x.dtype(), A => real!(dtype, B => {
        let pieces = x.host::<A>().chunks(GRAIN);
        let mut sums = vec![0.0; pieces.len()];
        for_each_item(sums.iter_mut().zip(pieces.clone()), |_, (sum, x)| *sum = f64::from(sum_squares(isa, x)));
        let factor = (1.0 / (sums.iter().sum::<f64>().sqrt() + 1e-7)) as f32;
        for_each_item(out.host_mut::<B>().chunks_mut(GRAIN).zip(pieces), |_, (out, x)| scale(isa, x, factor, out));
    }));
    out
}

//! Newton-Schulz orthogonalisation of a batch of matrices, as grouped products over the whole batch.
//!
//! The Gram matrix is taken on the shorter side, X·Xᵀ or Xᵀ·X, so nothing is transposed: for tall matrices the same
//! polynomial multiplies from the right. Gram matrices are symmetric, so their square is a product with their own rows.

use super::gemm;
use super::isa::multiversion;
use super::lanes::{Real, dot, real};
use super::parallel::{GRAIN, empty, for_each_item};
use crate::dtype::DType;
use crate::kernels::Form;
use crate::kernels::reference::matrices;
use crate::kernels::simd::Isa;
use crate::tensor::Tensor;

multiversion! {
    /// `x / (‖x‖ + 1e-7)`, rounded.
    fn normalize<A: Real, B: Real>(x: &[A], out: &mut [B]) {
        // A loop, not an iterator's closure: that would be compiled without this set's instructions.
        let mut sum = 0.0;
        for part in x.chunks(GRAIN) {
            sum += f64::from(dot(part, part));
        }
        let inverse = (1.0 / (sum.sqrt() + 1e-7)) as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = B::put(x.get() * inverse);
        }
    }
}

multiversion! {
    /// `a * x + b * y`, rounded once.
    fn combine<X: Real, Y: Real, O: Real>(a: f32, x: &[X], b: f32, y: &[Y], out: &mut [O]) {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = O::put(a.mul_add(x.get(), b * y.get()));
        }
    }
}

/// See [`crate::kernels::Kernels::newton_schulz`].
pub fn newton_schulz(isa: Isa, x_ENK: &Tensor, coefficients: &[[f64; 3]], dtype: DType) -> Tensor {
    let [groups, n, k] = matrices(x_ENK);
    let batch = Batch { isa, groups, n, k, dtype, offsets: offsets(isa, groups, n), side_offsets: offsets(isa, groups, n.min(k)) };
    let mut x = normalized(isa, x_ENK, n * k, dtype).reshape(&[groups * n, k]);
    for &[a, b, c] in coefficients {
        let gram = batch.gram(&x);
        let square = batch.square(&gram);
        let polynomial = combined(isa, b, &gram, c, &square, dtype);
        let turned = batch.turn(&polynomial, &x);
        x = combined(isa, a, &x, 1.0, &turned, dtype);
    }
    x.reshape(x_ENK.shape())
}

/// A batch of E matrices `[N, K]`, stacked as rows `[E * N, K]`; their Gram matrices are `[E * m, m]`, m = min(N, K).
struct Batch {
    isa: Isa,
    groups: usize,
    n: usize,
    k: usize,
    dtype: DType,
    offsets: Tensor,
    side_offsets: Tensor,
}

impl Batch {
    fn gram(&self, x: &Tensor) -> Tensor {
        let side = self.n.min(self.k);
        if self.n <= self.k {
            let right = gemm::pack(self.isa, &self.stacked(x), Form::Forward, self.dtype);
            return gemm::matmul(self.isa, x, Some(&self.offsets), &right, self.dtype);
        }
        let mut gram = empty(self.isa, DType::F32, &[self.groups, side, side]);
        gemm::weight_grad(self.isa, x, x, Some(&self.offsets), &mut gram, false);
        gram.reshape(&[self.groups * side, side]).to_dtype(self.dtype)
    }

    fn square(&self, gram: &Tensor) -> Tensor {
        let side = self.n.min(self.k);
        let right = gemm::pack(self.isa, &gram.reshape(&[self.groups, side, side]), Form::Forward, self.dtype);
        gemm::matmul(self.isa, gram, Some(&self.side_offsets), &right, DType::F32)
    }

    /// The polynomial times X, or X times the polynomial for tall matrices.
    fn turn(&self, polynomial: &Tensor, x: &Tensor) -> Tensor {
        if self.n <= self.k {
            let right = gemm::pack(self.isa, &self.stacked(x), Form::InputGrad, self.dtype);
            return gemm::matmul(self.isa, polynomial, Some(&self.side_offsets), &right, DType::F32);
        }
        let polynomial = polynomial.reshape(&[self.groups, self.k, self.k]);
        let right = gemm::pack(self.isa, &polynomial, Form::Forward, self.dtype);
        gemm::matmul(self.isa, x, Some(&self.offsets), &right, DType::F32)
    }

    fn stacked(&self, x: &Tensor) -> Tensor {
        x.reshape(&[self.groups, self.n, self.k])
    }
}

fn offsets(isa: Isa, groups: usize, rows: usize) -> Tensor {
    let mut offsets = empty(isa, DType::U32, &[groups + 1]);
    offsets.host_mut::<u32>().iter_mut().enumerate().for_each(|(e, offset)| *offset = (e * rows) as u32);
    offsets
}

fn normalized(isa: Isa, x: &Tensor, elements: usize, dtype: DType) -> Tensor {
    let mut out = empty(isa, dtype, x.shape());
    real!(x.dtype(), A => real!(dtype, B => {
        let pairs = x.host::<A>().chunks(elements).zip(out.host_mut::<B>().chunks_mut(elements));
        for_each_item(pairs, |_, (x, out)| normalize(isa, x, out));
    }));
    out
}

fn combined(isa: Isa, a: f64, x: &Tensor, b: f64, y: &Tensor, dtype: DType) -> Tensor {
    let mut out = empty(isa, dtype, x.shape());
    real!(x.dtype(), X => real!(y.dtype(), Y => real!(dtype, O => {
        let inputs = x.host::<X>().chunks(GRAIN).zip(y.host::<Y>().chunks(GRAIN));
        for_each_item(out.host_mut::<O>().chunks_mut(GRAIN).zip(inputs), |_, (out, (x, y))| {
            combine(isa, a as f32, x, b as f32, y, out);
        });
    })));
    out
}

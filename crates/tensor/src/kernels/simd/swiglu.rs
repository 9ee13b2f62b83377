//! `silu(gate) * up` and its gradients.

use super::isa::multiversion;
use super::lanes::{Real, real};
use super::math::sigmoid;
use super::parallel::{GRAIN, empty, for_each_item};
use crate::kernels::simd::Isa;
use crate::tensor::Tensor;

multiversion! {
    fn activate<A: Real, B: Real>(gate: &[A], up: &[B], out: &mut [A]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let gate = gate.get();
            *out = A::put(gate * sigmoid(gate) * up.get());
        }
    }
}

multiversion! {
    fn activate_grad<A: Real, B: Real, C: Real>(gate: &[A], up: &[B], dy: &[C], dgate: &mut [A], dup: &mut [B]) {
        let inputs = gate.iter().zip(up).zip(dy);
        for ((dgate, dup), ((gate, up), dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
            let (gate, up, dy) = (gate.get(), up.get(), dy.get());
            let s = sigmoid(gate);
            // d silu / d gate = s (1 + gate (1 - s)).
            let slope = s * (1.0 - s).mul_add(gate, 1.0);
            *dgate = A::put(dy * up * slope);
            *dup = B::put(dy * (gate * s));
        }
    }
}

/// See [`crate::kernels::Kernels::swiglu`].
pub fn swiglu(isa: Isa, gate: &Tensor, up: &Tensor) -> Tensor {
    assert_eq!(gate.shape(), up.shape(), "swiglu: shapes of gate and up");
    let mut out = empty(isa, gate.dtype(), gate.shape());
    real!(gate.dtype(), A => real!(up.dtype(), B => {
        let inputs = gate.host::<A>().chunks(GRAIN / 4).zip(up.host::<B>().chunks(GRAIN / 4));
        let pieces = out.host_mut::<A>().chunks_mut(GRAIN / 4).zip(inputs);
        for_each_item(pieces, |_, (out, (gate, up))| activate(isa, gate, up, out));
    }));
    out
}

/// See [`crate::kernels::Kernels::swiglu_grad`].
pub fn swiglu_grad(isa: Isa, gate: &Tensor, up: &Tensor, dy: &Tensor) -> (Tensor, Tensor) {
    assert!(gate.shape() == up.shape() && gate.shape() == dy.shape(), "swiglu_grad: {gate:?}, {up:?}, {dy:?}");
    let mut dgate = empty(isa, gate.dtype(), gate.shape());
    let mut dup = empty(isa, up.dtype(), up.shape());
    real!(gate.dtype(), A => real!(up.dtype(), B => real!(dy.dtype(), C => {
        let (gate, up) = (gate.host::<A>().chunks(GRAIN / 4), up.host::<B>().chunks(GRAIN / 4));
        let inputs = gate.zip(up).zip(dy.host::<C>().chunks(GRAIN / 4));
        let outputs = dgate.host_mut::<A>().chunks_mut(GRAIN / 4).zip(dup.host_mut::<B>().chunks_mut(GRAIN / 4));
        for_each_item(inputs.zip(outputs), |_, (((gate, up), dy), (dgate, dup))| {
            activate_grad(isa, gate, up, dy, dgate, dup);
        });
    })));
    (dgate, dup)
}

//! Fast CPU kernels: the same operations, vectorised, for the instruction set found at run time.

pub mod isa;

use super::*;
use crate::device::Device;
use crate::kernels::reference::Reference;
pub use isa::Isa;

/// The kernel set of one instruction set.
pub struct Simd {
    isa: Isa,
}

impl Simd {
    /// The kernels for `isa`, if this CPU supports it.
    pub fn get(isa: Isa) -> Option<&'static Self> {
        static ALL: [Simd; 5] = [
            Simd { isa: Isa::Portable },
            Simd { isa: Isa::Avx2 },
            Simd { isa: Isa::Avx512 },
            Simd { isa: Isa::Avx512Bf16 },
            Simd { isa: Isa::Amx },
        ];
        isa.is_supported().then(|| &ALL[isa as usize])
    }
    fn on(&self, t: Tensor) -> Tensor {
        t.to_device(Device::cpu_with(self.isa).expect("supported"))
    }
}

impl Kernels for Simd {
    fn name(&self) -> &'static str {
        self.isa.name()
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        self.on(Reference.cast(x, dtype))
    }
    fn add(&self, a: &Tensor, b: &Tensor, out: DType) -> Tensor {
        self.on(Reference.add(a, b, out))
    }
    fn add_assign(&self, x: &mut Tensor, y: &Tensor) {
        *x = self.add(x, y, x.dtype())
    }
    fn scale_assign(&self, x: &mut Tensor, factor: f64) {
        Reference.scale_assign(x, factor);
        *x = self.on(x.clone())
    }
    fn scale_rows(&self, x: &Tensor, f: &Tensor) -> Tensor {
        self.on(Reference.scale_rows(x, f))
    }
    fn sum(&self, x: &Tensor) -> f64 {
        Reference.sum(x)
    }
    fn sum_squares(&self, x: &Tensor) -> f64 {
        Reference.sum_squares(x)
    }
    fn columns(&self, x: &Tensor, s: usize, w: usize) -> Tensor {
        self.on(Reference.columns(x, s, w))
    }
    fn concat_columns(&self, p: &[&Tensor]) -> Tensor {
        self.on(Reference.concat_columns(p))
    }
    fn gather_rows(&self, x: &Tensor, r: &Tensor, d: usize) -> Tensor {
        self.on(Reference.gather_rows(x, r, d))
    }
    fn scatter_add_rows(&self, dy: &Tensor, ids: &Tensor, into: &mut Tensor) {
        Reference.scatter_add_rows(dy, ids, into);
        *into = self.on(into.clone())
    }
    fn pack(&self, w: &Tensor, f: Form, d: DType) -> Packed {
        Reference.pack(w, f, d)
    }
    fn matmul(&self, x: &Tensor, o: Option<&Tensor>, w: &Packed, out: DType) -> Tensor {
        self.on(Reference.matmul(x, o, w, out))
    }
    fn weight_grad(&self, dy: &Tensor, x: &Tensor, o: Option<&Tensor>, into: &mut Tensor, acc: bool) {
        Reference.weight_grad(dy, x, o, into, acc);
        *into = self.on(into.clone())
    }
    fn rms_norm(&self, x: &Tensor, g: &Tensor, eps: f64, out: DType) -> Tensor {
        self.on(Reference.rms_norm(x, g, eps, out))
    }
    fn rms_norm_grad(&self, x: &Tensor, g: &Tensor, dy: &Tensor, eps: f64) -> (Tensor, Tensor) {
        let (a, b) = Reference.rms_norm_grad(x, g, dy, eps);
        (self.on(a), self.on(b))
    }
    fn rope(&self, x: &Tensor, l: RopeLayout, t: &Tensor, p: &Tensor, inv: bool) -> Tensor {
        self.on(Reference.rope(x, l, t, p, inv))
    }
    fn swiglu(&self, g: &Tensor, u: &Tensor) -> Tensor {
        self.on(Reference.swiglu(g, u))
    }
    fn swiglu_grad(&self, g: &Tensor, u: &Tensor, dy: &Tensor) -> (Tensor, Tensor) {
        let (a, b) = Reference.swiglu_grad(g, u, dy);
        (self.on(a), self.on(b))
    }
    fn attention(&self, q: &Tensor, kv: &Tensor, kr: &Tensor, s: &AttentionShape, seg: &[Segment]) -> AttentionOutput {
        let o = Reference.attention(q, kv, kr, s, seg);
        AttentionOutput {
            out: self.on(o.out),
            log_sum_exp_TH: self.on(o.log_sum_exp_TH),
            max_logit_H: self.on(o.max_logit_H),
        }
    }
    fn attention_grad(
        &self,
        i: (&Tensor, &Tensor, &Tensor),
        o: &AttentionOutput,
        d: &Tensor,
        s: &AttentionShape,
        seg: &[Segment],
    ) -> (Tensor, Tensor, Tensor) {
        let (a, b, c) = Reference.attention_grad(i, o, d, s, seg);
        (self.on(a), self.on(b), self.on(c))
    }
    fn route(&self, l: &Tensor, b: &Tensor, s: &RouterShape) -> Routes {
        let r = Reference.route(l, b, s);
        Routes { experts_TK: self.on(r.experts_TK), weights_TK: self.on(r.weights_TK), scores_TE: self.on(r.scores_TE) }
    }
    fn route_grad(&self, r: &Routes, dw: &Tensor, b: Option<&Balance>, s: &RouterShape) -> Tensor {
        self.on(Reference.route_grad(r, dw, b, s))
    }
    fn balance_loss(&self, r: &Routes, b: &Balance, s: &RouterShape) -> f64 {
        Reference.balance_loss(r, b, s)
    }
    fn dispatch(&self, e: &Tensor, n: usize) -> Dispatch {
        let d = Reference.dispatch(e, n);
        Dispatch { choice_S: self.on(d.choice_S), row_TK: self.on(d.row_TK), offsets: self.on(d.offsets) }
    }
    fn combine(&self, r: &Tensor, d: &Dispatch, w: Option<&Tensor>) -> Tensor {
        self.on(Reference.combine(r, d, w))
    }
    fn row_dot(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.on(Reference.row_dot(a, b))
    }
    fn cross_entropy(&self, l: &mut Tensor, t: &Tensor, f: &Tensor, grad: bool) -> Tensor {
        let r = Reference.cross_entropy(l, t, f, grad);
        *l = self.on(l.clone());
        self.on(r)
    }
    fn adamw(&self, p: &mut Tensor, m: &mut Tensor, v: &mut Tensor, g: &Tensor, s: &AdamW) {
        Reference.adamw(p, m, v, g, s);
        for t in [p, m, v] {
            *t = self.on(t.clone())
        }
    }
    fn muon_momentum(&self, m: &mut Tensor, g: &Tensor, mu: f64, n: bool) -> Tensor {
        let r = Reference.muon_momentum(m, g, mu, n);
        *m = self.on(m.clone());
        self.on(r)
    }
    fn newton_schulz(&self, x: &Tensor, c: &[[f64; 3]], d: DType) -> Tensor {
        self.on(Reference.newton_schulz(x, c, d))
    }
    fn decay_and_step(&self, p: &mut Tensor, u: &Tensor, k: f64, r: f64) {
        Reference.decay_and_step(p, u, k, r);
        *p = self.on(p.clone())
    }
    fn quantize_fp8(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (a, b) = Reference.quantize_fp8(x);
        (self.on(a), self.on(b))
    }
    fn dequantize_fp8(&self, c: &Tensor, s: &Tensor, out: DType) -> Tensor {
        self.on(Reference.dequantize_fp8(c, s, out))
    }
}

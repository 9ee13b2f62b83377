//! Attention by way of a matrix unit's tiles, computed by software: what AMX machines run, tested on all others.

use super::attention_with;
use super::backward::attention_grad_with;
use super::blocks::Blocks;
use super::inputs::Inputs;
use crate::device::Device;
use crate::dtype::DType;
use crate::kernels::reference::Reference;
use crate::kernels::simd::gemm::micro::Micro;
use crate::kernels::simd::{Isa, amx};
use crate::kernels::{AttentionShape, Kernels, Segment};
use crate::tensor::Tensor;

const SHAPE: AttentionShape = AttentionShape { heads: 2, nope: 19, rope: 6, value: 35, scale: 0.2 };

/// Products by way of AMX tiles, computed by software.
fn blocks() -> Blocks {
    Blocks::with(Isa::Avx512Bf16, amx::micro(Micro::of(Isa::Avx512Bf16, DType::Bf16), amx::tests::software))
}

fn random(device: Device, shape: [usize; 2], seed: u32) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 23) - 1.0
    };
    let values: Vec<_> = (0..shape[0] * shape[1]).map(|_| next()).collect();
    Tensor::from_f64(device, DType::Bf16, &shape, &values)
}

fn inputs(device: Device, rows: usize) -> [Tensor; 3] {
    let AttentionShape { heads, nope, rope, value, .. } = SHAPE;
    let widths = [heads * (nope + rope), heads * (nope + value), rope];
    [1, 2, 3].map(|i| random(device, [rows, widths[i - 1]], i as u32))
}

#[test]
fn both_passes_by_way_of_tiles_agree_with_the_reference() {
    if !Isa::Avx512Bf16.is_supported() {
        return; // The layout of its operands belongs to these kernels.
    }
    let (lengths, rows) = ([1, 70, 33], 104);
    let segments = Segment::from_lengths(&lengths);
    let device = Device::cpu_with(Isa::Avx512Bf16).expect("just asked");
    let ([q, kv, k_rope], dout) = (inputs(device, rows), random(device, [rows, 70], 4));
    let fast = || Inputs::new(Isa::Avx512Bf16, (&q, &kv, &k_rope), &SHAPE);
    let output = attention_with(&blocks(), (&q, &kv), &fast(), &segments);
    let (dq, dkv, dk_rope) = attention_grad_with(blocks(), (&q, &kv), fast(), &output, &dout, &segments);
    let plain = Reference.attention(&q, &kv, &k_rope, &SHAPE, &segments);
    let grads = Reference.attention_grad((&q, &kv, &k_rope), &plain, &dout, &SHAPE, &segments);
    let pairs = [(output.out, plain.out), (dq, grads.0), (dkv, grads.1), (dk_rope, grads.2)];
    for (i, (fast, plain)) in pairs.iter().enumerate() {
        let (fast, plain) = (fast.to_vec_f64(), plain.to_vec_f64());
        let bound = 1e-2 * plain.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        for (a, b) in fast.iter().zip(&plain) {
            assert!((a - b).abs() <= bound, "result {i}: {a} for {b}");
        }
    }
}

#[test]
fn chunks_by_way_of_tiles_give_the_bits_of_one_pass() {
    if !Isa::Avx512Bf16.is_supported() {
        return;
    }
    let device = Device::cpu_with(Isa::Avx512Bf16).expect("just asked");
    let [q, kv, k_rope] = inputs(device, 90);
    let run = |first: usize, end: usize| {
        let (q, kv, k_rope) = (q.rows(first..end), kv.rows(0..end), k_rope.rows(0..end));
        let inputs = Inputs::new(Isa::Avx512Bf16, (&q, &kv, &k_rope), &SHAPE);
        let segment = Segment { query_start: 0, query_len: end - first, key_start: 0, key_len: end };
        attention_with(&blocks(), (&q, &kv), &inputs, &[segment]).out
    };
    let whole = run(0, 90);
    for chunk in [1, 13, 40] {
        for first in (0..90).step_by(chunk) {
            let end = (first + chunk).min(90);
            assert_eq!(run(first, end).to_bytes(), whole.rows(first..end).to_bytes(), "{first}..{end}");
        }
    }
}

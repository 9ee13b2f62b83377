//! Element access and sums in one fixed order: 64 running sums, then a tree.
//!
//! The order depends on the length alone, so a row's sum has the same bits wherever the row stands and
//! whatever instruction set computes it.

use super::fold::{fold_max, fold_sum, larger};
use super::gemm::words::Numbers;
use crate::dtype::{Bf16, Element};

/// An element that fast kernels read and write as f32.
pub trait Real: Element {
    /// Exact.
    fn get(self) -> f32;
    /// Rounds to nearest even.
    fn put(value: f32) -> Self;
    /// The slice as an operand of products.
    fn numbers(x: &[Self]) -> Numbers<'_>;
}

impl Real for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        value
    }
    fn numbers(x: &[Self]) -> Numbers<'_> {
        Numbers::F32(x)
    }
}

impl Real for Bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn numbers(x: &[Self]) -> Numbers<'_> {
        Numbers::Bf16(x)
    }
}

/// Binds a type name to the element type of a real dtype: `real!(x.dtype(), T => body)`.
macro_rules! real {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::DType::Bf16 => {
                type $T = $crate::dtype::Bf16;
                $body
            }
            other => panic!("the fast kernels compute in f32 and bf16, not {other:?}; use the reference device"),
        }
    };
}
pub(crate) use real;

/// Number of running sums.
const LANES: usize = 64;
type Lanes = [f32; LANES];

/// The rest of a row, zeros behind it.
#[inline(always)]
fn padded<A: Real>(rest: &[A]) -> Lanes {
    let mut block = [0.0; LANES];
    block.iter_mut().zip(rest).for_each(|(block, x)| *block = x.get());
    block
}

/// Sum of the running sums. Not inlined: all rows share the code.
#[inline(never)]
fn reduce(lanes: &Lanes) -> f32 {
    fold_sum::<{ LANES / 4 }>(lanes.as_chunks().0.try_into().expect("a multiple of four"))
}

/// `sum a[i] * b[i]` with fused multiply-adds.
#[inline(always)]
pub fn dot<A: Real, B: Real>(a: &[A], b: &[B]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] = a[i].get().mul_add(b[i].get(), lanes[i]);
        }
    }
    if !a_rest.is_empty() {
        let (a, b) = (padded(a_rest), padded(b_rest));
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    reduce(&lanes)
}

/// Sum of the elements.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += block[i];
        }
    }
    if !rest.is_empty() {
        let rest = padded(rest);
        for i in 0..LANES {
            lanes[i] += rest[i];
        }
    }
    reduce(&lanes)
}

/// The largest element, -inf of none; NaN is passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = larger(block[i], lanes[i]);
        }
    }
    let max = fold_max::<{ LANES / 4 }>(lanes.as_chunks().0.try_into().expect("a multiple of four"));
    rest.iter().fold(max, |max, x| larger(*x, max))
}

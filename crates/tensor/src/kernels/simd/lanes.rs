//! Element access and sums in one fixed order: 64 running sums, then a tree.
//!
//! The order depends on the length alone, so a row's sum has the same bits wherever the row stands and
//! whatever instruction set computes it.

use crate::dtype::{Bf16, Element};

/// An element that fast kernels read and write as f32.
pub trait Real: Element {
    /// Exact.
    fn get(self) -> f32;
    /// Rounds to nearest even.
    fn put(value: f32) -> Self;
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

/// Sums of `LANES` interleaved subsequences, reduced by halves.
#[inline(always)]
fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `sum a[i] * b[i]` with fused multiply-adds.
#[inline(always)]
pub fn dot<A: Real, B: Real>(a: &[A], b: &[B]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] = a[i].get().mul_add(b[i].get(), lanes[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = a.get().mul_add(b.get(), lanes[i]);
    }
    reduce(lanes)
}

/// Sum of the elements.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += block[i];
        }
    }
    rest.iter().enumerate().for_each(|(i, x)| lanes[i] += x);
    reduce(lanes)
}

/// The largest element, -inf of none; NaN is passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    let largest = |max: f32, &x: &f32| if x > max { x } else { max };
    rest.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, largest), largest)
}

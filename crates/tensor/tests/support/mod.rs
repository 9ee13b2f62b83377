//! What the harness tests share: reproducible inputs, and comparison with a bound that scales with the result.

#![allow(dead_code, reason = "each test file uses its part")]

use chogori_tensor::{DType, Device, Tensor};

/// A small generator (SplitMix64), so that inputs need no dependency and never change.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Roughly normal: the sum of four uniform numbers, with unit variance.
    pub fn normal(&mut self) -> f64 {
        let uniform = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
        (0..4).map(|_| uniform(self.bits())).sum::<f64>() * 3f64.sqrt()
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    pub fn tensor(&mut self, device: Device, dtype: DType, shape: &[usize]) -> Tensor {
        self.scaled(device, dtype, shape, 1.0)
    }

    pub fn scaled(&mut self, device: Device, dtype: DType, shape: &[usize], scale: f64) -> Tensor {
        let values: Vec<_> = (0..shape.iter().product()).map(|_| self.normal() * scale).collect();
        Tensor::from_f64(device, dtype, shape, &values)
    }

    pub fn ids(&mut self, device: Device, len: usize, end: usize) -> Tensor {
        let ids: Vec<_> = (0..len).map(|_| self.below(end) as u32).collect();
        Tensor::from_slice(device, &[len], &ids)
    }
}

/// Panics unless every element of `got` is within `bound` times the largest magnitude of `want`, plus, for a
/// bf16 result, the one unit by which rounding the two neighbouring exact values may differ.
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, bound: f64) {
    assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{what}");
    if !got.dtype().is_float() {
        assert_eq!(got.to_bytes(), want.to_bytes(), "{what}");
        return;
    }
    let (got, wanted) = (got.to_vec_f64(), want.to_vec_f64());
    let largest = wanted.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let unit = if want.dtype() == DType::Bf16 { 2f64.powi(-7) } else { 0.0 };
    for (i, (got, want)) in got.iter().zip(&wanted).enumerate() {
        let allowed = bound * largest + unit * want.abs();
        let equal = got == want || (got - want).abs() <= allowed;
        assert!(equal, "{what}: element {i} is {got}, should be {want} ± {allowed:e}");
    }
}

//! Elements of weight files turned into elements of tensors: F32, BF16, F16, and DeepSeek's block-scaled FP8.
//!
//! An FP8 weight is its E4M3 code times the factor of its block (`weight_scale_inv`, one f32 per 128x128 block; blocks
//! at the right and lower edge are cut). The product is taken in f32 and rounded once to the wanted dtype.

use tensor::{Bf16, DType};

use crate::safetensors::{Dtype, View};

/// Factors of a matrix by block, row-major.
pub(crate) struct BlockScales {
    factors: Vec<f32>,
    block: [usize; 2],
}

impl BlockScales {
    /// Reads `weight_scale_inv`, whose dtype and shape have been checked.
    pub(crate) fn new(view: View<'_>, block: [usize; 2]) -> Self {
        let mut factors = Vec::new();
        decode(view.dtype, view.bytes, &mut factors);
        Self { factors, block }
    }

    /// The shape of the factors of a matrix.
    pub(crate) fn shape_for(matrix: &[usize], block: [usize; 2]) -> Vec<usize> {
        matrix.iter().zip(block).map(|(axis, block)| axis.div_ceil(block)).collect()
    }

    fn scale_row(&self, row: usize, values: &mut [f32]) {
        let blocks = values.len().div_ceil(self.block[1]);
        let factors = &self.factors[row / self.block[0] * blocks..][..blocks];
        for (part, factor) in values.chunks_mut(self.block[1]).zip(factors) {
            part.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// Whether weights of this dtype can be read.
pub(crate) fn is_weight_dtype(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16 | Dtype::F8E4M3)
}

/// Appends a tensor's elements to `out` as `dtype` (F32 or BF16), little-endian.
pub(crate) fn append_as(view: View<'_>, scales: Option<&BlockScales>, dtype: DType, out: &mut Vec<u8>) {
    let as_stored = matches!((view.dtype, dtype), (Dtype::F32, DType::F32) | (Dtype::Bf16, DType::Bf16));
    if as_stored && scales.is_none() {
        return out.extend_from_slice(view.bytes);
    }
    let width = view.shape.last().copied().unwrap_or(1);
    let mut values = Vec::with_capacity(width);
    for (row, bytes) in view.bytes.chunks(width * view.dtype.size()).enumerate() {
        values.clear();
        decode(view.dtype, bytes, &mut values);
        if let Some(scales) = scales {
            scales.scale_row(row, &mut values);
        }
        encode(&values, dtype, out);
    }
}

fn decode(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) {
    let pairs = || bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
    match dtype {
        Dtype::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four))),
        Dtype::Bf16 => out.extend(pairs().map(|bits| Bf16(bits).to_f32())),
        Dtype::F16 => out.extend(pairs().map(half_to_f32)),
        Dtype::F8E4M3 => out.extend(bytes.iter().map(|&code| e4m3_to_f32(code))),
        other => panic!("{} is no dtype of weights", other.name()),
    }
}

fn encode(values: &[f32], dtype: DType, out: &mut Vec<u8>) {
    match dtype {
        DType::F32 => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
        DType::Bf16 => values.iter().for_each(|&value| out.extend(Bf16::from_f32(value).0.to_le_bytes())),
        other => panic!("weights are read as F32 or Bf16, not {other:?}"),
    }
}

/// Exact value of an IEEE half.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    }
}

/// Exact value of an E4M3 code: exponent bias 7, no infinities, all ones is NaN.
fn e4m3_to_f32(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    // Placed in an f32's exponent and mantissa, the code is too small by 2^(127 - 7), subnormals included.
    let bits = u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20;
    f32::from_bits(bits) * 2f32.powi(120)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dtype: Dtype, shape: &[usize], bytes: &[u8], scales: Option<&BlockScales>) -> Vec<f32> {
        let mut out = Vec::new();
        append_as(View { name: "w", dtype, shape, bytes }, scales, DType::F32, &mut out);
        out.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
    }

    #[test]
    fn small_floats_have_their_exact_values() {
        let halves = [0x3c00u16, 0xc000, 0x0001, 0x03ff, 0x7bff, 0x7c00, 0x8000];
        let bytes: Vec<u8> = halves.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let expected = [1.0, -2.0, 2f32.powi(-24), 1023.0 * 2f32.powi(-24), 65504.0, f32::INFINITY, -0.0];
        assert_eq!(read(Dtype::F16, &[7], &bytes, None), expected);
        assert!(half_to_f32(0x7e00).is_nan());
        let codes = [0x38, 0xb8, 0x7e, 0x01, 0x07, 0x08, 0x80];
        let expected = [1.0, -1.0, 448.0, 2f32.powi(-9), 7.0 * 2f32.powi(-9), 2f32.powi(-6), -0.0];
        assert_eq!(read(Dtype::F8E4M3, &[7], &codes, None), expected);
        assert!(e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn each_block_has_its_own_factor_and_edge_blocks_are_cut() {
        let block = [2, 3];
        assert_eq!(BlockScales::shape_for(&[3, 4], block), [2, 2]);
        let factors: Vec<u8> = [1f32, 10.0, 100.0, 1000.0].iter().flat_map(|factor| factor.to_le_bytes()).collect();
        let view = View { name: "s", dtype: Dtype::F32, shape: &[2, 2], bytes: &factors };
        let scales = BlockScales::new(view, block);
        let values = read(Dtype::F8E4M3, &[3, 4], &[0x38; 12], Some(&scales));
        assert_eq!(values, [1.0, 1.0, 1.0, 10.0, 1.0, 1.0, 1.0, 10.0, 100.0, 100.0, 100.0, 1000.0]);
    }

    #[test]
    fn bf16_is_rounded_once_and_passes_unchanged() {
        let mut out = Vec::new();
        let bytes = (1.0 + 1.0 / 256.0f32).to_le_bytes();
        append_as(View { name: "w", dtype: Dtype::F32, shape: &[1], bytes: &bytes }, None, DType::Bf16, &mut out);
        append_as(View { name: "w", dtype: Dtype::Bf16, shape: &[1], bytes: &[1, 2] }, None, DType::Bf16, &mut out);
        assert_eq!(out, [0x80, 0x3f, 1, 2]);
    }
}

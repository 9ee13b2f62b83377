//! Element types, and the conversions between f32, bfloat16 and FP8 E4M3 that every kernel set shares.

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// Only the reference kernels compute in it: the truth that others are compared with.
    F64,
    /// Master weights, the residual stream, gradients and optimizer state.
    F32,
    /// Operands of matrix products.
    Bf16,
    /// Token ids, positions, expert numbers.
    U32,
    /// Bytes, among them FP8 E4M3 codes.
    U8,
}

impl DType {
    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }

    /// Whether elements are real numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::Bf16)
    }
}

/// A bfloat16 number: the upper half of an f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        Self(if value.is_nan() { quiet_nan } else { rounded } as u16)
    }

    /// Exact.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// Rust types that a tensor's host storage can be viewed as.
pub trait Element: Copy + Send + Sync + 'static {
    /// The dtype of tensors that hold `Self`.
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f64 => F64, f32 => F32, Bf16 => Bf16, u32 => U32, u8 => U8);

/// Largest finite E4M3 magnitude.
pub const E4M3_MAX: f32 = 448.0;

/// Rounds to FP8 E4M3 (no infinities, saturating at 448), ties to even.
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let magnitude = value.abs();
    if value.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= E4M3_MAX {
        return sign | 0x7e;
    }
    // The spacing is 2^(exponent - 3), and 2^-9 among the subnormals (below 2^-6).
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as u32;
    // steps counts from 0: 8..=16 with an implicit bit, and a carry moves into the exponent by itself.
    sign | (((exponent + 6) as u32 * 8 + steps) as u8)
}

/// Exact value of an FP8 E4M3 code.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (8.0 + mantissa) * 2f32.powi(exponent - 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (value, bits) in
            [(1.0f32, 0x3f80), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82), (-0.0, 0x8000)]
        {
            assert_eq!(Bf16::from_f32(value).0, bits, "{value}");
        }
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
        assert_eq!(Bf16::from_f32(f32::MAX).to_f32(), f32::INFINITY);
    }

    #[test]
    fn every_e4m3_code_survives_a_round_trip() {
        for code in 0..=255u8 {
            let value = e4m3_to_f32(code);
            if !value.is_nan() {
                assert_eq!(f32_to_e4m3(value), code, "{code:#x} = {value}");
            }
        }
        assert_eq!(e4m3_to_f32(f32_to_e4m3(1e9)), E4M3_MAX);
        // Halfway between 1.0 and 1.125 goes to the even mantissa.
        assert_eq!(e4m3_to_f32(f32_to_e4m3(1.0625)), 1.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(1.1875)), 1.25);
    }
}

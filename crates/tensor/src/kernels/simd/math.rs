//! Exponential, logarithm and sigmoid in f32, without branches, so that loops over them vectorise.
//!
//! Every step is an IEEE operation or a fused multiply-add, hence the same bits on every instruction set and
//! platform (a system's `expf` differs from one library version to the next). Errors are below 1.1 units in the last
//! place, 2.5 for the sigmoid; infinities and NaN come out as they should.

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, whose bits then stand in the low mantissa.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the upper has few enough bits for its multiples to be exact.
const LN2_HIGH: f32 = 0.693_145_75;
const LN2_LOW: f32 = 1.428_606_8e-6;
/// Exponentials of less are below 2^-125 and become 0.
const EXP_MIN: f32 = -86.6;

/// e^x for x <= 0, or above by a rounding error: the terms of a softmax, whose largest is 1. Results below 2^-125
/// are set to 0.
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    // Written so that NaN passes through.
    let bounded = if x < EXP_MIN { EXP_MIN } else { x };
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, bounded));
    // e^r = 1 + r + r² P(r); P minimises the largest relative error on |r| <= ln(2)/2, which is 6.5e-9.
    let p = 0.001_390_502f32.mul_add(r, 0.008_366_278).mul_add(r, 0.041_666_864);
    let p = p.mul_add(r, 0.166_665_45).mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    // Adds n to the exponent; the shift leaves nothing of `ROUND`.
    let result = f32::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < EXP_MIN { 0.0 } else { result }
}

/// Natural logarithm; -inf at 0, NaN below.
#[inline(always)]
pub fn log(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    // The mantissa is taken from [2^-1/2, 2^1/2), so that logarithms near 1 lose nothing to cancellation.
    let bits = scaled.to_bits() as i32;
    let n = bits.wrapping_sub(0x3f35_04f3) >> 23;
    let f = f32::from_bits(bits.wrapping_sub(n << 23) as u32) - 1.0;
    let k = n as f32 - if tiny { 23.0 } else { 0.0 };
    // ln(1 + f) = 2 artanh(s) with s = f / (2 + f); 2s = f - f²/2 + s f²/2 keeps the leading term exact.
    let s = f / (2.0 + f);
    let z = s * s;
    let series = (2.0f32 / 11.0).mul_add(z, 2.0 / 9.0).mul_add(z, 2.0 / 7.0).mul_add(z, 2.0 / 5.0);
    let series = series.mul_add(z, 2.0 / 3.0) * z;
    let half_square = 0.5 * f * f;
    let low = s.mul_add(half_square + series, k * LN2_LOW);
    let finite = k.mul_add(LN2_HIGH, f - (half_square - low));
    let special = if x < 0.0 { f32::NAN } else { x };
    let regular = x > 0.0 && x < f32::INFINITY;
    let zero_or_special = if x == 0.0 { f32::NEG_INFINITY } else { special };
    if regular { finite } else { zero_or_special }
}

/// `1 / (1 + e^-x)`, accurate at both ends; results below 2^-125 are set to 0.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp_nonpositive(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error of `got` in units in the last place of the f32 nearest to `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = want as f32;
        if got == near || (got.is_nan() && near.is_nan()) {
            return 0.0;
        }
        let exponent = near.abs().max(f32::MIN_POSITIVE).log2().floor();
        (f64::from(got) - want).abs() / (f64::from(exponent) - 23.0).exp2()
    }

    /// Largest error over every 499th float of the given sign, and over `extra`.
    fn largest_error(f: fn(f32) -> f32, truth: fn(f64) -> f64, negative: bool) -> f64 {
        let sign = if negative { 1 << 31 } else { 0 };
        let floats = (0..0x7f80_0000u32).step_by(499).map(|bits| f32::from_bits(bits | sign));
        floats.map(|x| ulps(f(x), truth(f64::from(x)))).fold(0.0, f64::max)
    }

    #[test]
    fn errors_are_as_small_as_stated_everywhere() {
        fn cut(x: f64, y: f64) -> f64 {
            if x < f64::from(EXP_MIN) { 0.0 } else { y }
        }
        let exp_f64 = |x: f64| cut(x, x.exp());
        let sigmoid_f64 = |x: f64| cut(x, 1.0 / (1.0 + (-x).exp()));
        let errors = [
            largest_error(exp_nonpositive, exp_f64, true),
            largest_error(log, f64::ln, false),
            largest_error(sigmoid, sigmoid_f64, true),
            largest_error(sigmoid, sigmoid_f64, false),
        ];
        let [exp, log, sigmoid_low, sigmoid_high] = errors;
        assert!(exp < 1.1 && log < 1.1 && sigmoid_low < 2.5 && sigmoid_high < 2.5, "{errors:?} units");
    }

    #[test]
    fn special_values() {
        assert_eq!((exp_nonpositive(f32::NEG_INFINITY), exp_nonpositive(0.0), exp_nonpositive(-0.0)), (0.0, 1.0, 1.0));
        assert_eq!(log(1.0), 0.0);
        assert_eq!((log(0.0), log(f32::INFINITY)), (f32::NEG_INFINITY, f32::INFINITY));
        assert_eq!((sigmoid(f32::NEG_INFINITY), sigmoid(f32::INFINITY), sigmoid(0.0)), (0.0, 1.0, 0.5));
        for f in [log, sigmoid, exp_nonpositive] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(log(-1.0).is_nan());
    }
}

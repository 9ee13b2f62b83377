//! Exponential, logarithm and sigmoid in f32, without branches, so that loops over them vectorise.
//!
//! Every step is an IEEE operation or a fused multiply-add, hence the same bits on every instruction set and
//! platform (a system's `expf` differs from one library version to the next). Errors over the
//! whole range are below 1.1 units in the last place, 2.5 for the sigmoid; infinities and NaN come out as they should.

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, whose bits then stand in the low mantissa.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the upper has few enough bits for its multiples to be exact.
const LN2_HIGH: f32 = 0.693_145_75;
const LN2_LOW: f32 = 1.428_606_8e-6;

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `(bits, e^(x - n ln 2))` for |x| below 2^22 / log2(e); the second is within [2^-1/2, 2^1/2], and `bits` minus
/// those of `ROUND` are n.
#[inline(always)]
fn exp_parts(x: f32) -> (u32, f32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // e^r = 1 + r + r² P(r); P minimises the largest relative error on |r| <= ln(2)/2, which is 6.5e-9.
    let p = 0.001_390_502f32.mul_add(r, 0.008_366_278).mul_add(r, 0.041_666_864);
    let p = p.mul_add(r, 0.166_665_45).mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    (shifted.to_bits(), e)
}

/// e^x; subnormal results included, 0 below them, infinite above 88.72.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Written so that NaN passes through.
    let low = if x < -104.0 { -104.0 } else { x };
    let (bits, e) = exp_parts(if low > 89.0 { 89.0 } else { low });
    let n = bits.wrapping_sub(ROUND.to_bits()) as i32;
    // Two factors, because 2^n alone may be subnormal or too large.
    let half = n >> 1;
    e * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// e^x for x <= 0 with results below 2^-125 set to 0: the terms of a softmax, whose largest is 1.
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    let (bits, e) = exp_parts(if x < -86.6 { -86.6 } else { x });
    // Adds n to the exponent; the shift leaves nothing of `ROUND`.
    let result = f32::from_bits(e.to_bits().wrapping_add(bits << 23));
    if x < -86.6 { 0.0 } else { result }
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

/// `1 / (1 + e^-x)`, accurate at both ends.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
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
        let sigmoid_f64 = |x: f64| 1.0 / (1.0 + (-x).exp());
        for negative in [false, true] {
            let errors = [
                largest_error(exp, f64::exp, negative),
                largest_error(log, f64::ln, negative),
                largest_error(sigmoid, sigmoid_f64, negative),
            ];
            let [exp, log, sigmoid] = errors;
            assert!(exp < 1.1 && log < 1.1 && sigmoid < 2.5, "{errors:?} units, negative {negative}");
        }
    }

    #[test]
    fn special_values() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!((exp(0.0), exp(-0.0), log(1.0)), (1.0, 1.0, 0.0));
        assert_eq!((exp_nonpositive(f32::NEG_INFINITY), exp_nonpositive(0.0)), (0.0, 1.0));
        assert_eq!((log(0.0), log(f32::INFINITY)), (f32::NEG_INFINITY, f32::INFINITY));
        assert_eq!((sigmoid(f32::NEG_INFINITY), sigmoid(f32::INFINITY), sigmoid(0.0)), (0.0, 1.0, 0.5));
        for f in [exp, log, sigmoid, exp_nonpositive] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(log(-1.0).is_nan());
    }

    #[test]
    fn the_short_exponential_is_the_long_one() {
        for i in 0..86_000 {
            let x = i as f32 * -1e-3;
            assert_eq!(exp_nonpositive(x), exp(x), "{x}");
        }
    }
}

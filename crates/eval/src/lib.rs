//! How well a model predicts held-out text, in bits per byte, and the baselines it is compared with.
//!
//! Bits per byte does not depend on the tokenizer, so a network, a 4-gram model ([`ngram`]) and a file
//! compressor ([`gzip`]) stand on one scale: the bits that a lossless code built on each of them would spend.

pub mod gzip;
pub mod ngram;

/// Bits per byte of text whose tokens cost `sum_nats` (the sum of `-ln p`) and that has `bytes` bytes.
///
/// # Panics
/// If there are no bytes: nothing was measured.
pub fn bits_per_byte(sum_nats: f64, bytes: u64) -> f64 {
    assert!(bytes > 0, "bits per byte of no bytes");
    sum_nats / std::f64::consts::LN_2 / bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_bytes_cost_eight_bits() {
        let nats = 1000.0 * 256f64.ln();
        assert!((bits_per_byte(nats, 1000) - 8.0).abs() < 1e-12);
    }
}

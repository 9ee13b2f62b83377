//! Hashes that never change: the same bytes give the same number in every release and on every machine.
//!
//! The standard library's hasher promises nothing of the kind, and a held-out set that moves with the compiler is
//! worthless. FNV-1a (draft-eastlake-fnv) is a few lines; 64 bits choose held-out files, 128 bits name contents.
//! Neither resists an attacker, and nothing here needs that.

const OFFSET_64: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME_64: u64 = 0x0000_0100_0000_01b3;
const OFFSET_128: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME_128: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// FNV-1a of `bytes`, mixed so that all 64 bits depend on every byte (plain FNV leaves the upper bits of short
/// strings that differ in their last letters almost equal).
pub fn hash_64(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(OFFSET_64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME_64)))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits that hides all structure.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A running 128-bit FNV-1a over a list of byte strings, each framed by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u128);

impl Default for Digest {
    fn default() -> Self {
        Digest(OFFSET_128)
    }
}

impl Digest {
    /// The digest of one byte string.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = Digest::default();
        digest.add(bytes);
        digest
    }

    /// Adds one item. The length goes first, so that ("ab", "c") and ("a", "bc") differ.
    pub fn add(&mut self, bytes: &[u8]) {
        self.add_raw(&(bytes.len() as u64).to_le_bytes());
        self.add_raw(bytes);
    }

    /// Adds bytes without a frame, for one item that arrives in parts.
    pub fn add_raw(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME_128);
        }
    }

    /// The digest as a number.
    pub fn value(self) -> u128 {
        self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_fnv_vectors() {
        let plain_64 =
            |text: &str| text.bytes().fold(OFFSET_64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME_64));
        assert_eq!(plain_64("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(plain_64("foobar"), 0x8594_4171_f739_67e8);
        let mut digest = Digest::default();
        digest.add_raw(b"a");
        assert_eq!(digest.to_string(), "d228cb696f1a8caf78912b704e4a8964");
    }

    #[test]
    fn frames_keep_items_apart() {
        let of = |items: &[&str]| {
            let mut digest = Digest::default();
            items.iter().for_each(|item| digest.add(item.as_bytes()));
            digest
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ab", ""]));
    }
}

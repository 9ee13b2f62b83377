//! Bits per byte that `gzip -9` reaches: the baseline that everybody has on the machine.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// What `gzip -9` makes of some files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GzipBits {
    /// Each file on its own, its 18 bytes of frame included. Like a model that starts every document anew.
    pub per_file: f64,
    /// All files in one stream. The stronger of the two, since matches reach into the files before
    /// (32 KiB back), and therefore the one to quote.
    pub concatenated: f64,
}

/// Compresses `files` at level 9, each alone and all in the given order; bits per byte of the originals.
///
/// # Panics
/// If there are no bytes.
pub fn bits_per_byte<'a>(files: impl IntoIterator<Item = &'a [u8]> + Clone) -> GzipBits {
    let bytes: usize = files.clone().into_iter().map(<[u8]>::len).sum();
    assert!(bytes > 0, "bits per byte of no bytes");
    let alone: u64 = files.clone().into_iter().map(|file| compressed_bytes([file])).sum();
    let together = compressed_bytes(files);
    GzipBits { per_file: 8.0 * alone as f64 / bytes as f64, concatenated: 8.0 * together as f64 / bytes as f64 }
}

fn compressed_bytes<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut encoder = GzEncoder::new(Count(0), Compression::best());
    for file in files {
        encoder.write_all(file).expect("a counter takes all bytes");
    }
    encoder.finish().expect("a counter takes all bytes").0
}

/// Counts the bytes written to it.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without structure: the upper bits of a linear congruential generator.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1u64;
        let step = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..bytes).map(step).collect()
    }

    #[test]
    fn noise_stays_as_it_is_and_repetition_vanishes() {
        let noise = noise(20_000);
        let once = bits_per_byte([&noise[..]]);
        assert!(once.per_file > 8.0 && once.per_file < 8.02);
        assert_eq!(once.per_file, once.concatenated);
        // The second copy lies within the window of the joint stream, and is new to one on its own.
        let twice = bits_per_byte([&noise[..], &noise[..]]);
        assert_eq!(twice.per_file, once.per_file);
        assert!(twice.concatenated < 4.1);
    }

    #[test]
    fn an_empty_file_costs_its_frame() {
        assert_eq!(compressed_bytes([&[][..]]), 20);
    }
}

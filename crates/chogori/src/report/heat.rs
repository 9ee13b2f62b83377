//! Heat maps as embedded PNG images: a map of thousands of cells is then a few kilobytes.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

/// What becomes of several values in one cell.
#[derive(Clone, Copy, PartialEq)]
pub enum Fold {
    /// The largest counts.
    Max,
    /// Their mean.
    Mean,
}

/// Rows by columns of numbers; cells may be empty.
pub struct Heat {
    rows: usize,
    columns: usize,
    fold: Fold,
    sums: Vec<f64>,
    counts: Vec<u32>,
}

/// Colours from low to high, evenly spaced, made for light paper. On dark the page inverts them.
pub type Palette = [[u8; 3]];

/// From nothing to the cap.
pub const RISING: [[u8; 3]; 5] = [[243, 239, 229], [240, 205, 142], [230, 143, 82], [196, 62, 58], [92, 16, 52]];
/// Below, at and above the mean.
pub const DIVERGING: [[u8; 3]; 5] = [[32, 84, 140], [128, 170, 200], [241, 237, 228], [226, 150, 110], [170, 56, 36]];

impl Heat {
    /// All cells empty.
    pub fn new(rows: usize, columns: usize, fold: Fold) -> Self {
        let cells = rows * columns;
        Heat { rows, columns, fold, sums: vec![0.0; cells], counts: vec![0; cells] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a value to each row of a column; those that are not finite are left out.
    pub fn add_column(&mut self, column: usize, values: &[f64]) {
        for (row, value) in values.iter().take(self.rows).enumerate().filter(|(_, value)| value.is_finite()) {
            let cell = row * self.columns + column;
            self.sums[cell] = match self.fold {
                Fold::Mean => self.sums[cell] + value,
                Fold::Max if self.counts[cell] == 0 => *value,
                Fold::Max => self.sums[cell].max(*value),
            };
            self.counts[cell] += 1;
        }
    }

    fn value(&self, cell: usize) -> Option<f64> {
        let count = f64::from(self.counts[cell]);
        (count > 0.0).then(|| if self.fold == Fold::Mean { self.sums[cell] / count } else { self.sums[cell] })
    }

    /// The largest value, if there is any.
    pub fn max(&self) -> Option<f64> {
        (0..self.sums.len()).filter_map(|cell| self.value(cell)).reduce(f64::max)
    }

    /// The map as a `data:` address of a PNG with one pixel per cell. `scale` takes a value to 0 (first colour)
    /// to 1 (last). Empty cells are transparent; after every `group` rows comes a transparent one.
    pub fn png(&self, palette: &Palette, group: usize, scale: impl Fn(f64) -> f64) -> String {
        let index = |cell| match self.value(cell) {
            Some(value) => (scale(value).clamp(0.0, 1.0) * f64::from(EMPTY - 1)).round() as u8,
            None => EMPTY,
        };
        let mut rows: Vec<Vec<u8>> = Vec::new();
        for row in 0..self.rows {
            if row > 0 && row % group == 0 {
                rows.push(vec![EMPTY; self.columns]);
            }
            rows.push((0..self.columns).map(|column| index(row * self.columns + column)).collect());
        }
        let colours: Vec<u8> = (0..=EMPTY).flat_map(|i| blend(palette, f64::from(i) / f64::from(EMPTY - 1))).collect();
        format!("data:image/png;base64,{}", base64(&encode_png(&rows, self.columns, &colours)))
    }
}

/// Palette index of cells without a value.
const EMPTY: u8 = 255;

fn blend(palette: &Palette, x: f64) -> [u8; 3] {
    let place = x.clamp(0.0, 1.0) * (palette.len() - 1) as f64;
    let left = (place as usize).min(palette.len() - 2);
    let share = place - left as f64;
    let mix = |i: usize| f64::from(palette[left][i]) * (1.0 - share) + f64::from(palette[left + 1][i]) * share;
    [0, 1, 2].map(|i| mix(i).round() as u8)
}

/// 8-bit indexed PNG whose last palette entry is transparent.
fn encode_png(rows: &[Vec<u8>], columns: usize, colours: &[u8]) -> Vec<u8> {
    let size = |n: usize| (n as u32).to_be_bytes();
    let header = [&size(columns)[..], &size(rows.len()), &[8, 3, 0, 0, 0]].concat();
    let mut opacity = [255; 256];
    opacity[usize::from(EMPTY)] = 0;
    let mut pixels = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in rows {
        pixels.write_all(&[0]).and_then(|()| pixels.write_all(row)).expect("memory takes all bytes");
    }
    let pixels = pixels.finish().expect("memory takes all bytes");
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in
        [(b"IHDR", &header[..]), (b"PLTE", colours), (b"tRNS", &opacity), (b"IDAT", &pixels), (b"IEND", &[])]
    {
        let mut checksum = Crc::new();
        checksum.update(kind);
        checksum.update(content);
        png.extend([&size(content.len())[..], kind, content, &checksum.sum().to_be_bytes()].concat());
    }
    png
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number = (0..3).fold(0, |number, i| number << 8 | u32::from(*group.get(i).unwrap_or(&0)));
        for place in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn cells_fold_and_blend() {
        let mut heat = Heat::new(2, 2, Fold::Mean);
        heat.add_column(0, &[1.0, f64::NAN]);
        heat.add_column(0, &[3.0, -4.0]);
        assert_eq!([heat.value(0), heat.value(1), heat.value(2)], [Some(2.0), None, Some(-4.0)]);
        assert_eq!(heat.max(), Some(2.0));
        let mut heat = Heat::new(1, 1, Fold::Max);
        heat.add_column(0, &[-3.0]);
        heat.add_column(0, &[-4.0]);
        assert_eq!(heat.max(), Some(-3.0));
        let ends: [[u8; 3]; 2] = [[0, 100, 255], [100, 200, 255]];
        assert_eq!(blend(&ends, 0.25), [25, 125, 255]);
        assert_eq!(blend(&ends, 2.0), ends[1]);
    }
}

//! The order of the 256 single-byte tokens, and GPT-2's visible character for each byte.
//!
//! `tokenizer.json` cannot hold arbitrary bytes, so byte-level BPE writes each byte as a character:
//! visible Latin-1 characters stand for themselves, the other 68 bytes for the characters from U+0100 on.

/// All bytes in GPT-2's order: the visible ones first. Kimi's first 256 ranks have it too.
pub(crate) fn byte_order() -> impl Iterator<Item = u8> {
    let visible = |byte: &u8| is_visible(*byte);
    (0..=255).filter(visible).chain((0..=255).filter(move |byte| !visible(byte)))
}

fn is_visible(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character for `byte`.
fn to_char(byte: u8) -> char {
    if is_visible(byte) {
        return byte as char;
    }
    let place = (0..byte).filter(|&before| !is_visible(before)).count() as u32;
    char::from_u32(0x100 + place).expect("U+0100..U+0144 are characters")
}

/// The alphabet as a table, for writing and reading.
pub(crate) struct ByteAlphabet {
    chars: [char; 256],
}

impl ByteAlphabet {
    pub(crate) fn new() -> Self {
        Self { chars: std::array::from_fn(|byte| to_char(byte as u8)) }
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> String {
        bytes.iter().map(|&byte| self.chars[byte as usize]).collect()
    }

    /// The bytes of a token as written; the first character that stands for no byte is the error.
    pub(crate) fn read(&self, token: &str) -> Result<Vec<u8>, char> {
        let byte_of = |char: char| {
            let found = match u8::try_from(char) {
                Ok(byte) if is_visible(byte) => Some(byte),
                _ => (0..=255).find(|&byte: &u8| self.chars[byte as usize] == char),
            };
            found.ok_or(char)
        };
        token.chars().map(byte_of).collect()
    }
}

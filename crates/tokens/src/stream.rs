//! Text from ids that arrive one at a time, although a character may be spread over several tokens.

use crate::{Tokenizer, TokenizerError};

/// Turns a growing sequence of ids into text and never shows half a character.
///
/// The pieces it returns, joined, are what [`Tokenizer::decode_lossy`] makes of all ids at once.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// The beginning of a character whose remaining bytes have not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that is complete once `id` has come; often empty in scripts that need several tokens per character.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TokenizerError> {
        Ok(self.push_bytes(tokenizer.token_bytes(id)?))
    }

    /// As [`push`](Self::push), for bytes from elsewhere.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let complete = complete_bytes(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }

    /// What is left at the end of the text: a replacement character if a character was cut off, else nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// The length of `bytes` without a last character that further bytes could complete.
fn complete_bytes(bytes: &[u8]) -> usize {
    let tail_start = bytes.len().saturating_sub(3);
    (tail_start..bytes.len())
        .find(|&at| matches!(std::str::from_utf8(&bytes[at..]), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none()))
        .unwrap_or(bytes.len())
}

//! The ranked byte strings of a BPE vocabulary: a token's id is its rank, and its rank is its merge priority.

use crate::TokenizerError;
use rustc_hash::FxHashMap;

/// Byte strings with dense ids `0..len`, containing every single byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vocabulary {
    /// All tokens, one after the other in order of id.
    bytes: Vec<u8>,
    /// `ends[id]` is where token `id` ends in `bytes`.
    ends: Vec<u32>,
    ids: FxHashMap<Box<[u8]>, u32>,
    longest: usize,
}

impl Vocabulary {
    /// Tokens in order of id. Refuses empty and repeated tokens, and sets that lack a single byte:
    /// such a vocabulary could not represent every text.
    pub(crate) fn new<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>) -> Result<Self, TokenizerError> {
        let mut vocabulary = Self { bytes: Vec::new(), ends: Vec::new(), ids: FxHashMap::default(), longest: 0 };
        for token in tokens {
            vocabulary.push(token.as_ref())?;
        }
        match (0..=255u8).find(|&byte| vocabulary.id(&[byte]).is_none()) {
            Some(byte) => Err(TokenizerError::Vocabulary(format!("no token for the single byte 0x{byte:02x}"))),
            None => Ok(vocabulary),
        }
    }

    fn push(&mut self, token: &[u8]) -> Result<(), TokenizerError> {
        let id = self.ends.len() as u32;
        if token.is_empty() {
            return Err(TokenizerError::Vocabulary(format!("token {id} is empty")));
        }
        if let Some(first) = self.ids.insert(token.into(), id) {
            return Err(TokenizerError::Vocabulary(format!("tokens {first} and {id} are the same bytes {token:02x?}")));
        }
        self.bytes.extend_from_slice(token);
        let end = u32::try_from(self.bytes.len());
        self.ends.push(end.map_err(|_| TokenizerError::Vocabulary("more than 4 GiB of tokens".into()))?);
        self.longest = self.longest.max(token.len());
        Ok(())
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of token `id`.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)?;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        Some(&self.bytes[start as usize..end as usize])
    }

    /// The id of these bytes, if they are a token.
    #[inline]
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        // Hashing is linear in the length; the bound keeps the look-up constant for hostile pieces.
        if bytes.len() > self.longest {
            return None;
        }
        self.ids.get(bytes).copied()
    }

    /// All tokens in order of id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len() as u32).map(|id| self.bytes(id).expect("id is below the length"))
    }
}

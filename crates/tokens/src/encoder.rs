//! One pass over one text: cut, look up, merge, and remember the pieces that come again.

use crate::merge::Merger;
use crate::pretoken::pieces;
use crate::segments::segments;
use crate::special::Specials;
use crate::vocabulary::Vocabulary;

/// The working memory of one call to encode.
pub(crate) struct Encoder<'a> {
    vocabulary: &'a Vocabulary,
    merger: Merger,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(vocabulary: &'a Vocabulary) -> Self {
        Self { vocabulary, merger: Merger::default() }
    }

    /// Appends the ids of `text`, in which special names are ordinary text.
    pub(crate) fn encode(&mut self, text: &str, ids: &mut Vec<u32>) {
        segments(text).for_each(|segment| self.encode_segment(segment, ids));
    }

    /// Appends the ids of `text`, in which special names stand for special tokens.
    pub(crate) fn encode_with_special(&mut self, text: &str, specials: &Specials, ids: &mut Vec<u32>) {
        for segment in segments(text) {
            let mut rest = segment;
            while let Some((at, token)) = specials.find(rest) {
                self.encode_segment(&rest[..at], ids);
                ids.push(token.id);
                rest = &rest[at + token.name.len()..];
            }
            self.encode_segment(rest, ids);
        }
    }

    fn encode_segment(&mut self, segment: &str, ids: &mut Vec<u32>) {
        pieces(segment).for_each(|piece| self.encode_piece(piece.as_bytes(), ids));
    }

    /// Appends the ids of bytes that pre-tokenisation does not cut.
    ///
    /// A piece that is a token becomes that token, even one that merging would not reach, as in tiktoken.
    pub(crate) fn encode_piece(&mut self, piece: &[u8], ids: &mut Vec<u32>) {
        match self.vocabulary.id(piece) {
            Some(id) => ids.push(id),
            None => self.merger.merge(self.vocabulary, piece, ids),
        }
    }
}

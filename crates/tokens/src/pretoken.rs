//! Cuts text into the pieces within which BPE may merge, exactly as Kimi's pattern does.
//!
//! [`PATTERN`] is the definition. Regex engines need backtracking for its look-ahead and its overlapping
//! letter classes, and give up or slow down on hostile text; the matcher here works out by hand where
//! each alternative would end and reads every character at most a few times. A property test holds
//! it equal to `fancy-regex`.

use crate::characters::{self, CASELESS, HAN, LETTER, LOWER, NEWLINE, NUMBER, SPACE, UPPER};

/// Kimi K2's pre-tokenisation pattern (`tokenization_kimi.py`): o200k's, with runs of Han characters apart.
pub const PATTERN: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// The pieces of `text` in order; together they are the text.
pub fn pieces(text: &str) -> Pieces<'_> {
    Pieces { text, at: 0, classes: characters::table() }
}

/// Iterator over the pieces of a text, see [`pieces`].
pub struct Pieces<'a> {
    text: &'a str,
    at: usize,
    classes: &'static [u8],
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let start = self.at;
        if start == self.text.len() {
            return None;
        }
        self.at = self.piece_end(start);
        debug_assert!(self.at > start, "every character starts some alternative");
        Some(&self.text[start..self.at])
    }
}

impl Pieces<'_> {
    /// Tries the alternatives in the pattern's order; each one is a method named after what it takes.
    fn piece_end(&self, start: usize) -> usize {
        let (class, next) = self.class_at(start);
        if class & HAN != 0 {
            return self.run_end(start, HAN);
        }
        if let Some(end) = self.word(start, class, next) {
            return end;
        }
        if class & NUMBER != 0 {
            return self.digits(next);
        }
        self.symbols(start, class, next).unwrap_or_else(|| self.whitespace(start))
    }

    /// Both word alternatives: an optional character that is not alphanumeric, upper-case, lower-case, contraction.
    ///
    /// The first alternative wants a lower half and, being greedy, gives the upper half all it can. So it
    /// ends after the lower-case run; or, where there is none, after the last character that could be
    /// either; only text without both goes to the second alternative, which then is upper-case alone.
    fn word(&self, start: usize, class: u8, next: usize) -> Option<usize> {
        let prefixed = class & (LETTER | NUMBER | NEWLINE) == 0;
        let body = if prefixed { next } else { start };
        let (upper_end, caseless_end) = self.upper_half(body);
        let lower_end = match self.class_at(upper_end).0 & LOWER != 0 {
            true => Some(self.run_end(upper_end, LOWER | CASELESS)),
            false => caseless_end,
        };
        let end = match lower_end {
            Some(end) => end,
            // Without taking the prefix: a mark is a prefix, but also a whole lower half.
            None if class & CASELESS != 0 => next,
            None if upper_end > body => upper_end,
            None => return None,
        };
        Some(end + contraction(&self.text.as_bytes()[end..]))
    }

    /// The end of the run of upper-half characters, and the end of the last one that fits the lower half too.
    fn upper_half(&self, start: usize) -> (usize, Option<usize>) {
        let (mut at, mut caseless_end) = (start, None);
        loop {
            let (class, next) = self.class_at(at);
            if class & (UPPER | CASELESS) == 0 {
                return (at, caseless_end);
            }
            if class & CASELESS != 0 {
                caseless_end = Some(next);
            }
            at = next;
        }
    }

    /// Up to three numbers, the first of which ends at `at`.
    fn digits(&self, mut at: usize) -> usize {
        for _ in 0..2 {
            let (class, next) = self.class_at(at);
            if class & NUMBER == 0 {
                break;
            }
            at = next;
        }
        at
    }

    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    fn symbols(&self, start: usize, class: u8, next: usize) -> Option<usize> {
        let begin = if self.text.as_bytes()[start] == b' ' { next } else { start };
        if begin == start && class & (SPACE | LETTER | NUMBER) != 0 {
            return None;
        }
        let mut at = begin;
        while at < self.text.len() {
            let (class, next) = self.class_at(at);
            if class & (SPACE | LETTER | NUMBER) != 0 {
                break;
            }
            at = next;
        }
        (at > begin).then(|| self.run_end(at, NEWLINE))
    }

    /// `\s*[\r\n]+`, else `\s+(?!\S)`, else `\s+`.
    fn whitespace(&self, start: usize) -> usize {
        let (mut at, mut last_start, mut newline_end) = (start, start, None);
        loop {
            let (class, next) = self.class_at(at);
            if class & SPACE == 0 {
                break;
            }
            if class & NEWLINE != 0 {
                newline_end = Some(next);
            }
            (last_start, at) = (at, next);
        }
        match newline_end {
            Some(end) => end,
            // The look-ahead leaves the last space to the word that follows, unless it is the only one.
            None if at < self.text.len() && last_start > start => last_start,
            None => at,
        }
    }

    fn run_end(&self, mut at: usize, flags: u8) -> usize {
        loop {
            let (class, next) = self.class_at(at);
            if class & flags == 0 {
                return at;
            }
            at = next;
        }
    }

    /// The flags of the character at `at` and where the next one starts; no flags at the end of the text.
    #[inline]
    fn class_at(&self, at: usize) -> (u8, usize) {
        match self.text.as_bytes().get(at) {
            None => (0, at),
            Some(&byte) if byte < 0x80 => (self.classes[byte as usize], at + 1),
            Some(_) => {
                let char = self.text[at..].chars().next().expect("`at` is before the end");
                (self.classes[char as usize], at + char.len_utf8())
            }
        }
    }
}

/// The length of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at the start of `rest`, 0 where it does not match.
fn contraction(rest: &[u8]) -> usize {
    if rest.first() != Some(&b'\'') {
        return 0;
    }
    let lower = |at: usize| rest.get(at).map_or(0, u8::to_ascii_lowercase);
    match (lower(1), lower(2)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        // U+017F, the long s, is an `s` to a case-insensitive regex.
        (0xC5, 0xBF) => 3,
        _ => 0,
    }
}

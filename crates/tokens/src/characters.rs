//! The character classes that the pre-tokenisation pattern speaks of, one byte of flags per code point.
//!
//! The table is filled once per process from `regex-syntax`, the Unicode data of the regex engines, so a
//! class here is the class there.

use std::sync::LazyLock;

/// Script = Han, whatever the category.
pub(crate) const HAN: u8 = 1;
/// `\p{L}`.
pub(crate) const LETTER: u8 = 1 << 1;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 1 << 2;
/// `\s`.
pub(crate) const SPACE: u8 = 1 << 3;
/// `\r` and `\n`.
pub(crate) const NEWLINE: u8 = 1 << 4;
/// `[\p{Lu}\p{Lt}&&[^\p{Han}]]`: letters that can only stand in the upper-case half of a word.
pub(crate) const UPPER: u8 = 1 << 5;
/// `[\p{Ll}&&[^\p{Han}]]`: letters that can only stand in the lower-case half.
pub(crate) const LOWER: u8 = 1 << 6;
/// `[\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]`: letters and marks that fit both halves.
pub(crate) const CASELESS: u8 = 1 << 7;

const CLASSES: [(&str, u8); 8] = [
    (r"\p{Han}", HAN),
    (r"\p{L}", LETTER),
    (r"\p{N}", NUMBER),
    (r"\s", SPACE),
    (r"[\r\n]", NEWLINE),
    (r"[\p{Lu}\p{Lt}&&[^\p{Han}]]", UPPER),
    (r"[\p{Ll}&&[^\p{Han}]]", LOWER),
    (r"[\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", CASELESS),
];

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut table = vec![0; char::MAX as usize + 1];
    for (pattern, flag) in CLASSES {
        for (first, last) in ranges(pattern) {
            table[first as usize..=last as usize].iter_mut().for_each(|flags| *flags |= flag);
        }
    }
    table
});

/// The flags of all code points, indexed by code point.
pub(crate) fn table() -> &'static [u8] {
    &TABLE
}

fn ranges(pattern: &str) -> Vec<(char, char)> {
    use regex_syntax::hir::{Class, HirKind};
    let hir = regex_syntax::parse(pattern).expect("the class patterns are constants that parse");
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => class.iter().map(|r| (r.start(), r.end())).collect(),
        other => unreachable!("{pattern} is a character class, got {other:?}"),
    }
}

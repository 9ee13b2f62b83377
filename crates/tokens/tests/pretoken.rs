//! The hand-written matcher is the pattern, as `fancy-regex` understands it.

mod common;

use chogori_tokens::pretoken::{PATTERN, pieces};
use proptest::prelude::*;
use std::sync::LazyLock;

static REGEX: LazyLock<fancy_regex::Regex> = LazyLock::new(|| fancy_regex::Regex::new(PATTERN).unwrap());

#[track_caller]
fn check(text: &str) {
    let expected: Vec<&str> = REGEX.find_iter(text).map(|found| found.unwrap().as_str()).collect();
    let found: Vec<&str> = pieces(text).collect();
    assert_eq!(found, expected, "{text:?}");
    assert_eq!(found.concat(), text, "the pattern leaves nothing out");
}

/// One character of each kind that the pattern can tell apart, and the contractions' letters.
const KINDS: [char; 44] = [
    'a',
    'A',
    'ß',
    'É',
    'ǅ',
    'ª',
    'ʰ',
    'א',
    'あ',
    '\u{301}',
    '\u{903}',
    '\u{20dd}',
    '中',
    '々',
    '〇',
    '〡',
    '⺀',
    '\u{16ff0}',
    '1',
    '٣',
    'Ⅷ',
    '½',
    ' ',
    '\t',
    '\n',
    '\r',
    '\u{a0}',
    '\u{3000}',
    '\u{85}',
    '\u{1f}',
    '\'',
    's',
    'S',
    'ſ',
    't',
    'r',
    'e',
    'V',
    'm',
    'l',
    'L',
    'D',
    '!',
    '😀',
];

proptest! {
    #![proptest_config(common::fixed(3000))]

    #[test]
    fn equals_the_regex_on_all_kinds(text in prop::collection::vec(prop::sample::select(&KINDS[..]), 0..24)) {
        check(&text.into_iter().collect::<String>());
    }

    #[test]
    fn equals_the_regex_on_words(text in "([ \\n]{0,3}[aAéÉ\u{301}ªא中1!']{0,6}('[sStTrReEvVlLmMdDſ]{0,3})?){0,6}") {
        check(&text);
    }

    #[test]
    fn equals_the_regex_on_any_text(text: String) {
        check(&text);
    }
}

/// Every code point of the basic planes, alone and between letters.
#[test]
fn equals_the_regex_on_every_character() {
    for char in ('\0'..='\u{33fff}').chain('\u{e0000}'..='\u{e01ff}') {
        check(&format!("{char}"));
        check(&format!("A{char}b"));
    }
}

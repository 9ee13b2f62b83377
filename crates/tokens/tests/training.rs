//! Training finds the merges that its definition asks for, and nothing but the texts decides which.

mod common;

use chogori_tokens::{Tokenizer, TokenizerError, TrainOptions, TrainProgress, pretoken};
use proptest::prelude::*;
use std::collections::BTreeMap;

const OPTIONS: TrainOptions =
    TrainOptions { vocab_size: 320, reserved: 32, text_bytes_max: u64::MAX, token_bytes_max: 64 };

fn train<T: AsRef<str>>(texts: &[T], options: &TrainOptions) -> Tokenizer {
    Tokenizer::train(texts, options, |_| ()).unwrap()
}

/// The learned byte strings.
fn learned(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    (256..tokenizer.ranks() as u32).map(|id| tokenizer.token_bytes(id).unwrap().to_vec()).collect()
}

/// Counts all pairs anew before each merge.
fn learn_by_definition(texts: &[String], merges: usize, bytes: &Tokenizer) -> Vec<Vec<u8>> {
    let pieces = texts.iter().flat_map(|text| pretoken::pieces(text));
    let mut words: Vec<Vec<u32>> =
        pieces.map(|piece| piece.bytes().map(|byte| bytes.encode_bytes(&[byte])[0]).collect()).collect();
    let mut tokens: Vec<Vec<u8>> = (0..256).map(|id| bytes.token_bytes(id).unwrap().to_vec()).collect();
    for _ in 0..merges {
        let mut counts: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        words.iter().flat_map(|word| word.windows(2)).for_each(|w| *counts.entry((w[0], w[1])).or_default() += 1);
        // The first of the largest: ties go to the smaller pair.
        let best = counts.into_iter().rev().max_by_key(|(_, count)| *count).filter(|(_, count)| *count >= 2);
        let Some(((left, right), _)) = best else { break };
        let id = tokens.len() as u32;
        tokens.push([tokens[left as usize].as_slice(), &tokens[right as usize]].concat());
        for word in &mut words {
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) == (left, right) {
                    word.splice(at..at + 2, [id]);
                }
                at += 1;
            }
        }
    }
    tokens.split_off(256)
}

proptest! {
    #![proptest_config(common::fixed(300))]

    #[test]
    fn learns_what_the_definition_learns(
        texts in prop::collection::vec("[abA' é中\n]{0,60}", 0..8),
        merges in 0usize..60,
    ) {
        let bytes = train::<String>(&[], &OPTIONS);
        let options = TrainOptions { vocab_size: 288 + merges, ..OPTIONS };
        prop_assert_eq!(learned(&train(&texts, &options)), learn_by_definition(&texts, merges, &bytes));
    }
}

#[test]
fn options_bound_the_result() {
    let texts = ["abcabcabc ".repeat(100), "xyz".repeat(100)];
    let tokenizer = train(&texts, &TrainOptions { token_bytes_max: 3, ..OPTIONS });
    assert!(learned(&tokenizer).iter().all(|token| token.len() <= 3));
    // Nothing is left to merge long before 320 ids.
    assert!(tokenizer.vocab_size() < 320);
    let first_only = train(&texts[..1], &OPTIONS);
    assert_eq!(train(&texts, &TrainOptions { text_bytes_max: 1000, ..OPTIONS }), first_only);
    assert_eq!(train::<&str>(&[], &OPTIONS).vocab_size(), 288);
    assert_eq!(train(&["é"], &TrainOptions { text_bytes_max: 1, ..OPTIONS }).vocab_size(), 288);
}

#[test]
fn progress_counts_up() {
    let mut seen = Vec::new();
    Tokenizer::train(["ab ab", "ab"], &OPTIONS, |progress| seen.push(progress)).unwrap();
    assert_eq!(seen[..2], [5, 7].map(|text_bytes| TrainProgress::Counting { text_bytes }));
    assert!(seen[2..].contains(&TrainProgress::Merging { done: 1, wanted: 32 }));
}

#[test]
fn impossible_options_are_refused() {
    for (options, message) in [
        (TrainOptions { vocab_size: 287, ..OPTIONS }, "vocab_size = 287, but 256 bytes and 32 reserved ids need 288"),
        (TrainOptions { reserved: 19, ..OPTIONS }, "reserved = 19, but the chat tokens need at least 20"),
    ] {
        let error = Tokenizer::train(["a"], &options, |_| ()).unwrap_err();
        assert!(matches!(error, TokenizerError::Options(_)) && error.to_string().contains(message), "{error}");
    }
}

/// Names keep Kimi's distance from the ranks; those that do not fit are absent.
#[test]
fn few_reserved_ids_keep_kimis_places() {
    let tokenizer = train(&["ab ab ab"], &OPTIONS);
    let base = tokenizer.ranks() as u32;
    for (name, offset) in [("[BOS]", 0), ("<|im_end|>", 2), ("<|im_middle|>", 17), ("</think>", 23), ("[PAD]", 31)] {
        assert_eq!(tokenizer.special(name), Some(base + offset), "{name}");
    }
    let least = train(&["ab ab ab"], &TrainOptions { reserved: 20, ..OPTIONS });
    let base = least.ranks() as u32;
    let expected = [("<|im_middle|>", Some(17)), ("[UNK]", Some(18)), ("[PAD]", Some(19)), ("<think>", None)];
    for (name, offset) in expected {
        assert_eq!(least.special(name), offset.map(|offset| base + offset), "{name}");
    }
}

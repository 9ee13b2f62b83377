//! Fast merging equals the definition, and long pieces stay cheap.

mod common;

use chogori_tokens::{Tokenizer, TrainOptions, pretoken};
use proptest::prelude::*;
use std::collections::HashMap;

fn train(texts: &[String], vocab_size: usize) -> Tokenizer {
    let options = TrainOptions { vocab_size, reserved: 32, text_bytes_max: u64::MAX, token_bytes_max: 64 };
    Tokenizer::train(texts, &options, |_| ()).unwrap()
}

/// BPE as it is defined: unite the leftmost of the pairs with the lowest rank until no union is a token.
fn encode_by_definition(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let ranks: HashMap<&[u8], u32> =
        (0..tokenizer.ranks() as u32).map(|id| (tokenizer.token_bytes(id).unwrap(), id)).collect();
    let mut ids = Vec::new();
    for piece in pretoken::pieces(text) {
        let mut parts: Vec<Vec<u8>> = piece.bytes().map(|byte| vec![byte]).collect();
        let best = |parts: &[Vec<u8>]| {
            let unions = parts.windows(2).enumerate().map(|(at, pair)| (ranks.get(pair.concat().as_slice()), at));
            unions.filter_map(|(rank, at)| Some((*rank?, at))).min()
        };
        while let Some((_, at)) = best(&parts) {
            let right = parts.remove(at + 1);
            parts[at].extend(right);
        }
        ids.extend(parts.iter().map(|part| ranks[part.as_slice()]));
    }
    ids
}

proptest! {
    #![proptest_config(common::fixed(300))]

    #[test]
    fn merging_equals_its_definition(
        texts in prop::collection::vec("[abc' é中]{0,40}", 1..8),
        merges in 0usize..60,
        text in "[abc' é中]{0,300}",
    ) {
        let tokenizer = train(&texts, 288 + merges);
        prop_assert_eq!(tokenizer.encode(&text), encode_by_definition(&tokenizer, &text));
    }
}

/// Quadratic merging, matching or caching would take hours here.
#[test]
fn long_pieces_finish() {
    let texts = ["aa ab ba bb aab abb    \n\n  !!!! ====\u{301}\u{301}中中文文".repeat(50)];
    let tokenizer = train(&texts, 340);
    let alternate = |a: &str, b: &str, n: usize| (0..n).map(|i| if i * i % 7 < 3 { a } else { b }).collect::<String>();
    let long = 1_000_000;
    let cases = [
        "a".repeat(long),
        " ".repeat(long),
        "\n ".repeat(long / 2),
        "A".repeat(long),
        "\u{301}".repeat(long / 2),
        "中".repeat(long / 3),
        "!".repeat(long),
        alternate("a", "b", long),
        alternate("中", "文", long / 3),
        format!("ª{}", "A'".repeat(long / 2)),
        "<|im_end|".repeat(long / 9),
    ];
    for text in cases {
        let ids = tokenizer.encode_with_special(&text);
        assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes());
    }
    // One piece of a megabyte: bytes that are not UTF-8 are not cut.
    let bytes: Vec<u8> = (0..long).map(|i| 0xF8 + (i * i % 7 < 3) as u8).collect();
    assert_eq!(tokenizer.decode_bytes(&tokenizer.encode_bytes(&bytes)).unwrap(), bytes);
}

#[test]
fn threads_do_not_change_ids() {
    let texts: Vec<String> = (0..50).map(|i| format!("text {i} {}", "ab ".repeat(i * 7 % 13))).collect();
    let tokenizer = train(&texts, 300);
    let one_by_one: Vec<_> = texts.iter().map(|text| tokenizer.encode(text)).collect();
    for threads in [0, 1, 2, 7, 100] {
        assert_eq!(tokenizer.encode_batch(&texts, threads), one_by_one);
    }
}

//! What goes in comes out: bytes, text, streams, batches, and files.

mod common;

use chogori_tokens::{StreamDecoder, Tokenizer, TrainOptions};
use proptest::prelude::*;
use std::sync::LazyLock;

/// Mixed scripts and code, with enough repetition for merges.
const TEXT: &str = "fn main() { format!(\"Hello, world!\"); } // It's 2025, they're 1,234,567 of us.\n\
    你好世界，中文English混合。 Привет мир! naïve café e\u{301}tudes\n\n\tif x == 10 { return   x + 1; }\r\n";

static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| {
    let options = TrainOptions { vocab_size: 400, reserved: 32, text_bytes_max: 1 << 20, token_bytes_max: 16 };
    Tokenizer::train([TEXT, TEXT], &options, |_| ()).unwrap()
});

proptest! {
    #![proptest_config(common::fixed(300))]

    #[test]
    fn bytes_return(bytes: Vec<u8>) {
        let ids = SMALL.encode_bytes(&bytes);
        prop_assert_eq!(SMALL.decode_bytes(&ids).unwrap(), bytes);
        prop_assert!(ids.iter().all(|&id| !SMALL.is_special(id)));
    }

    #[test]
    fn text_returns_also_from_a_stream(text: String) {
        let ids = SMALL.encode(&text);
        prop_assert_eq!(&SMALL.decode_lossy(&ids).unwrap(), &text);
        prop_assert_eq!(SMALL.encode_bytes(text.as_bytes()), ids);
    }

    #[test]
    fn a_stream_shows_what_decoding_at_once_shows(ids in prop::collection::vec(0u32..400, 0..40)) {
        let mut decoder = StreamDecoder::new();
        let mut shown = String::new();
        for &id in &ids {
            shown += &decoder.push(&SMALL, id).unwrap();
        }
        shown += &decoder.finish();
        prop_assert_eq!(shown, SMALL.decode_lossy(&ids).unwrap());
    }
}

#[test]
fn files_return() {
    let folder = tempfile::tempdir().unwrap();
    SMALL.save(folder.path()).unwrap();
    let loaded = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(loaded, *SMALL);
    assert_eq!(loaded.vocab_size(), 400);
}

//! `tokenizer.json` and `tokenizer_config.json`, the files that `transformers` and most engines read.
//!
//! The format describes a pipeline of exchangeable parts; what is written here is the one that equals
//! [`Tokenizer`]: split by Kimi's pattern, bytes as visible characters, BPE by a list of merges.

use crate::byte_alphabet::ByteAlphabet;
use crate::merge::Merger;
use crate::special::SpecialToken;
use crate::{Tokenizer, TokenizerError, chat, pretoken, special};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// The file with the whole tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// The file that tells `transformers` which class to use and which token plays which part.
pub(crate) const CONFIG: &str = "tokenizer_config.json";

/// A special token in either file.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) single_word: bool,
    #[serde(default)]
    pub(crate) lstrip: bool,
    #[serde(default)]
    pub(crate) rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    pub(crate) special: bool,
}

/// Writes both files to `folder`, which is created if need be.
pub(crate) fn save(tokenizer: &Tokenizer, folder: &Path) -> Result<(), TokenizerError> {
    std::fs::create_dir_all(folder).map_err(TokenizerError::io(folder))?;
    write(&folder.join(TOKENIZER), &tokenizer_file(tokenizer))?;
    write(&folder.join(CONFIG), &config_file(tokenizer))
}

/// Writes beside the file first, so that a full disk cannot leave half a tokenizer behind.
fn write(path: &Path, content: &Value) -> Result<(), TokenizerError> {
    let mut text = serde_json::to_string_pretty(content).expect("the value has only string keys");
    text.push('\n');
    let unfinished = path.with_extension("json.unfinished");
    std::fs::write(&unfinished, text).map_err(TokenizerError::io(&unfinished))?;
    std::fs::rename(&unfinished, path).map_err(TokenizerError::io(path))
}

fn tokenizer_file(tokenizer: &Tokenizer) -> Value {
    let (alphabet, vocabulary) = (ByteAlphabet::new(), tokenizer.vocabulary());
    let written: Vec<String> = vocabulary.iter().map(|token| alphabet.write(token)).collect();
    let vocab: serde_json::Map<String, Value> =
        written.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let merges: Vec<[&str; 2]> =
        merges(tokenizer).map(|(left, right)| [left, right].map(|id| written[id as usize].as_str())).collect();
    let added: Vec<AddedToken> = tokenizer.special_tokens().iter().map(AddedToken::from).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer(),
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": true,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// The merges that tokens come from, in order of rank.
pub(crate) fn merges(tokenizer: &Tokenizer) -> impl Iterator<Item = (u32, u32)> {
    let mut merger = Merger::default();
    let vocabulary = tokenizer.vocabulary();
    vocabulary.iter().filter_map(move |token| merger.last_merge(vocabulary, token))
}

pub(crate) fn pre_tokenizer() -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pretoken::PATTERN}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

impl From<&SpecialToken> for AddedToken {
    fn from(token: &SpecialToken) -> Self {
        Self {
            id: token.id,
            content: token.name.clone(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: token.hidden,
        }
    }
}

fn config_file(tokenizer: &Tokenizer) -> Value {
    let decoder: serde_json::Map<String, Value> = tokenizer
        .special_tokens()
        .iter()
        .map(|token| {
            let mut fields = json!(AddedToken::from(token));
            fields.as_object_mut().expect("a struct is an object").remove("id");
            (token.id.to_string(), fields)
        })
        .collect();
    let role = |name: &'static str| tokenizer.special(name).map(|_| name);
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": decoder,
        "bos_token": role(special::BOS),
        "eos_token": role(special::EOS),
        "unk_token": role(special::UNK),
        "pad_token": role(special::PAD),
        "clean_up_tokenization_spaces": false,
        "chat_template": chat::TEMPLATE,
    })
}

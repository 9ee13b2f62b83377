//! `tokenizer.json` and `tokenizer_config.json`, the files that `transformers` and most engines read.
//!
//! The format describes a pipeline of exchangeable parts; what is written here is the one that equals
//! [`Tokenizer`]: split by Kimi's pattern, bytes as visible characters, BPE by a list of merges. Reading
//! refuses every other pipeline instead of encoding differently than its author meant.

use crate::byte_alphabet::ByteAlphabet;
use crate::merge::Merger;
use crate::special::SpecialToken;
use crate::{Tokenizer, TokenizerError, chat, pretoken, special};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The file with the whole tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// The file that tells `transformers` which class to use and which token plays which part.
pub(crate) const CONFIG: &str = "tokenizer_config.json";

/// The parts of `tokenizer.json` that matter here.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Clone, Serialize, Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
}

/// A merge as newer (a pair) and older versions (one string) write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
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
fn merges(tokenizer: &Tokenizer) -> impl Iterator<Item = (u32, u32)> {
    let mut merger = Merger::default();
    let vocabulary = tokenizer.vocabulary();
    vocabulary.iter().filter_map(move |token| merger.last_merge(vocabulary, token))
}

fn pre_tokenizer() -> Value {
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

/// Reads a `tokenizer.json`.
pub(crate) fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let bytes = std::fs::read(path).map_err(TokenizerError::io(path))?;
    let file: File = serde_json::from_slice(&bytes).map_err(|error| TokenizerError::file(path, error.to_string()))?;
    build(file).map_err(|reason| TokenizerError::file(path, reason))
}

fn build(file: File) -> Result<Tokenizer, String> {
    if file.model.kind != "BPE" {
        return Err(format!("model.type is {}, only BPE is supported", file.model.kind));
    }
    if !file.normalizer.is_null() {
        return Err("normalizer is set; byte-level BPE must see the text unchanged".into());
    }
    check_pre_tokenizer(&file.pre_tokenizer)?;
    let tokens = ranked_tokens(&file.model.vocab)?;
    let specials = specials(&file.added_tokens)?;
    let tokenizer = Tokenizer::new(tokens, specials).map_err(|error| error.to_string())?;
    check_merges(&tokenizer, &file.model)?;
    Ok(tokenizer)
}

/// Compares what changes ids and leaves what only changes offsets.
fn check_pre_tokenizer(found: &Value) -> Result<(), String> {
    let mut steps = found["pretokenizers"].as_array().cloned().unwrap_or_default();
    let mut expected = pre_tokenizer()["pretokenizers"].as_array().cloned().unwrap_or_default();
    for step in steps.iter_mut().chain(&mut expected).filter_map(Value::as_object_mut) {
        step.remove("trim_offsets");
    }
    match steps == expected {
        true => Ok(()),
        false => Err("pre_tokenizer is not Kimi's (a Split by its pattern, then ByteLevel without a pattern)".into()),
    }
}

fn ranked_tokens(vocab: &BTreeMap<String, u32>) -> Result<Vec<Vec<u8>>, String> {
    let alphabet = ByteAlphabet::new();
    let mut ranked: Vec<(u32, &str)> = vocab.iter().map(|(token, &id)| (id, token.as_str())).collect();
    ranked.sort_unstable();
    let mut tokens = Vec::with_capacity(ranked.len());
    for (expected, (id, token)) in ranked.into_iter().enumerate() {
        if id as usize != expected {
            return Err(format!("model.vocab has no token {expected} or has it twice"));
        }
        tokens.push(
            alphabet
                .read(token)
                .map_err(|char| format!("model.vocab: token {id} contains {char:?}, which stands for no byte"))?,
        );
    }
    Ok(tokens)
}

fn specials(added: &[AddedToken]) -> Result<Vec<SpecialToken>, String> {
    let mut specials = Vec::with_capacity(added.len());
    for token in added {
        if token.single_word || token.lstrip || token.rstrip {
            return Err(format!("added_tokens: {} asks for single_word, lstrip or rstrip", token.content));
        }
        specials.push(SpecialToken { id: token.id, name: token.content.clone(), hidden: token.special });
    }
    specials.sort_by_key(|token| token.id);
    Ok(specials)
}

/// Ids are merged here by rank, there by the list: both must say the same.
fn check_merges(tokenizer: &Tokenizer, model: &Model) -> Result<(), String> {
    let id = |token: &str| model.vocab.get(token).copied().ok_or(format!("model.merges uses {token:?}, not in vocab"));
    let mut expected = merges(tokenizer);
    for (place, merge) in model.merges.iter().enumerate() {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Joined(joined) => joined.split_once(' ').ok_or(format!("model.merges[{place}] is not a pair"))?,
        };
        if expected.next() != Some((id(left)?, id(right)?)) {
            return Err(format!(
                "model.merges[{place}] ({left:?}, {right:?}) is not in the order of the ids in model.vocab"
            ));
        }
    }
    match expected.next() {
        Some(_) => Err(format!("model.merges ends after {}; is the file complete?", model.merges.len())),
        None if model.ignore_merges => Ok(()),
        None => all_reachable(tokenizer),
    }
}

/// Without `ignore_merges`, a token that no merge makes is never produced there, but is here.
fn all_reachable(tokenizer: &Tokenizer) -> Result<(), String> {
    let merged = merges(tokenizer).count();
    match merged + 256 == tokenizer.ranks() {
        true => Ok(()),
        false => Err("model.vocab has tokens that no merge makes, which needs model.ignore_merges = true".into()),
    }
}

/// The special tokens that the `added_tokens_decoder` of a config names; none if the file does not exist.
pub(crate) fn named_tokens(config: &Path) -> Result<Vec<SpecialToken>, TokenizerError> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        added_tokens_decoder: BTreeMap<u32, Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        content: String,
        #[serde(default)]
        special: bool,
    }
    if !config.exists() {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(config).map_err(TokenizerError::io(config))?;
    let parsed: Config =
        serde_json::from_slice(&bytes).map_err(|error| TokenizerError::file(config, error.to_string()))?;
    let named = parsed.added_tokens_decoder.into_iter();
    Ok(named.map(|(id, token)| SpecialToken { id, name: token.content, hidden: token.special }).collect())
}

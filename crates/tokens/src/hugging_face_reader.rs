//! Reads `tokenizer.json`, and the names in `tokenizer_config.json`.
//!
//! The format can describe many pipelines. All but the one that [`hugging_face`] writes are refused, as
//! encoding by another than its author meant would be worse.

use crate::byte_alphabet::ByteAlphabet;
use crate::hugging_face::{self, AddedToken};
use crate::special::SpecialToken;
use crate::{Tokenizer, TokenizerError};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

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

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// A merge as newer (a pair) and older versions (one string) write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
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
    check_plain(&file.model)?;
    check_pre_tokenizer(&file.pre_tokenizer)?;
    let tokens = ranked_tokens(&file.model.vocab)?;
    let specials = specials(&file.added_tokens)?;
    let tokenizer = Tokenizer::new(tokens, specials).map_err(|error| error.to_string())?;
    check_merges(&tokenizer, &file.model)?;
    Ok(tokenizer)
}

/// Refuses the options of BPE that byte-level tokenizers do without.
fn check_plain(model: &Model) -> Result<(), String> {
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
        return Err("model has a continuing_subword_prefix or end_of_word_suffix; byte-level BPE has none".into());
    }
    match model.dropout {
        None | Some(0.0) => Ok(()),
        Some(dropout) => Err(format!("model.dropout = {dropout} makes ids random; remove it")),
    }
}

/// Compares what changes ids and leaves what only changes offsets.
fn check_pre_tokenizer(found: &Value) -> Result<(), String> {
    let mut steps = found["pretokenizers"].as_array().cloned().unwrap_or_default();
    let mut expected = hugging_face::pre_tokenizer()["pretokenizers"].as_array().cloned().unwrap_or_default();
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
    let mut expected = hugging_face::merges(tokenizer);
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
    let merged = hugging_face::merges(tokenizer).count();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainOptions;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(3), ..ProptestConfig::with_cases(300) })]

        /// Training never learns a token that its own merges do not reach, so a list of merges says it all.
        #[test]
        fn every_learned_token_has_its_merge(texts in prop::collection::vec("[abé中 ]{0,80}", 0..6)) {
            let options =
                TrainOptions { vocab_size: 400, reserved: 32, text_bytes_max: u64::MAX, token_bytes_max: 64 };
            let tokenizer = Tokenizer::train(&texts, &options, |_| ()).unwrap();
            prop_assert_eq!(all_reachable(&tokenizer), Ok(()));
        }
    }
}

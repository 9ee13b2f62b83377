//! Reads Kimi's own `tiktoken.model`: one token per line, base64 and rank.
//!
//! The file knows nothing of special tokens: their names come from `tokenizer_config.json` beside it, or
//! are Kimi's.

use crate::special::{self, SpecialToken};
use crate::{Tokenizer, TokenizerError, hugging_face, hugging_face_reader};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::path::Path;

/// The file's name in Kimi's repositories.
pub(crate) const NAME: &str = "tiktoken.model";

/// Reads the ranks at `path` and adds Kimi's 256 reserved ids.
pub(crate) fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let bytes = std::fs::read(path).map_err(TokenizerError::io(path))?;
    let text = String::from_utf8(bytes).map_err(|_| TokenizerError::file(path, "it is not text"))?;
    let tokens = parse(&text).map_err(|reason| TokenizerError::file(path, reason))?;
    let mut specials = special::kimi_names(tokens.len(), special::KIMI_RESERVED);
    rename(path, &mut specials)?;
    Tokenizer::new(tokens, specials).map_err(|error| TokenizerError::file(path, error.to_string()))
}

/// The tokens in order of rank.
fn parse(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut ranked = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let number = index + 1;
        let (token, rank) = line.split_once(' ').ok_or(format!("line {number} is not «base64 rank»"))?;
        let token = BASE64_STANDARD.decode(token).map_err(|error| format!("line {number}, token: {error}"))?;
        let rank: usize = rank.trim_end().parse().map_err(|error| format!("line {number}, rank: {error}"))?;
        ranked.push((rank, token));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    match ranked.iter().enumerate().find(|(expected, (rank, _))| expected != rank) {
        Some((expected, _)) => Err(format!("rank {expected} is missing or given twice; is the file complete?")),
        None => Ok(ranked.into_iter().map(|(_, token)| token).collect()),
    }
}

/// Takes names from the `tokenizer_config.json` of the same folder, if there is one.
fn rename(path: &Path, specials: &mut [SpecialToken]) -> Result<(), TokenizerError> {
    let config = path.with_file_name(hugging_face::CONFIG);
    let first = specials[0].id;
    for named in hugging_face_reader::named_tokens(&config)? {
        let place = named.id.checked_sub(first).and_then(|offset| specials.get_mut(offset as usize));
        let Some(place) = place else {
            let reason = format!("added_tokens_decoder names id {}, which is not above {first} or too far", named.id);
            return Err(TokenizerError::file(&config, reason));
        };
        *place = named;
    }
    Ok(())
}

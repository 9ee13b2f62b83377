//! `store.json`: what the two binary files of a token store hold.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{StoreError, StoreSpec};

const FORMAT_VERSION: u32 = 1;

/// `store.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub format_version: u32,
    pub documents: usize,
    pub tokens: usize,
    pub text_bytes: u64,
    pub corpus_digest: String,
    pub tokens_digest: String,
    pub spec: StoreSpec,
}

impl Header {
    /// For a store that has no document yet.
    pub fn empty(spec: StoreSpec) -> Self {
        Header {
            format_version: FORMAT_VERSION,
            documents: 0,
            tokens: 0,
            text_bytes: 0,
            corpus_digest: String::new(),
            tokens_digest: String::new(),
            spec,
        }
    }

    /// Reads `store.json`, of this version only.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let text = std::fs::read_to_string(path).map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                let dir = path.parent().unwrap_or(path).to_owned();
                return StoreError::NotAStore { dir };
            }
            StoreError::io(path)(source)
        })?;
        let malformed = |source| StoreError::Header { path: path.to_owned(), source };
        let HeaderVersion { format_version } = serde_json::from_str(&text).map_err(malformed)?;
        if format_version != FORMAT_VERSION {
            return Err(StoreError::Version {
                path: path.to_owned(),
                found: format_version,
                supported: FORMAT_VERSION,
            });
        }
        let header: Header = serde_json::from_str(&text).map_err(malformed)?;
        header.spec.check_special_tokens()?;
        Ok(header)
    }
}

/// Only this field is read first: a later version may have changed all others.
#[derive(Deserialize)]
struct HeaderVersion {
    format_version: u32,
}

//! What can be wrong with a token store, and what to do about it.

use std::path::{Path, PathBuf};

/// A token store could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum StoreError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{dir} is not a token store: it has no store.json (make one with `chogori data build`)")]
    NotAStore { dir: PathBuf },
    #[error("{dir} is not a tokenised corpus: it has no split.json (make one with `chogori data build`)")]
    NotACorpus { dir: PathBuf },
    #[error("{path} is not what this program writes: {source}")]
    Header { path: PathBuf, source: serde_json::Error },
    #[error("{path} has format version {found}, this program reads version {supported}: build the store again")]
    Version { path: PathBuf, found: u32, supported: u32 },
    #[error(
        "{path} has {found} bytes where store.json promises {expected}: the file was cut short or belongs to another store; build the store again"
    )]
    Size { path: PathBuf, expected: u64, found: u64 },
    #[error("{path}: record {record} contradicts its neighbours or store.json; build the store again")]
    Offsets { path: PathBuf, record: usize },
    #[error(
        "{path}: document {document} holds token {token}, outside the vocabulary of {vocab_size}; the file was altered, build the store again"
    )]
    TokenOutOfRange { path: PathBuf, document: usize, token: u32, vocab_size: usize },
    #[error("{path} is not what was written: its digest differs from store.json; build the store again")]
    Altered { path: PathBuf },
    #[error(
        "token {token} lies outside the vocabulary of {vocab_size}: vocab_size must be above every id, special tokens included"
    )]
    Vocabulary { token: u32, vocab_size: usize },
    #[error("{dir} exists already: remove it or choose another folder for the token store")]
    Exists { dir: PathBuf },
    #[error("{dir} is being written by another process: wait for it or choose another folder")]
    InUse { dir: PathBuf },
    #[error("no document was written to {dir}: the corpus is empty")]
    Empty { dir: PathBuf },
    #[error("the documents in {dir} hold nothing to predict: each has fewer than two tokens; add text to the corpus")]
    NothingToPredict { dir: PathBuf },
}

impl StoreError {
    /// For `map_err`: attaches the path that an I/O error does not carry.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    }
}

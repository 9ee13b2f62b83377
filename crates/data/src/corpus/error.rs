//! What can be wrong with a corpus, and what to do about it.

use std::path::PathBuf;

use super::Skipped;

/// A corpus could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum CorpusError {
    #[error("{path} cannot be read: {source}; repair or remove it, or leave such files out with faults = \"skip\"")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no text{}; point to a folder with text, Markdown, source code or JSONL files", found(.skipped))]
    Empty { path: PathBuf, skipped: Skipped },
    #[error(
        "{path} holds {bytes} bytes of text, too little to learn from: add files, or lower corpus_bytes_min ({bytes_min})"
    )]
    TooSmall { path: PathBuf, bytes: u64, bytes_min: u64 },
    #[error(
        "{id} is larger than {bytes_max} bytes as one document: split it, raise document_bytes_max, or leave such documents out with faults = \"skip\""
    )]
    TooLarge { id: String, bytes_max: u64 },
    #[error("{id} is not a JSON object: {source}; repair the line, or leave such lines out with faults = \"skip\"")]
    Json { id: String, source: serde_json::Error },
    #[error("{id} has no text in a field {field:?} (there are: {there}): set text_field")]
    Field { id: String, field: String, there: String },
    #[error("{path} is a Parquet file, which this program was built without: build it with --features parquet")]
    ParquetNotBuilt { path: PathBuf },
    #[error("{path} is not a Parquet file that can be read: {message}")]
    Parquet { path: PathBuf, message: String },
}

fn found(skipped: &Skipped) -> String {
    if skipped.is_empty() { String::new() } else { format!(" (left out: {skipped})") }
}

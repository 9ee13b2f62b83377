//! Readers: from a folder or a file to documents, one at a time and always in the same order.
//!
//! A folder is read recursively in the order of its sorted names. Text, Markdown, source code and the like are one
//! document per file; `.jsonl` and `.parquet` hold many. `.gz` and `.zst` are unpacked on the way. What is not text
//! is left out and counted ([`Skipped`]); what looks like damage stops the reader or is counted, as the recipe says.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod compressed;
mod error;
mod folder;
mod json_lines;
#[cfg(feature = "parquet")]
mod parquet;
mod skipped;
mod text;

pub use error::CorpusError;
pub use skipped::{SkipReason, Skipped};

use folder::{Format, Source};

/// One text with a name that stays the same wherever the corpus lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Path below the corpus folder with `/` between names; `path#line` or `path#row` (from 1) where a file holds
    /// many documents.
    pub id: String,
    /// The text, unchanged.
    pub text: String,
}

/// What to do about a file that cannot be read, is larger than allowed or is broken inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Faults {
    /// Stop with an error.
    #[default]
    Stop,
    /// Leave it out and count it in [`Skipped`].
    Skip,
}

/// How a corpus is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorpusOptions {
    /// Only files whose names end so (`["md", "rs"]`; `md` covers `md.gz` too). Empty: all files that hold text.
    pub extensions: Vec<String>,
    /// The field of a JSON line, or column of a Parquet file, that holds the text.
    pub text_field: String,
    /// A document larger than this (bytes, unpacked) is a fault. It is read into memory whole.
    pub document_bytes_max: u64,
    /// A corpus with less text than this (bytes) is an error: nothing could be learned from it.
    pub corpus_bytes_min: u64,
    /// Whether files that cannot be read stop the reader.
    pub faults: Faults,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        CorpusOptions {
            extensions: Vec::new(),
            text_field: "text".into(),
            document_bytes_max: 64 << 20,
            corpus_bytes_min: 1024,
            faults: Faults::Stop,
        }
    }
}

/// Lists the files of the corpus at `path`, a folder or a single file. Nothing of their contents is read yet.
///
/// # Errors
/// [`CorpusError::Unreadable`] if `path` does not exist, or (with [`Faults::Stop`]) a folder in it cannot be read.
pub fn open(path: &Path, options: CorpusOptions) -> Result<Documents, CorpusError> {
    let mut skipped = Skipped::default();
    let sources = folder::list(path, &options, &mut skipped)?;
    Ok(Documents {
        path: path.to_owned(),
        options,
        sources: sources.into_iter(),
        reader: None,
        skipped,
        documents: 0,
        text_bytes: 0,
        done: false,
    })
}

/// The documents of a corpus. Ends after the first error.
///
/// An empty corpus, or one that is too small, is an error too: the last item, because only the end can tell.
pub struct Documents {
    path: PathBuf,
    options: CorpusOptions,
    sources: std::vec::IntoIter<Source>,
    reader: Option<Reader>,
    skipped: Skipped,
    documents: usize,
    text_bytes: u64,
    done: bool,
}

impl Documents {
    /// What was left out so far, by reason.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Bytes of text in the documents so far.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// The next document of any file, skipping what is to be skipped.
    fn advance(&mut self) -> Result<Option<Document>, CorpusError> {
        loop {
            let Some(reader) = &mut self.reader else {
                match self.sources.next() {
                    Some(source) => self.reader = Some(read(source, &self.options)),
                    None => return self.check_end().map(|()| None),
                }
                continue;
            };
            match reader.next() {
                Some(Ok(document)) if document.text.is_empty() => self.skipped.add(SkipReason::Empty, &document.id),
                Some(Ok(document)) => return Ok(Some(document)),
                Some(Err(fault)) => fault.resolve(self.options.faults, &mut self.skipped)?,
                None => self.reader = None,
            }
        }
    }

    fn check_end(&self) -> Result<(), CorpusError> {
        let path = self.path.clone();
        if self.documents == 0 {
            return Err(CorpusError::Empty { path, skipped: self.skipped.clone() });
        }
        let bytes_min = self.options.corpus_bytes_min;
        if self.text_bytes < bytes_min {
            return Err(CorpusError::TooSmall { path, bytes: self.text_bytes, bytes_min });
        }
        Ok(())
    }
}

impl Iterator for Documents {
    type Item = Result<Document, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        match &next {
            Some(Ok(document)) => {
                self.documents += 1;
                self.text_bytes += document.text.len() as u64;
            }
            _ => self.done = true,
        }
        next
    }
}

/// The documents of one file.
type Reader = Box<dyn Iterator<Item = Result<Document, Fault>> + Send>;

fn read(source: Source, options: &CorpusOptions) -> Reader {
    match source.format {
        Format::Text => Box::new(std::iter::once_with({
            let bytes_max = options.document_bytes_max;
            move || text::read(source, bytes_max)
        })),
        Format::JsonLines => json_lines::read(source, options),
        #[cfg(feature = "parquet")]
        Format::Parquet => parquet::read(source, options),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => {
            let error = CorpusError::ParquetNotBuilt { path: source.path };
            Box::new(std::iter::once(Err(Fault::damage(SkipReason::Unreadable, source.id, error))))
        }
    }
}

/// Why one document, or the rest of one file, is not read.
struct Fault {
    reason: SkipReason,
    id: String,
    /// None: not text, which is never an error.
    error: Option<CorpusError>,
}

impl Fault {
    fn not_text(reason: SkipReason, id: String) -> Self {
        Fault { reason, id, error: None }
    }

    fn damage(reason: SkipReason, id: String, error: CorpusError) -> Self {
        Fault { reason, id, error: Some(error) }
    }

    fn unreadable(source: &Source, error: std::io::Error) -> Self {
        let error = CorpusError::Unreadable { path: source.path.clone(), source: error };
        Fault::damage(SkipReason::Unreadable, source.id.clone(), error)
    }

    /// Counts the fault, or turns it into the error that stops the reader.
    fn resolve(self, faults: Faults, skipped: &mut Skipped) -> Result<(), CorpusError> {
        match (self.error, faults) {
            (Some(error), Faults::Stop) => Err(error),
            _ => {
                skipped.add(self.reason, &self.id);
                Ok(())
            }
        }
    }
}

//! The token store: a corpus tokenised once, read through a memory map ever after.
//!
//! A folder of three files, all numbers little endian:
//!
//! - `tokens.bin`: the ids of all documents, one after the other; u16 if the vocabulary has at most 65,536 ids, else
//!   u32. Each document ends with the end token, and starts with the begin token if the store has one.
//! - `documents.bin`: one record per document and one at the end: the offset (u64, in tokens) at which the document
//!   starts, and the bytes of text (u64) in all documents before it.
//! - `store.json`: format version, vocabulary, counts, and digests of tokenizer, corpus and tokens.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::stable_hash::Digest;

mod error;
mod header;
mod writer;

pub use error::StoreError;
pub use writer::StoreWriter;

use header::Header;

const TOKENS_FILE: &str = "tokens.bin";
const DOCUMENTS_FILE: &str = "documents.bin";
const HEADER_FILE: &str = "store.json";
const RECORD_BYTES: usize = 16;

/// What the writer of a store must know about the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSpec {
    /// Number of ids; every token is below it.
    pub vocab_size: usize,
    /// Written in front of each document. With it the first token of a text is predicted too, so that bits per byte
    /// cover every byte; without it they leave each document's first token out.
    pub begin: Option<u32>,
    /// Written after each document.
    pub end: u32,
    /// Identifies the tokenizer; compared by whoever opens the store beside a model.
    pub tokenizer_digest: String,
}

impl StoreSpec {
    fn token_bytes(&self) -> usize {
        if self.vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    /// The first id that lies outside the vocabulary.
    fn first_outside(&self, tokens: &[u32]) -> Option<u32> {
        tokens.iter().copied().find(|&token| token as usize >= self.vocab_size)
    }

    fn check_vocabulary(&self, tokens: &[u32]) -> Result<(), StoreError> {
        match self.first_outside(tokens) {
            None => Ok(()),
            Some(token) => Err(StoreError::Vocabulary { token, vocab_size: self.vocab_size }),
        }
    }

    fn check_special_tokens(&self) -> Result<(), StoreError> {
        let special: Vec<u32> = self.begin.into_iter().chain([self.end]).collect();
        self.check_vocabulary(&special)
    }
}

/// An open token store. Reading touches only the pages that hold what is read.
#[derive(Debug)]
pub struct TokenStore {
    dir: PathBuf,
    header: Header,
    tokens: Mmap,
    documents: Mmap,
}

impl TokenStore {
    /// Opens the store in folder `dir` and checks versions, file sizes and offsets.
    ///
    /// Ids are checked when they are read ([`StoreError::TokenOutOfRange`]), because reading all of them here would
    /// take minutes for a large corpus; [`TokenStore::verify`] does it.
    ///
    /// # Errors
    /// [`StoreError`], naming the file that is missing, cut short, too long, of another version or inconsistent.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let header = Header::read(&dir.join(HEADER_FILE))?;
        let record_bytes = header.documents.checked_add(1).and_then(|n| n.checked_mul(RECORD_BYTES));
        let documents = map(&dir.join(DOCUMENTS_FILE), record_bytes)?;
        let token_bytes = header.tokens.checked_mul(header.spec.token_bytes());
        let tokens = map(&dir.join(TOKENS_FILE), token_bytes)?;
        let store = TokenStore { dir: dir.to_owned(), header, tokens, documents };
        store.check_records()?;
        Ok(store)
    }

    /// Reads every token and compares the digest with the one that was written.
    ///
    /// # Errors
    /// [`StoreError::TokenOutOfRange`] or [`StoreError::Altered`].
    pub fn verify(&self) -> Result<(), StoreError> {
        let mut digest = Digest::default();
        for document in self.documents() {
            writer::add_tokens(&mut digest, &document?);
        }
        if digest.to_string() == self.header.tokens_digest {
            Ok(())
        } else {
            Err(StoreError::Altered { path: self.dir.join(TOKENS_FILE) })
        }
    }

    /// Number of documents.
    pub fn len_documents(&self) -> usize {
        self.header.documents
    }

    /// Number of tokens in all documents, begin and end tokens included.
    pub fn len_tokens(&self) -> usize {
        self.header.tokens
    }

    /// Bytes of UTF-8 text in all documents.
    pub fn text_bytes(&self) -> u64 {
        self.header.text_bytes
    }

    /// The ids of one document, begin and end tokens included.
    ///
    /// # Errors
    /// [`StoreError::TokenOutOfRange`] if the file was altered.
    pub fn document(&self, document: usize) -> Result<Vec<u32>, StoreError> {
        self.document_range(document, 0..self.document_len(document))
    }

    /// A part of one document, in tokens from its start.
    ///
    /// # Errors
    /// [`StoreError::TokenOutOfRange`] if the file was altered.
    pub fn document_range(&self, document: usize, range: Range<usize>) -> Result<Vec<u32>, StoreError> {
        let len = self.document_len(document);
        assert!(range.end <= len, "tokens {range:?} of document {document}, which has {len}");
        let start = self.record(document).0;
        let width = self.header.spec.token_bytes();
        let bytes = &self.tokens[(start + range.start) * width..(start + range.end) * width];
        let tokens: Vec<u32> = match width {
            2 => bytes.as_chunks().0.iter().map(|&b| u32::from(u16::from_le_bytes(b))).collect(),
            _ => bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect(),
        };
        match self.header.spec.first_outside(&tokens) {
            None => Ok(tokens),
            Some(token) => Err(StoreError::TokenOutOfRange {
                path: self.dir.join(TOKENS_FILE),
                document,
                token,
                vocab_size: self.header.spec.vocab_size,
            }),
        }
    }

    /// All documents in order.
    pub fn documents(&self) -> impl Iterator<Item = Result<Vec<u32>, StoreError>> + '_ {
        (0..self.len_documents()).map(|document| self.document(document))
    }

    /// Number of tokens in one document, begin and end tokens included.
    pub fn document_len(&self, document: usize) -> usize {
        self.check_index(document);
        self.record(document + 1).0 - self.record(document).0
    }

    /// [`TokenStore::document_len`] of all documents in order.
    pub fn document_lens(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len_documents()).map(|document| self.document_len(document))
    }

    /// Bytes of UTF-8 text that one document was made from.
    pub fn document_text_bytes(&self, document: usize) -> u64 {
        self.check_index(document);
        self.record(document + 1).1 - self.record(document).1
    }

    /// Vocabulary, special tokens and tokenizer of the store.
    pub fn spec(&self) -> &StoreSpec {
        &self.header.spec
    }

    /// Digest of the ids and texts of all documents, as 32 hexadecimal digits.
    pub fn corpus_digest(&self) -> &str {
        &self.header.corpus_digest
    }

    /// The folder that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn check_index(&self, document: usize) {
        let documents = self.len_documents();
        assert!(document < documents, "document {document} of a store with {documents} (counted from 0)");
    }

    /// (first token, bytes of text before) of a document, or of the end.
    fn record(&self, index: usize) -> (usize, u64) {
        let number = |at: usize| u64::from_le_bytes(self.documents[at..at + 8].try_into().expect("eight bytes"));
        let at = index * RECORD_BYTES;
        (number(at) as usize, number(at + 8))
    }

    fn check_records(&self) -> Result<(), StoreError> {
        let last = self.len_documents();
        let in_order = |i: usize| {
            let (before, after) = (self.record(i), self.record(i + 1));
            before.0 < after.0 && before.1 <= after.1
        };
        let broken = if self.record(0) != (0, 0) {
            Some(0)
        } else if self.record(last) != (self.header.tokens, self.header.text_bytes) {
            Some(last)
        } else {
            (0..last).find(|&i| !in_order(i))
        };
        match broken {
            None => Ok(()),
            Some(record) => Err(StoreError::Offsets { path: self.dir.join(DOCUMENTS_FILE), record }),
        }
    }
}

/// Maps a file that must have exactly `expected` bytes (`None`: a size that no file can have).
#[expect(unsafe_code, reason = "a memory map is only sound while nobody changes the file")]
fn map(path: &Path, expected: Option<usize>) -> Result<Mmap, StoreError> {
    let file = File::open(path).map_err(StoreError::io(path))?;
    let found = file.metadata().map_err(StoreError::io(path))?.len();
    if expected.map(|n| n as u64) != Some(found) {
        let expected = expected.map_or(u64::MAX, |n| n as u64);
        return Err(StoreError::Size { path: path.to_owned(), expected, found });
    }
    // SAFETY: stores are written to the side and renamed, and never changed afterwards; every access checks bounds.
    // A program that overwrites the file meanwhile can make reads return other numbers, which are checked on reading.
    unsafe { Mmap::map(&file) }.map_err(StoreError::io(path))
}

//! A corpus as token stores: one to train on and one held out, made together so that both or neither exist.
//!
//! A folder with `train/`, `held_out/` (two [`TokenStore`]s) and `split.json`, which says how they were divided.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic_folder::AtomicFolder;
use crate::corpus::{CorpusError, Document};
use crate::split::held_out;
use crate::stable_hash::Digest;
use crate::store::{StoreError, StoreSpec, StoreWriter, TokenStore};

const TRAIN: &str = "train";
const HELD_OUT: &str = "held_out";
const SPLIT_FILE: &str = "split.json";

/// Text that is given to the tokenizer at once: enough to keep its threads busy, little beside a model.
const BATCH_BYTES: usize = 4 << 20;

/// An open corpus.
#[derive(Debug)]
pub struct TokenizedCorpus {
    /// What the model learns from.
    pub train: TokenStore,
    /// What it is judged by; None if the corpus was built with a fraction of 0.
    pub held_out: Option<TokenStore>,
    /// How the corpus was divided.
    pub split: Split,
}

/// `split.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Expected share of documents that are held out.
    pub held_out_fraction: f64,
    /// Digest of the ids and texts of both sides in the order of the corpus: 32 hexadecimal digits.
    pub corpus_digest: String,
}

/// A corpus could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The reader failed.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The stores could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One side of the split has no document.
    #[error(
        "{side} gets none of the {documents} documents with held_out_fraction = {fraction}: change the fraction, or cut the documents into sections first (section_bytes)"
    )]
    OneSided {
        /// `train` or `held_out`.
        side: &'static str,
        /// Documents on the other side.
        documents: usize,
        /// The fraction that was asked for.
        fraction: f64,
    },
}

impl TokenizedCorpus {
    /// Tokenises `documents` into a new folder `dir` and opens it. All or nothing, whatever interrupts it.
    ///
    /// `encode` turns texts into ids, without begin and end tokens, and is given up to about 4 MiB of text at once.
    /// It must be a pure function of each text.
    ///
    /// # Errors
    /// [`BuildError`]: the first error of `documents`, of writing, or a split that leaves one side empty.
    pub fn build(
        dir: &Path,
        documents: impl IntoIterator<Item = Result<Document, CorpusError>>,
        encode: &dyn Fn(&[String]) -> Vec<Vec<u32>>,
        spec: &StoreSpec,
        held_out_fraction: f64,
    ) -> Result<Self, BuildError> {
        let (folder, split_file) = AtomicFolder::create(dir, SPLIT_FILE)?;
        let mut writers = Writers {
            train: StoreWriter::create(&folder.path(TRAIN), spec.clone())?,
            held_out: StoreWriter::create(&folder.path(HELD_OUT), spec.clone())?,
            held_out_fraction,
            corpus: Digest::default(),
        };
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for document in documents {
            let document = document?;
            batch_bytes += document.text.len();
            batch.push(document);
            if batch_bytes >= BATCH_BYTES {
                writers.append(std::mem::take(&mut batch), encode)?;
                batch_bytes = 0;
            }
        }
        writers.append(batch, encode)?;
        let split = writers.finish()?;
        write_split(&folder, split_file, &split)?;
        folder.publish()?;
        Ok(Self::open(dir)?)
    }

    /// Opens what [`TokenizedCorpus::build`] made.
    ///
    /// # Errors
    /// [`StoreError`], naming the file that is missing or damaged.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(SPLIT_FILE);
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::NotACorpus { dir: dir.to_owned() },
            _ => StoreError::io(&path)(error),
        })?;
        let split: Split = serde_json::from_str(&text).map_err(|source| StoreError::Header { path, source })?;
        let has_held_out = split.held_out_fraction > 0.0;
        let held_out = has_held_out.then(|| TokenStore::open(&dir.join(HELD_OUT))).transpose()?;
        Ok(TokenizedCorpus { train: TokenStore::open(&dir.join(TRAIN))?, held_out, split })
    }
}

struct Writers {
    train: StoreWriter,
    held_out: StoreWriter,
    held_out_fraction: f64,
    corpus: Digest,
}

impl Writers {
    fn append(&mut self, batch: Vec<Document>, encode: &dyn Fn(&[String]) -> Vec<Vec<u32>>) -> Result<(), StoreError> {
        let (ids, texts): (Vec<String>, Vec<String>) = batch.into_iter().map(|d| (d.id, d.text)).unzip();
        let tokens = encode(&texts);
        assert_eq!(tokens.len(), texts.len(), "encode must return one list of ids for each text");
        for ((id, text), tokens) in ids.iter().zip(&texts).zip(&tokens) {
            self.corpus.add(id.as_bytes());
            self.corpus.add(text.as_bytes());
            let is_held_out = held_out(id, self.held_out_fraction);
            let writer = if is_held_out { &mut self.held_out } else { &mut self.train };
            writer.append(id, text, tokens)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Split, BuildError> {
        let Writers { train, held_out, held_out_fraction: fraction, corpus } = self;
        let (documents, held_out_documents) = (train.len_documents(), held_out.len_documents());
        if documents == 0 && held_out_documents > 0 {
            return Err(BuildError::OneSided { side: TRAIN, documents: held_out_documents, fraction });
        }
        if held_out_documents == 0 && documents > 0 && fraction > 0.0 {
            return Err(BuildError::OneSided { side: HELD_OUT, documents, fraction });
        }
        train.finish()?;
        if held_out_documents > 0 {
            held_out.finish()?;
        }
        Ok(Split { held_out_fraction: fraction, corpus_digest: corpus.to_string() })
    }
}

fn write_split(folder: &AtomicFolder, mut file: File, split: &Split) -> Result<(), StoreError> {
    let text = serde_json::to_string_pretty(split).expect("a number and a string are JSON");
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(StoreError::io(&folder.path(SPLIT_FILE)))
}

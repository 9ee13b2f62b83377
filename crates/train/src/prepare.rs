//! From documents to what a run reads: a tokenizer, and a token store for each side of the split.
//!
//! A data folder holds `tokenizer/` and `tokens/` (both sides of the split). [`prepare`] fills one (going on where a kill
//! left it: each part appears whole or not at all), [`PreparedData::open`] opens one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::corpus::{CorpusError, Document};
use data::stable_hash::{Digest, hash_64};
use data::{BuildError, StoreError, StoreSpec, TokenStore, TokenizedCorpus, split};
use tokens::{Tokenizer, TokenizerError, TrainOptions, TrainProgress};

use crate::recipe::{Pretrain, TokenizerTraining};

const TOKENIZER: &str = "tokenizer";
const TOKENS: &str = "tokens";
/// Kimi's longest token; longer ones would be memorised files.
const TOKEN_BYTES_MAX: usize = 256;

/// Opens the corpus from its start; called once or twice.
pub type OpenCorpus<'a> =
    dyn Fn() -> Result<Box<dyn Iterator<Item = Result<Document, CorpusError>>>, PrepareError> + 'a;

/// What a run reads.
pub struct PreparedData {
    /// The vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Text to learn from.
    pub train: Arc<TokenStore>,
    /// Text to judge by.
    pub held_out: Arc<TokenStore>,
}

/// How far [`prepare`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepareProgress {
    /// Choosing text for the tokenizer; bytes read so far.
    Sampling(u64),
    /// Merges found and wanted.
    Merging(usize, usize),
    /// Encoding; bytes of text so far.
    Encoding(u64),
}

/// Why a data folder cannot be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PrepareError {
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error("{0}")]
    Registry(String),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("{dir} holds no held-out text: build it with a data.held_out_fraction above 0")]
    NoHeldOut { dir: PathBuf },
    #[error("the tokenizer has no [EOS] token to end documents with; use one with Kimi's special tokens")]
    NoEnd,
    #[error("the tokenizer has {tokenizer} ids and the model {model}: raise model.vocab_size to at least {tokenizer}")]
    Vocabulary { tokenizer: usize, model: usize },
    #[error("{store} was written with another tokenizer than {tokenizer}: remove the data folder to build it again")]
    OtherTokenizer { store: PathBuf, tokenizer: PathBuf },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
}

impl PreparedData {
    /// Whether `dir` looks like a data folder.
    pub fn is_at(dir: &Path) -> bool {
        [TOKENIZER, TOKENS].iter().all(|part| dir.join(part).is_dir())
    }

    /// Opens a data folder.
    ///
    /// # Errors
    /// [`PrepareError`] if a part is damaged, or the parts do not belong together.
    pub fn open(dir: &Path) -> Result<Self, PrepareError> {
        let tokenizer = Arc::new(Tokenizer::load(dir.join(TOKENIZER))?);
        let TokenizedCorpus { train, held_out, .. } = TokenizedCorpus::open(&dir.join(TOKENS))?;
        let held_out = held_out.ok_or_else(|| PrepareError::NoHeldOut { dir: dir.into() })?;
        let digest = tokenizer_digest(dir)?;
        if let Some(other) = [&train, &held_out].into_iter().find(|store| store.spec().tokenizer_digest != digest) {
            let (store, tokenizer) = (other.dir().to_owned(), dir.join(TOKENIZER));
            return Err(PrepareError::OtherTokenizer { store, tokenizer });
        }
        Ok(Self { tokenizer, train: Arc::new(train), held_out: Arc::new(held_out) })
    }

    /// Refuses a model whose vocabulary is smaller than the tokenizer's.
    ///
    /// # Errors
    /// [`PrepareError::Vocabulary`].
    pub fn check_model(&self, vocab_size: usize) -> Result<(), PrepareError> {
        let tokenizer = self.tokenizer.vocab_size();
        if tokenizer > vocab_size {
            return Err(PrepareError::Vocabulary { tokenizer, model: vocab_size });
        }
        Ok(())
    }
}

/// Fills the data folder `dir` as the recipe says, as far as it is not there yet, and opens it.
///
/// # Errors
/// [`PrepareError`]; what was finished before stays and is used the next time.
pub fn prepare(
    recipe: &Pretrain,
    dir: &Path,
    open: &OpenCorpus,
    threads: usize,
    progress: &mut dyn FnMut(PrepareProgress),
) -> Result<PreparedData, PrepareError> {
    let fraction = recipe.data.held_out_fraction;
    if !dir.join(TOKENIZER).is_dir() {
        let tokenizer = match (&recipe.tokenizer.path, &recipe.tokenizer.train) {
            (Some(path), _) => Tokenizer::load(path)?,
            (None, Some(training)) => train_tokenizer(training, fraction, open, progress)?,
            (None, None) => unreachable!("the recipe is checked to have one of the two"),
        };
        tokenizer.save(dir.join(TOKENIZER))?;
    }
    if !dir.join(TOKENS).is_dir() {
        let tokenizer = Tokenizer::load(dir.join(TOKENIZER))?;
        let spec = StoreSpec {
            vocab_size: tokenizer.vocab_size(),
            begin: tokenizer.bos(),
            end: tokenizer.eos().ok_or(PrepareError::NoEnd)?,
            tokenizer_digest: tokenizer_digest(dir)?,
        };
        let mut bytes = 0;
        let documents = open()?.inspect(|document| {
            bytes += document.as_ref().map_or(0, |document| document.text.len() as u64);
            progress(PrepareProgress::Encoding(bytes));
        });
        let encode = |texts: &[String]| tokenizer.encode_batch(texts, threads);
        TokenizedCorpus::build(&dir.join(TOKENS), documents, &encode, &spec, fraction)?;
    }
    PreparedData::open(dir)
}

/// Learns from the training documents with the smallest hashes, so that every part of the corpus is heard.
fn train_tokenizer(
    training: &TokenizerTraining,
    fraction: f64,
    open: &OpenCorpus,
    progress: &mut dyn FnMut(PrepareProgress),
) -> Result<Tokenizer, PrepareError> {
    let (mut sample, mut sample_bytes, mut read_bytes) = (BTreeMap::new(), 0, 0);
    for document in open()? {
        let Document { id, text } = document?;
        read_bytes += text.len() as u64;
        progress(PrepareProgress::Sampling(read_bytes));
        if split::held_out(&id, fraction) {
            continue;
        }
        sample_bytes += text.len() as u64;
        sample.insert((hash_64(id.as_bytes()), id), text);
        while let Some(last) = sample.last_entry() {
            let without = sample_bytes - last.get().len() as u64;
            if without < training.sample_bytes {
                break;
            }
            sample_bytes = without;
            last.remove();
        }
    }
    let options = TrainOptions {
        vocab_size: training.vocab_size,
        reserved: training.reserved,
        text_bytes_max: training.sample_bytes,
        token_bytes_max: TOKEN_BYTES_MAX,
    };
    let tokenizer = Tokenizer::train(sample.values(), &options, |step| {
        if let TrainProgress::Merging { done, wanted } = step {
            progress(PrepareProgress::Merging(done, wanted));
        }
    });
    Ok(tokenizer?)
}

fn tokenizer_digest(dir: &Path) -> Result<String, PrepareError> {
    let path = dir.join(TOKENIZER).join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(|source| PrepareError::Read { path, source })?;
    Ok(Digest::of(&bytes).to_string())
}

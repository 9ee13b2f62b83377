//! Writes a token store document by document; it appears at its place when it is whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::header::Header;
use super::{DOCUMENTS_FILE, HEADER_FILE, StoreError, StoreSpec, TOKENS_FILE};
use crate::atomic_folder::AtomicFolder;
use crate::stable_hash::Digest;

/// Takes documents one by one; nothing is visible at its place before [`StoreWriter::finish`], and nothing stays
/// behind if it is dropped before. A process that is killed leaves a hidden folder that the next writer empties.
#[derive(Debug)]
pub struct StoreWriter {
    tokens: BufWriter<File>,
    documents: BufWriter<File>,
    header: Header,
    corpus: Digest,
    tokens_digest: Digest,
    folder: AtomicFolder,
}

impl StoreWriter {
    /// Starts a store that will stand at `dir`.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if something is at `dir`, [`StoreError::InUse`] if another process is writing there,
    /// [`StoreError::Vocabulary`] if a special token lies outside the vocabulary, [`StoreError::Io`].
    pub fn create(dir: &Path, spec: StoreSpec) -> Result<Self, StoreError> {
        spec.check_special_tokens()?;
        let (folder, tokens) = AtomicFolder::create(dir, TOKENS_FILE)?;
        let documents_path = folder.path(DOCUMENTS_FILE);
        let documents = File::create(&documents_path).map_err(StoreError::io(&documents_path))?;
        let mut writer = StoreWriter {
            tokens: BufWriter::with_capacity(1 << 18, tokens),
            documents: BufWriter::new(documents),
            header: Header::empty(spec),
            corpus: Digest::default(),
            tokens_digest: Digest::default(),
            folder,
        };
        writer.write_record()?;
        Ok(writer)
    }

    /// Appends one document: `tokens` is what the tokenizer made of `text`, without begin and end tokens.
    ///
    /// # Errors
    /// [`StoreError::Vocabulary`] if an id lies outside the vocabulary, [`StoreError::Io`] (a full disk, say).
    pub fn append(&mut self, id: &str, text: &str, tokens: &[u32]) -> Result<(), StoreError> {
        self.header.spec.check_vocabulary(tokens)?;
        let (begin, end) = (self.header.spec.begin, self.header.spec.end);
        let whole: Vec<u32> = begin.into_iter().chain(tokens.iter().copied()).chain([end]).collect();
        let bytes: Vec<u8> = match self.header.spec.token_bytes() {
            2 => whole.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect(),
            _ => whole.iter().flat_map(|&token| token.to_le_bytes()).collect(),
        };
        self.tokens.write_all(&bytes).map_err(StoreError::io(&self.folder.path(TOKENS_FILE)))?;
        add_tokens(&mut self.tokens_digest, &whole);
        self.corpus.add(id.as_bytes());
        self.corpus.add(text.as_bytes());
        self.header.documents += 1;
        self.header.tokens += whole.len();
        self.header.text_bytes += text.len() as u64;
        self.write_record()
    }

    /// Number of documents so far.
    pub fn len_documents(&self) -> usize {
        self.header.documents
    }

    /// Number of tokens so far, begin and end tokens included.
    pub fn len_tokens(&self) -> usize {
        self.header.tokens
    }

    /// Bytes of text so far.
    pub fn text_bytes(&self) -> u64 {
        self.header.text_bytes
    }

    /// Writes everything to the disk and moves the store to its place.
    ///
    /// # Errors
    /// [`StoreError::Empty`] if no document was appended, [`StoreError::Exists`] if someone else put something at
    /// the place meanwhile, [`StoreError::Io`]. Nothing is left behind in these cases.
    pub fn finish(mut self) -> Result<(), StoreError> {
        if self.header.documents == 0 {
            return Err(StoreError::Empty { dir: self.folder.dir().to_owned() });
        }
        self.header.corpus_digest = self.corpus.to_string();
        self.header.tokens_digest = self.tokens_digest.to_string();
        sync(&mut self.tokens, &self.folder.path(TOKENS_FILE))?;
        sync(&mut self.documents, &self.folder.path(DOCUMENTS_FILE))?;
        let path = self.folder.path(HEADER_FILE);
        let mut header = BufWriter::new(File::create(&path).map_err(StoreError::io(&path))?);
        serde_json::to_writer_pretty(&mut header, &self.header).map_err(|e| StoreError::io(&path)(e.into()))?;
        sync(&mut header, &path)?;
        self.folder.publish()
    }

    fn write_record(&mut self) -> Result<(), StoreError> {
        let record = [self.header.tokens as u64, self.header.text_bytes].map(u64::to_le_bytes).concat();
        self.documents.write_all(&record).map_err(StoreError::io(&self.folder.path(DOCUMENTS_FILE)))
    }
}

/// Adds ids to a digest in a form that does not depend on how wide they are stored.
pub(super) fn add_tokens(digest: &mut Digest, tokens: &[u32]) {
    tokens.iter().for_each(|token| digest.add_raw(&token.to_le_bytes()));
}

fn sync(writer: &mut BufWriter<File>, path: &Path) -> Result<(), StoreError> {
    writer.flush().map_err(StoreError::io(path))?;
    writer.get_ref().sync_all().map_err(StoreError::io(path))
}

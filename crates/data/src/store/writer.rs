//! Writes a token store to the side and renames it when it is whole, so that a process that is killed at any moment
//! leaves either the complete store or none.

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{DOCUMENTS_FILE, FORMAT_VERSION, HEADER_FILE, Header, StoreError, StoreSpec, TOKENS_FILE};
use crate::stable_hash::Digest;

/// Takes documents one by one; nothing is visible at its place before [`StoreWriter::finish`].
#[derive(Debug)]
pub struct StoreWriter {
    dir: PathBuf,
    /// Sibling folder that becomes `dir`. Emptied again if the writer is dropped unfinished.
    partial: PathBuf,
    finished: bool,
    tokens: BufWriter<File>,
    documents: BufWriter<File>,
    header: Header,
    corpus: Digest,
    tokens_digest: Digest,
}

impl StoreWriter {
    /// Starts a store that will stand at `dir`. What a killed writer of the same store left behind is removed.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if something is at `dir`, [`StoreError::InUse`] if another process is writing there,
    /// [`StoreError::Vocabulary`] if a special token lies outside the vocabulary, [`StoreError::Io`].
    pub fn create(dir: &Path, spec: StoreSpec) -> Result<Self, StoreError> {
        let special: Vec<u32> = spec.begin.into_iter().chain([spec.end]).collect();
        check_vocabulary(&spec, &special)?;
        if dir.exists() {
            return Err(StoreError::Exists { dir: dir.to_owned() });
        }
        let partial = partial_path(dir);
        fs::create_dir_all(&partial).map_err(StoreError::io(&partial))?;
        // The lock dies with its process, so a killed writer never blocks the next one.
        let tokens = create_locked(&partial.join(TOKENS_FILE), dir)?;
        let documents_path = partial.join(DOCUMENTS_FILE);
        let documents = File::create(&documents_path).map_err(StoreError::io(&documents_path))?;
        let header = Header {
            format_version: FORMAT_VERSION,
            documents: 0,
            tokens: 0,
            text_bytes: 0,
            corpus_digest: String::new(),
            tokens_digest: String::new(),
            spec,
        };
        let mut writer = StoreWriter {
            dir: dir.to_owned(),
            partial,
            finished: false,
            tokens: BufWriter::with_capacity(1 << 18, tokens),
            documents: BufWriter::new(documents),
            header,
            corpus: Digest::default(),
            tokens_digest: Digest::default(),
        };
        writer.write_record()?;
        Ok(writer)
    }

    /// Appends one document: `tokens` is what the tokenizer made of `text`, without begin and end tokens.
    ///
    /// # Errors
    /// [`StoreError::Vocabulary`] if an id lies outside the vocabulary, [`StoreError::Io`] (a full disk, say).
    pub fn append(&mut self, id: &str, text: &str, tokens: &[u32]) -> Result<(), StoreError> {
        check_vocabulary(&self.header.spec, tokens)?;
        let (begin, end) = (self.header.spec.begin, self.header.spec.end);
        let whole: Vec<u32> = begin.into_iter().chain(tokens.iter().copied()).chain([end]).collect();
        let bytes: Vec<u8> = match self.header.spec.token_bytes() {
            2 => whole.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect(),
            _ => whole.iter().flat_map(|&token| token.to_le_bytes()).collect(),
        };
        self.tokens.write_all(&bytes).map_err(StoreError::io(&self.partial.join(TOKENS_FILE)))?;
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

    /// Writes everything to the disk and moves the store to its place.
    ///
    /// # Errors
    /// [`StoreError::Empty`] if no document was appended, [`StoreError::Exists`] if someone else put something at
    /// the place meanwhile, [`StoreError::Io`]. Nothing is left behind in these cases.
    pub fn finish(mut self) -> Result<(), StoreError> {
        if self.header.documents == 0 {
            return Err(StoreError::Empty { dir: self.dir.clone() });
        }
        self.header.corpus_digest = self.corpus.to_string();
        self.header.tokens_digest = self.tokens_digest.to_string();
        sync(&mut self.tokens, &self.partial.join(TOKENS_FILE))?;
        sync(&mut self.documents, &self.partial.join(DOCUMENTS_FILE))?;
        let header_path = self.partial.join(HEADER_FILE);
        let header_file = File::create(&header_path).map_err(StoreError::io(&header_path))?;
        let mut header_writer = BufWriter::new(header_file);
        serde_json::to_writer_pretty(&mut header_writer, &self.header)
            .map_err(|source| StoreError::Header { path: header_path.clone(), source })?;
        sync(&mut header_writer, &header_path)?;
        if self.dir.exists() {
            return Err(StoreError::Exists { dir: self.dir.clone() });
        }
        fs::rename(&self.partial, &self.dir).map_err(StoreError::io(&self.dir))?;
        self.finished = true;
        sync_folder_of(&self.dir)
    }

    fn write_record(&mut self) -> Result<(), StoreError> {
        let record = [self.header.tokens as u64, self.header.text_bytes].map(u64::to_le_bytes).concat();
        self.documents.write_all(&record).map_err(StoreError::io(&self.partial.join(DOCUMENTS_FILE)))
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: whatever stays is removed by the next writer of this store.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Adds ids to a digest in a form that does not depend on how wide they are stored.
pub(super) fn add_tokens(digest: &mut Digest, tokens: &[u32]) {
    tokens.iter().for_each(|token| digest.add_raw(&token.to_le_bytes()));
}

fn check_vocabulary(spec: &StoreSpec, tokens: &[u32]) -> Result<(), StoreError> {
    match spec.first_outside(tokens) {
        None => Ok(()),
        Some(token) => Err(StoreError::Vocabulary { token, vocab_size: spec.vocab_size }),
    }
}

/// `corpus` is written as `.corpus.partial` beside it, on the same file system.
fn partial_path(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!(".{name}.partial"))
}

/// Creates a file that no other process may write, and empties it only when the lock is ours.
fn create_locked(path: &Path, dir: &Path) -> Result<File, StoreError> {
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(StoreError::io(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StoreError::InUse { dir: dir.to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(StoreError::io(path)(source)),
    }
    file.set_len(0).map_err(StoreError::io(path))?;
    Ok(file)
}

fn sync(writer: &mut BufWriter<File>, path: &Path) -> Result<(), StoreError> {
    writer.flush().map_err(StoreError::io(path))?;
    writer.get_ref().sync_all().map_err(StoreError::io(path))
}

/// A rename lasts only when the folder that holds the name is on the disk too.
#[cfg(unix)]
fn sync_folder_of(dir: &Path) -> Result<(), StoreError> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(StoreError::io(parent))
}

/// Other systems cannot open folders; they order the rename themselves.
#[cfg(not(unix))]
fn sync_folder_of(_dir: &Path) -> Result<(), StoreError> {
    Ok(())
}

//! Lists the files of a corpus: recursively, sorted by name in each folder, links followed, no folder twice.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::compressed::uncompressed_name;
use super::{CorpusError, CorpusOptions, Fault, SkipReason, Skipped};

/// A file to read.
pub(super) struct Source {
    /// Path below the corpus folder with `/` between names.
    pub id: String,
    pub path: PathBuf,
    pub format: Format,
}

/// What a file's name says about its inside.
pub(super) enum Format {
    Text,
    JsonLines,
    Parquet,
}

impl Format {
    fn of(name: &str) -> Self {
        match extension(name) {
            "jsonl" | "ndjson" => Format::JsonLines,
            "parquet" => Format::Parquet,
            _ => Format::Text,
        }
    }
}

/// Everything below `root`, or `root` itself if it is a file.
pub(super) fn list(root: &Path, options: &CorpusOptions, skipped: &mut Skipped) -> Result<Vec<Source>, CorpusError> {
    let metadata = fs::metadata(root).map_err(|source| CorpusError::Unreadable { path: root.to_owned(), source })?;
    let mut walk = Walk { options, skipped, seen: HashSet::new(), sources: Vec::new() };
    if metadata.is_dir() {
        // A root that cannot be listed is an error even when faults are skipped: nothing would be left.
        let names = names(root).map_err(|source| CorpusError::Unreadable { path: root.to_owned(), source })?;
        walk.seen.extend(fs::canonicalize(root));
        walk.folder(root, "", names)?;
    } else {
        let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The extension filter is about folders; who names a file wants that file.
        walk.sources.push(Source { format: Format::of(uncompressed_name(&name)), id: name, path: root.to_owned() });
    }
    Ok(walk.sources)
}

struct Walk<'a> {
    options: &'a CorpusOptions,
    skipped: &'a mut Skipped,
    /// Folders by their path without links: each is entered once, which also ends every loop.
    seen: HashSet<PathBuf>,
    sources: Vec<Source>,
}

/// What stands behind a name.
enum Entry {
    Folder(Vec<OsString>),
    FolderRepeated,
    File,
    Other,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, prefix: &str, names: Vec<OsString>) -> Result<(), CorpusError> {
        for name in names {
            let id = format!("{prefix}{}", name.to_string_lossy());
            if name.as_encoded_bytes().starts_with(b".") {
                self.skipped.add(SkipReason::Hidden, &id);
            } else {
                self.entry(folder.join(&name), id)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, id: String) -> Result<(), CorpusError> {
        match self.look(&path) {
            Ok(Entry::Folder(names)) => self.folder(&path, &format!("{id}/"), names)?,
            Ok(Entry::FolderRepeated) => self.skipped.add(SkipReason::FolderRepeated, &id),
            Ok(Entry::File) => self.file(path, id),
            Ok(Entry::Other) => self.skipped.add(SkipReason::NotAFile, &id),
            Err(source) => {
                let error = CorpusError::Unreadable { path, source };
                Fault::damage(SkipReason::Unreadable, id, error).resolve(self.options.faults, self.skipped)?;
            }
        }
        Ok(())
    }

    fn look(&mut self, path: &Path) -> io::Result<Entry> {
        let metadata = fs::metadata(path)?;
        if metadata.is_file() {
            Ok(Entry::File)
        } else if !metadata.is_dir() {
            Ok(Entry::Other)
        } else if self.seen.insert(fs::canonicalize(path)?) {
            Ok(Entry::Folder(names(path)?))
        } else {
            Ok(Entry::FolderRepeated)
        }
    }

    fn file(&mut self, path: PathBuf, id: String) {
        let name = uncompressed_name(&id);
        let wanted = &self.options.extensions;
        if wanted.is_empty() || wanted.iter().any(|w| w.trim_start_matches('.') == extension(name)) {
            self.sources.push(Source { format: Format::of(name), id, path });
        } else {
            self.skipped.add(SkipReason::Extension, &id);
        }
    }
}

/// The names in a folder, sorted by their bytes, since file systems list in an order of their own.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// `a/b.md` ends in `md`; a name without a dot ends in nothing.
fn extension(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.rsplit_once('.').map_or("", |(_, extension)| extension)
}

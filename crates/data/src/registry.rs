//! A corpus that is already on the disk: the Rust and Markdown sources of the packages that a Cargo.lock pins.
//!
//! Whoever has the same lock file gets the same bytes. Two things stand against that, and two rules answer them:
//!
//! - Cargo unpacks only what somebody's machine and command needed. So a package belongs to the corpus only if it is
//!   reached from the root package through dependencies that every build has: not below `[target.…]`, not for tests
//!   only, and in the workspace not optional. If one is not there nevertheless, it is listed in
//!   [`RegistryCorpus::missing`], and `cargo fetch` brings it.
//! - Tables and generated code teach little and would fill the corpus; copies would bring held-out text into the
//!   training set. So files above [`RegistryOptions::file_bytes_max`], files that call themselves generated in their
//!   first lines, all but the newest version of a package, and near copies (files of whose text more than half stands
//!   in lines of files before them: the same bindings for another processor, say) are left out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::corpus::{Document, SkipReason, Skipped};
use crate::stable_hash::{Digest, hash_64};

mod lock;

/// Which packages and files belong to the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryOptions {
    /// The package of the workspace whose dependencies are read (through other packages of the workspace too).
    pub root: String,
    /// The texts of the workspace's Cargo.toml and of the Cargo.toml of `root` and all its packages that `root`
    /// reaches: a lock file does not tell what only tests and optional features need.
    pub manifests: Vec<String>,
    /// Larger files (bytes) are tables rather than text.
    pub file_bytes_max: u64,
}

impl RegistryOptions {
    /// Above this, the files of real packages are tables.
    pub const FILE_BYTES_MAX: u64 = 256 << 10;
}

/// What a lock file's packages hold.
#[derive(Clone, Debug)]
pub struct RegistryCorpus {
    /// In the order of packages, and of sorted names in each folder. Ids are `NAME-VERSION/path`.
    pub documents: Vec<Document>,
    /// `NAME-VERSION` of the packages that were read.
    pub packages: Vec<String>,
    /// `NAME-VERSION` of those that were not found. If any is, other users' corpora may be larger; `cargo fetch`
    /// downloads them.
    pub missing: Vec<String>,
    /// What was left out of the packages that were read.
    pub skipped: Skipped,
    /// Digest of all ids and texts, equal for equal corpora: 32 hexadecimal digits.
    pub digest: String,
    /// Bytes of text in all documents.
    pub text_bytes: u64,
}

/// The packages of a lock file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum RegistryError {
    #[error("this is not a Cargo.lock: {0}")]
    Lock(toml::de::Error),
    #[error("this is not a Cargo.toml: {0}")]
    Manifest(toml::de::Error),
    #[error("the Cargo.toml of {member}, a package of the workspace, is not among the manifests: add it")]
    ManifestMissing { member: String },
    #[error("Cargo.lock has no package {root} of the workspace")]
    Root { root: String },
    #[error(
        "{folder} does not hold Cargo's unpacked packages: run `cargo fetch` in the repository, set CARGO_HOME, or name a folder with text as the corpus"
    )]
    NoRegistry { folder: PathBuf },
    #[error(
        "none of the {missing} packages of Cargo.lock is in {folder}: run `cargo fetch` in the repository, or name a folder with text as the corpus"
    )]
    Empty { folder: PathBuf, missing: usize },
    #[error("{path} cannot be read: {source}; remove the folder of this package and run `cargo fetch`")]
    Unreadable { path: PathBuf, source: io::Error },
}

/// Where Cargo unpacks packages: `registry/src` in `$CARGO_HOME`, or else in `~/.cargo`.
pub fn sources_folder() -> PathBuf {
    let home = || std::env::home_dir().unwrap_or_default().join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from).join("registry").join("src")
}

/// Reads the packages that `lock` (the text of a Cargo.lock) pins from `folder` ([`sources_folder`]).
///
/// # Errors
/// [`RegistryError`] if the lock cannot be understood, nothing is found, or a file that is there cannot be read.
pub fn read(lock: &str, folder: &Path, options: &RegistryOptions) -> Result<RegistryCorpus, RegistryError> {
    let index = index(folder)?;
    let needed = lock::needed(lock, options, &|package| index.get(package).map(PathBuf::as_path))?;
    let (packages, missing): (Vec<_>, Vec<_>) = needed.into_iter().partition(|package| index.contains_key(package));
    if packages.is_empty() {
        return Err(RegistryError::Empty { folder: folder.to_owned(), missing: missing.len() });
    }
    let mut reader = PackageReader {
        options,
        documents: Vec::new(),
        skipped: Skipped::default(),
        seen: HashSet::new(),
        lines: HashSet::new(),
    };
    for package in &packages {
        reader.folder(&index[package], package)?;
    }
    let PackageReader { documents, skipped, .. } = reader;
    let mut digest = Digest::default();
    for Document { id, text } in &documents {
        digest.add(id.as_bytes());
        digest.add(text.as_bytes());
    }
    let text_bytes = documents.iter().map(|document| document.text.len() as u64).sum();
    Ok(RegistryCorpus { documents, packages, missing, skipped, digest: digest.to_string(), text_bytes })
}

/// All unpacked packages by `NAME-VERSION`. `folder` has one folder per registry; the first in the order of names wins.
fn index(folder: &Path) -> Result<HashMap<String, PathBuf>, RegistryError> {
    let no_registry = |_| RegistryError::NoRegistry { folder: folder.to_owned() };
    let mut index = HashMap::new();
    for registry in entries(folder).map_err(no_registry)? {
        for package in entries(&registry).unwrap_or_default() {
            let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
            index.entry(name).or_insert(package);
        }
    }
    Ok(index)
}

/// The paths in a folder, sorted.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

struct PackageReader<'a> {
    options: &'a RegistryOptions,
    documents: Vec<Document>,
    skipped: Skipped,
    /// Digests of the contents met before; 128 bits do not collide by chance.
    seen: HashSet<u128>,
    /// Hashes of the lines met before. A collision moves one line's weight, no more.
    lines: HashSet<u64>,
}

impl PackageReader<'_> {
    fn folder(&mut self, folder: &Path, prefix: &str) -> Result<(), RegistryError> {
        let unreadable = |path: &Path, source| RegistryError::Unreadable { path: path.to_owned(), source };
        for path in entries(folder).map_err(|source| unreadable(folder, source))? {
            let id = format!("{prefix}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            // Packages hold no links; one that is there was put there later and is not followed.
            let metadata = fs::symlink_metadata(&path).map_err(|source| unreadable(&path, source))?;
            if metadata.is_dir() {
                self.folder(&path, &id)?;
            } else if metadata.is_file() && (id.ends_with(".rs") || id.ends_with(".md")) {
                if metadata.len() > self.options.file_bytes_max {
                    self.skipped.add(SkipReason::TooLarge, &id);
                } else {
                    let bytes = fs::read(&path).map_err(|source| unreadable(&path, source))?;
                    self.file(id, bytes);
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, id: String, bytes: Vec<u8>) {
        let Ok(text) = String::from_utf8(bytes) else {
            return self.skipped.add(SkipReason::NotUtf8, &id);
        };
        if text.trim().is_empty() {
            self.skipped.add(SkipReason::Empty, &id);
        } else if calls_itself_generated(&text) {
            self.skipped.add(SkipReason::Generated, &id);
        } else if !self.seen.insert(Digest::of(text.as_bytes()).value()) || self.is_near_copy(&text) {
            self.skipped.add(SkipReason::Repeated, &id);
        } else {
            self.documents.push(Document { id, text });
        }
    }
}

/// Shorter lines (braces, `use` of one name) say nothing about where a file comes from.
const TELLING_LINE_BYTES: usize = 12;

impl PackageReader<'_> {
    /// Whether more than half of the text, counted in telling lines, was read before; remembers its lines if not.
    fn is_near_copy(&mut self, text: &str) -> bool {
        let telling = || text.lines().map(str::trim).filter(|line| line.len() >= TELLING_LINE_BYTES);
        let bytes = |lines: &mut dyn Iterator<Item = &str>| lines.map(str::len).sum::<usize>();
        let known = bytes(&mut telling().filter(|line| self.lines.contains(&hash_64(line.as_bytes()))));
        let copy = 2 * known > bytes(&mut telling());
        if !copy {
            self.lines.extend(telling().map(|line| hash_64(line.as_bytes())));
        }
        copy
    }
}

/// Whether one of the first ten lines is the usual notice of a generator.
fn calls_itself_generated(text: &str) -> bool {
    const NOTICES: [&str; 6] =
        ["@generated", "automatically generated", "auto-generated", "autogenerated", "generated by", "do not edit"];
    text.lines().take(10).any(|line| {
        let line = line.to_ascii_lowercase();
        NOTICES.iter().any(|notice| line.contains(notice))
    })
}

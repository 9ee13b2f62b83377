//! A folder that appears whole or not at all: filled beside its place under another name, then renamed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// A folder being filled. Dropped unpublished, it is removed; if the process is killed, the next one that fills the
/// same folder empties it first.
#[derive(Debug)]
pub(crate) struct AtomicFolder {
    dir: PathBuf,
    partial: PathBuf,
    published: bool,
}

impl AtomicFolder {
    /// Starts the folder that will stand at `dir`, and opens its file `first` for writing.
    ///
    /// That file carries a lock as long as it is open, so that two processes cannot fill the same folder. The lock
    /// dies with its process: a killed one never blocks the next.
    pub fn create(dir: &Path, first: &str) -> Result<(Self, File), StoreError> {
        if dir.exists() {
            return Err(StoreError::Exists { dir: dir.to_owned() });
        }
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let partial = dir.with_file_name(format!(".{name}.partial"));
        fs::create_dir_all(&partial).map_err(StoreError::io(&partial))?;
        let path = partial.join(first);
        let io_error = |error| StoreError::io(&path)(error);
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io_error(error)),
        }
        // Only now, with the lock, is it certain that nobody needs what is here.
        file.set_len(0).map_err(io_error)?;
        let folder = AtomicFolder { dir: dir.to_owned(), partial, published: false };
        folder.remove_all_but(first).map_err(StoreError::io(&folder.partial))?;
        Ok((folder, file))
    }

    /// Where the folder will stand.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The place of a file or folder in it until then.
    pub fn path(&self, name: &str) -> PathBuf {
        self.partial.join(name)
    }

    /// Moves the folder to its place. Its files must be on the disk already.
    pub fn publish(mut self) -> Result<(), StoreError> {
        if self.dir.exists() {
            return Err(StoreError::Exists { dir: self.dir.clone() });
        }
        sync_names(&self.partial)?;
        fs::rename(&self.partial, &self.dir).map_err(StoreError::io(&self.dir))?;
        self.published = true;
        match self.dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_names(parent),
            _ => sync_names(Path::new(".")),
        }
    }

    fn remove_all_but(&self, first: &str) -> io::Result<()> {
        for entry in fs::read_dir(&self.partial)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else if entry.file_name() != first {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: whatever stays is removed by the next process that fills this folder.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Puts the names in a folder on the disk; syncing a file does not do that.
#[cfg(unix)]
fn sync_names(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io(folder))
}

/// Other systems cannot open folders; they order such writes themselves.
#[cfg(not(unix))]
fn sync_names(_folder: &Path) -> Result<(), StoreError> {
    Ok(())
}

//! A folder that appears under its name whole and durable, or not at all.
//!
//! Files are written into a hidden folder beside the target; [`PendingFolder::commit`] flushes them to the disk and
//! renames. Whatever happens before (an error, a full disk, a kill) leaves the target as it was.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A folder under construction; dropped before [`Self::commit`], it is removed.
#[derive(Debug)]
pub struct PendingFolder {
    target: PathBuf,
    hidden: PathBuf,
    files: Vec<File>,
    committed: bool,
}

impl PendingFolder {
    /// Starts a folder that will be called `target`. What an earlier, killed attempt at the same target left is
    /// removed. Missing parents are made.
    pub fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut hidden_name = std::ffi::OsString::from(Self::PREFIX);
        hidden_name.push(name);
        let hidden = target.with_file_name(hidden_name);
        if hidden.exists() {
            fs::remove_dir_all(&hidden)?;
        }
        fs::create_dir_all(&hidden)?;
        Ok(Self { target: target.to_path_buf(), hidden, files: Vec::new(), committed: false })
    }

    /// As [`Self::create`], and refuses at once if `target` is neither absent nor an empty folder.
    pub fn create_new(target: &Path) -> io::Result<Self> {
        if target.is_file() || fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is not an empty folder"));
        }
        Self::create(target)
    }

    /// How the names of folders under construction begin.
    pub const PREFIX: &'static str = ".tmp-";

    /// Where the folder is for now.
    pub fn path(&self) -> &Path {
        &self.hidden
    }

    /// Opens a new file in the folder for writing.
    pub fn file(&mut self, name: &str) -> io::Result<File> {
        let file = File::create(self.hidden.join(name))?;
        self.files.push(file.try_clone()?);
        Ok(file)
    }

    /// Writes a whole small file.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.file(name)?, bytes)
    }

    /// Makes everything durable and gives the folder its name; fails if something is there that is not an empty folder.
    pub fn commit(mut self) -> io::Result<()> {
        for file in self.files.drain(..) {
            file.sync_all()?;
        }
        sync_folder(&self.hidden)?;
        fs::rename(&self.hidden, &self.target)?;
        self.committed = true;
        match self.target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
            _ => sync_folder(Path::new(".")),
        }
    }
}

impl Drop for PendingFolder {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be reported from here, and the next attempt removes it as well.
            let _ = fs::remove_dir_all(&self.hidden);
        }
    }
}

/// A rename or a new name is durable only once its folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_folder_appears_with_all_its_files_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("weights");
        let mut abandoned = PendingFolder::create(&target).unwrap();
        abandoned.write("a", b"1").unwrap();
        assert_eq!(names(parent.path()), [".tmp-weights"]);
        drop(abandoned);
        assert!(names(parent.path()).is_empty());
        let mut pending = PendingFolder::create(&target).unwrap();
        pending.write("a", b"2").unwrap();
        pending.commit().unwrap();
        assert_eq!(names(parent.path()), ["weights"]);
        assert_eq!(fs::read(target.join("a")).unwrap(), b"2");
    }

    #[test]
    fn leavings_of_a_killed_attempt_are_replaced_and_a_full_target_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("weights");
        std::mem::forget(PendingFolder::create(&target).map(|mut pending| pending.write("old", b"1")));
        fs::create_dir(&target).unwrap();
        let mut pending = PendingFolder::create(&target).unwrap();
        pending.write("new", b"2").unwrap();
        pending.commit().unwrap();
        assert_eq!(names(&target), ["new"]);
        assert_eq!(PendingFolder::create_new(&target).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}

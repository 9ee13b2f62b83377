//! The run folder: the resolved recipe, metrics, checkpoints, samples and logs of one run, and who may write to it.
//!
//! Anyone may read a run at any time. Writing needs the [`RunLock`], which the system releases when its holder ends,
//! however it ends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::checkpoints::Checkpoints;

const RECIPE: &str = "recipe.toml";
const LOCK: &str = "run.lock";
const FOLDERS: [&str; 3] = ["checkpoints", "samples", "logs"];

/// A run on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

/// The right to write to a run; given back when dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// Why a run folder is refused.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another process writes to it.
    #[error("{path} is in use by {holder}; wait for it, stop it, or choose another folder", path = .path.display())]
    InUse {
        /// The run.
        path: PathBuf,
        /// Who holds the lock.
        holder: String,
    },
    /// A run was asked for, and this is none.
    #[error("{path} is not a run: {what}", path = .path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// A new run was asked for, and this is an old one.
    #[error("{path} already holds a run; resume it, or choose another folder", path = .path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A new run was asked for in a folder with other things in it.
    #[error("{path} holds {entry}, which is not part of a run; choose an empty or new folder", path = .path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// One of the other things.
        entry: String,
    },
    /// The system refused.
    #[error("cannot use {path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RunFolder {
    /// Makes a run in a new or empty folder, stores its resolved recipe, and takes the lock.
    pub fn create(path: &Path, recipe: &str) -> Result<(Self, RunLock), RunError> {
        let run = Self { path: path.to_path_buf() };
        run.refuse_foreign()?;
        for folder in FOLDERS {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).map_err(|source| RunError::Io { path: folder, source })?;
        }
        let lock = run.lock()?;
        // Only now is it certain that nobody else makes a run of it.
        if run.recipe().exists() {
            return Err(RunError::Exists { path: run.path });
        }
        run.write_recipe(recipe).map_err(|source| RunError::Io { path: run.recipe(), source })?;
        Ok((run, lock))
    }

    /// An existing run, for reading.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        let run = Self { path: path.to_path_buf() };
        let no_run = |what: &str| Err(RunError::NotARun { path: path.to_path_buf(), what: what.into() });
        if !path.is_dir() {
            return no_run("there is no such folder");
        }
        if !run.recipe().is_file() {
            return no_run("it has no recipe.toml");
        }
        Ok(run)
    }

    /// Takes the right to write, or says who has it.
    pub fn lock(&self) -> Result<RunLock, RunError> {
        let path = self.path.join(LOCK);
        let failed = |source| RunError::Io { path: path.clone(), source };
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunError::InUse { path: self.path.clone(), holder: describe_holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let rewrite = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        };
        rewrite(&mut file).map_err(failed)?;
        Ok(RunLock { _file: file })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The recipe as resolved when the run began.
    pub fn recipe(&self) -> PathBuf {
        self.path.join(RECIPE)
    }

    /// One JSON object per step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// States that the run can be resumed from.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.path.join("checkpoints"))
    }

    /// Texts that the model wrote.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// Logs of the processes that worked on it.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// What a killed creation left counts as empty.
    fn refuse_foreign(&self) -> Result<(), RunError> {
        let failed = |source| RunError::Io { path: self.path.clone(), source };
        if self.recipe().exists() {
            return Err(RunError::Exists { path: self.path.clone() });
        }
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let skeleton = FOLDERS.contains(&name.as_str())
                && fs::read_dir(entry.path()).is_ok_and(|mut inner| inner.next().is_none());
            if !skeleton && name != LOCK && name != format!("{RECIPE}.tmp") {
                return Err(RunError::Foreign { path: self.path.clone(), entry: name });
            }
        }
        Ok(())
    }

    /// A run is one from the moment its recipe is there, so the recipe appears whole.
    fn write_recipe(&self, recipe: &str) -> io::Result<()> {
        let beside = self.path.join(format!("{RECIPE}.tmp"));
        let mut file = File::create(&beside)?;
        file.write_all(recipe.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, self.recipe())?;
        File::open(&self.path)?.sync_all()
    }
}

fn describe_holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if !text.is_empty() => format!("process {text}"),
        _ => "another process".into(),
    }
}

//! The checkpoints of a run: saving the next one, finding the newest that is whole, and keeping only so many.
//!
//! Only the holder of the run's lock saves. A checkpoint is `step-` and eight digits; whatever begins with `.tmp-` is
//! unfinished, ignored by readers and swept away by the next save.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::pending_folder::PendingFolder;
use serde_json::Value;

use crate::snapshot::{Record, Snapshot, SnapshotError};

const NAME: &str = "step-";
/// A checkpoint that is being replaced by one of the same step stands aside under this name.
const ASIDE: &str = ".tmp-replaced-";

/// A folder of checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// The newest checkpoint that is whole, and why newer ones were passed over.
#[derive(Debug)]
pub struct Latest {
    /// Verified in full.
    pub snapshot: Snapshot,
    /// Newer ones that are damaged, newest first.
    pub skipped: Vec<SnapshotError>,
}

impl Checkpoints {
    /// The checkpoints in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Saves the state after `step`, durably, and removes all but the `keep` newest (`keep` is at least 1). Those of
    /// later steps go too: they are damaged, or of a continuation that this one replaces. If saving fails, the earlier
    /// checkpoints are as they were and nothing of the new one is left.
    pub fn save(
        &self,
        step: u64,
        records: Vec<Record<'_>>,
        state: &Value,
        keep: usize,
    ) -> Result<PathBuf, SnapshotError> {
        assert!(keep >= 1, "a run that keeps no checkpoint cannot be resumed");
        let path = self.path_of(step);
        self.save_pending(&path, |pending| Snapshot::write(pending, step, records, state))
            .map_err(|source| SnapshotError::Write { path: path.clone(), source })?;
        self.retain(step, keep).map_err(|source| SnapshotError::Write { path: path.clone(), source })?;
        Ok(path)
    }

    /// The newest checkpoint whose every checksum holds; `None` if there are no checkpoints at all.
    pub fn latest(&self) -> Result<Option<Latest>, SnapshotError> {
        let mut skipped = Vec::new();
        let steps = self.steps().map_err(|source| SnapshotError::Read { path: self.folder.clone(), source })?;
        for step in steps.iter().rev() {
            match self.open_verified(*step) {
                Ok(snapshot) => return Ok(Some(Latest { snapshot, skipped })),
                Err(reason) => skipped.push(reason),
            }
        }
        if skipped.is_empty() {
            return Ok(None);
        }
        let reasons = skipped.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Err(SnapshotError::NoneValid { path: self.folder.clone(), reasons })
    }

    /// One checkpoint, verified in full.
    pub fn open_verified(&self, step: u64) -> Result<Snapshot, SnapshotError> {
        let path = self.path_of(step);
        let snapshot = Snapshot::open(&path)?;
        if snapshot.step() != step {
            let what = format!("it was taken after step {}", snapshot.step());
            return Err(SnapshotError::Corrupt { path, what });
        }
        snapshot.verify()?;
        Ok(snapshot)
    }

    /// The steps of all checkpoints, rising; valid or not.
    pub fn steps(&self) -> io::Result<Vec<u64>> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Where the checkpoint of a step is or would be.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{NAME}{step:08}"))
    }

    fn save_pending(&self, path: &Path, fill: impl FnOnce(&mut PendingFolder) -> io::Result<()>) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.sweep()?;
        let mut pending = PendingFolder::create(path)?;
        fill(&mut pending)?;
        let aside = path.exists().then(|| self.aside_of(path));
        if let Some(aside) = &aside {
            fs::rename(path, aside)?;
        }
        pending.commit()?;
        aside.map_or(Ok(()), fs::remove_dir_all)
    }

    /// Removes what killed saves left; one that was set aside and never replaced gets its name back.
    fn sweep(&self) -> io::Result<()> {
        for name in self.names()? {
            let path = self.folder.join(&name);
            match name.strip_prefix(ASIDE) {
                Some(original) if !self.folder.join(original).exists() => fs::rename(path, self.folder.join(original))?,
                _ if name.starts_with(PendingFolder::PREFIX) => fs::remove_dir_all(path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn retain(&self, newest: u64, keep: usize) -> io::Result<()> {
        let steps = self.steps()?;
        let end = steps.partition_point(|&step| step <= newest);
        let kept = &steps[end.saturating_sub(keep)..end];
        for step in steps.iter().filter(|step| !kept.contains(step)) {
            // Renamed first: a kill in the middle of removing must not leave a half under a checkpoint's name.
            let path = self.path_of(*step);
            let doomed = path.with_file_name(format!("{}old-{step}", PendingFolder::PREFIX));
            fs::rename(&path, &doomed)?;
            fs::remove_dir_all(&doomed)?;
        }
        Ok(())
    }

    fn aside_of(&self, path: &Path) -> PathBuf {
        let name = path.file_name().expect("a checkpoint has a name").to_string_lossy();
        path.with_file_name(format!("{ASIDE}{name}"))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        match fs::read_dir(&self.folder) {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix(NAME)?.parse().ok()?;
    (name == format!("{NAME}{step:08}")).then_some(step)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::snapshot::TENSORS;
    use model::safetensors::Dtype;
    use serde_json::json;

    fn record(bytes: &[u8]) -> Vec<Record<'_>> {
        vec![Record::bytes("weight", Dtype::U8, &[bytes.len()], bytes)]
    }

    #[test]
    fn a_full_disk_leaves_the_last_checkpoint_untouched_and_no_remains() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        checkpoints.save(1, record(&[1; 9]), &json!({}), 3).unwrap();
        let large = vec![2; 3 << 20];
        let path = checkpoints.path_of(2);
        let full = checkpoints.save_pending(&path, |pending| {
            // Every write to this device fails as on a full disk.
            std::os::unix::fs::symlink("/dev/full", pending.path().join(TENSORS))?;
            Snapshot::write(pending, 2, record(&large), &json!({}))
        });
        let error = SnapshotError::Write { path, source: full.unwrap_err() }.to_string();
        assert!(error.contains("cannot write checkpoint") && error.contains("step-00000002"), "{error}");
        assert!(error.contains("free some space or keep fewer checkpoints"), "{error}");
        assert_eq!(checkpoints.names().unwrap(), ["step-00000001"]);
        assert_eq!(checkpoints.latest().unwrap().unwrap().snapshot.step(), 1);
    }

    #[test]
    fn one_set_aside_by_a_killed_save_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        let path = checkpoints.save(7, record(&[1; 9]), &json!({}), 3).unwrap();
        fs::rename(&path, checkpoints.aside_of(&path)).unwrap();
        fs::create_dir(folder.path().join(".tmp-step-00000007")).unwrap();
        checkpoints.save(8, record(&[2; 9]), &json!({}), 3).unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [7, 8]);
        assert!(checkpoints.open_verified(7).is_ok());
    }
}

//! One checkpoint: named tensors, a JSON document, and a manifest with the checksum of each.
//!
//! `tensors.safetensors` holds the tensors, `state.json` everything else (step, data cursor, random state, ...), and
//! `manifest.json` names, dtypes, shapes and XXH3 checksums. Tensors are written one at a time, so saving needs memory
//! for the largest only. What the tensors mean is the caller's business.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use model::pending_folder::PendingFolder;
use model::safetensors::{Dtype, Entry, SafeTensors, SafeTensorsError, View, Writer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tensor::{Device, Tensor};
use twox_hash::XxHash3_64;

pub(crate) const TENSORS: &str = "tensors.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;

/// A tensor to be saved. Its bytes are asked for when its turn comes.
pub struct Record<'a> {
    entry: Entry,
    bytes: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

/// A checkpoint on disk whose manifest, document and list of tensors have been checked.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    step: u64,
    state: Value,
    file: SafeTensors,
    checksums: BTreeMap<String, u64>,
}

/// Why a checkpoint cannot be written or is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Writing failed; earlier checkpoints are as they were, and nothing of this one is left.
    #[error("cannot write checkpoint {path}: {source}{advice}", path = .path.display(), advice = advice(source))]
    Write {
        /// The checkpoint.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is absent or unreadable.
    #[error("checkpoint is incomplete: cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The tensors' file is damaged.
    #[error("checkpoint is corrupt: {0}")]
    Container(#[from] SafeTensorsError),
    /// A file does not agree with the manifest.
    #[error("checkpoint {path} is corrupt: {what}", path = .path.display())]
    Corrupt {
        /// The checkpoint.
        path: PathBuf,
        /// What does not agree.
        what: String,
    },
    /// The reader wants a tensor that is not there, or is another.
    #[error("checkpoint {path} does not fit: tensor {tensor} {what}", path = .path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How it differs.
        what: String,
    },
    /// No checkpoint of a run can be used.
    #[error("no checkpoint in {path} is valid: {reasons}", path = .path.display())]
    NoneValid {
        /// The folder of checkpoints.
        path: PathBuf,
        /// Why each is refused.
        reasons: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    state_checksum: String,
    tensors: BTreeMap<String, ManifestTensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestTensor {
    dtype: String,
    shape: Vec<usize>,
    checksum: String,
}

impl<'a> Record<'a> {
    /// A tensor given as little-endian bytes.
    pub fn bytes(name: impl Into<String>, dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Self {
        let entry = Entry { name: name.into(), dtype, shape: shape.to_vec() };
        assert_eq!(entry.bytes(), bytes.len(), "{} of {dtype:?} {shape:?} was given in other bytes", entry.name);
        Self { entry, bytes: Box::new(move || Cow::Borrowed(bytes)) }
    }

    /// A tensor; it is copied to host bytes only while it is written.
    pub fn tensor(name: impl Into<String>, tensor: Tensor) -> Self {
        let entry = Entry { name: name.into(), dtype: tensor.dtype().into(), shape: tensor.shape().to_vec() };
        Self { entry, bytes: Box::new(move || Cow::Owned(tensor.to_bytes())) }
    }
}

impl Snapshot {
    /// Fills a pending folder with a checkpoint. Panics if two records have one name.
    pub(crate) fn write(
        pending: &mut PendingFolder,
        step: u64,
        mut records: Vec<Record<'_>>,
        state: &Value,
    ) -> io::Result<()> {
        records.sort_by(|a, b| {
            let key = |record: &Record<'_>| Reverse(record.entry.dtype.size());
            key(a).cmp(&key(b)).then_with(|| a.entry.name.cmp(&b.entry.name))
        });
        let entries: Vec<Entry> = records.iter().map(|record| record.entry.clone()).collect();
        let out = BufWriter::with_capacity(1 << 20, pending.file(TENSORS)?);
        let mut writer = Writer::new(out, &entries, &BTreeMap::new())?;
        let mut tensors = BTreeMap::new();
        for Record { entry, bytes } in records {
            let bytes = bytes();
            writer.write(&bytes)?;
            let checksum = render(XxHash3_64::oneshot(&bytes));
            let described = ManifestTensor { dtype: entry.dtype.name().into(), shape: entry.shape, checksum };
            tensors.insert(entry.name, described);
        }
        writer.finish()?;
        let state = serde_json::to_vec(state)?;
        pending.write(STATE, &state)?;
        let state_checksum = render(XxHash3_64::oneshot(&state));
        let manifest = Manifest { format: FORMAT, step, state_checksum, tensors };
        pending.write(MANIFEST, &serde_json::to_vec_pretty(&manifest)?)
    }

    /// Opens a checkpoint and checks everything but the tensors' contents, which [`Self::verify`] and every read check.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let corrupt = |what: String| SnapshotError::Corrupt { path: path.into(), what };
        let read = |name: &str| {
            let path = path.join(name);
            std::fs::read(&path).map_err(|source| SnapshotError::Read { path, source })
        };
        let manifest: Manifest = serde_json::from_slice(&read(MANIFEST)?)
            .map_err(|error| corrupt(format!("{MANIFEST} does not parse: {error}")))?;
        if manifest.format != FORMAT {
            return Err(corrupt(format!("its format is {}, this program reads {FORMAT}", manifest.format)));
        }
        let state = read(STATE)?;
        if render(XxHash3_64::oneshot(&state)) != manifest.state_checksum {
            return Err(corrupt(format!("{STATE} does not have its checksum")));
        }
        let state =
            serde_json::from_slice(&state).map_err(|error| corrupt(format!("{STATE} does not parse: {error}")))?;
        let file = SafeTensors::open(&path.join(TENSORS))?;
        let checksums = agree(&file, manifest.tensors).map_err(corrupt)?;
        Ok(Self { path: path.into(), step: manifest.step, state, file, checksums })
    }

    /// Compares every tensor with its checksum.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.file.views().try_for_each(|view| self.verify_one(view))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The step after which it was taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The document that was saved with the tensors.
    pub fn state(&self) -> &Value {
        &self.state
    }

    /// All tensors, sorted by name; unverified.
    pub fn views(&self) -> impl ExactSizeIterator<Item = View<'_>> {
        self.file.views()
    }

    /// A tensor's bytes, if it has this dtype, this shape and its checksum.
    pub fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], SnapshotError> {
        let mismatch = |what| Err(SnapshotError::Mismatch { path: self.path.clone(), tensor: name.into(), what });
        let Some(view) = self.file.get(name) else { return mismatch("is not in it".into()) };
        if (view.dtype, view.shape) != (dtype, shape) {
            let (has, wanted) = (view.dtype.name(), dtype.name());
            return mismatch(format!("is {has} {:?}, but {wanted} {shape:?} is wanted", view.shape));
        }
        self.verify_one(view)?;
        Ok(view.bytes)
    }

    /// A tensor by name with the given dtype and shape.
    pub fn tensor(
        &self,
        name: &str,
        device: Device,
        dtype: tensor::DType,
        shape: &[usize],
    ) -> Result<Tensor, SnapshotError> {
        let bytes = self.bytes(name, dtype.into(), shape)?;
        Ok(Tensor::from_bytes(device, dtype, shape, bytes))
    }

    fn verify_one(&self, view: View<'_>) -> Result<(), SnapshotError> {
        if XxHash3_64::oneshot(view.bytes) != self.checksums[view.name] {
            let what = format!("tensor {} does not have its checksum", view.name);
            return Err(SnapshotError::Corrupt { path: self.path.clone(), what });
        }
        Ok(())
    }
}

/// Checks that file and manifest list the same tensors, and parses the checksums.
fn agree(file: &SafeTensors, manifest: BTreeMap<String, ManifestTensor>) -> Result<BTreeMap<String, u64>, String> {
    if let Some(view) = file.views().find(|view| !manifest.contains_key(view.name)) {
        return Err(format!("tensor {} is not in {MANIFEST}", view.name));
    }
    let mut checksums = BTreeMap::new();
    for (name, described) in manifest {
        let view = file.get(&name).ok_or_else(|| format!("tensor {name} is not in {TENSORS}"))?;
        if view.dtype.name() != described.dtype || view.shape != described.shape {
            let (dtype, shape) = (view.dtype.name(), view.shape);
            return Err(format!("tensor {name} is {dtype} {shape:?}, but {MANIFEST} says otherwise"));
        }
        let checksum = u64::from_str_radix(&described.checksum, 16);
        let checksum = checksum.map_err(|_| format!("the checksum of tensor {name} is no hexadecimal number"))?;
        checksums.insert(name, checksum);
    }
    Ok(checksums)
}

fn render(checksum: u64) -> String {
    format!("{checksum:016x}")
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space or keep fewer checkpoints (earlier ones are untouched)"
        }
        _ => "",
    }
}

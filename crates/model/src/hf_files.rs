//! Which safetensors files make up an HF folder: a single one, or the shards that its index names.
//!
//! The index is as little trusted as the files: it may only name files directly inside the folder, and what it says
//! must agree with what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::hf::WeightsError;
use crate::safetensors::SafeTensors;

/// The file of a model that was not divided.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// The index of a model that was.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Far above the index of 10^5 tensors.
const INDEX_BYTES_MAX: u64 = 1 << 28;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Maps the files of a folder, and says which choice was made if there was one.
pub(crate) fn open_files(folder: &Path) -> Result<(Vec<SafeTensors>, Vec<String>), WeightsError> {
    let (single, index) = (folder.join(SINGLE_FILE), folder.join(INDEX_FILE));
    match (single.exists(), index.exists()) {
        (true, has_index) => {
            // transformers prefers the single file as well.
            let note = format!("{INDEX_FILE} is ignored, because {SINGLE_FILE} is there too");
            Ok((vec![SafeTensors::open(&single)?], Vec::from_iter(has_index.then_some(note))))
        }
        (false, true) => Ok((open_shards(folder, &index)?, Vec::new())),
        (false, false) => Err(WeightsError::Folder { path: folder.into(), what: describe_absence(folder) }),
    }
}

fn open_shards(folder: &Path, path: &Path) -> Result<Vec<SafeTensors>, WeightsError> {
    let map = read_index(path)?;
    let wrong = |what| WeightsError::Folder { path: path.into(), what };
    let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
    let mut files = BTreeMap::new();
    for name in names {
        if !is_plain_name(name) {
            return Err(wrong(format!("names the file {name:?}; only .safetensors files beside it are allowed")));
        }
        if !folder.join(name).is_file() {
            return Err(wrong(format!("names the file {name}, which is not in the folder")));
        }
        files.insert(name, SafeTensors::open(&folder.join(name))?);
    }
    for (tensor, name) in &map {
        if files[name.as_str()].get(tensor).is_none() {
            return Err(wrong(format!("places tensor {tensor} in {name}, which does not have it")));
        }
    }
    Ok(files.into_values().collect())
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let unreadable = |source| WeightsError::Read { path: path.into(), source };
    let wrong = |what| WeightsError::Folder { path: path.into(), what };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > INDEX_BYTES_MAX {
        return Err(wrong(format!("has {bytes} bytes, above the limit of {INDEX_BYTES_MAX}")));
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| wrong(format!("is no index: {error}")))?;
    Ok(index.weight_map)
}

/// A name without any way out of the folder.
fn is_plain_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

fn describe_absence(folder: &Path) -> String {
    if !folder.is_dir() {
        return "is not a folder".into();
    }
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists());
    if pickled {
        return "holds pickled weights only; save the model again as safetensors (safe_serialization=True)".into();
    }
    format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}")
}

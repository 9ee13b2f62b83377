//! Checkpoints: what is saved is loaded bit for bit, and every damaged byte is noticed and named.

use std::fs;
use std::path::Path;

use chogori_checkpoint::{Checkpoints, Record, SnapshotError};
use model::safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;
use tensor::{DType, Device, Tensor};

fn tensors() -> [(&'static str, Tensor); 4] {
    let device = Device::reference();
    [
        ("moment", Tensor::from_f64(device, DType::F64, &[2], &[1.0 / 3.0, -0.0])),
        ("weight", Tensor::from_f64(device, DType::F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 1e-30])),
        ("half", Tensor::from_f64(device, DType::Bf16, &[3], &[0.5, 1.5, f64::INFINITY])),
        ("ids", Tensor::from_slice(device, &[2], &[7u32, u32::MAX])),
    ]
}

fn state() -> Value {
    json!({"step": 12, "loss": 1.0 / 3.0, "small": 1e-310, "cursor": {"shard": 3, "token": u64::MAX}})
}

fn save(checkpoints: &Checkpoints, step: u64, keep: usize) {
    let mut records: Vec<Record> = tensors().into_iter().map(|(name, tensor)| Record::tensor(name, tensor)).collect();
    records.push(Record::bytes("random", Dtype::U8, &[5], b"state"));
    checkpoints.save(step, records, &state(), keep).unwrap();
}

fn saved(steps: &[u64]) -> (TempDir, Checkpoints) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path().join("checkpoints"));
    steps.iter().for_each(|&step| save(&checkpoints, step, 9));
    (folder, checkpoints)
}

#[test]
fn everything_comes_back_bit_for_bit() {
    let (_folder, checkpoints) = saved(&[12]);
    let latest = checkpoints.latest().unwrap().unwrap();
    assert!(latest.skipped.is_empty());
    let snapshot = latest.snapshot;
    assert_eq!((snapshot.step(), snapshot.state(), snapshot.views().len()), (12, &state(), 5));
    for (name, expected) in tensors() {
        let read = snapshot.tensor(name, Device::reference(), expected.dtype(), expected.shape()).unwrap();
        assert_eq!(read.to_bytes(), expected.to_bytes(), "{name}");
    }
    assert_eq!(snapshot.bytes("random", Dtype::U8, &[5]).unwrap(), b"state");
}

#[test]
fn a_tensor_that_is_another_is_refused_by_name() {
    let (_folder, checkpoints) = saved(&[12]);
    let snapshot = checkpoints.latest().unwrap().unwrap().snapshot;
    let refused = |name: &str, dtype, shape: &[usize], expected: &str| {
        let error = snapshot.bytes(name, dtype, shape).unwrap_err();
        assert!(matches!(error, SnapshotError::Mismatch { .. }));
        assert!(error.to_string().ends_with(expected), "{error}");
    };
    refused("weight", Dtype::F32, &[3, 2], "tensor weight is F32 [2, 3], but F32 [3, 2] is wanted");
    refused("weight", Dtype::Bf16, &[2, 3], "tensor weight is F32 [2, 3], but BF16 [2, 3] is wanted");
    refused("bias", Dtype::F32, &[3], "tensor bias is not in it");
}

#[test]
fn an_empty_folder_has_no_latest_and_only_the_newest_are_kept() {
    let (_folder, checkpoints) = saved(&[]);
    assert!(checkpoints.latest().unwrap().is_none());
    for step in [5, 10, 100_000_000, 15] {
        save(&checkpoints, step, 2);
    }
    assert_eq!(checkpoints.steps().unwrap(), [10, 15], "a later step belongs to a continuation that was replaced");
    save(&checkpoints, 15, 1);
    assert_eq!(checkpoints.steps().unwrap(), [15]);
    assert!(checkpoints.open_verified(15).is_ok());
}

#[test]
fn any_damaged_byte_is_noticed_and_a_damaged_tensor_named() {
    for file in ["tensors.safetensors", "state.json", "manifest.json"] {
        let (_folder, checkpoints) = saved(&[1, 2]);
        let path = checkpoints.path_of(2).join(file);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            fs::write(&path, &bad).unwrap();
            let latest = checkpoints.latest().unwrap().unwrap();
            let harmless = latest.snapshot.step() == 2 && same_content(&checkpoints);
            assert!(latest.snapshot.step() == 1 || harmless, "{file}: byte {at} of {} went unnoticed", good.len());
        }
    }
    let (_folder, checkpoints) = saved(&[1, 2]);
    let path = checkpoints.path_of(2).join("tensors.safetensors");
    flip_last_byte_of(&path, b"state");
    let skipped = checkpoints.latest().unwrap().unwrap().skipped;
    assert!(skipped[0].to_string().ends_with("tensor random does not have its checksum"), "{}", skipped[0]);
}

/// White space in JSON may change without harm.
fn same_content(checkpoints: &Checkpoints) -> bool {
    let (one, two) = (checkpoints.open_verified(1).unwrap(), checkpoints.open_verified(2).unwrap());
    one.state() == two.state() && one.views().eq(two.views())
}

fn flip_last_byte_of(path: &Path, needle: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(needle.len()).rposition(|window| window == needle).unwrap();
    bytes[at + needle.len() - 1] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_truncated_or_incomplete_checkpoint_falls_back_with_the_reason() {
    let damage = |expected: &str, act: &dyn Fn(&Path)| {
        let (_folder, checkpoints) = saved(&[1, 2]);
        act(&checkpoints.path_of(2));
        let latest = checkpoints.latest().unwrap().unwrap();
        assert_eq!(latest.snapshot.step(), 1);
        let reason = latest.skipped[0].to_string();
        assert!(reason.contains("step-00000002") && reason.contains(expected), "{reason}");
    };
    let shorten = |path: &Path, bytes: u64| {
        let file = fs::File::options().write(true).open(path.join("tensors.safetensors")).unwrap();
        assert!(bytes < file.metadata().unwrap().len());
        file.set_len(bytes).unwrap();
    };
    let length = |path: &Path| fs::metadata(path.join("tensors.safetensors")).unwrap().len();
    damage("(truncated?)", &|path| shorten(path, length(path) - 1));
    damage("(truncated?)", &|path| shorten(path, 100));
    damage("fewer than the 8", &|path| shorten(path, 0));
    damage("manifest.json", &|path| fs::remove_file(path.join("manifest.json")).unwrap());
    damage("checkpoint is incomplete: cannot read", &|path| fs::remove_file(path.join("state.json")).unwrap());
    damage("manifest.json does not parse", &|path| fs::write(path.join("manifest.json"), "{").unwrap());
    damage("it was taken after step 1", &|path| {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir(path).unwrap();
        for file in ["manifest.json", "state.json", "tensors.safetensors"] {
            fs::copy(path.with_file_name("step-00000001").join(file), path.join(file)).unwrap();
        }
    });
}

#[test]
fn when_none_is_valid_every_reason_is_given() {
    let (_folder, checkpoints) = saved(&[1, 2]);
    for step in [1, 2] {
        fs::remove_file(checkpoints.path_of(step).join("manifest.json")).unwrap();
    }
    let error = checkpoints.latest().unwrap_err().to_string();
    assert!(error.contains("step-00000001") && error.contains("step-00000002"), "{error}");
    // The next save starts anew, and a damaged later one does not outlive it.
    save(&checkpoints, 1, 1);
    assert_eq!(checkpoints.latest().unwrap().unwrap().snapshot.step(), 1);
    assert_eq!(checkpoints.steps().unwrap(), [1]);
}

#[test]
fn unfinished_folders_and_strangers_are_ignored_and_unfinished_ones_swept_away() {
    let (folder, checkpoints) = saved(&[3]);
    let inside = folder.path().join("checkpoints");
    for name in [".tmp-step-00000004", ".tmp-old-1", "step-4", "step-000000005", "step-x", "notes"] {
        fs::create_dir(inside.join(name)).unwrap();
    }
    fs::copy(checkpoints.path_of(3).join("state.json"), inside.join(".tmp-step-00000004/state.json")).unwrap();
    let latest = checkpoints.latest().unwrap().unwrap();
    assert_eq!((latest.snapshot.step(), latest.skipped.len()), (3, 0));
    save(&checkpoints, 5, 9);
    assert_eq!(checkpoints.steps().unwrap(), [3, 5]);
    assert!(!inside.join(".tmp-step-00000004").exists() && !inside.join(".tmp-old-1").exists());
    assert!(inside.join("notes").exists());
}

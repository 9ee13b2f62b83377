//! SIGKILL at any moment of saving: whatever is left, the newest valid checkpoint is the last one announced, or later.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use chogori_checkpoint::{Checkpoints, Record};
use model::safetensors::Dtype;
use serde_json::json;

const FOLDER: &str = "CHOGORI_TEST_SAVE_INTO";

/// Content that depends on the step, so that a mixture of two checkpoints would show.
fn content(step: u64) -> Vec<u8> {
    (0..200_000u64).map(|at| (at * 31 + step * 7) as u8).collect()
}

fn save_forever(folder: PathBuf) -> ! {
    let checkpoints = Checkpoints::new(folder);
    for step in 1.. {
        // Every third step is saved a second time, which replaces a checkpoint.
        for _ in 0..1 + u64::from(step % 3 == 0) {
            let bytes = content(step);
            let records = vec![Record::bytes("weight", Dtype::U8, &[bytes.len()], &bytes)];
            checkpoints.save(step, records, &json!({ "step": step }), 2).unwrap();
        }
        eprintln!("saved {step}");
    }
    unreachable!("there is always a next step")
}

#[test]
fn a_killed_save_never_costs_a_finished_one() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        save_forever(folder.into());
    }
    for (round, patience) in [1, 4, 7, 10].into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_save_never_costs_a_finished_one", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut announced = 0;
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            if let Some(step) = line.unwrap().strip_prefix("saved ") {
                announced = step.parse().unwrap();
            }
            if announced == patience {
                // A busy wait of another length each round lands in another part of the next save.
                let sum: usize = (0..round * 300_000).map(std::hint::black_box).sum();
                assert!(sum < usize::MAX);
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
        let latest = Checkpoints::new(folder.path()).latest().unwrap().unwrap();
        let step = latest.snapshot.step();
        assert!(latest.skipped.is_empty() && step >= announced, "{announced} was announced, {step} is left");
        let bytes = latest.snapshot.bytes("weight", Dtype::U8, &[200_000]).unwrap();
        assert_eq!(bytes, content(step));
        assert_eq!(latest.snapshot.state()["step"], step);
    }
}

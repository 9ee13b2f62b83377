//! Laws of a run's metrics: whatever is killed and resumed, the file is one series without gaps or repeats.

use std::path::Path;

use chogori_train::metrics::{self, MetricsWriter, Record};
use serde_json::{Value, json};

fn record(step: u64) -> Record {
    let record = json!({
        "step": step,
        "loss": metrics::number(3.0 / step as f32),
        "max_logits": [[1.5, 2.5], [3.5, null]],
        "seconds": step as f64 * 0.5,
    });
    record.as_object().unwrap().clone()
}

fn write_steps(run: &Path, resume: Option<u64>, steps: std::ops::RangeInclusive<u64>) {
    let mut writer = MetricsWriter::open(run, resume).unwrap();
    steps.for_each(|step| writer.write(&record(step)).unwrap());
    writer.sync().unwrap();
}

fn steps(run: &Path) -> Vec<u64> {
    let records = metrics::read(run).unwrap();
    records.map(|record| record.unwrap()["step"].as_u64().unwrap()).collect()
}

fn files(run: &Path) -> (Vec<u8>, Vec<u8>) {
    let lines = std::fs::read(run.join("metrics.jsonl")).unwrap();
    let events = std::fs::read(run.join("logs/events.out.tfevents.0.chogori")).unwrap();
    (lines, events)
}

#[test]
fn a_killed_and_resumed_run_leaves_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    write_steps(whole.path(), None, 1..=9);
    let expected = files(whole.path());

    let bytes = expected.0.len();
    for torn_at in [bytes, bytes - 1, bytes - 40, bytes / 2, 1] {
        let run = tempfile::tempdir().unwrap();
        write_steps(run.path(), None, 1..=9);
        let file = std::fs::OpenOptions::new().write(true).open(run.path().join("metrics.jsonl")).unwrap();
        file.set_len(torn_at as u64).unwrap();
        // Resume from a checkpoint that lies before the cut.
        let checkpoint = steps(run.path()).len().saturating_sub(2) as u64;
        write_steps(run.path(), Some(checkpoint), checkpoint + 1..=9);
        assert!(files(run.path()) == expected, "torn at byte {torn_at}");
    }
}

#[test]
fn a_new_run_drops_what_was_there() {
    let run = tempfile::tempdir().unwrap();
    write_steps(run.path(), None, 0..=3);
    write_steps(run.path(), None, 0..=1);
    assert_eq!(steps(run.path()), [0, 1]);
    write_steps(run.path(), Some(0), 1..=2);
    assert_eq!(steps(run.path()), [0, 1, 2]);
}

#[test]
fn a_corrupt_line_in_the_middle_is_named() {
    let run = tempfile::tempdir().unwrap();
    let path = run.path().join("metrics.jsonl");
    let check = |text: &str, expected: &str| {
        std::fs::write(&path, text).unwrap();
        let result: Result<Vec<Record>, _> = metrics::read(run.path()).unwrap().collect();
        match result {
            Ok(records) => assert_eq!(records.len().to_string(), expected),
            Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        }
    };
    check("{\"step\":1}\n{\"st\n{\"step\":3}\n", "line 2");
    check("{\"step\":1}\n{\"loss\":2}\n{\"step\":3}\n", "line 2: has no step");
    check("{\"step\":1}\n\0\0\0\n", "1");
    check("{\"step\":1}\n{\"step\":2}", "1");
    check("", "0");
}

#[test]
#[should_panic(expected = "metrics of step 4 behind those of step 5")]
fn steps_never_go_back() {
    let run = tempfile::tempdir().unwrap();
    write_steps(run.path(), None, 5..=5);
    write_steps(run.path(), Some(5), 4..=4);
}

#[test]
fn numbers_have_the_digits_that_name_them() {
    assert_eq!(metrics::number(0.1).to_string(), "0.1");
    assert_eq!(metrics::number(f32::NAN), Value::Null);
    for value in [1.0e-30_f32, 16_777_217.0, f32::MAX, f32::MIN_POSITIVE, 2.0 / 3.0] {
        assert_eq!(metrics::number(value).as_f64().unwrap() as f32, value);
    }
}

//! Run folders: what they are, who may write to them, and which folders are refused.

use std::fs;

use chogori_checkpoint::{RunError, RunFolder};

#[test]
fn a_run_is_created_opened_and_not_created_again() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("runs/first");
    let (run, lock) = RunFolder::create(&path, "steps = 3\n").unwrap();
    assert_eq!(fs::read_to_string(run.recipe()).unwrap(), "steps = 3\n");
    assert!(run.samples().is_dir() && run.logs().is_dir() && path.join("checkpoints").is_dir());
    assert_eq!(run.metrics(), path.join("metrics.jsonl"));
    assert_eq!(RunFolder::open(&path).unwrap(), run);
    drop(lock);
    let error = RunFolder::create(&path, "steps = 4\n").unwrap_err().to_string();
    assert!(error.ends_with("already holds a run; resume it, or choose another folder"), "{error}");
    assert_eq!(fs::read_to_string(run.recipe()).unwrap(), "steps = 3\n");
}

#[test]
fn a_run_in_use_is_refused_with_the_holder_until_it_is_given_back() {
    let parent = tempfile::tempdir().unwrap();
    let (run, lock) = RunFolder::create(&parent.path().join("run"), "").unwrap();
    let error = run.lock().unwrap_err();
    assert!(matches!(error, RunError::InUse { .. }));
    let expected = format!("run is in use by process {}; wait for it, stop it, or choose", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
    assert!(RunFolder::open(run.path()).is_ok(), "reading needs no lock");
    drop(lock);
    let again = run.lock().unwrap();
    assert!(run.lock().is_err());
    drop(again);
}

#[test]
fn foreign_folders_are_refused_and_a_killed_creation_is_not_foreign() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("run");
    fs::create_dir_all(path.join("logs")).unwrap();
    fs::write(path.join("run.lock"), "1").unwrap();
    fs::write(path.join("recipe.toml.tmp"), "ste").unwrap();
    fs::write(path.join("thesis.tex"), "").unwrap();
    let error = RunFolder::create(&path, "").unwrap_err().to_string();
    assert!(error.contains("holds thesis.tex, which is not part of a run"), "{error}");
    assert!(!path.join("checkpoints").exists(), "a refused folder stays as it is");
    fs::remove_file(path.join("thesis.tex")).unwrap();
    fs::write(path.join("logs/old.log"), "").unwrap();
    assert!(RunFolder::create(&path, "").unwrap_err().to_string().contains("holds logs"));
    fs::remove_file(path.join("logs/old.log")).unwrap();
    RunFolder::create(&path, "").unwrap();
}

#[test]
fn what_is_no_run_says_why() {
    let parent = tempfile::tempdir().unwrap();
    let error = |path: &std::path::Path| RunFolder::open(path).unwrap_err().to_string();
    assert!(error(&parent.path().join("gone")).ends_with("gone is not a run: there is no such folder"));
    assert!(error(parent.path()).ends_with("is not a run: it has no recipe.toml"));
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(RunFolder::create(&file, "").unwrap_err().to_string().contains("cannot use"));
}

//! SIGKILL at any moment: a run that is killed again and again, and resumed, is the run that was never killed. The
//! same final weights and moments, the same line for every step, to the last bit.
#![cfg(unix)]

mod support;
#[path = "support/tiny_run.rs"]
mod tiny_run;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use checkpoint::RunFolder;
use chogori_train::{HeldOut, Observer, Progress, Run, Trainer, metrics};
use serde_json::Value;
use support::seeded;
use tiny_run::{prepared, recipe};

const TEST: &str = "a_killed_run_is_the_run_that_was_never_killed";
const FOLDER: &str = "CHOGORI_TEST_RUN";
const THREADS: &str = "CHOGORI_TEST_THREADS";
const STEPS: u64 = 30;

/// The parent listens to this on the child's standard error.
struct Teller;

impl Observer for Teller {
    fn started(&mut self, trainer: &Trainer) {
        eprintln!("started {}", trainer.step);
    }

    fn step(&mut self, trainer: &Trainer, _progress: &Progress) {
        eprintln!("step {}", trainer.step);
    }

    fn evaluated(&mut self, step: u64, _evaluation: &HeldOut) {
        eprintln!("evaluated {step}");
    }

    fn saved(&mut self, step: u64) {
        eprintln!("saved {step}");
    }
}

/// What `pretrain` does: makes the run folder or resumes what is there.
fn go_on(folder: &Path) {
    let threads = std::env::var(THREADS).unwrap();
    let recipe = recipe(&[format!("compute.threads={threads}"), format!("run.steps={STEPS}")]);
    let (folder, _lock, resume) = match RunFolder::open(folder) {
        Ok(folder) => {
            let lock = folder.lock().unwrap();
            (folder, lock, true)
        }
        Err(_) => {
            let (folder, lock) = RunFolder::create(folder, "").unwrap();
            (folder, lock, false)
        }
    };
    let data = prepared(&recipe, &folder.path().join("data")).unwrap();
    let mut run = Run::new(&recipe, &folder, &data, resume, &mut Teller).unwrap();
    run.train(&AtomicBool::new(false), &mut Teller).unwrap();
}

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Process {
    fn start(folder: &Path, threads: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(FOLDER, folder)
            .env(THREADS, threads.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next; `None` at its end.
    fn next_line(&mut self) -> Option<String> {
        self.lines.next().map(Result::unwrap)
    }

    fn finish(mut self) {
        let rest: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        assert!(self.child.wait().unwrap().success(), "{}", rest.join("\n"));
    }

    /// Whether it was still there to be killed.
    fn kill(mut self) -> bool {
        self.child.kill().unwrap();
        !self.child.wait().unwrap().success()
    }
}

/// Kills at pseudo-random moments, some before the first step and most around a save; then at both ends of the last
/// evaluation. Gives the number of kills, and from which steps the run was resumed.
fn kill_often(folder: &Path) -> (usize, Vec<u64>) {
    let (mut kills, mut resumed) = (0, Vec::new());
    for round in 0..14 {
        let draws = seeded::tokens(2, 1 << 20, 77 + round);
        let mut process = Process::start(folder, 1 + round as usize % 2);
        for _ in 0..draws[0] % 6 {
            let Some(line) = process.next_line() else { break };
            resumed.extend(line.strip_prefix("started ").map(|step| step.parse::<u64>().unwrap()));
        }
        std::thread::sleep(Duration::from_micros(u64::from(draws[1] % 8_000)));
        kills += usize::from(process.kill());
    }
    for moment in [format!("saved {STEPS}"), format!("evaluated {STEPS}")] {
        let mut process = Process::start(folder, 1);
        while process.next_line().is_some_and(|line| line != moment) {}
        kills += usize::from(process.kill());
    }
    (kills, resumed)
}

/// All lines, without what was measured of the process.
fn lines(folder: &Path) -> Vec<BTreeMap<String, Value>> {
    let measured = ["seconds", "tokens_per_s", "tflop_per_s", "peak_memory_bytes"];
    let keep = |record: metrics::Record| record.into_iter().filter(|(key, _)| !measured.contains(&key.as_str()));
    metrics::read(folder).unwrap().map(|record| keep(record.unwrap()).collect()).collect()
}

/// Tensors of the last checkpoint, and its document without the time taken.
fn last_state(folder: &Path) -> (BTreeMap<String, Vec<u8>>, Value) {
    let latest = RunFolder::open(folder).unwrap().checkpoints().latest().unwrap().unwrap();
    assert!(latest.skipped.is_empty());
    let mut state = latest.snapshot.state().clone();
    state.as_object_mut().unwrap().remove("seconds");
    (latest.snapshot.views().map(|view| (view.name.to_owned(), view.bytes.to_vec())).collect(), state)
}

#[test]
fn a_killed_run_is_the_run_that_was_never_killed() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return go_on(Path::new(&folder));
    }
    let parent = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| parent.path().join(name));
    Process::start(&whole, 2).finish();
    let (kills, resumed) = kill_often(&killed);
    Process::start(&killed, 2).finish();
    println!("killed {kills} times, resumed at steps {resumed:?}");
    assert!(kills >= 5 && resumed.iter().filter(|&&step| step > 0).count() >= 2, "{kills} kills, {resumed:?}");

    let (expected, found) = (lines(&whole), lines(&killed));
    let steps: Vec<_> =
        found.iter().filter(|line| line.contains_key("loss")).map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, (1..=STEPS).map(Some).collect::<Vec<_>>());
    assert!(found.iter().any(|line| line.get("clip_events").is_some_and(|events| *events != 0)), "nothing was clipped");
    assert!(expected == found, "{expected:#?} became {found:#?}");
    let ((weights, state), (other_weights, other_state)) = (last_state(&whole), last_state(&killed));
    assert_eq!(support::differences(&weights, &other_weights), [""; 0]);
    assert_eq!(state, other_state);
    assert_eq!(state["step"], STEPS);
}

//! What a run measures, step by step: `metrics.jsonl`, and the same scalars for TensorBoard.
//!
//! One JSON object per line, each with its `step`, the number of steps taken so far; further numbers and arrays
//! (`max_logits` as `[layer][head]`, `expert_load` as `[layer][expert]`, ...) are the trainer's choice. The file
//! stays one series whatever happens to the run: a resume cuts the lines behind its checkpoint, and a line that a
//! kill tore in half. The event file is a function of `metrics.jsonl` alone, so it is made anew from it on every
//! start and never contradicts it.

mod tensorboard;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use tensorboard::EventFile;

/// One line of `metrics.jsonl`.
pub type Record = Map<String, Value>;

/// Why metrics could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The disk is full, the folder is read-only, ...
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `write`, `read`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line that is no record, with others behind it.
    #[error("{}, line {line}: {problem}; remove the line, or the file, to go on", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> MetricsError {
    let path = path.to_owned();
    move |source| MetricsError::Io { action, path: path.clone(), source }
}

/// Appends records to `RUN/metrics.jsonl` and their scalars to an event file in `RUN/logs`.
pub struct MetricsWriter {
    path: PathBuf,
    lines: File,
    events: EventFile,
    last_step: u64,
    last_line: Vec<u8>,
}

impl MetricsWriter {
    /// Starts a series, or goes on with it behind `resume_step`: later lines are dropped. `None` drops all.
    pub fn open(run_dir: &Path, resume_step: Option<u64>) -> Result<Self, MetricsError> {
        let path = metrics_path(run_dir);
        let logs = run_dir.join("logs");
        std::fs::create_dir_all(&logs).map_err(io_error("create", &logs))?;
        let mut events = EventFile::create(&logs)?;
        let mut kept_bytes = 0;
        let (mut last_step, mut last_line) = (0, Vec::new());
        if let Some(resume_step) = resume_step.filter(|_| path.exists()) {
            for line in Lines::open(&path)? {
                let (record, end) = line?;
                let step = step_of(&record);
                if step > resume_step {
                    break;
                }
                events.append(step, &record)?;
                (kept_bytes, last_step, last_line) = (end, step, line_of(&record));
            }
        }
        let lines = OpenOptions::new().create(true).append(true).open(&path).map_err(io_error("open", &path))?;
        lines.set_len(kept_bytes).map_err(io_error("shorten", &path))?;
        Ok(MetricsWriter { path, lines, events, last_step, last_line })
    }

    /// Writes one line. Steps never go back; one step may have several lines (training, evaluation), all different:
    /// a run that is resumed at its end evaluates once more, with the same result, which is not written again.
    ///
    /// # Panics
    /// If `step` is missing or smaller than before: resuming relies on the order.
    pub fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        let step = step_of(record);
        let last = self.last_step;
        assert!(step >= last, "metrics of step {step} behind those of step {last}");
        let line = line_of(record);
        if line == self.last_line {
            return Ok(());
        }
        // One call per line: a kill between two calls would otherwise tear lines that were complete.
        self.lines.write_all(&line).map_err(io_error("write", &self.path))?;
        (self.last_step, self.last_line) = (step, line);
        self.events.append(step, record)
    }

    /// Waits until all lines are on the disk. Before a checkpoint counts, so that no step is missing behind it.
    pub fn sync(&mut self) -> Result<(), MetricsError> {
        self.lines.sync_data().map_err(io_error("write", &self.path))
    }
}

/// The records of a run, in order; a torn last line is left out.
pub fn read(run_dir: &Path) -> Result<impl Iterator<Item = Result<Record, MetricsError>>, MetricsError> {
    let lines = Lines::open(&metrics_path(run_dir))?;
    Ok(lines.map(|line| line.map(|(record, _)| record)))
}

/// A number with as few digits as name it (`0.1`, not `0.10000000149011612`); null if it is not finite.
pub fn number(value: f32) -> Value {
    let shortest: f64 = value.to_string().parse().expect("a float's text is a float");
    Value::from(shortest)
}

fn metrics_path(run_dir: &Path) -> PathBuf {
    run_dir.join("metrics.jsonl")
}

fn line_of(record: &Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("a map with string keys is JSON");
    line.push(b'\n');
    line
}

fn step_of(record: &Record) -> u64 {
    record.get("step").and_then(Value::as_u64).expect("every record has its step")
}

/// Complete lines of a metrics file, with the byte at which each ends.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    line: usize,
    end: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, MetricsError> {
        let file = File::open(path).map_err(io_error("read", path))?;
        Ok(Lines { path: path.to_owned(), reader: BufReader::new(file), line: 0, end: 0 })
    }

    fn next_line(&mut self) -> Result<Option<(Record, u64)>, MetricsError> {
        let mut text = Vec::new();
        let read = self.reader.read_until(b'\n', &mut text);
        let bytes = read.map_err(io_error("read", &self.path))?;
        if text.last() != Some(&b'\n') {
            return Ok(None); // the end, or a line without its end
        }
        self.line += 1;
        self.end += bytes as u64;
        let parsed: Result<Record, _> = serde_json::from_slice(&text);
        let problem = match parsed {
            Ok(record) if record.get("step").is_some_and(Value::is_u64) => {
                return Ok(Some((record, self.end)));
            }
            Ok(_) => "has no step".to_owned(),
            Err(error) => error.to_string(),
        };
        // A machine that loses power can leave a last line of zeros with a line end.
        let rest = self.reader.fill_buf().map_err(io_error("read", &self.path))?;
        if rest.is_empty() {
            return Ok(None);
        }
        Err(MetricsError::Corrupt { path: self.path.clone(), line: self.line, problem })
    }
}

impl Iterator for Lines {
    type Item = Result<(Record, u64), MetricsError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
    }
}

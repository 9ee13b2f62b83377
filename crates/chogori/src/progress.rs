//! Progress on the terminal: a spinner for preparation, a bar for training, plain lines where nobody watches live.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use train::{HeldOut, Progress};

use crate::say::{self, Narrator};

/// Without a terminal, a line each so many seconds.
const LINE_SECONDS: u64 = 10;

/// One changing line on standard error; silent without a terminal.
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Starts spinning.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, target());
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("a valid template"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Replaces the text.
    pub fn say(&self, message: String) {
        self.0.set_message(message);
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() }
}

/// The training bar.
pub struct TrainingBar {
    bar: ProgressBar,
    narrator: Narrator,
    /// FLOP/s that the machine can do in the run's dtype, measured before.
    peak: f64,
    last_line: Option<Instant>,
    loss: Option<f64>,
    seconds: Option<f64>,
}

impl TrainingBar {
    /// `peak` in FLOP/s.
    pub fn new(narrator: Narrator, peak: f64) -> Self {
        let bar = ProgressBar::with_draw_target(None, target());
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}").expect("a valid template");
        bar.set_style(style.progress_chars("━╸ "));
        Self { bar, narrator, peak, last_line: None, loss: None, seconds: None }
    }

    /// Shows a step.
    pub fn step(&mut self, progress: &Progress) {
        let smooth = |mean: Option<f64>, value: f64| Some(mean.map_or(value, |mean| 0.9 * mean + 0.1 * value));
        if progress.outcome.skipped.is_none() {
            self.loss = smooth(self.loss, progress.outcome.loss);
        }
        self.seconds = smooth(self.seconds, progress.seconds);
        self.bar.set_length(progress.total_steps);
        self.bar.set_position(progress.outcome.step + 1);
        let text = self.describe(progress);
        self.bar.set_message(text.clone());
        let due = self.last_line.is_none_or(|last| last.elapsed().as_secs() >= LINE_SECONDS);
        if self.bar.is_hidden() && due {
            self.last_line = Some(Instant::now());
            let (step, total) = (progress.outcome.step + 1, progress.total_steps);
            self.narrator.line(format_args!("step {step:>6}/{total}  {text}"));
        }
    }

    fn describe(&self, progress: &Progress) -> String {
        let seconds = self.seconds.unwrap_or(progress.seconds).max(1e-9);
        let left = progress.total_steps.saturating_sub(progress.outcome.step + 1) as f64 * seconds;
        let violation = progress.outcome.load.max_violation().into_iter().fold(0.0, f64::max);
        format!(
            "loss {:.3}  {:.0} tok/s  {:.0}% of peak  max logit {:.1}  imbalance {:.2}  {} left",
            self.loss.unwrap_or(f64::NAN),
            progress.tokens as f64 / seconds,
            100.0 * progress.flops / seconds / self.peak,
            progress.outcome.logits.max(),
            violation,
            duration(left),
        )
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| self.narrator.line(format_args!("{text}")));
    }

    /// A held-out evaluation.
    pub fn evaluated(&self, step: u64, held_out: &HeldOut) {
        self.line(&format!(
            "held out    step {step}: {:.4} nats per token, {:.4} bits per byte{}",
            held_out.loss,
            held_out.bits_per_byte,
            if held_out.complete { "" } else { " (on a part)" }
        ));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A warning that stays above the bar.
pub fn warn(bar: &TrainingBar, message: &str) {
    bar.bar.suspend(|| say::note(format_args!("warning: {message}")));
}

/// Seconds as people say them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m}:{s:02} min"),
        (h, m, _) => format!("{h}:{m:02} h"),
    }
}

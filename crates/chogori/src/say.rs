//! Where words go: results to standard output, everything else to standard error.

use std::fmt::Arguments;
use std::io::Write;

use anyhow::Context;

/// One line of a result.
pub fn line(text: Arguments) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").context("cannot write to standard output")
}

/// Text of a result without a line's end, shown at once.
pub fn part(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// One line for people beside the result. A closed standard error loses it, nothing else.
pub fn note(text: Arguments) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// The last words of a command that failed: what happened, and below it what lay behind it.
pub fn error(error: &anyhow::Error) {
    note(format_args!("error: {error}"));
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Typed errors often end with their cause already.
        if !said.contains(&cause) {
            note(format_args!("  because: {cause}"));
            said = cause;
        }
    }
}

/// A writer of narration that goes to standard output, or to standard error if that is kept for JSON.
#[derive(Clone, Copy)]
pub struct Narrator {
    /// Whether standard output carries JSON alone.
    pub json: bool,
}

impl Narrator {
    /// One line.
    pub fn line(self, text: Arguments) {
        if self.json {
            note(text);
        } else {
            drop(writeln!(std::io::stdout(), "{text}"));
        }
    }
}

//! House style as a test: what a reviewer would otherwise have to say again in every review.
//!
//! Each rule is a file in `tidy/`: a pure function from texts to problems, with a passing and a failing
//! sample beside it. Exceptions live in `xtask/tidy.toml`, each with its reason; one that is no longer
//! needed is itself a problem.

mod documents;
mod exceptions;
mod layers;
mod length;
mod markers;
mod opening;
mod purity;
mod recipes;
mod source;
mod unsafe_code;
mod words;

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use exceptions::Exceptions;
use source::Source;

/// Something a person has to change, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Path below the workspace root.
    pub path: String,
    /// Line, counted from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// What is wrong and what to do instead.
    pub message: String,
}

impl Problem {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Problem { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// A text file of the repository.
pub struct TextFile {
    /// Path below the workspace root, with forward slashes.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// Checks the working tree under `root` and prints every problem.
pub fn run(root: &Path) -> Result<()> {
    let files = text_files(root)?;
    let mut exceptions = Exceptions::read(&root.join(exceptions::FILE))?;
    let mut problems = check(&files, &mut exceptions);
    problems.sort();
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} things to tidy", problems.len());
    }
    println!("{} files are tidy", files.len());
    Ok(())
}

fn check(files: &[TextFile], exceptions: &mut Exceptions) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        problems.extend(words::check(file));
        if file.path.ends_with(".rs") {
            let source = Source::new(&file.path, &file.text);
            problems.extend(opening::check(&source));
            problems.extend(markers::check(&source));
            problems.extend(length::check(&source, exceptions));
            problems.extend(purity::check(&source, exceptions));
            problems.extend(unsafe_code::check(&source, exceptions));
        }
    }
    problems.extend(layers::check(files));
    problems.extend(recipes::check(files));
    problems.extend(documents::check(files));
    problems.extend(exceptions.unused());
    problems
}

/// Every file that git tracks or would track, as far as it is UTF-8 text.
fn text_files(root: &Path) -> Result<Vec<TextFile>> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git cannot be started; tidy asks it which files belong to the repository")?;
    if !listing.status.success() {
        let reason = String::from_utf8_lossy(&listing.stderr);
        bail!("git cannot list the repository's files: {}", reason.trim());
    }
    let names = String::from_utf8(listing.stdout).context("a file name is not UTF-8")?;
    let mut files = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        // A file that is deleted but not yet committed is still listed.
        let Ok(bytes) = std::fs::read(root.join(name)) else {
            continue;
        };
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(TextFile { path: name.to_owned(), text });
        }
    }
    Ok(files)
}

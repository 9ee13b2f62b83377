//! The steps of `cargo xtask ci`: cheap ones first, tests last, stopping at the first that fails.
//!
//! All steps share the dev profile and the default features, so that clippy and rustdoc reuse each
//! other's metadata and nothing is compiled under two sets of flags.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// One step: what the summary calls it, and how it is done.
struct Step {
    name: &'static str,
    action: Action,
}

enum Action {
    Tidy,
    Cargo { arguments: &'static [&'static str], environment: &'static [(&'static str, &'static str)] },
}

const STEPS: &[Step] = &[
    Step { name: "format", action: cargo(&["fmt", "--all", "--check"]) },
    Step { name: "tidy", action: Action::Tidy },
    Step { name: "clippy", action: cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]) },
    Step {
        name: "documentation",
        action: Action::Cargo {
            arguments: &["doc", "--no-deps", "--workspace"],
            environment: &[("RUSTDOCFLAGS", "-D warnings")],
        },
    },
    // The one optional part: a reader that is slow to compile.
    Step {
        name: "parquet",
        action: cargo(&["test", "--package", "chogori-data", "--features", "parquet", "--test", "parquet"]),
    },
    // Last, so that the totals of the test runner stand right above the summary.
    Step { name: "tests", action: cargo(&["test", "--workspace"]) },
];

const fn cargo(arguments: &'static [&'static str]) -> Action {
    Action::Cargo { arguments, environment: &[] }
}

/// Runs every step in order; the error names the step that failed.
pub fn run(root: &Path) -> Result<()> {
    let mut durations: Vec<Duration> = Vec::new();
    for step in STEPS {
        println!("\n=== {} ===", step.name);
        let begin = Instant::now();
        let outcome = perform(&step.action, root);
        durations.push(begin.elapsed());
        if let Err(error) = outcome {
            print!("{}", summary(&durations, false));
            return Err(error.context(format!("step `{}` failed", step.name)));
        }
        println!("--- {} took {}", step.name, seconds(begin.elapsed()));
    }
    print!("{}", summary(&durations, true));
    Ok(())
}

fn perform(action: &Action, root: &Path) -> Result<()> {
    let Action::Cargo { arguments, environment } = action else {
        return crate::tidy::run(root);
    };
    println!("$ cargo {}", arguments.join(" "));
    // Cargo names itself in the environment, so that a pinned toolchain stays pinned in every step.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(*arguments)
        .envs(environment.iter().copied())
        .current_dir(root)
        .stdin(Stdio::null())
        .status()
        .context("cargo cannot be started")?;
    if !status.success() {
        bail!("`cargo {}` ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// One line per step; the last of `durations` belongs to the step that failed unless all `passed`.
fn summary(durations: &[Duration], passed: bool) -> String {
    let mut text = String::from("\n=== summary ===\n");
    for (index, step) in STEPS.iter().enumerate() {
        let (mark, time) = match durations.get(index) {
            None => ("not run", String::new()),
            Some(time) if !passed && index + 1 == durations.len() => ("FAILED", seconds(*time)),
            Some(time) => ("ok", seconds(*time)),
        };
        text += format!("{:<14} {mark:<8} {time:>9}", step.name).trim_end();
        text += "\n";
    }
    text + &format!("total {}\n", seconds(durations.iter().sum()))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_the_failed_step_and_what_did_not_run() {
        let text = summary(&[Duration::from_secs(1), Duration::from_millis(2500)], false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[2], "format         ok           1.0 s");
        assert_eq!(lines[3], "tidy           FAILED       2.5 s");
        assert_eq!(lines[7], "tests          not run");
        assert_eq!(lines[8], "total 3.5 s");
    }

    #[test]
    fn a_summary_of_a_good_run_has_no_failure() {
        let text = summary(&[Duration::from_secs(1); STEPS.len()], true);
        assert_eq!(text.matches(" ok ").count(), STEPS.len());
    }
}

//! Ctrl-C: the first one asks for an orderly end, the second one ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::say;

/// A flag that Ctrl-C (or SIGTERM) sets.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let shared = flag.clone();
    ctrlc::set_handler(move || {
        if shared.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        say::note(format_args!(
            "\nfinishing this step and saving (again: stop at once, losing work since the last checkpoint)"
        ));
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}

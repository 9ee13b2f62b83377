//! `chogori report RUN`: one HTML page about a run, from `metrics.jsonl`, `recipe.toml` and `samples/` alone.
//!
//! The page carries everything in itself: plots as inline SVG, heat maps as embedded images, no script and no
//! request to anywhere. [`series`] reads and condenses the metrics, [`chart`] and [`heat`] draw, [`page`] writes.

mod chart;
mod heat;
mod page;
mod series;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Context;
use train::recipe::{self, Pretrain};

use series::Series;

/// Writes the report of `run` to `output` (`RUN/report.html` if none is given) and returns where it is.
pub fn run(run: &Path, output: Option<&Path>) -> anyhow::Result<PathBuf> {
    let html = render(run)?;
    let path = output.map_or_else(|| run.join("report.html"), Path::to_owned);
    std::fs::write(&path, html).with_context(|| format!("cannot write the report to {}", path.display()))?;
    Ok(path)
}

fn render(run: &Path) -> anyhow::Result<String> {
    let series = Series::read(run).with_context(|| format!("{} is not a run folder with metrics", run.display()))?;
    anyhow::ensure!(
        series.lines > 0,
        "{} has no steps yet: come back when the run has made one",
        run.join("metrics.jsonl").display()
    );
    let resolved = std::fs::read_to_string(run.join("recipe.toml")).unwrap_or_default();
    // A recipe of another version must not stand between a reader and the metrics.
    let recipe: Option<Pretrain> = recipe::parse(&resolved, &[""; 0]).ok();
    let name = std::path::absolute(run)?.file_name().unwrap_or_default().to_string_lossy().into_owned();
    page::Page { name: &name, series: &series, recipe: recipe.as_ref(), resolved: &resolved, samples: samples(run) }
        .html()
}

/// Name and beginning of the newest few files in `samples/`, oldest first.
fn samples(run: &Path) -> Vec<(String, String)> {
    const FILES_MAX: usize = 8;
    const CHARACTERS_MAX: usize = 4000;
    let entries = std::fs::read_dir(run.join("samples")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    let newest = &paths[paths.len().saturating_sub(FILES_MAX)..];
    let read = |path: &PathBuf| {
        let text = String::from_utf8_lossy(&std::fs::read(path).ok()?).chars().take(CHARACTERS_MAX).collect();
        Some((path.file_name()?.to_string_lossy().into_owned(), text))
    };
    newest.iter().filter_map(read).collect()
}

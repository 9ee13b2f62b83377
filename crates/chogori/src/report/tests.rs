//! A plausible run, reported: every part is there, nothing is fetched from anywhere, odd values do no harm.

use serde_json::json;
use std::path::Path;
use train::metrics::{MetricsWriter, number};

const NANO: &str = include_str!("../../../../recipes/nano/pretrain.toml");
const LAYERS: usize = 6;
const HEADS: usize = 4;
const EXPERTS: usize = 32;

/// A number in -1..1 that depends on its arguments alone.
fn noise(step: u64, salt: usize) -> f32 {
    let mut state = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (salt as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    state = (state ^ state >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (state >> 40) as f32 / 8_388_608.0 - 1.0
}

/// Logits that grow to the cap, as in figure 2 of the report, and leave it again.
fn head_logit(step: u64, layer: usize, head: usize, steps: u64) -> f32 {
    let x = step as f32 / steps as f32;
    let pace = 1.0 + (noise(1, layer * HEADS + head) + layer as f32 * 0.2) * 2.0;
    let rise = 8.0 + 130.0 * pace.max(0.05) * x;
    rise.min(102.0) * (1.0 - (x - 0.5).max(0.0)) + 2.0 * noise(step, layer * 100 + head)
}

fn write_run(run: &Path, steps: u64) {
    std::fs::write(run.join("recipe.toml"), NANO).unwrap();
    let mut writer = MetricsWriter::open(run, None).unwrap();
    for step in 1..=steps {
        let x = step as f32 / steps as f32;
        let loss = 2.2 + 6.0 * (-9.0 * x).exp() + 0.12 * noise(step, 1) - 0.3 * x;
        let logits: Vec<Vec<f32>> =
            (0..LAYERS).map(|l| (0..HEADS).map(|h| head_logit(step, l, h, steps)).collect()).collect();
        let clipped = logits.concat().iter().filter(|logit| **logit > 100.0).count();
        let load = |layer: usize, expert: usize| {
            let taste = 1.5 * noise(7, layer * EXPERTS + expert) * (-4.0 * x).exp();
            256.0 * (taste + 0.1 * noise(step, layer * EXPERTS + expert)).exp()
        };
        let loads: Vec<Vec<u32>> = (1..LAYERS).map(|l| (0..EXPERTS).map(|e| load(l, e) as u32).collect()).collect();
        let mut record = json!({
            "step": step, "tokens": step * 4096, "loss": number(loss), "lr": 3e-3 * f64::from((x * 20.0).min(1.0).min(2.5 * (1.02 - x))),
            "gradient_norm": number(0.6 + 2.0 * (-20.0 * x).exp() + 0.1 * noise(step, 3)),
            "tokens_per_s": number(21_000.0 + 1500.0 * noise(step, 2)),
            "max_logit": logits.concat().iter().copied().map(f64::from).fold(0.0, f64::max),
            "max_logits": logits, "clip_events": clipped, "heads_ever_clipped": 0.3 * x,
            "expert_load": loads, "expert_load_layers": (1..LAYERS).collect::<Vec<_>>(),
            "seconds": step as f64 * 0.21, "peak_memory_bytes": 812_345_678u64,
        });
        if step % (steps / 10).max(1) == 0 {
            record["held_out_loss"] = number(loss + 0.08);
            record["held_out_bits_per_byte"] = number((loss + 0.08) * 0.55);
        }
        if step == steps {
            record["bits_per_byte_gzip"] = json!(1.74);
            record["bits_per_byte_4gram"] = json!(1.42);
        }
        writer.write(record.as_object().unwrap()).unwrap();
    }
    std::fs::create_dir(run.join("samples")).unwrap();
    std::fs::write(run.join("samples/step-000800.txt"), "fn main() {\n    let x: Vec<u8> = <b>\n}").unwrap();
}

#[test]
fn a_run_becomes_one_page_that_needs_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), 850);
    let path = super::run(folder.path(), None).unwrap();
    let html = std::fs::read_to_string(path).unwrap();
    for part in ["Held-out bits per byte", "Attention logits", "cap τ = 100", "Heads ever clipped", "MaxVio", "Layer 5"]
    {
        assert!(html.contains(part), "{part} is missing");
    }
    assert!(html.contains("&lt;b&gt;"), "samples are escaped");
    let addresses = ["src=\"http", "href=\"http", "url(", "<link", "<script", "@import"];
    assert!(addresses.iter().all(|address| !html.contains(address)), "the page asks for nothing");
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
    // For a look at it: CHOGORI_REPORT=/some/page.html cargo test -p chogori report
    if let Some(path) = std::env::var_os("CHOGORI_REPORT") {
        std::fs::write(path, html).unwrap();
    }
}

#[test]
fn a_run_of_one_step_and_odd_values_is_reported_too() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"step\":1,\"loss\":null,\"max_logits\":[[null,1.0],[2.0]],\"expert_load\":[[0,0]]}\n";
    std::fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
    let html = super::render(folder.path()).unwrap();
    assert!(html.contains("Expert balance"));
    std::fs::write(folder.path().join("recipe.toml"), "[another]\nversion = 2\n").unwrap();
    assert!(super::render(folder.path()).unwrap().contains("version = 2"));
}

#[test]
fn a_folder_without_metrics_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let error = |folder: &Path| format!("{:#}", super::run(folder, None).unwrap_err());
    assert!(error(folder.path()).contains("is not a run folder with metrics"));
    std::fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
    assert!(error(folder.path()).contains("has no steps yet"));
}

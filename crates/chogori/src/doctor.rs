//! `chogori doctor`: what this machine offers, what of it is used, what is missing and what to do about it.
//!
//! [`machine`] reads what the system tells; the peaks are measured by the tensor crate's own loops, so "share of the
//! peak" means the same here and in a training run.

mod machine;

use std::path::Path;

use serde::Serialize;
use tensor::kernels::simd::Isa;
use tensor::kernels::simd::peak::{measured_bandwidth, measured_matrix_peak};
use tensor::{DType, Device, pool};

use crate::say;
use machine::{Disk, Memory, Processor, Sources};

/// Everything that was found; the object that `--json` prints.
#[derive(Serialize)]
struct Findings {
    processor: Processor,
    kernels: Kernels,
    matrix_peak: Vec<Peak>,
    memory: Memory,
    /// All threads together.
    memory_read_bytes_per_s: f64,
    disk: Option<Disk>,
    corpus: Sources,
    /// What is missing or slow, and what to do.
    advice: Vec<String>,
}

/// Which instruction sets the kernels know, and which one they use here.
#[derive(Serialize)]
struct Kernels {
    in_use: &'static str,
    supported: Vec<&'static str>,
    unsupported: Vec<&'static str>,
}

/// FLOP/s of multiply-adds from registers, two for each.
#[derive(Serialize)]
struct Peak {
    dtype: &'static str,
    threads: usize,
    flops_per_s: f64,
}

/// Looks, measures for about half a second, and prints; runs in `runs` of the current folder or beside it.
pub fn run(json: bool) -> anyhow::Result<()> {
    let findings = findings();
    if json {
        return say::line(format_args!("{}", serde_json::to_string(&findings)?));
    }
    say::line(format_args!("{}", text(&findings).trim_end()))
}

fn findings() -> Findings {
    let (supported, unsupported): (Vec<Isa>, Vec<Isa>) = Isa::ALL.into_iter().partition(|isa| isa.is_supported());
    let names = |sets: Vec<Isa>| sets.into_iter().map(Isa::name).collect();
    let runs = Path::new("runs");
    let mut findings = Findings {
        processor: Processor::read(),
        kernels: Kernels { in_use: Device::cpu().name(), supported: names(supported), unsupported: names(unsupported) },
        matrix_peak: peaks(),
        memory: Memory::read(),
        memory_read_bytes_per_s: measured_bandwidth(pool::threads()),
        disk: Disk::of(if runs.exists() { runs } else { Path::new(".") }),
        corpus: Sources::find(data::registry::sources_folder()),
        advice: Vec::new(),
    };
    findings.advice = advice(&findings);
    findings
}

fn peaks() -> Vec<Peak> {
    let mut threads = vec![1, pool::threads()];
    threads.dedup();
    let measure = |(dtype, name): (DType, &'static str)| {
        let peak = move |threads| Peak {
            dtype: name,
            threads,
            flops_per_s: measured_matrix_peak(Isa::best(), dtype, threads),
        };
        threads.clone().into_iter().map(peak)
    };
    [(DType::F32, "f32"), (DType::Bf16, "bf16")].into_iter().flat_map(measure).collect()
}

/// What to do, most important first.
fn advice(findings: &Findings) -> Vec<String> {
    const GIB: u64 = 1 << 30;
    let Findings { processor, kernels, memory, disk, corpus, .. } = findings;
    let mut advice = Vec::new();
    let mut when = |condition: bool, text: String| advice.extend(condition.then_some(text));
    when(
        cfg!(debug_assertions),
        "this is a debug build, many times slower: use `cargo run --release` or `cargo build --release`".into(),
    );
    when(
        kernels.in_use == Isa::Portable.name(),
        "the processor has no instruction set that the kernels are written for (x86-64 with AVX2 or better): training \
         works, slowly"
            .into(),
    );
    when(
        corpus.packages == 0,
        format!(
            "{} holds no packages, so `quickstart` has no text: run `cargo fetch` in the repository, or give \
             --corpus DIR",
            corpus.folder
        ),
    );
    when(
        processor.features.contains(&"amx_bf16") && kernels.unsupported.contains(&Isa::Amx.name()),
        "the processor has AMX tiles, but the kernels cannot use them here: the operating system must permit it".into(),
    );
    let load = processor.load.unwrap_or(0.0);
    when(
        load > processor.threads as f64 + 0.5,
        format!("other programs keep {load:.1} threads busy: the measured peaks are lower than the machine's"),
    );
    when(
        memory.available_bytes.is_some_and(|bytes| bytes < 3 * GIB),
        "less than 3 GiB of memory are free: lower batch.sequences_per_micro_batch (and raise \
         batch.micro_batches_per_step in turn; the result is the same)"
            .into(),
    );
    when(
        memory.huge_pages.as_deref() == Some("never"),
        "huge pages are off: `echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled` speeds up large \
         matrices"
            .into(),
    );
    if let Some(disk) = disk {
        when(
            disk.free_bytes < 2 * GIB,
            format!("less than 2 GiB are free in {}: checkpoints may not fit, put --run elsewhere", disk.folder),
        );
    }
    advice
}

fn text(findings: &Findings) -> String {
    let Findings { processor, kernels, memory, corpus, .. } = findings;
    let mut lines = Lines::default();
    lines.put("processor", &processor.name);
    let cores = processor.cores.map_or_else(String::new, |cores| format!(" on {cores} cores"));
    lines.put("", &format!("{} threads{cores}, {} in use", processor.threads, pool::threads()));
    lines.put("features", &processor.features.join(" "));
    lines.put("not here", &processor.missing_features.join(" "));
    lines.put("kernels", &format!("{} in use, of {}", kernels.in_use, kernels.supported.join(" ")));
    for dtype in ["f32", "bf16"] {
        let of = findings.matrix_peak.iter().filter(|peak| peak.dtype == dtype);
        let peaks: Vec<String> =
            of.map(|peak| format!("{:.0} GFLOP/s on {}", peak.flops_per_s / 1e9, threads(peak.threads))).collect();
        lines.put(if dtype == "f32" { "matrix peak" } else { "" }, &format!("{dtype:<5}{}", peaks.join(", ")));
    }
    let gib =
        |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), |b| format!("{:.1}", b as f64 / (1u64 << 30) as f64));
    let (total, free) = (gib(memory.total_bytes), gib(memory.available_bytes));
    lines.put("memory", &format!("{total} GiB, {free} free"));
    let read = findings.memory_read_bytes_per_s / 1e9;
    lines.put("", &format!("{read:.1} GB/s read by {}", threads(pool::threads())));
    if let Some(setting) = &memory.huge_pages {
        lines.put("huge pages", setting);
    }
    if let Some(disk) = &findings.disk {
        lines.put("disk", &format!("{} GiB free in {}", gib(Some(disk.free_bytes)), disk.folder));
    }
    lines.put("corpus", &format!("{} packages in {}", corpus.packages, corpus.folder));
    if findings.advice.is_empty() {
        lines.put("missing", "nothing");
    }
    for advice in &findings.advice {
        lines.put("to do", advice);
    }
    lines.0
}

fn threads(count: usize) -> String {
    if count == 1 { "1 thread".into() } else { format!("{count} threads") }
}

/// Text in two columns, the second one wrapped.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn put(&mut self, title: &str, text: &str) {
        const WIDTH: usize = 84;
        if text.is_empty() {
            return;
        }
        let mut line = format!("{title:<12}");
        for word in text.split_whitespace() {
            if line.len() > 12 && line.len() + word.len() > WIDTH {
                self.0 += line.trim_end();
                self.0.push('\n');
                line = " ".repeat(12);
            }
            line += word;
            line.push(' ');
        }
        self.0 += line.trim_end();
        self.0.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_findings_name_what_scripts_need() {
        let findings = findings();
        let json = serde_json::to_value(&findings).unwrap();
        for key in ["processor", "kernels", "matrix_peak", "memory", "disk", "corpus", "advice"] {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
        assert!(findings.matrix_peak.iter().all(|peak| peak.flops_per_s > 1e6));
        assert!(findings.memory_read_bytes_per_s > 1e6);
        assert!(findings.kernels.supported.contains(&findings.kernels.in_use));
        let text = text(&findings);
        assert!(text.contains("matrix peak") && text.lines().all(|line| line.len() <= 120), "{text}");
    }

    #[test]
    fn a_machine_that_lacks_everything_gets_advice_for_each() {
        let findings = Findings {
            processor: Processor { load: Some(9.0), ..Processor::read() },
            kernels: Kernels { in_use: "portable", supported: vec!["portable"], unsupported: vec![] },
            matrix_peak: vec![],
            memory: Memory { available_bytes: Some(1 << 30), huge_pages: Some("never".into()), ..Memory::read() },
            memory_read_bytes_per_s: 1e9,
            disk: Some(Disk { folder: "runs".into(), free_bytes: 1 << 20 }),
            corpus: Sources { folder: "/nowhere".into(), packages: 0 },
            advice: vec![],
        };
        let advice = advice(&findings).concat();
        for part in ["AVX2", "cargo fetch", "busy", "sequences_per_micro_batch", "madvise", "--run elsewhere"] {
            assert!(advice.contains(part), "{part} is missing in {advice}");
        }
    }
}

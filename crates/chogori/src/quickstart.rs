//! `chogori quickstart`: from text on this machine to a model that talks, in about three minutes.
//!
//! It is a pre-training run of the nano recipe with words around it: what the text is, what the model says before and
//! after, and how its held-out bits per byte compare with `gzip -9` and with a 4-gram model of the same tokens.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::RunFolder;
use clap::Parser;
use data::{Batches, TokenStore};
use eval::ngram::NgramModel;
use serde_json::json;
use tensor::Device;
use tokens::Tokenizer;
use train::memory;
use train::metrics::MetricsWriter;
use train::prepare::PreparedData;
use train::recipe::{self, Pretrain, to_toml};
use train::{HeldOut, Observer, Progress, Run, Summary, Trainer};

use crate::pretrain::{Watcher, measured_peak};
use crate::progress::{Spinner, TrainingBar, duration};
use crate::samples::Samples;
use crate::say::{self, Narrator};
use crate::{corpus, interrupt};

const RECIPE: &str = include_str!("../../../recipes/nano/pretrain.toml");
/// What the model continues before, during and after training; plain beginnings that any Rust corpus has many ways on from.
const PROMPTS: [&str; 2] = ["/// Returns the number of ", "impl<T> Iterator for "];

#[derive(Parser)]
#[command(
    after_help = "The corpus is the Rust and Markdown source of the packages this program was built from, found in\n\
    Cargo's registry; --corpus takes any other folder of text. Afterwards: chogori chat RUN, chogori generate RUN,\n\
    chogori report RUN."
)]
pub struct Args {
    /// A folder or file of text to train on instead
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// The run folder [default: runs/quickstart, or the next free runs/quickstart-N]
    #[arg(long)]
    run: Option<PathBuf>,
    /// Minutes of training [default: the recipe's]
    #[arg(long)]
    minutes: Option<f64>,
    /// Change a key of recipes/nano/pretrain.toml: --set run.seed=2
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// End with one JSON line on standard output; all else goes to standard error
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let narrator = Narrator { json: args.json };
    let recipe = recipe(&args)?;
    tensor::pool::set_threads(recipe.compute.threads);
    let threads = tensor::pool::threads();
    narrator.line(format_args!("machine     {} kernels on {threads} threads", Device::cpu().name()));
    let (folder, _lock) = create_folder(&args, &recipe)?;
    let data = corpus::prepare(&recipe, &folder.path().join("data"), narrator)?;
    describe(&recipe, &data, narrator)?;
    let peak = measured_peak(&recipe);
    narrator.line(format_args!("peak        {:.2} TFLOP/s measured in {:?}", peak / 1e12, recipe.compute.dtype));

    let stop = interrupt::flag()?;
    let samples = Samples::of_texts(&folder, &data.tokenizer, &PROMPTS);
    let watcher = Watcher { bar: TrainingBar::new(narrator, peak), samples };
    let mut guide = Guide { watcher, narrator, showed: false };
    let mut run = Run::new(&recipe, &folder, &data, false, &mut guide)?;
    guide.show("before", &run.trainer);
    let summary = run.train(&stop, &mut guide)?;
    guide.watcher.bar.finish();
    guide.show("after", &run.trainer);
    let baselines = Baselines::compute(&run, &data, summary.steps)?;
    baselines.write(folder.path(), summary.steps)?;
    let result = Outcome { summary, baselines, wall_s: start.elapsed().as_secs_f64(), run: folder.path() };
    result.tell(narrator, args.json)
}

fn recipe(args: &Args) -> anyhow::Result<Pretrain> {
    let mut overrides = Vec::new();
    if let Some(minutes) = args.minutes {
        overrides.push(format!("run.minutes={minutes}"));
    }
    if let Some(corpus) = &args.corpus {
        let path = std::path::absolute(corpus)?;
        overrides.push(format!("data.corpus={}", toml_string(&path.display().to_string())));
    }
    overrides.extend(args.set.iter().cloned());
    Ok(recipe::parse(RECIPE, &overrides)?)
}

/// A JSON string is a TOML basic string.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn create_folder(args: &Args, recipe: &Pretrain) -> anyhow::Result<(RunFolder, checkpoint::RunLock)> {
    let toml = to_toml(recipe)?;
    if let Some(path) = &args.run {
        return Ok(RunFolder::create(path, &toml)?);
    }
    let names = std::iter::once("runs/quickstart".to_owned()).chain((2..).map(|n| format!("runs/quickstart-{n}")));
    let path = names.map(PathBuf::from).find(|path| !path.exists()).expect("numbers do not end");
    Ok(RunFolder::create(&path, &toml)?)
}

fn describe(recipe: &Pretrain, data: &PreparedData, narrator: Narrator) -> anyhow::Result<()> {
    let PreparedData { tokenizer, train, held_out } = data;
    narrator.line(format_args!(
        "tokens      {:.1} M to learn from, {:.2} M held out, {:.2} bytes each, vocabulary of {}",
        train.len_tokens() as f64 / 1e6,
        held_out.len_tokens() as f64 / 1e6,
        train.text_bytes() as f64 / train.len_tokens() as f64,
        tokenizer.vocab_size()
    ));
    let config = recipe.model()?;
    let counts = config.parameter_counts();
    let moe = config.moe.as_ref().map_or("dense".to_owned(), |moe| {
        format!(
            "{} experts, {} per token, {} shared",
            moe.n_routed_experts, moe.num_experts_per_tok, moe.n_shared_experts
        )
    });
    narrator.line(format_args!(
        "model       {:.1} M parameters, {:.1} M active per token: {} layers, width {}, {moe}",
        counts.total() as f64 / 1e6,
        counts.activated() as f64 / 1e6,
        config.num_hidden_layers,
        config.hidden_size
    ));
    Ok(())
}

/// Shows a run to somebody who sees one for the first time.
struct Guide<'a> {
    watcher: Watcher<'a>,
    narrator: Narrator,
    showed: bool,
}

impl Guide<'_> {
    /// Prints what the model makes of the prompts.
    fn show(&mut self, when: &str, trainer: &Trainer) {
        match self.watcher.samples.take(trainer.step, &trainer.model) {
            Ok(texts) => texts.iter().for_each(|text| self.watcher.bar.line(&format!("{when:<11} {}", indented(text)))),
            Err(error) => self.watcher.warning(&format!("{error:#}")),
        }
    }
}

/// Lines after the first begin under it.
fn indented(text: &str) -> String {
    let lines: Vec<&str> = text.lines().take(6).collect();
    lines.join("\n            ")
}

impl Observer for Guide<'_> {
    fn started(&mut self, trainer: &Trainer) {
        self.watcher.started(trainer);
        self.narrator.line(format_args!("training    Ctrl-C finishes the step, saves, and goes on to the results"));
    }

    fn step(&mut self, trainer: &Trainer, progress: &Progress) {
        self.watcher.step(trainer, progress);
        // Once, about when the first words come.
        if !self.showed && progress.elapsed > 40.0 {
            self.showed = true;
            self.show("by now", trainer);
        }
    }

    fn evaluated(&mut self, step: u64, held_out: &HeldOut) {
        self.watcher.evaluated(step, held_out);
    }

    fn sample(&mut self, trainer: &Trainer) {
        self.watcher.sample(trainer);
    }

    fn warning(&mut self, message: &str) {
        self.watcher.warning(message);
    }
}

/// What held-out bits per byte are compared with, on the same files.
struct Baselines {
    gzip: f64,
    four_gram: f64,
}

impl Baselines {
    fn compute(run: &Run, data: &PreparedData, steps: u64) -> anyhow::Result<Self> {
        let spinner = Spinner::new();
        spinner.say("gzip -9 and a 4-gram model on the same files".into());
        let held_out: Vec<Vec<u32>> = data.held_out.documents().collect::<Result<_, _>>()?;
        let texts = texts(&data.tokenizer, &data.held_out, &held_out)?;
        let gzip = eval::gzip::bits_per_byte(texts.iter().map(Vec::as_slice)).concatenated;
        let seen = seen_pieces(run.batches(), steps)?;
        let begin = data.train.spec().begin;
        let model =
            NgramModel::train(4, data.tokenizer.vocab_size(), seen.iter().map(|piece| without_begin(piece, begin)));
        let documents = held_out.iter().map(|document| without_begin(document, begin));
        let four_gram = model.bits_per_byte(documents, data.held_out.text_bytes());
        spinner.finish();
        Ok(Self { gzip, four_gram })
    }
}

impl Baselines {
    /// Leaves the numbers where the report finds them.
    fn write(&self, run: &Path, steps: u64) -> anyhow::Result<()> {
        let record = json!({ "step": steps, "bits_per_byte_gzip": self.gzip, "bits_per_byte_4gram": self.four_gram });
        let serde_json::Value::Object(record) = record else { unreachable!("written as an object above") };
        Ok(MetricsWriter::open(run, Some(steps))?.write(&record)?)
    }
}

/// The n-gram model has its own mark for a beginning.
fn without_begin(tokens: &[u32], begin: Option<u32>) -> &[u32] {
    if begin.is_some() && tokens.first().copied() == begin { &tokens[1..] } else { tokens }
}

/// The held-out documents as bytes, without the tokens that mark their ends.
fn texts(tokenizer: &Tokenizer, store: &TokenStore, documents: &[Vec<u32>]) -> anyhow::Result<Vec<Vec<u8>>> {
    let marks = [store.spec().begin, Some(store.spec().end)];
    let text = |document: &Vec<u32>| {
        let ids: Vec<u32> = document.iter().copied().filter(|id| !marks.contains(&Some(*id))).collect();
        Ok(tokenizer.decode_bytes(&ids)?)
    };
    documents.iter().map(text).collect()
}

/// Every piece of text that the first `steps` steps trained on, once.
fn seen_pieces(batches: &Batches, steps: u64) -> anyhow::Result<Vec<Vec<u32>>> {
    let rows: BTreeSet<usize> = batches.rows_of_steps(0..steps).collect();
    let mut pieces = Vec::new();
    for row in rows {
        let batch = batches.rows([row])?;
        let mut start = 0;
        for &len in &batch.segments {
            let (inputs, last) = (&batch.tokens[start..start + len], batch.targets[start + len - 1]);
            if last != data::IGNORE {
                pieces.push(inputs.iter().copied().chain([last]).collect());
            }
            start += len;
        }
    }
    Ok(pieces)
}

/// Everything that the last lines say.
struct Outcome<'a> {
    summary: Summary,
    baselines: Baselines,
    wall_s: f64,
    run: &'a Path,
}

impl Outcome<'_> {
    fn tell(&self, narrator: Narrator, json: bool) -> anyhow::Result<()> {
        let Summary { steps, tokens, seconds, held_out, .. } = self.summary;
        let Baselines { gzip, four_gram } = self.baselines;
        let peak_memory_bytes = memory::peak_bytes();
        narrator.line(format_args!("\nbits per byte of held-out text (less is better)"));
        for (name, bits) in
            [("gzip -9", gzip), ("4-gram, same tokens", four_gram), ("this model", held_out.bits_per_byte)]
        {
            let bar = "█".repeat((bits * 16.0).round().clamp(0.0, 60.0) as usize);
            narrator.line(format_args!("  {name:<20} {bits:.3}  {bar}"));
        }
        let tokens_per_s = tokens as f64 / seconds;
        narrator.line(format_args!(
            "\n{steps} steps, {:.2} M tokens at {tokens_per_s:.0} tokens/s; {} in all, {:.2} GB at most",
            tokens as f64 / 1e6,
            duration(self.wall_s),
            peak_memory_bytes.unwrap_or(0) as f64 / 1e9
        ));
        let run = self.run.display();
        narrator.line(format_args!("\nnext:  chogori generate {run} --prompt 'fn main() {{'\n       chogori chat {run}\n       chogori report {run}"));
        if json {
            let result = json!({
                "bits_per_byte": held_out.bits_per_byte, "bits_per_byte_gzip": gzip, "bits_per_byte_4gram": four_gram,
                "tokens_per_s": tokens_per_s, "wall_s": self.wall_s, "peak_memory_bytes": peak_memory_bytes,
                "run": self.run, "steps": steps, "tokens": tokens, "held_out_loss": held_out.loss,
                "interrupted": self.summary.interrupted,
            });
            return say::line(format_args!("{result}"));
        }
        Ok(())
    }
}

//! `chogori pretrain`: runs a recipe, or goes on with a run.

use std::path::PathBuf;

use anyhow::bail;
use checkpoint::RunFolder;
use clap::Parser;
use serde_json::json;
use tensor::Device;
use train::recipe::{Pretrain, to_toml};
use train::{HeldOut, Observer, Progress, Run, Summary, Trainer};

use crate::progress::{TrainingBar, duration, warn};
use crate::samples::Samples;
use crate::say::{self, Narrator};
use crate::{corpus, interrupt, open};

#[derive(Parser)]
#[command(
    after_help = "Examples:\n  chogori pretrain recipes/nano/pretrain.toml --run runs/first --set run.minutes=10\n  \
    chogori pretrain --run runs/first --resume\n\n\
    Ctrl-C finishes the step and saves. A resumed run is the same run, bit for bit."
)]
pub struct Args {
    /// The recipe; with --resume the run's own is used
    #[arg(required_unless_present = "resume")]
    recipe: Option<PathBuf>,
    /// The run folder: new or empty, or with --resume an existing one
    #[arg(long)]
    run: PathBuf,
    /// Go on from the newest good checkpoint
    #[arg(long)]
    resume: bool,
    /// Change a key of the recipe: --set schedule.peak=2e-3
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// End with one JSON line
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let narrator = Narrator { json: args.json };
    let (folder, _lock, recipe) = folder_and_recipe(&args)?;
    tensor::pool::set_threads(recipe.compute.threads);
    let data = corpus::prepare(&recipe, &folder.path().join("data"), narrator)?;
    let stop = interrupt::flag()?;
    let samples = Samples::of_held_out(&folder, &data.tokenizer, &data.held_out)?;
    let mut watcher = Watcher { bar: TrainingBar::new(narrator, measured_peak(&recipe)), samples };
    let mut run = Run::new(&recipe, &folder, &data, args.resume, &mut watcher)?;
    let summary = run.train(&stop, &mut watcher)?;
    watcher.bar.finish();
    finish(&args, narrator, &summary)
}

/// Opens or makes the run folder, locks it, and reads the recipe that holds.
fn folder_and_recipe(args: &Args) -> anyhow::Result<(RunFolder, checkpoint::RunLock, Pretrain)> {
    if args.resume {
        if !args.set.is_empty() || args.recipe.is_some() {
            bail!("--resume goes on with the recipe of {}: leave out the recipe and --set", args.run.display());
        }
        let folder = RunFolder::open(&args.run)?;
        let lock = folder.lock()?;
        let recipe = open::recipe_of(&folder)?;
        return Ok((folder, lock, recipe));
    }
    let path = args.recipe.as_ref().expect("required by the arguments");
    let recipe = Pretrain::load(path, &args.set)?;
    let (folder, lock) = RunFolder::create(&args.run, &to_toml(&recipe)?)?;
    Ok((folder, lock, recipe))
}

/// What the machine can do in the run's dtype, in FLOP/s.
pub fn measured_peak(recipe: &Pretrain) -> f64 {
    let peak = Device::cpu().measured_peak(recipe.compute.dtype.into(), tensor::pool::threads());
    peak.expect("the CPU kernels have a peak")
}

fn finish(args: &Args, narrator: Narrator, summary: &Summary) -> anyhow::Result<()> {
    let Summary { steps, tokens, seconds, held_out, interrupted } = *summary;
    if args.json {
        let result = json!({
            "steps": steps, "tokens": tokens, "seconds": seconds, "interrupted": interrupted,
            "held_out_loss": held_out.loss, "bits_per_byte": held_out.bits_per_byte, "run": args.run,
        });
        return say::line(format_args!("{result}"));
    }
    let run = args.run.display();
    if interrupted {
        narrator.line(format_args!("stopped at step {steps}; go on with: chogori pretrain --run {run} --resume"));
    } else {
        narrator.line(format_args!(
            "done: {steps} steps, {tokens} tokens in {}; held-out {:.4} bits per byte",
            duration(seconds),
            held_out.bits_per_byte
        ));
        narrator.line(format_args!("look at it: chogori report {run}    use it: chogori generate {run} --prompt '…'"));
    }
    Ok(())
}

/// Shows a run on the terminal.
pub struct Watcher<'a> {
    /// The bar.
    pub bar: TrainingBar,
    /// What is continued now and then.
    pub samples: Samples<'a>,
}

impl Observer for Watcher<'_> {
    fn started(&mut self, trainer: &Trainer) {
        if trainer.step > 0 {
            self.bar.line(&format!("going on behind step {}", trainer.step));
        }
    }

    fn step(&mut self, _trainer: &Trainer, progress: &Progress) {
        self.bar.step(progress);
        if let Some(what) = &progress.outcome.skipped {
            self.warning(&format!("step {} skipped: {what} is not finite", progress.outcome.step + 1));
        }
    }

    fn evaluated(&mut self, step: u64, held_out: &HeldOut) {
        self.bar.evaluated(step, held_out);
    }

    fn sample(&mut self, trainer: &Trainer) {
        if let Err(error) = self.samples.take(trainer.step, &trainer.model) {
            self.warning(&format!("{error:#}"));
        }
    }

    fn warning(&mut self, message: &str) {
        warn(&self.bar, message);
    }
}

//! A whole pre-training run: steps, metrics, evaluation, checkpoints, and how it ends.
//!
//! Everything that is shown to people goes through an [`Observer`]; the run folder holds the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use checkpoint::{Latest, Record, RunFolder, SnapshotError};
use data::{Batch, BatchShape, Batches, StoreError, TokenStore};
use model::safetensors::View;
use model::{Model, init};
use tensor::{DType, Device};

use crate::evaluate::{Evaluation, evaluate};
use crate::metrics::{MetricsError, MetricsWriter};
use crate::prepare::{PrepareError, PreparedData};
use crate::recipe::{Pretrain, RecipeError};
use crate::record;
use crate::state::{RestoreError, TrainingState};
use crate::trainer::{StepConfig, StepOutcome, Trainer};

/// Why a run stopped early or did not start. Checkpoints written before are whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum RunError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Checkpoint(#[from] SnapshotError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Optimizer(#[from] optim::ConfigError),
    #[error(
        "{streak} steps in a row had a loss or gradient that is not finite (last: {what}); nothing of them was kept. \
         The last good state is saved at step {step}: lower schedule.peak, or look at the data of these steps"
    )]
    NonFinite { streak: u64, what: String, step: u64 },
}

/// Who watches a run. All methods may be left out.
pub trait Observer {
    /// Before the first step, after a resume too.
    fn started(&mut self, _trainer: &Trainer) {}
    /// After every step.
    fn step(&mut self, _trainer: &Trainer, _progress: &Progress) {}
    /// After an evaluation on held-out text.
    fn evaluated(&mut self, _step: u64, _evaluation: &HeldOut) {}
    /// When the recipe's `sample_every_steps` says so; may use the model.
    fn sample(&mut self, _trainer: &Trainer) {}
    /// After a checkpoint is complete.
    fn saved(&mut self, _step: u64) {}
    /// Something that the user should know and that does not stop the run.
    fn warning(&mut self, _message: &str) {}
}

/// Where a run is after a step.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// What the step did.
    pub outcome: &'a StepOutcome,
    /// Its learning rate.
    pub lr: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Seconds of training so far, over all resumes.
    pub elapsed: f64,
    /// Length of the run as far as it is known.
    pub total_steps: u64,
    /// Tokens of one step.
    pub tokens: u64,
    /// Floating-point operations of matrix products and attention in one step (forward and backward, nothing
    /// recomputed counted).
    pub flops: f64,
}

/// An evaluation in terms of text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    /// Mean negative log-probability per token, in nats.
    pub loss: f64,
    /// The same per byte of text, in bits.
    pub bits_per_byte: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Whether all held-out text was read.
    pub complete: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Steps begun in all.
    pub steps: u64,
    /// Tokens predicted in all.
    pub tokens: u64,
    /// Seconds of training, over all resumes.
    pub seconds: f64,
    /// The last evaluation, on all held-out text.
    pub held_out: HeldOut,
    /// Whether it was interrupted before its end.
    pub interrupted: bool,
}

/// A run that is about to start or go on.
pub struct Run<'a> {
    recipe: &'a Pretrain,
    folder: &'a RunFolder,
    /// The model in training.
    pub trainer: Trainer,
    train: Batches,
    held_out: Batches,
    /// Fixed by `run.steps`, or once the decay begins.
    total_steps: Option<u64>,
    seconds_before: f64,
}

impl<'a> Run<'a> {
    /// Builds the model (with fresh weights, or those of the newest good checkpoint with `resume`).
    ///
    /// # Errors
    /// [`RunError`].
    pub fn new(
        recipe: &'a Pretrain,
        folder: &'a RunFolder,
        data: &PreparedData,
        resume: bool,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        tensor::pool::set_threads(recipe.compute.threads);
        let config = recipe.model()?;
        data.check_model(config.vocab_size)?;
        let device = Device::cpu();
        let fresh = |spec: &_| Ok::<_, RunError>(init::fresh(&config, spec, recipe.run.seed, device, DType::F32));
        let model = Model::build(config.clone(), device, recipe.compute.dtype.into(), fresh)?;
        let step_config = StepConfig {
            policy: recipe.activation_policy()?,
            bias_update_speed: recipe.router.bias_update_speed,
            recentre: recipe.router.recentre,
            sequence_balance_loss: recipe.router.sequence_balance_loss,
        };
        let shape = BatchShape {
            sequence_length: recipe.batch.sequence_length,
            rows_per_micro_batch: recipe.batch.sequences_per_micro_batch,
            micro_batches_per_step: recipe.batch.micro_batches_per_step,
        };
        let batches = |store: &Arc<TokenStore>| Batches::new(store.clone(), shape, recipe.run.seed);
        let mut run = Self {
            recipe,
            folder,
            trainer: Trainer::new(model, recipe.optimizer.clone(), step_config)?,
            train: batches(&data.train)?,
            held_out: batches(&data.held_out)?,
            total_steps: recipe.run.steps,
            seconds_before: 0.0,
        };
        if resume {
            run.restore(observer)?;
        }
        Ok(run)
    }

    /// Trains until the recipe's end or until `stop` is set, which ends the run after the step it is in.
    ///
    /// # Errors
    /// [`RunError`]; the last good state is on the disk.
    pub fn train(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Summary, RunError> {
        let resume_step = (self.trainer.step > 0).then_some(self.trainer.step);
        let mut metrics = MetricsWriter::open(self.folder.path(), resume_step)?;
        observer.started(&self.trainer);
        let mut clock = Clock::new(self.seconds_before);
        clock.estimate = self.measure_step()?;
        loop {
            let total = self.total(&clock);
            if self.trainer.step >= total || stop.load(Ordering::Relaxed) {
                break;
            }
            let lr = self.recipe.schedule.build(total)?.lr(self.trainer.step);
            let micro_batches = self.micro_batches()?;
            let outcome = clock.time(|| self.trainer.step(&micro_batches, lr));
            let progress = self.progress(&outcome, lr, &clock, total);
            metrics.write(&record::of_step(&self.trainer, &progress))?;
            observer.step(&self.trainer, &progress);
            self.check_finite(&outcome, &clock, &mut metrics)?;
            self.between_steps(total, &clock, &mut metrics, observer)?;
        }
        self.finish(&clock, &mut metrics, observer)
    }

    /// The micro-batches of the next step.
    fn micro_batches(&self) -> Result<Vec<Batch>, StoreError> {
        let count = self.recipe.batch.micro_batches_per_step;
        (0..count).map(|micro_batch| self.train.batch(self.trainer.step, micro_batch)).collect()
    }

    /// The batches that the run trains on.
    pub fn batches(&self) -> &Batches {
        &self.train
    }

    /// Seconds of one step as far as they can be known before the first; only timed runs ask.
    fn measure_step(&self) -> Result<f64, RunError> {
        if self.total_steps.is_some() {
            return Ok(0.0);
        }
        let micro_batches = self.micro_batches()?;
        // The first pass also makes packed weights and memory; the second is like the rest.
        self.trainer.rehearse(&micro_batches[..1]);
        let start = Instant::now();
        self.trainer.rehearse(&micro_batches[..1]);
        Ok(start.elapsed().as_secs_f64() * micro_batches.len() as f64)
    }

    /// Length of the run in steps. A timed run is as long as its pace allows, until its decay begins: then the length
    /// is fixed, so that the decay ends where the run does.
    fn total(&mut self, clock: &Clock) -> u64 {
        if let Some(total) = self.total_steps {
            return total;
        }
        let budget = self.recipe.run.minutes.unwrap_or(0.0) * 60.0;
        let left = (budget - clock.elapsed()).max(0.0) / clock.step_seconds();
        let total = self.trainer.step + (left as u64).max(1);
        let phases = self.recipe.schedule.phases(total);
        let decaying = |phases: &crate::recipe::Phases| self.trainer.step >= phases.warmup + phases.stable;
        if phases.as_ref().map_or(true, decaying) {
            self.total_steps = Some(total);
        }
        total
    }

    fn progress<'o>(&self, outcome: &'o StepOutcome, lr: f64, clock: &Clock, total_steps: u64) -> Progress<'o> {
        let tokens = self.recipe.batch.tokens_per_step();
        // A causal pass over T tokens sees T / 2 keys on average.
        let flops = self.trainer.model.config().flops_per_token(self.recipe.batch.sequence_length as f64 / 2.0);
        Progress {
            outcome,
            lr,
            seconds: clock.last,
            elapsed: clock.elapsed(),
            total_steps,
            tokens,
            flops: 3.0 * flops.total() * tokens as f64,
        }
    }

    fn check_finite(
        &mut self,
        outcome: &StepOutcome,
        clock: &Clock,
        metrics: &mut MetricsWriter,
    ) -> Result<(), RunError> {
        let streak = self.trainer.non_finite_streak;
        let limit = self.recipe.run.non_finite_steps_max;
        match &outcome.skipped {
            Some(what) if streak >= limit => {
                self.save(clock, metrics)?;
                Err(RunError::NonFinite { streak, what: what.clone(), step: self.trainer.step })
            }
            _ => Ok(()),
        }
    }

    fn between_steps(
        &mut self,
        total: u64,
        clock: &Clock,
        metrics: &mut MetricsWriter,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let (step, run) = (self.trainer.step, &self.recipe.run);
        let due = |every: u64| every > 0 && step % every == 0 && step < total;
        if due(run.evaluate_every_steps) {
            self.evaluate(run.evaluate_bytes, metrics, observer)?;
        }
        if due(run.sample_every_steps) {
            observer.sample(&self.trainer);
        }
        if due(run.save_every_steps) {
            self.save(clock, metrics)?;
            observer.saved(step);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        clock: &Clock,
        metrics: &mut MetricsWriter,
        observer: &mut dyn Observer,
    ) -> Result<Summary, RunError> {
        self.save(clock, metrics)?;
        observer.saved(self.trainer.step);
        let interrupted = self.total_steps.is_none_or(|total| self.trainer.step < total);
        let bytes = if interrupted { self.recipe.run.evaluate_bytes } else { u64::MAX };
        let held_out = self.evaluate(bytes, metrics, observer)?;
        metrics.sync()?;
        let Trainer { step, tokens, .. } = self.trainer;
        Ok(Summary { steps: step, tokens, seconds: clock.elapsed(), held_out, interrupted })
    }

    fn evaluate(
        &self,
        bytes_max: u64,
        metrics: &mut MetricsWriter,
        observer: &mut dyn Observer,
    ) -> Result<HeldOut, RunError> {
        let held_out = held_out_loss(&self.trainer.model, &self.held_out, bytes_max)?;
        metrics.write(&record::of_evaluation(self.trainer.step, &held_out))?;
        observer.evaluated(self.trainer.step, &held_out);
        Ok(held_out)
    }

    /// Metrics first: a checkpoint never stands behind lines that a power cut could still take away.
    fn save(&self, clock: &Clock, metrics: &mut MetricsWriter) -> Result<(), RunError> {
        metrics.sync()?;
        let (state, tensors) = self.trainer.export(self.total_steps, clock.elapsed());
        let records = tensors.into_iter().map(|(name, tensor)| Record::tensor(name, tensor)).collect();
        let document = serde_json::to_value(&state).expect("the state has string keys only");
        self.folder.checkpoints().save(state.step, records, &document, self.recipe.run.keep_checkpoints)?;
        Ok(())
    }

    fn restore(&mut self, observer: &mut dyn Observer) -> Result<(), RunError> {
        let Some(Latest { snapshot, skipped }) = self.folder.checkpoints().latest()? else {
            observer.warning("there is no checkpoint yet: starting from the first step");
            return Ok(());
        };
        skipped.iter().for_each(|damaged| observer.warning(&format!("passing over a damaged checkpoint: {damaged}")));
        let state: TrainingState = serde_json::from_value(snapshot.state().clone()).map_err(RestoreError::Document)?;
        self.total_steps = self.total_steps.or(state.total_steps);
        self.seconds_before = state.seconds;
        let read = |view: View| {
            let tensor = snapshot.tensor(view.name, Device::cpu(), DType::F32, view.shape)?;
            Ok::<_, SnapshotError>((view.name.to_owned(), tensor))
        };
        let tensors = snapshot.views().map(read).collect::<Result<_, _>>()?;
        self.trainer.restore(state, tensors)?;
        Ok(())
    }
}

/// Loss on up to `bytes_max` bytes of held-out text, spread over all of it.
///
/// # Errors
/// [`StoreError`] if the store is damaged.
pub fn held_out_loss(model: &Model, held_out: &Batches, bytes_max: u64) -> Result<HeldOut, StoreError> {
    let (store, rows) = (held_out.store(), held_out.packing().rows());
    let share = (bytes_max as f64 / store.text_bytes() as f64).min(1.0);
    let rows_read = ((rows as f64 * share).ceil() as usize).clamp(1, rows);
    let evaluation: Evaluation = evaluate(model, held_out, rows_read)?;
    let tokens_per_byte = (store.len_tokens() - store.len_documents()) as f64 / store.text_bytes() as f64;
    Ok(HeldOut {
        loss: evaluation.loss(),
        bits_per_byte: evaluation.loss() * tokens_per_byte / std::f64::consts::LN_2,
        tokens: evaluation.targets,
        complete: rows_read == rows,
    })
}

/// Time spent in steps and around them.
struct Clock {
    start: Instant,
    before: f64,
    /// Guess for one step before there is a measurement.
    estimate: f64,
    last: f64,
    /// The pace of late: a mean that forgets.
    mean: Option<f64>,
}

impl Clock {
    fn new(before: f64) -> Self {
        Self { start: Instant::now(), before, estimate: 0.0, last: 0.0, mean: None }
    }

    fn elapsed(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    fn step_seconds(&self) -> f64 {
        self.mean.unwrap_or(self.estimate).max(1e-6)
    }

    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.last = start.elapsed().as_secs_f64();
        self.mean = Some(self.mean.map_or(self.last, |mean| 0.9 * mean + 0.1 * self.last));
        result
    }
}

//! What a training step reads: rows of tokens with targets, positions and segments, as a pure function of
//! (store, shape, seed, step). Any rank can ask for any micro-batch at any time.
//!
//! R rows · T inputs per row · S segments

use std::ops::Range;
use std::sync::Arc;

use crate::order::row_at;
use crate::packing::Packing;
use crate::store::{StoreError, TokenStore};

/// The target of a position that predicts nothing, which is padding only: no target lies across a document's end.
pub const IGNORE: u32 = u32::MAX;

/// How many rows make a micro-batch, and how many micro-batches a step, over all ranks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Inputs per row.
    pub sequence_length: usize,
    /// Rows that one forward pass takes.
    pub rows_per_micro_batch: usize,
    /// Micro-batches whose gradients are summed before the optimizer steps.
    pub micro_batches_per_step: usize,
}

impl BatchShape {
    /// Rows that one optimizer step reads.
    pub fn rows_per_step(&self) -> usize {
        self.rows_per_micro_batch * self.micro_batches_per_step
    }
}

/// Rows of one length, laid one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows R.
    pub rows: usize,
    /// Inputs per row T.
    pub sequence_length: usize,
    /// Inputs, `R * T`. Padding repeats the store's end token.
    pub tokens: Vec<u32>,
    /// The token that follows each input in its document, `R * T`; [`IGNORE`] at padding.
    pub targets: Vec<u32>,
    /// Place of each input in its segment, `R * T`; starts at 0 in every segment.
    pub positions: Vec<u32>,
    /// Lengths of the segments in order; they sum to `R * T` and none reaches across a row. Attention stays within
    /// a segment. The padding at the end of a row is a segment of its own.
    pub segments: Vec<usize>,
}

impl Batch {
    /// Number of targets that are not [`IGNORE`].
    pub fn len_targets(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }
}

/// All batches of a run.
#[derive(Clone, Debug)]
pub struct Batches {
    store: Arc<TokenStore>,
    packing: Arc<Packing>,
    shape: BatchShape,
    seed: u64,
}

impl Batches {
    /// Packs the store's documents into rows of `shape.sequence_length`. Cloning afterwards is cheap.
    ///
    /// # Errors
    /// [`StoreError::NothingToPredict`] if no document holds two tokens.
    pub fn new(store: Arc<TokenStore>, shape: BatchShape, seed: u64) -> Result<Self, StoreError> {
        assert!(shape.rows_per_step() > 0, "a step needs at least one row, got {shape:?}");
        let packing = Packing::best_fit(store.document_lens(), shape.sequence_length);
        if packing.rows() == 0 {
            return Err(StoreError::NothingToPredict { dir: store.dir().to_owned() });
        }
        Ok(Batches { store, packing: Arc::new(packing), shape, seed })
    }

    /// Micro-batch number `micro_batch` of step number `step`, both counted from 0.
    ///
    /// # Errors
    /// [`StoreError`] if the store's file holds an id outside the vocabulary.
    pub fn batch(&self, step: u64, micro_batch: usize) -> Result<Batch, StoreError> {
        let BatchShape { rows_per_micro_batch, micro_batches_per_step, .. } = self.shape;
        assert!(
            micro_batch < micro_batches_per_step,
            "micro-batch {micro_batch} of a step with {micro_batches_per_step} (counted from 0)"
        );
        let first = step * self.shape.rows_per_step() as u64 + (micro_batch * rows_per_micro_batch) as u64;
        self.rows(self.rows_of_samples(first..first + rows_per_micro_batch as u64))
    }

    /// The rows that these steps read, in order; a row comes again in the next epoch.
    pub fn rows_of_steps(&self, steps: Range<u64>) -> impl Iterator<Item = usize> + '_ {
        let per_step = self.shape.rows_per_step() as u64;
        self.rows_of_samples(steps.start * per_step..steps.end * per_step)
    }

    fn rows_of_samples(&self, samples: Range<u64>) -> impl Iterator<Item = usize> + '_ {
        samples.map(|sample| row_at(self.seed, sample, self.packing.rows()))
    }

    /// The given rows of the packing, in the given order. Evaluation reads `0..packing().rows()` with it.
    ///
    /// # Errors
    /// [`StoreError`] if the store's file holds an id outside the vocabulary.
    pub fn rows(&self, rows: impl IntoIterator<Item = usize>) -> Result<Batch, StoreError> {
        let mut batch = Batch { sequence_length: self.shape.sequence_length, ..Batch::default() };
        for row in rows {
            self.push_row(row, &mut batch)?;
        }
        Ok(batch)
    }

    /// How documents lie in rows.
    pub fn packing(&self) -> &Packing {
        &self.packing
    }

    /// The tokens that the batches are made of.
    pub fn store(&self) -> &TokenStore {
        &self.store
    }

    /// The shape that `new` was given.
    pub fn shape(&self) -> BatchShape {
        self.shape
    }

    /// Steps that read every row once; the last one may reach into the next epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.packing.rows() as u64).div_ceil(self.shape.rows_per_step() as u64)
    }

    fn push_row(&self, row: usize, batch: &mut Batch) -> Result<(), StoreError> {
        let row_end = (batch.rows + 1) * batch.sequence_length;
        for piece in self.packing.row(row) {
            // One token more than inputs: the last input's target.
            let read = self.store.document_range(piece.document, piece.start..piece.start + piece.len + 1)?;
            batch.tokens.extend_from_slice(&read[..piece.len]);
            batch.targets.extend_from_slice(&read[1..]);
            batch.positions.extend(0..piece.len as u32);
            batch.segments.push(piece.len);
        }
        let padding = row_end - batch.tokens.len();
        if padding > 0 {
            batch.tokens.resize(row_end, self.store.spec().end);
            batch.targets.resize(row_end, IGNORE);
            batch.positions.extend(0..padding as u32);
            batch.segments.push(padding);
        }
        batch.rows += 1;
        Ok(())
    }
}

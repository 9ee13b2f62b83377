//! Sampling a continuation token by token.

use model::{Cache, Model};

use crate::sampler::Sampler;
use crate::score::{self, ScoreError};

/// Prompt tokens per forward pass. It bounds memory; it cannot change the result.
const PREFILL_TOKENS: usize = 512;

/// One sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// Its log-probability under the model (temperature 1, nothing cut off), as [`score::score`] gives it.
    pub logprob: f32,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was sampled (it is the last of the tokens).
    Stop,
    /// The limit on new tokens was reached.
    Length,
    /// The model has no further positions.
    Context,
}

/// A sequence that is being continued. It keeps the ids that were sampled and only ever appends.
pub struct Generator<'a> {
    model: &'a Model,
    cache: Cache,
    tokens: Vec<u32>,
}

/// A finished continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens.
    pub tokens: Vec<Sampled>,
    /// Why it ended.
    pub finish: Finish,
}

impl<'a> Generator<'a> {
    /// An empty sequence.
    pub fn new(model: &'a Model) -> Self {
        Self { model, cache: Cache::new(model), tokens: Vec::new() }
    }

    /// All tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends given tokens.
    ///
    /// # Errors
    /// [`ScoreError`] if an id is unknown or the sequence gets too long; the sequence is then as before.
    pub fn append(&mut self, tokens: &[u32]) -> Result<(), ScoreError> {
        let all = [self.tokens.as_slice(), tokens].concat();
        score::check(self.model, &all)?;
        self.tokens = all;
        Ok(())
    }

    /// Samples up to `max_tokens` more, calling `each` with every token; `each` returns whether to go on.
    ///
    /// # Errors
    /// [`ScoreError::Empty`] if there is nothing to continue.
    pub fn generate(
        &mut self,
        sampler: &Sampler,
        max_tokens: usize,
        stop: &[u32],
        mut each: impl FnMut(Sampled) -> bool,
    ) -> Result<Generation, ScoreError> {
        score::check(self.model, &self.tokens)?;
        let mut generation = Generation { tokens: Vec::new(), finish: Finish::Length };
        while generation.tokens.len() < max_tokens {
            if self.tokens.len() >= self.model.config().max_position_embeddings {
                generation.finish = Finish::Context;
                break;
            }
            let logits = self.peek();
            let id = sampler.choose(&logits.to_vec_f32(), self.tokens.len());
            let sampled = Sampled { id, logprob: score::log_probabilities(&logits, &[id])[0] };
            self.tokens.push(id);
            generation.tokens.push(sampled);
            let go_on = each(sampled);
            if stop.contains(&id) || !go_on {
                generation.finish = Finish::Stop;
                break;
            }
        }
        Ok(generation)
    }

    /// Logits of the next token, `[1, V]` f32. Panics on an empty sequence.
    pub fn peek(&mut self) -> tensor::Tensor {
        // The last token is run again if nothing is pending; its bits are the same.
        let start = self.cache.len().min(self.tokens.len() - 1);
        self.cache.truncate(start);
        let pending = self.tokens[start..].to_vec();
        let mut last = None;
        for chunk in pending.chunks(PREFILL_TOKENS) {
            last = Some(score::hidden(self.model, &mut self.cache, chunk));
        }
        let hidden = last.expect("at least the last token is run");
        let end = hidden.shape()[0];
        tensor::Tape::inference().logits(&hidden.rows(end - 1..end), self.model.head())
    }
}

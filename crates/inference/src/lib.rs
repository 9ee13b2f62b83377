//! Generation and scoring with the training kernels: the KV cache in exact mode, and the sampler.
//!
//! Log-probabilities are those of the training pass, bit for bit, whether a text is scored at once, in chunks, or
//! was sampled token by token.

pub mod generate;
pub mod sampler;
pub mod score;

pub use generate::{Finish, Generation, Generator, Sampled};
pub use sampler::{Sampler, Sampling, SamplingError};
pub use score::{Score, ScoreError, score};

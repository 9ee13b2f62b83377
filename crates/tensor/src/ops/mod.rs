//! The differentiable operations: methods of [`crate::Tape`], forward and backward of each together.
//!
//! T tokens · S rows sorted by expert · D, N, K, C widths · E experts · H heads · V vocabulary

mod attention;
mod embedding;
mod experts;
mod linear;
mod loss;
mod norm;
mod rows;
mod swiglu;

pub use experts::{ExpertWeights, Routing};
pub use loss::Loss;

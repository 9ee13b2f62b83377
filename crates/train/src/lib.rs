//! Pre-training: recipes, the step, metrics, and exact resume.

pub mod metrics;
pub mod recipe;

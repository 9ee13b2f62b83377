//! Pre-training: recipes, the step, metrics, and exact resume.

mod evaluate;
pub mod gradient_tree;
pub mod memory;
pub mod metrics;
pub mod prepare;
pub mod recipe;
mod record;
pub mod router;
pub mod run;
pub mod state;
mod trainer;

pub use evaluate::{Evaluation, evaluate};
pub use run::{HeldOut, Observer, Progress, Run, RunError, Summary};
pub use trainer::{StepConfig, StepOutcome, Trainer};

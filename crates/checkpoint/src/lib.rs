//! Run folders and checkpoints that survive a kill at any moment.
//!
//! A [`RunFolder`] is where the stages of a recipe meet; one process at a time may write to it. Its [`Checkpoints`] are
//! folders of named tensors and a JSON document, which appear whole or not at all and carry a checksum of every tensor.

pub mod checkpoints;
pub mod run;
pub mod snapshot;

pub use checkpoints::{Checkpoints, Latest};
pub use run::{RunError, RunFolder, RunLock};
pub use snapshot::{Record, Snapshot, SnapshotError};

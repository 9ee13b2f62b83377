//! From a folder of files to packed, shuffled training sequences.
//!
//! The way of a document: a reader yields it ([`corpus`], [`registry`]), a hash of its path decides whether it is
//! held out ([`split`]), a tokenizer that the caller brings turns it into ids that are written once and mapped into
//! memory ever after ([`store`]), best-fit packing lays the documents into rows of one length ([`packing`]), and a
//! keyed permutation says which row comes when ([`order`]). [`TokenizedCorpus`] joins the first half into a folder,
//! [`Batches`] the second into what a training step asks for. Nothing here knows of tensors.

mod atomic_folder;
mod batches;
pub mod corpus;
pub mod order;
pub mod packing;
pub mod registry;
pub mod split;
pub mod stable_hash;
pub mod store;
mod tokenized_corpus;

pub use batches::{Batch, BatchShape, Batches, IGNORE};
pub use packing::{Packing, Piece};
pub use store::{StoreError, StoreSpec, StoreWriter, TokenStore};
pub use tokenized_corpus::{BuildError, Split, TokenizedCorpus};

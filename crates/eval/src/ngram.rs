//! A smoothed n-gram model over token ids: interpolated modified Kneser-Ney (Chen & Goodman 1999), the
//! strongest of the classical ones, and what a network has to beat to have learned more than phrases.
//!
//! The probability of a token after a context interpolates all shorter contexts, down to the uniform
//! distribution over the vocabulary:
//!
//! p(w | h) = (c(hw) - D(c(hw))) / c(h·) + gamma(h) · p(w | h without its first token)
//!
//! For the full order, c counts occurrences. For shorter n-grams it counts the distinct tokens seen before them,
//! since those are consulted only where the longer context is new. The discount D depends on the count (1, 2, 3 or more)
//! and is estimated from the data; gamma(h) is the mass that the discounts set free.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use crate::bits_per_byte;

/// Stands before each document, as often as the order asks for; never predicted.
const START: u32 = u32::MAX;

/// An n-gram model. Training and queries are deterministic.
pub struct NgramModel {
    vocab_size: usize,
    /// `orders[k - 1]` knows the n-grams of k tokens.
    orders: Vec<Order>,
    /// `contexts[k]` knows what follows n-grams of k tokens, by their index; `contexts[0]` holds one entry.
    contexts: Vec<Vec<Context>>,
}

/// All n-grams of one length.
#[derive(Default)]
struct Order {
    /// (index of the n-gram without its last token, last token) → index. A trie, so that any order and
    /// vocabulary fit in 12 bytes per n-gram.
    indices: HashMap<u64, u32, BuildHasherDefault<Fold>>,
    /// By index; occurrences for the full order, distinct predecessors below it.
    counts: Vec<u32>,
    /// D(1), D(2), D(3 or more).
    discounts: [f64; 3],
}

/// What is known about the tokens after one n-gram.
#[derive(Clone, Copy, Default)]
struct Context {
    /// Sum of the counts.
    total: f64,
    /// Share that the discounts leave to the shorter context.
    backoff: f64,
}

impl NgramModel {
    /// Counts n-grams of up to `order` tokens within each of the `documents`; ids are below `vocab_size`.
    ///
    /// # Panics
    /// On an order of 0, or an id that is not in the vocabulary.
    pub fn train<'a>(order: usize, vocab_size: usize, documents: impl IntoIterator<Item = &'a [u32]>) -> Self {
        assert!(order >= 1, "an n-gram model has an order of 1 or more");
        let mut orders: Vec<Order> = (0..order).map(|_| Order::default()).collect();
        for document in documents {
            count(&mut orders, vocab_size, document);
        }
        orders.iter_mut().for_each(Order::estimate_discounts);
        let contexts = (0..order)
            .map(|k| {
                let shorter = k.checked_sub(1).map_or(1, |shorter| orders[shorter].counts.len());
                orders[k].contexts(shorter)
            })
            .collect();
        NgramModel { vocab_size, orders, contexts }
    }

    /// p(`token` | the last tokens of `context`), where `context` begins at the start of a document.
    pub fn probability(&self, context: &[u32], token: u32) -> f64 {
        let mut indices = self.start();
        for seen in context {
            self.advance(&mut indices, *seen);
        }
        self.probability_at(&indices, token)
    }

    /// Sum of `-ln p` over the tokens of a document, the first one included.
    pub fn nats(&self, document: &[u32]) -> f64 {
        let mut indices = self.start();
        let mut nats = 0.0;
        for token in document {
            nats -= self.probability_at(&indices, *token).ln();
            self.advance(&mut indices, *token);
        }
        nats
    }

    /// Bits per byte over documents that have `bytes` bytes of text together.
    pub fn bits_per_byte<'a>(&self, documents: impl IntoIterator<Item = &'a [u32]>, bytes: u64) -> f64 {
        let nats = documents.into_iter().map(|document| self.nats(document));
        bits_per_byte(nats.sum(), bytes)
    }

    /// Indices of the n-grams of 0, 1, ... order - 1 tokens that end at the current place; `None` if never seen.
    fn start(&self) -> Vec<Option<u32>> {
        let mut indices = vec![None; self.orders.len()];
        indices[0] = Some(0);
        for _ in 1..self.orders.len() {
            self.advance(&mut indices, START);
        }
        indices
    }

    fn advance(&self, indices: &mut [Option<u32>], token: u32) {
        for k in (1..indices.len()).rev() {
            indices[k] = indices[k - 1].and_then(|shorter| self.orders[k - 1].find(shorter, token));
        }
    }

    fn probability_at(&self, indices: &[Option<u32>], token: u32) -> f64 {
        assert!((token as usize) < self.vocab_size, "token {token} is not in the vocabulary");
        let mut probability = 1.0 / self.vocab_size as f64;
        for (k, index) in indices.iter().enumerate() {
            let Some(index) = *index else { break };
            let Context { total, backoff } = self.contexts[k][index as usize];
            if total == 0.0 {
                break; // only ever seen at the end of a document
            }
            let order = &self.orders[k];
            let count = order.find(index, token).map_or(0, |n| order.counts[n as usize]);
            probability = order.discounted(count) / total + backoff * probability;
        }
        probability
    }
}

/// Adds one document to the counts.
fn count(orders: &mut [Order], vocab_size: usize, document: &[u32]) {
    let full = orders.len();
    let mut indices = vec![0; full + 1];
    for _ in 1..full {
        for k in (1..full).rev() {
            indices[k] = orders[k - 1].find_or_add(indices[k - 1], START).0;
        }
    }
    for token in document {
        assert!((*token as usize) < vocab_size, "token {token} is not in a vocabulary of {vocab_size}");
        let mut longer_is_new = true; // the full order counts every occurrence
        for k in (1..=full).rev() {
            let (index, is_new) = orders[k - 1].find_or_add(indices[k - 1], *token);
            orders[k - 1].counts[index as usize] += u32::from(longer_is_new);
            longer_is_new = is_new;
            indices[k] = index;
        }
    }
}

impl Order {
    fn find(&self, shorter: u32, token: u32) -> Option<u32> {
        self.indices.get(&key(shorter, token)).copied()
    }

    fn find_or_add(&mut self, shorter: u32, token: u32) -> (u32, bool) {
        match self.indices.entry(key(shorter, token)) {
            Entry::Occupied(entry) => (*entry.get(), false),
            Entry::Vacant(entry) => {
                let index = u32::try_from(self.counts.len()).expect("fewer than 2^32 n-grams");
                entry.insert(index);
                self.counts.push(0);
                (index, true)
            }
        }
    }

    /// The count less its discount; 0 for an n-gram that was never seen.
    fn discounted(&self, count: u32) -> f64 {
        match count {
            0 => 0.0,
            count => f64::from(count) - self.discounts[count.min(3) as usize - 1],
        }
    }

    /// D(i) = i - (i + 1) Y t(i+1) / t(i) with Y = t1 / (t1 + 2 t2), where t(i) n-grams have the count i.
    fn estimate_discounts(&mut self) {
        let mut t = [0.0; 5];
        for count in &self.counts {
            if let Some(n) = t.get_mut(*count as usize) {
                *n += 1.0;
            }
        }
        let y = t[1] / (t[1] + 2.0 * t[2]);
        for i in 1..=3 {
            let estimate = i as f64 - (i + 1) as f64 * y * t[i + 1] / t[i];
            // Too little data for an estimate: take half of a count.
            let usable = estimate.is_finite() && estimate > 0.0;
            self.discounts[i - 1] = if usable { estimate } else { 0.5 };
        }
    }

    /// Sums over the n-grams of this order by what stands before their last token, of which there are `shorter`.
    fn contexts(&self, shorter: usize) -> Vec<Context> {
        let mut totals = vec![0u64; shorter];
        let mut kinds = vec![[0u32; 3]; shorter];
        for (key, index) in &self.indices {
            let (context, count) = ((key >> 32) as usize, self.counts[*index as usize]);
            if count > 0 {
                totals[context] += u64::from(count);
                kinds[context][count.min(3) as usize - 1] += 1;
            }
        }
        let discounts = &self.discounts;
        let context = |(total, kinds): (&u64, &[u32; 3])| {
            let freed: f64 = (0..3).map(|i| discounts[i] * f64::from(kinds[i])).sum();
            let total = *total as f64;
            Context { total, backoff: freed / total }
        };
        totals.iter().zip(&kinds).map(context).collect()
    }
}

fn key(shorter: u32, token: u32) -> u64 {
    u64::from(shorter) << 32 | u64::from(token)
}

/// Hashes one integer: the halves of a 128-bit product, folded. Fixed, and much faster than the default.
#[derive(Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, key: u64) {
        let product = u128::from(key ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

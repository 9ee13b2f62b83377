//! Laws of the n-gram model: it is a distribution, it agrees with the formula written out plainly, and
//! longer contexts help where there is something to remember.

use std::collections::{BTreeMap, BTreeSet};

use chogori_eval::ngram::NgramModel;

/// Documents of a small language with structure: each token mostly follows from the two before it.
fn documents(seed: u64, vocab_size: u32, lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut state = seed;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u32 % below
    };
    let mut document = |length: usize| {
        let mut tokens = vec![random(vocab_size), random(vocab_size)];
        for i in 2..length.max(2) {
            let next = match random(10) {
                0..=6 => (tokens[i - 1] * 3 + tokens[i - 2] * 5 + 1) % vocab_size,
                _ => random(vocab_size) * random(vocab_size) % vocab_size,
            };
            tokens.push(next);
        }
        tokens.truncate(length);
        tokens
    };
    lengths.iter().map(|length| document(*length)).collect()
}

fn train(order: usize, vocab_size: u32, documents: &[Vec<u32>]) -> NgramModel {
    let documents = documents.iter().map(Vec::as_slice);
    NgramModel::train(order, vocab_size as usize, documents)
}

#[test]
fn probabilities_sum_to_one_after_any_context() {
    let check = |order: usize, training: &[Vec<u32>]| {
        let model = train(order, 23, training);
        // Contexts that were seen, that were not, and those at the start of a document.
        for text in documents(7, 23, &[12, 12]).iter().chain(training.first()) {
            for end in 0..text.len().min(12) {
                let after = |token| model.probability(&text[..end], token);
                let sum: f64 = (0..23).map(after).sum();
                assert!((sum - 1.0).abs() < 1e-12, "order {order}: {sum}");
                assert!((0..23).all(|token| after(token) > 0.0));
            }
        }
    };
    for order in 1..=5 {
        check(order, &documents(1, 23, &[300, 0, 1, 2, 3, 500]));
        check(order, &documents(1, 23, &[1]));
        check(order, &[vec![4; 50]]);
        check(order, &[]);
    }
}

/// The formula as the paper has it, over maps of whole n-grams.
struct Plain {
    vocab_size: u32,
    /// By length and n-gram; -1 is the start.
    counts: Vec<BTreeMap<Vec<i64>, f64>>,
}

impl Plain {
    fn train(order: usize, vocab_size: u32, documents: &[Vec<u32>]) -> Self {
        let mut counts = vec![BTreeMap::new(); order + 1];
        let mut seen: BTreeSet<Vec<i64>> = BTreeSet::new();
        for document in documents {
            let mut text = vec![-1; order - 1];
            text.extend(document.iter().map(|token| i64::from(*token)));
            for window in text.windows(order) {
                *counts[order].entry(window.to_vec()).or_insert(0.0) += 1.0;
                for skip in 0..order - 1 {
                    if seen.insert(window[skip..].to_vec()) {
                        let shorter = window[skip + 1..].to_vec();
                        *counts[order - skip - 1].entry(shorter).or_insert(0.0) += 1.0;
                    }
                }
            }
        }
        Plain { vocab_size, counts }
    }

    fn discount(&self, length: usize, count: f64) -> f64 {
        let with = |i: f64| self.counts[length].values().filter(|c| **c == i).count() as f64;
        let i = count.min(3.0);
        let y = with(1.0) / (with(1.0) + 2.0 * with(2.0));
        let estimate = i - (i + 1.0) * y * with(i + 1.0) / with(i);
        let usable = estimate.is_finite() && estimate > 0.0;
        if usable { estimate } else { 0.5 }
    }

    fn probability(&self, context: &[i64], token: i64) -> f64 {
        let length = context.len() + 1;
        let shorter = match context {
            [] => 1.0 / f64::from(self.vocab_size),
            [_, rest @ ..] => self.probability(rest, token),
        };
        let (mut total, mut freed, mut own) = (0.0, 0.0, 0.0);
        for (gram, count) in &self.counts[length] {
            if gram[..length - 1] == *context {
                let discount = self.discount(length, *count);
                total += count;
                freed += discount;
                if gram[length - 1] == token {
                    own = count - discount;
                }
            }
        }
        if total == 0.0 {
            return shorter;
        }
        own / total + freed / total * shorter
    }
}

#[test]
fn agrees_with_the_formula_written_out() {
    let training = documents(1, 11, &[120, 80, 1]);
    let (fast, plain) = (train(3, 11, &training), Plain::train(3, 11, &training));
    let text = &documents(2, 11, &[10])[0];
    let tokens = text.iter().map(|token| i64::from(*token));
    let padded: Vec<i64> = [-1, -1].into_iter().chain(tokens).collect();
    for (i, token) in text.iter().enumerate() {
        let expected = plain.probability(&padded[i..i + 2], i64::from(*token));
        let probability = fast.probability(&text[..i], *token);
        let difference = (probability - expected).abs();
        assert!(difference < 1e-12, "{probability} instead of {expected}");
    }
}

#[test]
fn longer_contexts_help_and_results_repeat() {
    let training = documents(1, 50, &[4000; 20]);
    let held_out = documents(3, 50, &[500; 4]);
    let bits = |order: usize| {
        let model = train(order, 50, &training);
        model.bits_per_byte(held_out.iter().map(Vec::as_slice), 2000)
    };
    let by_order: Vec<f64> = (1..=4).map(bits).collect();
    // Two tokens decide the next one; a third says nothing more and should do little harm.
    assert!(by_order[1] < by_order[0] - 0.1, "{by_order:?}");
    assert!(by_order[2] < by_order[1] - 0.5, "{by_order:?}");
    assert!(by_order[3] < by_order[2] + 0.1, "{by_order:?}");
    assert_eq!(bits(4), by_order[3]);
}

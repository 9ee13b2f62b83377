//! Batches from the store to the step: every prediction once per epoch, the same whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use chogori_data::stable_hash::mix;
use chogori_data::{Batch, BatchShape, Batches, IGNORE, StoreError, StoreSpec, StoreWriter, TokenStore};

const BEGIN: u32 = 0;
const END: u32 = 1;

/// Documents whose tokens say where they come from: token k of document d is `2 + 1000 d + k`.
fn store(lens: &[usize]) -> (tempfile::TempDir, Arc<TokenStore>) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let spec = StoreSpec { vocab_size: 200_000, begin: Some(BEGIN), end: END, tokenizer_digest: String::new() };
    let mut writer = StoreWriter::create(&dir, spec).unwrap();
    for (d, &len) in lens.iter().enumerate() {
        let tokens: Vec<u32> = (0..len).map(|k| (2 + 1000 * d + k) as u32).collect();
        writer.append(&d.to_string(), "text", &tokens).unwrap();
    }
    writer.finish().unwrap();
    (folder, Arc::new(TokenStore::open(&dir).unwrap()))
}

fn lens() -> Vec<usize> {
    (0..60).map(|i| (mix(i) % 150) as usize).collect()
}

fn batches(store: &Arc<TokenStore>, rows: usize, micro: usize, seed: u64) -> Batches {
    let shape = BatchShape { sequence_length: 64, rows_per_micro_batch: rows, micro_batches_per_step: micro };
    Batches::new(store.clone(), shape, seed).unwrap()
}

/// How often each (input, target) pair occurs, and the shape laws of every segment on the way.
fn count_pairs(batch: &Batch, pairs: &mut BTreeMap<(u32, u32), usize>) {
    let positions = batch.rows * batch.sequence_length;
    assert_eq!(batch.tokens.len(), positions);
    assert_eq!(batch.targets.len(), positions);
    assert_eq!(batch.positions.len(), positions);
    assert_eq!(batch.segments.iter().sum::<usize>(), positions);
    let mut at = 0;
    for &segment in &batch.segments {
        assert!(at / 64 == (at + segment - 1) / 64, "a segment reaches across a row");
        assert!(batch.positions[at..at + segment].iter().copied().eq(0..segment as u32));
        let targets = &batch.targets[at..at + segment];
        if targets[0] == IGNORE {
            assert!(targets.iter().all(|&t| t == IGNORE));
        } else {
            // Inside a segment each target is the next input.
            assert_eq!(targets[..segment - 1], batch.tokens[at + 1..at + segment]);
            let inputs = &batch.tokens[at..at + segment];
            inputs.iter().zip(targets).for_each(|(&i, &t)| *pairs.entry((i, t)).or_default() += 1);
        }
        at += segment;
    }
}

#[test]
fn an_epoch_predicts_every_token_once() {
    let (_folder, store) = store(&lens());
    let mut expected = BTreeMap::new();
    for document in store.documents() {
        let document = document.unwrap();
        document.windows(2).for_each(|pair| *expected.entry((pair[0], pair[1])).or_default() += 1);
    }
    let batches = batches(&store, 1, 1, 5);
    for epoch in 0..2 {
        let mut pairs = BTreeMap::new();
        let rows = batches.packing().rows() as u64;
        (epoch * rows..(epoch + 1) * rows).for_each(|s| count_pairs(&batches.batch(s, 0).unwrap(), &mut pairs));
        assert_eq!(pairs, expected);
    }
}

#[test]
fn the_same_samples_however_a_step_is_cut() {
    let (_folder, store) = store(&lens());
    let tokens = |rows, micro, steps| {
        let batches = batches(&store, rows, micro, 9);
        let each = (0..steps).flat_map(|s| (0..micro).map(move |m| (s, m)));
        each.flat_map(|(s, m)| batches.batch(s, m).unwrap().tokens).collect::<Vec<_>>()
    };
    let whole = tokens(8, 1, 12);
    assert_eq!(whole, tokens(4, 2, 12));
    assert_eq!(whole, tokens(1, 8, 12));
    assert_eq!(whole, tokens(2, 2, 24));
}

#[test]
fn a_step_needs_no_history_and_a_seed_is_an_order() {
    let (_folder, store) = store(&lens());
    let fresh = batches(&store, 4, 2, 1).batch(1_000_000, 1).unwrap();
    let used = batches(&store, 4, 2, 1);
    used.batch(0, 0).unwrap();
    assert_eq!(fresh, used.batch(1_000_000, 1).unwrap());
    assert_ne!(fresh, batches(&store, 4, 2, 2).batch(1_000_000, 1).unwrap());
}

#[test]
fn evaluation_reads_rows_in_order() {
    let (_folder, store) = store(&lens());
    let batches = batches(&store, 4, 1, 1);
    let all = batches.rows(0..batches.packing().rows()).unwrap();
    assert_eq!(all.len_targets() as u64, batches.packing().inputs());
    assert_eq!(all.len_targets(), store.len_tokens() - store.len_documents());
}

#[test]
fn a_row_by_hand() {
    let (_folder, store) = store(&[3]);
    let shape = BatchShape { sequence_length: 6, rows_per_micro_batch: 1, micro_batches_per_step: 1 };
    let batch = Batches::new(store, shape, 0).unwrap().batch(0, 0).unwrap();
    assert_eq!(batch.tokens, [BEGIN, 2, 3, 4, END, END]);
    assert_eq!(batch.targets, [2, 3, 4, END, IGNORE, IGNORE]);
    assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1]);
    assert_eq!(batch.segments, [4, 2]);
}

#[test]
fn nothing_to_predict_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let spec = StoreSpec { vocab_size: 10, begin: None, end: 1, tokenizer_digest: String::new() };
    let mut writer = StoreWriter::create(&dir, spec).unwrap();
    writer.append("empty", "", &[]).unwrap();
    writer.finish().unwrap();
    let store = Arc::new(TokenStore::open(&dir).unwrap());
    let shape = BatchShape { sequence_length: 6, rows_per_micro_batch: 1, micro_batches_per_step: 1 };
    assert!(matches!(Batches::new(store, shape, 0), Err(StoreError::NothingToPredict { .. })));
}

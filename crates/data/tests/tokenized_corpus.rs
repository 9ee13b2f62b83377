//! A corpus on its way to two stores: divided by path, complete, and never half there.

use std::fs;
use std::path::Path;

use chogori_data::corpus::{CorpusError, Document};
use chogori_data::split::held_out;
use chogori_data::{BuildError, StoreError, StoreSpec, TokenizedCorpus};

/// Each byte is a token; 256 begins and 257 ends a document.
fn spec() -> StoreSpec {
    StoreSpec { vocab_size: 258, begin: Some(256), end: 257, tokenizer_digest: "bytes".into() }
}

fn bytes(texts: &[String]) -> Vec<Vec<u32>> {
    texts.iter().map(|text| text.bytes().map(u32::from).collect()).collect()
}

fn documents(count: usize) -> Vec<Document> {
    (0..count).map(|i| Document { id: format!("{i}.txt"), text: format!("text number {i}. ").repeat(i + 1) }).collect()
}

fn build(dir: &Path, documents: Vec<Document>, fraction: f64) -> Result<TokenizedCorpus, BuildError> {
    TokenizedCorpus::build(dir, documents.into_iter().map(Ok), &bytes, &spec(), fraction)
}

#[test]
fn every_document_is_on_its_side() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = build(&folder.path().join("corpus"), documents(200), 0.1).unwrap();
    let held_out_store = corpus.held_out.unwrap();
    let mut stores = [corpus.train.documents(), held_out_store.documents()];
    for Document { id, text } in documents(200) {
        let tokens = stores[usize::from(held_out(&id, 0.1))].next().unwrap().unwrap();
        let whole: Vec<u32> = [256].into_iter().chain(text.bytes().map(u32::from)).chain([257]).collect();
        assert_eq!(tokens, whole, "{id}");
    }
    assert!(stores.iter_mut().all(|store| store.next().is_none()));
}

#[test]
fn batches_of_the_tokenizer_do_not_show() {
    let folder = tempfile::tempdir().unwrap();
    // More than one batch of 4 MiB.
    let large = |i: usize| Document { id: format!("{i}"), text: format!("{i} ").repeat(300_000) };
    let largest = std::cell::Cell::new(0);
    let encode = |texts: &[String]| {
        largest.set(largest.get().max(texts.len()));
        bytes(texts)
    };
    let dir = folder.path().join("corpus");
    let corpus = TokenizedCorpus::build(&dir, (0..16).map(large).map(Ok), &encode, &spec(), 0.0).unwrap();
    assert!(largest.get() < 10);
    assert_eq!(corpus.train.len_documents(), 16);
    assert_eq!(corpus.train.len_tokens() as u64, corpus.train.text_bytes() + 32);
    corpus.train.verify().unwrap();
    assert!(corpus.held_out.is_none());
}

#[test]
fn nothing_stays_of_a_corpus_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("corpus");
    let is_empty = || fs::read_dir(folder.path()).unwrap().next().is_none();

    let failing = documents(5).into_iter().map(Ok).chain([Err(CorpusError::TooLarge { id: "x".into(), bytes_max: 1 })]);
    let result = TokenizedCorpus::build(&dir, failing, &bytes, &spec(), 0.5);
    assert!(matches!(result, Err(BuildError::Corpus(_))) && is_empty());

    let result = build(&dir, Vec::new(), 0.5);
    assert!(matches!(result, Err(BuildError::Store(StoreError::Empty { .. }))) && is_empty());
    let result = build(&dir, documents(1), 1e-9);
    assert!(matches!(result, Err(BuildError::OneSided { side: "held_out", .. })) && is_empty());
    let result = build(&dir, documents(1), 1.0);
    assert!(matches!(result, Err(BuildError::OneSided { side: "train", .. })) && is_empty());
    assert!(matches!(TokenizedCorpus::open(&dir), Err(StoreError::NotACorpus { .. })));
}

#[test]
fn what_a_killed_process_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join(".corpus.partial");
    fs::create_dir_all(left.join("train")).unwrap();
    fs::create_dir_all(left.join(".held_out.partial")).unwrap();
    fs::write(left.join("train/tokens.bin"), "old").unwrap();
    fs::write(left.join("split.json"), "old and longer than what is written now, as it should be").unwrap();
    let dir = folder.path().join("corpus");
    build(&dir, documents(20), 0.5).unwrap();
    let reopened = TokenizedCorpus::open(&dir).unwrap();
    reopened.train.verify().unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
    assert!(matches!(build(&dir, documents(20), 0.5), Err(BuildError::Store(StoreError::Exists { .. }))));
}

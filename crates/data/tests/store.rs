//! The token store through its public face: what is written is read, and whatever is damaged is named.

use std::fs;
use std::path::{Path, PathBuf};

use chogori_data::{StoreError, StoreSpec, StoreWriter, TokenStore};
use proptest::prelude::*;
use tempfile::TempDir;

fn spec(vocab_size: usize) -> StoreSpec {
    StoreSpec { vocab_size, begin: Some(1), end: 2, tokenizer_digest: "test".into() }
}

fn write(dir: &Path, vocab_size: usize, documents: &[Vec<u32>]) -> Result<(), StoreError> {
    let mut writer = StoreWriter::create(dir, spec(vocab_size))?;
    for (i, tokens) in documents.iter().enumerate() {
        writer.append(&format!("file{i}"), &"x".repeat(3 * tokens.len()), tokens)?;
    }
    writer.finish()
}

/// A folder with a store of three documents in it.
fn example() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    write(&dir, 100, &[vec![3, 4, 5], vec![], vec![99, 98]]).unwrap();
    (folder, dir)
}

fn entries(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn reads_what_was_written(
        vocab_size in prop_oneof![Just(300_usize), Just(65_536), Just(65_537), Just(163_840)],
        shape in prop::collection::vec(prop::collection::vec(0.0_f64..1.0, 0..40), 1..30),
    ) {
        let scale = |share: &f64| (share * vocab_size as f64) as u32;
        let documents: Vec<Vec<u32>> = shape.iter().map(|d| d.iter().map(scale).collect()).collect();
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("store");
        write(&dir, vocab_size, &documents).unwrap();
        let store = TokenStore::open(&dir).unwrap();
        store.verify().unwrap();
        prop_assert_eq!(store.len_documents(), documents.len());
        for (i, tokens) in documents.iter().enumerate() {
            let whole = [&[1], &tokens[..], &[2]].concat();
            prop_assert_eq!(store.document_range(i, 1..whole.len()).unwrap(), &whole[1..]);
            prop_assert_eq!(store.document_text_bytes(i), 3 * tokens.len() as u64);
            prop_assert_eq!(store.document(i).unwrap(), whole);
        }
        prop_assert_eq!(store.len_tokens(), store.document_lens().sum::<usize>());
        let width = if vocab_size <= 65_536 { 2 } else { 4 };
        let file_bytes = fs::metadata(dir.join("tokens.bin")).unwrap().len();
        prop_assert_eq!(file_bytes, (store.len_tokens() * width) as u64);
    }
}

#[test]
fn same_documents_same_bytes() {
    let ((_a, first), (_b, second)) = (example(), example());
    for file in ["tokens.bin", "documents.bin", "store.json"] {
        assert_eq!(fs::read(first.join(file)).unwrap(), fs::read(second.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn nothing_is_visible_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let mut writer = StoreWriter::create(&dir, spec(100)).unwrap();
    writer.append("a", "text", &[5, 6]).unwrap();
    assert!(matches!(TokenStore::open(&dir), Err(StoreError::NotAStore { .. })));
    assert!(matches!(StoreWriter::create(&dir, spec(100)), Err(StoreError::InUse { .. })));
    drop(writer);
    assert_eq!(entries(folder.path()), [""; 0]);
}

#[test]
fn a_killed_writer_does_not_disturb_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let partial = folder.path().join(".store.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("tokens.bin"), [7; 1000]).unwrap();
    fs::write(partial.join("store.json"), "{").unwrap();
    let dir = folder.path().join("store");
    write(&dir, 100, &[vec![3]]).unwrap();
    assert_eq!(TokenStore::open(&dir).unwrap().document(0).unwrap(), [1, 3, 2]);
    assert_eq!(entries(folder.path()), ["store"]);
}

const KILLED_WRITER: &str = "CHOGORI_TEST_KILLED_WRITER";

/// The process that the next test kills: writes to the folder in the variable and never finishes.
#[test]
fn killed_writer() {
    let Some(dir) = std::env::var_os(KILLED_WRITER) else { return };
    let mut writer = StoreWriter::create(Path::new(&dir), spec(100)).unwrap();
    loop {
        writer.append("a", "text", &[5; 1000]).unwrap();
    }
}

#[test]
fn killing_a_writer_leaves_no_store_and_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_writer"])
        .env(KILLED_WRITER, &dir)
        .spawn()
        .unwrap();
    let tokens = folder.path().join(".store.partial/tokens.bin");
    while fs::metadata(&tokens).map_or(0, |metadata| metadata.len()) < 1 << 20 {
        assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
        std::thread::yield_now();
    }
    assert!(matches!(StoreWriter::create(&dir, spec(100)), Err(StoreError::InUse { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.exists());
    write(&dir, 100, &[vec![3]]).unwrap();
    TokenStore::open(&dir).unwrap().verify().unwrap();
    assert_eq!(entries(folder.path()), ["store"]);
}

#[test]
fn writing_refuses_what_reading_would() {
    let (_folder, dir) = example();
    assert!(matches!(write(&dir, 100, &[vec![3]]), Err(StoreError::Exists { .. })));
    let other = dir.with_file_name("other");
    assert!(matches!(write(&other, 100, &[vec![100]]), Err(StoreError::Vocabulary { token: 100, .. })));
    assert!(matches!(write(&other, 2, &[vec![0]]), Err(StoreError::Vocabulary { token: 2, .. })));
    assert!(matches!(write(&other, 100, &[]), Err(StoreError::Empty { .. })));
    assert!(!other.exists());
}

/// Damages a good store with `damage` and checks that opening or verifying it says `expected`.
fn check_damage(damage: impl FnOnce(&Path), expected: &[&str]) {
    let (_folder, dir) = example();
    damage(&dir);
    let result = TokenStore::open(&dir).and_then(|store| store.verify());
    let message = result.expect_err("damage must be seen").to_string();
    for part in expected {
        assert!(message.contains(part), "{message:?} should name {part:?}");
    }
}

fn edit(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn replace_in_header(dir: &Path, from: &str, to: &str) {
    let path = dir.join("store.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn damage_is_named() {
    // Three documents of 3, 0 and 2 tokens, each with begin and end: 11 tokens of 2 bytes, 4 records of 16 bytes.
    check_damage(|d| edit(d.join("tokens.bin"), |b| b.truncate(9)), &["tokens.bin", "9 bytes", "22", "cut short"]);
    check_damage(|d| edit(d.join("tokens.bin"), |b| b.push(0)), &["tokens.bin", "23 bytes"]);
    check_damage(|d| edit(d.join("tokens.bin"), |b| b[3] = 1), &["tokens.bin", "document 0", "token 259"]);
    check_damage(|d| edit(d.join("tokens.bin"), |b| b[2] = 50), &["tokens.bin", "digest"]);
    check_damage(|d| edit(d.join("documents.bin"), |b| b.truncate(32)), &["documents.bin", "32 bytes", "64"]);
    check_damage(|d| edit(d.join("documents.bin"), |b| b[16] = 200), &["documents.bin", "record 1"]);
    check_damage(|d| edit(d.join("documents.bin"), |b| b[0] = 1), &["documents.bin", "record 0"]);
    check_damage(|d| edit(d.join("documents.bin"), |b| b[55] = 9), &["documents.bin", "record 3"]);
    check_damage(|d| fs::remove_file(d.join("tokens.bin")).unwrap(), &["tokens.bin"]);
    check_damage(|d| fs::remove_file(d.join("store.json")).unwrap(), &["not a token store"]);
    check_damage(|d| edit(d.join("store.json"), |b| b.truncate(20)), &["store.json", "not what this program writes"]);
    check_damage(|d| replace_in_header(d, "\"format_version\": 1", "\"format_version\": 2"), &["version 2"]);
    check_damage(|d| replace_in_header(d, "\"end\": 2", "\"end\": 100"), &["token 100"]);
    check_damage(|d| replace_in_header(d, "\"documents\": 3", "\"documents\": 18446744073709551615"), &["64 bytes"]);
    check_damage(|d| replace_in_header(d, "\"vocab_size\": 100", "\"vocab_size\": 100000"), &["tokens.bin", "44"]);
}

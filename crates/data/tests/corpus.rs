//! Readers: the same documents in the same order from every kind of file, and a clear word about everything else.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use chogori_data::corpus::{self, CorpusError, CorpusOptions, Document, Faults, SkipReason, Skipped};
use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tempfile::TempDir;

/// Options for corpora of a few bytes.
fn options() -> CorpusOptions {
    CorpusOptions { corpus_bytes_min: 0, ..CorpusOptions::default() }
}

fn skip_faults() -> CorpusOptions {
    CorpusOptions { faults: Faults::Skip, ..options() }
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn read(path: &Path, options: CorpusOptions) -> Result<(Vec<Document>, Skipped), CorpusError> {
    let mut documents = corpus::open(path, options)?;
    let read = documents.by_ref().collect::<Result<_, _>>()?;
    Ok((read, documents.skipped().clone()))
}

fn pairs(documents: &[Document]) -> Vec<(&str, &str)> {
    documents.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect()
}

/// The only error that reading `path` ends with, as text.
fn error(path: &Path, options: CorpusOptions) -> String {
    read(path, options).expect_err("must fail").to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

#[test]
fn a_folder_is_read_in_sorted_order() {
    let folder = folder(&[
        ("b.md", b"# b"),
        ("a/z.txt", b"z"),
        ("a/b/c.rs", b"fn c() {}"),
        ("c.jsonl", b"{\"text\": \"one\"}\n\n{\"text\": \"two\", \"n\": 1}"),
        ("B.txt", "größer".as_bytes()),
        (".git/config", b"hidden"),
    ]);
    let (documents, skipped) = read(folder.path(), options()).unwrap();
    let expected = [
        ("B.txt", "größer"),
        ("a/b/c.rs", "fn c() {}"),
        ("a/z.txt", "z"),
        ("b.md", "# b"),
        ("c.jsonl#1", "one"),
        ("c.jsonl#3", "two"),
    ];
    assert_eq!(pairs(&documents), expected);
    assert_eq!(skipped.to_string(), "1 hidden (.git)");
}

#[test]
fn extensions_choose_files_in_folders() {
    let folder = folder(&[("a.md", b"a"), ("b.rs", b"b"), ("c", b"c"), ("d.md.gz", &gzip(b"d")), ("e.gz", b"e")]);
    let only_md = CorpusOptions { extensions: vec!["md".into()], ..options() };
    let (documents, skipped) = read(folder.path(), only_md.clone()).unwrap();
    assert_eq!(pairs(&documents), [("a.md", "a"), ("d.md.gz", "d")]);
    assert_eq!(skipped.count(SkipReason::Extension), 3);
    let (documents, _) = read(&folder.path().join("b.rs"), only_md).unwrap();
    assert_eq!(pairs(&documents), [("b.rs", "b")], "who names a file wants it");
}

#[test]
fn packed_files_read_like_plain_ones() {
    let text: String = (0..3000).map(|i| format!("line {i} of {}\n", i * i)).collect();
    let lines: String = (0..50).map(|i| format!("{{\"body\": \"text {i}\"}}\r\n")).collect();
    let two_parts = |pack: fn(&[u8]) -> Vec<u8>| {
        let (a, b) = text.split_at(10_001);
        [pack(a.as_bytes()), pack(b.as_bytes())].concat()
    };
    // A skippable frame (RFC 8878, 3.1.2): magic number, length, and that many bytes of anything.
    let skippable = [&b"\x50\x2a\x4d\x18\x03\0\0\0abc"[..], &two_parts(zstd)].concat();
    let folder = folder(&[
        ("a.txt", text.as_bytes()),
        ("b.txt.gz", &two_parts(gzip)),
        ("c.txt.zst", &skippable),
        ("d.jsonl", lines.as_bytes()),
        ("e.jsonl.gz", &gzip(lines.as_bytes())),
        ("f.jsonl.zst", &zstd(lines.as_bytes())),
    ]);
    let body = CorpusOptions { text_field: "body".into(), ..options() };
    let (documents, _) = read(folder.path(), body).unwrap();
    assert!(documents[..3].iter().all(|d| d.text == text));
    let texts = |range: std::ops::Range<usize>| documents[range].iter().map(|d| &d.text).collect::<Vec<_>>();
    assert_eq!(texts(3..53), texts(53..103));
    assert_eq!(texts(3..53), texts(103..153));
    assert_eq!(documents[152].id, "f.jsonl.zst#50");
}

#[test]
fn what_is_not_text_is_counted() {
    let folder = folder(&[
        ("a.txt", b"text"),
        ("b.png", b"\x89PNG\0\0"),
        ("c.txt", b"caf\xe9"),
        ("d.txt", b"caf\xe9 again"),
        ("e.txt", b""),
        ("f.jsonl", b"{\"text\": \"\"}\n\xff\n{\"text\": \"f\"}"),
    ]);
    let (documents, skipped) = read(folder.path(), options()).unwrap();
    assert_eq!(pairs(&documents), [("a.txt", "text"), ("f.jsonl#3", "f")]);
    assert_eq!(skipped.to_string(), "1 binary (b.png), 3 not UTF-8 (such as c.txt), 2 empty (such as e.txt)");
}

/// A damaged file beside a good one: `Stop` names it with `expected`, `Skip` counts it under `reason`.
fn check_fault(name: &str, bytes: &[u8], expected: &[&str], reason: SkipReason) {
    let folder = folder(&[("good.txt", b"good"), (name, bytes)]);
    let small = |options| CorpusOptions { document_bytes_max: 100, ..options };
    let message = error(folder.path(), small(options()));
    for part in expected.iter().chain(&[name]) {
        assert!(message.contains(part), "{message:?} should name {part:?}");
    }
    let (documents, skipped) = read(folder.path(), small(skip_faults())).unwrap();
    assert!(documents.iter().any(|d| d.text == "good"));
    assert_eq!(skipped.count(reason), 1, "{name}: {skipped}");
}

#[test]
fn damage_stops_the_reader_or_is_counted() {
    use SkipReason::{Malformed, TooLarge, Unreadable};
    let packed = gzip(b"some text that is long enough to be cut");
    let mut wrong_sum = gzip(b"text");
    let sum_at = wrong_sum.len() - 8;
    wrong_sum[sum_at] ^= 1;
    let frames = zstd(&[b'a'; 90]);
    check_fault("large.txt", &[b'a'; 101], &["100 bytes", "document_bytes_max"], TooLarge);
    check_fault("bomb.txt.gz", &gzip(&[b'a'; 1_000_000]), &["100 bytes"], TooLarge);
    check_fault("bomb.txt.zst", &zstd(&[b'a'; 1_000_000]), &["100 bytes"], TooLarge);
    check_fault("line.jsonl", &[b'['; 200], &["line.jsonl#1", "100 bytes"], TooLarge);
    check_fault("cut.txt.gz", &packed[..packed.len() - 12], &["cannot be read"], Unreadable);
    check_fault("sum.txt.gz", &wrong_sum, &["cannot be read"], Unreadable);
    check_fault("not.txt.gz", b"plain text", &["cannot be read"], Unreadable);
    check_fault("cut.txt.zst", &frames[..frames.len() - 5], &["cannot be read"], Unreadable);
    check_fault("not.txt.zst", b"plain text", &["cannot be read"], Unreadable);
    check_fault("a.jsonl", b"{\"text\": \"x\"}\n{\"text\": ", &["a.jsonl#2", "not a JSON object"], Malformed);
    check_fault("b.jsonl", b"[1, 2]", &["b.jsonl#1", "not a JSON object"], Malformed);
    check_fault("c.jsonl", b"{\"body\": \"x\", \"url\": 1}", &["c.jsonl#1", "body, url", "text_field"], Malformed);
    check_fault("d.jsonl", b"{\"text\": 7}", &["text (not a string)"], Malformed);
}

#[test]
fn a_long_line_does_not_hide_the_next() {
    let lines = format!("{{\"text\": \"{}\"}}\n{{\"text\": \"short\"}}\n", "x".repeat(500));
    let folder = folder(&[("a.jsonl", lines.as_bytes())]);
    let small = CorpusOptions { document_bytes_max: 100, ..skip_faults() };
    assert_eq!(pairs(&read(folder.path(), small).unwrap().0), [("a.jsonl#2", "short")]);
}

#[test]
fn nothing_to_learn_from_is_an_error() {
    let defaults = CorpusOptions::default;
    let one = folder(&[("a.txt", b"x")]);
    let message = error(one.path(), defaults());
    assert!(message.contains("1 bytes") && message.contains("corpus_bytes_min"), "{message}");
    let none = folder(&[]);
    assert!(error(none.path(), defaults()).contains("holds no text;"));
    let latin = folder(&[("a.txt", b"caf\xe9")]);
    assert!(error(latin.path(), defaults()).contains("left out: 1 not UTF-8 (a.txt)"));
    assert!(error(&latin.path().join("a.txt"), defaults()).contains("1 not UTF-8 (a.txt)"));
    assert!(error(&none.path().join("missing"), skip_faults()).contains("missing cannot be read"));
}

#[test]
fn the_iterator_ends_after_an_error() {
    let folder = folder(&[("a.jsonl", b"{}\n{\"text\": \"b\"}\n")]);
    let mut documents = corpus::open(folder.path(), options()).unwrap();
    assert!(documents.next().unwrap().is_err());
    assert!(documents.next().is_none());
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_loops_end() {
    use std::os::unix::fs::symlink;
    let folder = folder(&[("a/b/file.txt", b"text"), ("blob", b"linked")]);
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    symlink(folder.path(), at("a/b/up")).unwrap();
    symlink(at("a/b"), at("again")).unwrap();
    symlink(at("blob"), at("a/link.txt")).unwrap();
    let (documents, skipped) = read(folder.path(), options()).unwrap();
    let expected = [("a/b/file.txt", "text"), ("a/link.txt", "linked"), ("blob", "linked")];
    assert_eq!(pairs(&documents), expected);
    assert_eq!(skipped.count(SkipReason::FolderRepeated), 2);

    symlink(at("nowhere"), at("dangling")).unwrap();
    assert!(error(folder.path(), options()).contains("dangling cannot be read"));
    assert_eq!(read(folder.path(), skip_faults()).unwrap().1.count(SkipReason::Unreadable), 1);
    symlink(at("self"), at("self")).unwrap();
    assert!(error(&at("self"), options()).contains("self cannot be read"));
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_without_the_feature_says_how_to_get_it() {
    check_fault("a.parquet", b"PAR1", &["--features parquet"], SkipReason::Unreadable);
}

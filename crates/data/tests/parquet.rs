//! Parquet files as a corpus (feature `parquet`).
#![cfg(feature = "parquet")]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use chogori_data::corpus::{self, CorpusError, CorpusOptions, Document, SkipReason};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Two row groups of (id, text, raw), with a missing text in the second.
fn write(path: &Path, compression: Compression) {
    let schema = "message m { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY text (UTF8); REQUIRED BYTE_ARRAY raw; }";
    let properties = WriterProperties::builder().set_compression(compression).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for (texts, levels) in [(vec!["one", "zwei ü"], [1, 1]), (vec!["three"], [0, 1])] {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, 2], None, None).unwrap();
        column.close().unwrap();
        let texts: Vec<ByteArray> = texts.into_iter().map(ByteArray::from).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None).unwrap();
        column.close().unwrap();
        let raw = [ByteArray::from("raw"), ByteArray::from(vec![0xff, 0xfe])];
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&raw, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn read(path: &Path, text_field: &str) -> Result<(Vec<Document>, String), CorpusError> {
    let options = CorpusOptions { text_field: text_field.into(), corpus_bytes_min: 0, ..CorpusOptions::default() };
    let mut documents = corpus::open(path, options)?;
    let read = documents.by_ref().collect::<Result<Vec<_>, _>>()?;
    Ok((read, documents.skipped().to_string()))
}

#[test]
fn rows_are_documents_under_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd, Compression::GZIP(Default::default())] {
        write(&path, compression);
        let (documents, skipped) = read(folder.path(), "text").unwrap();
        let pairs: Vec<_> = documents.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect();
        assert_eq!(pairs, [("a.parquet#1", "one"), ("a.parquet#2", "zwei ü"), ("a.parquet#4", "three")]);
        assert_eq!(skipped, "1 empty (a.parquet#3)");
    }
    let (documents, skipped) = read(&path, "raw").unwrap();
    assert_eq!(documents.len(), 2);
    assert!(skipped.contains(&SkipReason::NotUtf8.to_string()), "{skipped}");
}

#[test]
fn wrong_columns_and_broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, Compression::SNAPPY);
    let check = |field: &str, expected: &[&str]| {
        let message = read(&path, field).expect_err("must fail").to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message:?} should name {expected:?}");
    };
    check("body", &["a.parquet", "id, text, raw", "text_field"]);
    check("id", &["a.parquet#1", "id (not a string)"]);
    let whole = fs::read(&path).unwrap();
    for bytes in [&whole[..whole.len() / 2], &whole[..3], b"plain text that is long enough"] {
        fs::write(&path, bytes).unwrap();
        check("text", &["a.parquet", "not a Parquet file that can be read"]);
    }
}

//! Parquet files: each row of one text column is a document.
//!
//! The row interface of the `parquet` package serves here; it needs none of Arrow, and reads one row group after
//! the other, so a file of any size takes the memory of its largest row group's pages.

use std::fs::File;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::folder::Source;
use super::{CorpusError, CorpusOptions, Document, Fault, Reader, SkipReason, text};

pub(super) fn read(source: Source, options: &CorpusOptions) -> Reader {
    match open(&source, &options.text_field) {
        Ok(rows) => {
            let bytes_max = options.document_bytes_max;
            Box::new(Rows { source, rows, bytes_max, row: 0, ended: false })
        }
        Err(fault) => Box::new(std::iter::once(Err(fault))),
    }
}

/// The rows of the file, reduced to the text column.
fn open(source: &Source, field: &str) -> Result<RowIter<'static>, Fault> {
    let file = File::open(&source.path).map_err(|error| Fault::unreadable(source, error))?;
    let broken = |error| broken(source, error);
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema();
    let Some(column) = schema.get_fields().iter().find(|column| column.name() == field && column.is_primitive()) else {
        let names: Vec<&str> = schema.get_fields().iter().map(|column| column.name()).collect();
        let (id, field, there) = (source.id.clone(), field.to_owned(), names.join(", "));
        let error = CorpusError::Field { id: id.clone(), field, there };
        return Err(Fault::damage(SkipReason::Malformed, id, error));
    };
    let only_text =
        Type::group_type_builder(schema.name()).with_fields(vec![column.clone()]).build().map_err(broken)?;
    RowIter::from_file_into(Box::new(reader)).project(Some(only_text)).map_err(broken)
}

struct Rows {
    source: Source,
    rows: RowIter<'static>,
    bytes_max: u64,
    /// Number of the row last read, from 1.
    row: u64,
    ended: bool,
}

impl Iterator for Rows {
    type Item = Result<Document, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        self.row += 1;
        match self.rows.next()? {
            Ok(row) => Some(self.document(row)),
            Err(error) => {
                self.ended = true;
                Some(Err(broken(&self.source, error)))
            }
        }
    }
}

impl Rows {
    fn document(&self, row: Row) -> Result<Document, Fault> {
        let id = format!("{}#{}", self.source.id, self.row);
        let (name, field) = row.into_columns().pop().expect("the projection has one column");
        let document = match field {
            Field::Str(text) => Document { id, text },
            // Without a logical type, strings are plain bytes.
            Field::Bytes(bytes) => text::from_utf8(id, bytes.data().to_vec())?,
            // A missing text is an empty one, which is counted and left out.
            Field::Null => Document { id, text: String::new() },
            _ => {
                let error = CorpusError::Field { id: id.clone(), there: format!("{name} (not a string)"), field: name };
                return Err(Fault::damage(SkipReason::Malformed, id, error));
            }
        };
        if document.text.len() as u64 > self.bytes_max {
            let error = CorpusError::TooLarge { id: document.id.clone(), bytes_max: self.bytes_max };
            return Err(Fault::damage(SkipReason::TooLarge, document.id, error));
        }
        Ok(document)
    }
}

fn broken(source: &Source, error: ParquetError) -> Fault {
    let error = CorpusError::Parquet { path: source.path.clone(), message: error.to_string() };
    Fault::damage(SkipReason::Unreadable, source.id.clone(), error)
}

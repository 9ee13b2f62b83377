//! JSON lines: each line an object, one of whose fields is a document.

use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use super::folder::Source;
use super::{CorpusError, CorpusOptions, Document, Fault, Reader, SkipReason, compressed};

pub(super) fn read(source: Source, options: &CorpusOptions) -> Reader {
    let (field, bytes_max) = (options.text_field.clone(), options.document_bytes_max);
    match compressed::open(&source.path) {
        Ok(lines) => Box::new(JsonLines { source, lines, field, bytes_max, line: 0, ended: false }),
        Err(error) => Box::new(std::iter::once(Err(Fault::unreadable(&source, error)))),
    }
}

struct JsonLines {
    source: Source,
    lines: Box<dyn BufRead + Send>,
    field: String,
    bytes_max: u64,
    /// Number of the line last read, from 1.
    line: u64,
    ended: bool,
}

impl Iterator for JsonLines {
    type Item = Result<Document, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            self.line += 1;
            match self.read_line() {
                Ok(Some(bytes)) if bytes.trim_ascii().is_empty() => self.ended = bytes.is_empty(),
                Ok(Some(bytes)) => return Some(self.document(bytes)),
                Ok(None) => return Some(Err(self.too_large())),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(Fault::unreadable(&self.source, error)));
                }
            }
        }
        None
    }
}

impl JsonLines {
    /// The next line with its end; nothing at the end of the file; None for a line that is too long.
    fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        (&mut self.lines).take(self.bytes_max.saturating_add(1)).read_until(b'\n', &mut bytes)?;
        if bytes.len() as u64 <= self.bytes_max || bytes.ends_with(b"\n") {
            return Ok(Some(bytes));
        }
        self.lines.skip_until(b'\n')?;
        Ok(None)
    }

    fn document(&self, bytes: Vec<u8>) -> Result<Document, Fault> {
        let id = self.id();
        // Some programs start a file with a byte order mark, which JSON does not know.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let Ok(line) = std::str::from_utf8(bytes) else {
            return Err(Fault::not_text(SkipReason::NotUtf8, id));
        };
        let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|source| {
            Fault::damage(SkipReason::Malformed, id.clone(), CorpusError::Json { id: id.clone(), source })
        })?;
        match object.remove(&self.field) {
            Some(Value::String(text)) => Ok(Document { id, text }),
            other => {
                let of_wrong_type = other.map(|_| format!("{} (not a string)", self.field));
                let there: Vec<String> = object.keys().cloned().chain(of_wrong_type).collect();
                let error = CorpusError::Field { id: id.clone(), field: self.field.clone(), there: there.join(", ") };
                Err(Fault::damage(SkipReason::Malformed, id, error))
            }
        }
    }

    fn too_large(&self) -> Fault {
        let error = CorpusError::TooLarge { id: self.id(), bytes_max: self.bytes_max };
        Fault::damage(SkipReason::TooLarge, self.id(), error)
    }

    fn id(&self) -> String {
        format!("{}#{}", self.source.id, self.line)
    }
}

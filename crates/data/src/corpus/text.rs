//! A file as one document.

use std::io::{self, Read};

use super::folder::Source;
use super::{CorpusError, Document, Fault, SkipReason, compressed};

/// Reads the whole file, if it is text and not larger than `bytes_max` (unpacked).
pub(super) fn read(source: Source, bytes_max: u64) -> Result<Document, Fault> {
    let bytes = read_bytes(&source, bytes_max).map_err(|error| Fault::unreadable(&source, error))?;
    let Some(bytes) = bytes else {
        let error = CorpusError::TooLarge { id: source.id.clone(), bytes_max };
        return Err(Fault::damage(SkipReason::TooLarge, source.id, error));
    };
    from_utf8(source.id, bytes)
}

/// None if there is more than `bytes_max`; one byte more than that is read at most.
fn read_bytes(source: &Source, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    compressed::open(&source.path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

/// Text is UTF-8 without zero bytes.
pub(super) fn from_utf8(id: String, bytes: Vec<u8>) -> Result<Document, Fault> {
    if bytes.contains(&0) {
        return Err(Fault::not_text(SkipReason::Binary, id));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Document { id, text }),
        Err(_) => Err(Fault::not_text(SkipReason::NotUtf8, id)),
    }
}

//! TensorBoard event files, written by hand: TFRecord frames around protobuf messages.
//!
//! A frame is `length u64 · masked crc32c(length) u32 · bytes · masked crc32c(bytes) u32`, little endian.
//! Of `tensorflow.Event` we write wall_time (1), step (2), file_version (3) and summary (5); a summary
//! is a list of values with tag (1) and simple_value (2). Numbers inside nested objects get the tag
//! `outer/inner`; arrays stay in `metrics.jsonl`. The wall time is the record's `seconds`, so no clock is read here.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{MetricsError, Record, io_error};

/// An open event file.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new event file in `folder`; one that is there is replaced.
    pub(super) fn create(folder: &Path) -> Result<Self, MetricsError> {
        let path = folder.join("events.out.tfevents.0.chogori");
        // TensorBoard keeps reading an open file from where it was; a new file is a new series.
        let _ = std::fs::remove_file(&path);
        let file = File::create(&path).map_err(io_error("create", &path))?;
        let mut events = EventFile { path, file };
        let mut header = Vec::new();
        put_f64(&mut header, 1, 0.0);
        put_bytes(&mut header, 3, b"brain.Event:2");
        events.put_frame(&header)?;
        Ok(events)
    }

    /// Writes the scalars of a record as one event; nothing if it has none.
    pub(super) fn append(&mut self, step: u64, record: &Record) -> Result<(), MetricsError> {
        let mut summary = Vec::new();
        put_scalars(&mut summary, "", record);
        if summary.is_empty() {
            return Ok(());
        }
        let seconds = record.get("seconds").and_then(Value::as_f64);
        let mut event = Vec::new();
        put_f64(&mut event, 1, seconds.unwrap_or(0.0));
        put_key(&mut event, 2, VARINT);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.put_frame(&event)
    }

    fn put_frame(&mut self, bytes: &[u8]) -> Result<(), MetricsError> {
        let length = (bytes.len() as u64).to_le_bytes();
        let frame =
            [&length[..], &masked_crc32c(&length).to_le_bytes(), bytes, &masked_crc32c(bytes).to_le_bytes()].concat();
        self.file.write_all(&frame).map_err(io_error("write", &self.path))
    }
}

/// One `Summary.Value` per number.
fn put_scalars(summary: &mut Vec<u8>, prefix: &str, record: &Record) {
    for (key, value) in record {
        match value {
            Value::Object(inner) => put_scalars(summary, &format!("{prefix}{key}/"), inner),
            Value::Number(number) if key != "step" => {
                let mut scalar = Vec::new();
                put_bytes(&mut scalar, 1, format!("{prefix}{key}").as_bytes());
                put_key(&mut scalar, 2, FIXED32);
                let value = number.as_f64().unwrap_or(f64::NAN) as f32;
                scalar.extend(value.to_le_bytes());
                put_bytes(summary, 1, &scalar);
            }
            _ => {}
        }
    }
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, LENGTH_DELIMITED);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_f64(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, FIXED64);
    out.extend(value.to_le_bytes());
}

/// Rotated and shifted, because a checksum over data that holds its own checksums is weak.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| (crc >> 8) ^ CRC32C_TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

const CRC32C_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn an_event_has_the_bytes_of_the_protobuf_encoding() {
        let record = serde_json::json!({"step": 300, "loss": 1.5, "seconds": 2.0});
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path()).unwrap();
        events.append(300, record.as_object().unwrap()).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let header_frame = 8 + 4 + (9 + 2 + 13) + 4;
        let event = &bytes[header_frame + 12..bytes.len() - 4];
        let mut expected = vec![0x09, 0, 0, 0, 0, 0, 0, 0, 0x40]; // wall_time = 2.0
        expected.extend([0x10, 0xac, 0x02]); // step = 300
        expected.extend([0x2a, 29]); // summary
        expected.extend([0x0a, 11, 0x0a, 4]);
        expected.extend(b"loss");
        expected.extend([0x15, 0, 0, 0xc0, 0x3f]);
        expected.extend([0x0a, 14, 0x0a, 7]);
        expected.extend(b"seconds");
        expected.extend([0x15, 0, 0, 0, 0x40]);
        assert_eq!(event, expected);
        let length = &bytes[header_frame..header_frame + 8];
        assert_eq!(length, (expected.len() as u64).to_le_bytes());
    }
}

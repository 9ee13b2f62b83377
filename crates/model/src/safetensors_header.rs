//! The JSON header of a safetensors file: parsing with every check that the format asks for, and rendering.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::safetensors::{Dtype, Entry, Place, SafeTensorsError};

type Places = BTreeMap<String, Place>;
type Metadata = BTreeMap<String, String>;

/// Parses and checks a header; `data_bytes` is what follows it in the file.
pub(crate) fn parse_header(
    path: &Path,
    header: &[u8],
    data_bytes: usize,
) -> Result<(Places, Metadata), SafeTensorsError> {
    let Header { tensors, metadata } = serde_json::from_slice(header).map_err(|error| SafeTensorsError::File {
        path: path.to_path_buf(),
        what: format!("its header is no list of tensors: {error}"),
    })?;
    let refuse = |tensor: &str, what| SafeTensorsError::Tensor { path: path.into(), tensor: tensor.into(), what };
    let mut places = BTreeMap::new();
    for (name, raw) in tensors {
        let place = raw.check(data_bytes).map_err(|what| refuse(&name, what))?;
        places.insert(name, place);
    }
    check_cover(&places, data_bytes).map_err(|(tensor, what)| refuse(tensor, what))?;
    Ok((places, metadata))
}

/// The bytes of a header with its length in front, padded so that the data begins at a multiple of 8.
pub(crate) fn render_header(entries: &[Entry], metadata: &Metadata) -> Vec<u8> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut begin = 0;
    for entry in entries {
        let end = begin + entry.bytes();
        let place = json!({ "dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [begin, end] });
        let previous = header.insert(entry.name.clone(), place);
        assert!(previous.is_none(), "tensor {} is announced twice", entry.name);
        begin = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(header)).expect("a JSON value can be written");
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat()
}

/// Tensors must fill the data without overlap, hole or rest: nothing hides in a file, nothing is read twice.
fn check_cover(places: &Places, data_bytes: usize) -> Result<(), (&str, String)> {
    let mut order: Vec<_> = places.iter().collect();
    order.sort_by_key(|(_, place)| (place.begin, place.end));
    let (mut last, mut end) = ("", 0);
    for (name, place) in order {
        if place.begin < end {
            return Err((name, format!("begins at byte {} of the data, inside tensor {last}", place.begin)));
        }
        if place.begin > end {
            return Err((name, format!("begins at byte {} of the data, but {end} are accounted for", place.begin)));
        }
        (last, end) = (name, place.end);
    }
    if end != data_bytes {
        return Err((last, format!("is the last and ends at byte {end} of the data, but the file has {data_bytes}")));
    }
    Ok(())
}

/// A header as it stands in the file; duplicates are refused while parsing.
struct Header {
    tensors: Vec<(String, RawPlace)>,
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlace {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawPlace {
    fn check(self, data_bytes: usize) -> Result<Place, String> {
        let dtype = Dtype::ALL.iter().copied().find(|dtype| dtype.name() == self.dtype);
        let dtype = dtype.ok_or_else(|| format!("has the unknown dtype {}", self.dtype))?;
        let [begin, end] = self.data_offsets;
        if begin > end || end > data_bytes as u64 {
            return Err(format!(
                "lies at bytes {begin}..{end} of the data, but the file has {data_bytes} (truncated?)"
            ));
        }
        let size = self.shape.iter().try_fold(dtype.size() as u64, |size, &axis| size.checked_mul(axis));
        if size != Some(end - begin) {
            let (shape, stored) = (&self.shape, end - begin);
            return Err(format!("of {} {shape:?} takes {stored} bytes, which its shape does not", self.dtype));
        }
        let shape = self.shape.iter().map(|&axis| axis as usize).collect();
        Ok(Place { dtype, shape, begin: begin as usize, end: end as usize })
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that maps names to tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header { tensors: Vec::new(), metadata: Metadata::new() };
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name} is listed twice")));
            }
            let of_tensor = |error: A::Error| A::Error::custom(format!("tensor {name}: {error}"));
            if name == "__metadata__" {
                header.metadata = map.next_value().map_err(of_tensor)?;
            } else {
                let place = map.next_value().map_err(of_tensor)?;
                header.tensors.push((name, place));
            }
        }
        Ok(header)
    }
}

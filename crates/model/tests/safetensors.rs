//! The container against hostile headers: each lie is refused with the file's and the tensor's name.

use std::collections::BTreeMap;
use std::fs;

use chogori_model::safetensors::{Dtype, Entry, SafeTensors, Writer};

fn file(header_bytes: u64, header: &str, data: &[u8]) -> Vec<u8> {
    [&header_bytes.to_le_bytes(), header.as_bytes(), data].concat()
}

fn open(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    fs::write(&path, bytes).unwrap();
    let opened = SafeTensors::open(&path).map_err(|error| error.to_string())?;
    Ok(opened.views().map(|view| (view.name.to_owned(), view.bytes.to_vec())).collect())
}

fn refused(header: &str, data: &[u8], expected: &str) {
    let error = open(&file(header.len() as u64, header, data)).expect_err(expected);
    assert!(error.contains("w.safetensors") && error.contains(expected), "{header}\n{error}\n{expected}");
}

#[test]
fn a_written_file_is_read_back() {
    let entries = [
        Entry { name: "wide".into(), dtype: Dtype::F32, shape: vec![2] },
        Entry { name: "scalar".into(), dtype: Dtype::Bf16, shape: vec![] },
        Entry { name: "empty".into(), dtype: Dtype::U8, shape: vec![0, 9] },
        Entry { name: "a \"name\" é".into(), dtype: Dtype::U8, shape: vec![3] },
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = Writer::new(Vec::new(), &entries, &metadata).unwrap();
    for bytes in [&[1, 2, 3, 4, 5][..], &[6, 7, 8], &[9, 10], &[11, 12, 13]] {
        writer.write(bytes).unwrap();
    }
    let bytes = writer.finish().unwrap();
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    let read: BTreeMap<_, _> = open(&bytes).unwrap().into_iter().collect();
    assert_eq!(read["wide"], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read["scalar"], [9, 10]);
    assert!(read["empty"].is_empty());
    assert_eq!(read["a \"name\" é"], [11, 12, 13]);
}

#[test]
fn lengths_that_lie_are_refused() {
    assert!(open(b"").unwrap_err().contains("has 0 bytes, fewer than the 8"));
    assert!(
        open(&file(u64::MAX, "{}", b"")).unwrap_err().contains("claims 18446744073709551615 bytes, above the limit")
    );
    assert!(open(&file(50, "{}", b"")).unwrap_err().contains("claims 50 bytes, but only 2 follow (truncated?)"));
    assert!(open(&file(1, "{}", b"")).unwrap_err().contains("its header is no list of tensors"));
    assert!(open(&file(2, "{}", b"")).unwrap().is_empty());
    assert!(open(&file(2, "[]", b"")).unwrap_err().contains("an object that maps names to tensors"));
}

#[test]
fn places_that_lie_are_refused() {
    let tensor = |place: &str| format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":{place}}}}}"#);
    assert_eq!(open(&file(tensor("[0,8]").len() as u64, &tensor("[0,8]"), &[7; 8])).unwrap()[0].1, [7; 8]);
    refused(&tensor("[0,8]"), &[0; 7], "tensor w lies at bytes 0..8 of the data, but the file has 7 (truncated?)");
    refused(&tensor("[8,0]"), &[0; 8], "tensor w lies at bytes 8..0");
    refused(&tensor("[0,18446744073709551615]"), &[0; 8], "tensor w lies at bytes 0..18446744073709551615");
    refused(&tensor("[-1,7]"), &[0; 8], "tensor w: ");
    refused(&tensor("[0,4]"), &[0; 4], "tensor w of F32 [2] takes 4 bytes, which its shape does not");
    refused(&tensor("[4,12]"), &[0; 12], "tensor w begins at byte 4 of the data, but 0 are accounted for");
    refused(&tensor("[0,8]"), &[0; 9], "tensor w is the last and ends at byte 8 of the data, but the file has 9");
    refused("{}", &[0; 9], "ends at byte 0 of the data, but the file has 9");
}

#[test]
fn shapes_and_dtypes_that_cannot_be_are_refused() {
    let tensor =
        |dtype: &str, shape: &str| format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,8]}}}}"#);
    refused(&tensor("F33", "[2]"), &[0; 8], "tensor w has the unknown dtype F33");
    refused(&tensor("F64", "[2]"), &[0; 8], "tensor w of F64 [2] takes 8 bytes");
    refused(&tensor("U8", "[4294967296,4294967296]"), &[0; 8], "tensor w of U8 [4294967296, 4294967296]");
    refused(&tensor("U8", "[-8]"), &[0; 8], "tensor w: ");
    refused(r#"{"w":{"dtype":"U8","shape":[8]}}"#, &[0; 8], "tensor w: missing field `data_offsets`");
    refused(r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#, &[0], "tensor w: unknown field `x`");
}

#[test]
fn two_tensors_in_one_place_or_under_one_name_are_refused() {
    let two = |names: [&str; 2], places: [&str; 2]| {
        let tensor =
            |at: usize| format!(r#""{}":{{"dtype":"U8","shape":[4],"data_offsets":{}}}"#, names[at], places[at]);
        format!("{{{},{}}}", tensor(0), tensor(1))
    };
    assert_eq!(
        open(&file(two(["a", "b"], ["[4,8]", "[0,4]"]).len() as u64, &two(["a", "b"], ["[4,8]", "[0,4]"]), &[0; 8]))
            .unwrap()
            .len(),
        2
    );
    refused(&two(["a", "b"], ["[0,4]", "[2,6]"]), &[0; 6], "tensor b begins at byte 2 of the data, inside tensor a");
    refused(&two(["a", "b"], ["[0,4]", "[0,4]"]), &[0; 4], "tensor b begins at byte 0 of the data, inside tensor a");
    refused(&two(["a", "a"], ["[0,4]", "[4,8]"]), &[0; 8], "a is listed twice");
    refused(r#"{"__metadata__":{"a":1}}"#, &[], "tensor __metadata__: ");
}

#[test]
fn no_byte_of_a_header_can_be_damaged_into_a_crash() {
    let header =
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}"#;
    let good = file(header.len() as u64, header, &[0; 9]);
    for at in 0..good.len() - 9 {
        for flip in [0x01, 0x10, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            // Either refused, or read as a file that is whole in itself.
            if let Ok(tensors) = open(&bad) {
                assert_eq!(tensors.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), 9);
            }
        }
    }
}

//! The output's files: which tensor goes into which shard at which offset, and the bytes of every
//! header, all known before a tensor byte is computed.

use std::fmt::Write as _;

use serde_json::json;

use crate::dtype::DType;
use crate::error::{Error, Result};

/// Alignment of the data section; also what safetensors' own writer uses.
const HEADER_ALIGNMENT: usize = 8;

/// A tensor to be laid out.
pub struct Item<'a> {
    /// Name.
    pub name: &'a str,
    /// Dtype in the output.
    pub dtype: DType,
    /// Shape.
    pub shape: &'a [u64],
    /// Bytes of data.
    pub bytes: u64,
}

/// One file of the output.
#[derive(Debug, Clone)]
pub struct OutputShard {
    /// File name.
    pub name: String,
    /// Length prefix and header.
    pub header: Vec<u8>,
    /// Size of the file.
    pub bytes: u64,
    /// Number of its tensors.
    pub tensors: usize,
}

/// Place of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the shard.
    pub shard: usize,
    /// Absolute offset in the file.
    pub offset: u64,
}

/// The files of an output.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The shards.
    pub shards: Vec<OutputShard>,
    /// Place of each tensor, in the order given.
    pub places: Vec<Place>,
    /// `model.safetensors.index.json`, when there is more than one shard.
    pub index: Option<Vec<u8>>,
    /// Bytes of all tensors.
    pub total_size: u64,
}

/// Lays out tensors in their order: shards of at most `shard_size` tensor bytes (a larger tensor has a
/// shard of its own), or everything in one file of the given name.
///
/// # Errors
/// [`Error::Internal`] when a size does not fit 64 bits.
pub fn lay_out(items: &[Item<'_>], shard_size: u64, single_file: Option<&str>) -> Result<Layout> {
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    let mut filled = 0u64;
    let mut total_size = 0u64;
    for (at, item) in items.iter().enumerate() {
        let fits = filled.checked_add(item.bytes).is_some_and(|sum| sum <= shard_size);
        if !fits && filled > 0 && single_file.is_none() {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += item.bytes;
        total_size = total_size
            .checked_add(item.bytes)
            .ok_or_else(|| Error::Internal { message: "the output exceeds 2^64 bytes".into() })?;
        if let Some(group) = groups.last_mut() {
            group.push(at);
        }
    }
    let count = groups.len();
    let mut places = vec![Place { shard: 0, offset: 0 }; items.len()];
    let mut shards = Vec::with_capacity(count);
    for (shard, mut group) in groups.into_iter().enumerate() {
        // Wide elements first, so that every tensor is aligned to its element size.
        group.sort_by_key(|at| std::cmp::Reverse(items[*at].dtype.bits()));
        let header = header(items, &group);
        let mut offset = header.len() as u64;
        for at in &group {
            places[*at] = Place { shard, offset };
            offset += items[*at].bytes;
        }
        let name = match single_file {
            Some(name) => name.to_string(),
            None if count == 1 => "model.safetensors".into(),
            None => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        shards.push(OutputShard { name, header, bytes: offset, tensors: group.len() });
    }
    let index = (count > 1).then(|| index(items, &places, &shards, total_size));
    Ok(Layout { shards, places, index, total_size })
}

fn header(items: &[Item<'_>], group: &[usize]) -> Vec<u8> {
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut offset = 0;
    for at in group {
        let item = &items[*at];
        let end = offset + item.bytes;
        let entry = json!({"dtype": item.dtype, "shape": item.shape, "data_offsets": [offset, end]});
        let _ = write!(json, ",{}:{entry}", json!(item.name));
        offset = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(HEADER_ALIGNMENT) {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

fn index(items: &[Item<'_>], places: &[Place], shards: &[OutputShard], total_size: u64) -> Vec<u8> {
    let mut rows: Vec<(&str, &str)> =
        items.iter().zip(places).map(|(item, p)| (item.name, shards[p.shard].name.as_str())).collect();
    rows.sort_unstable();
    let map: serde_json::Map<String, serde_json::Value> =
        rows.into_iter().map(|(tensor, file)| (tensor.to_string(), file.into())).collect();
    let value = json!({"metadata": {"total_size": total_size}, "weight_map": map});
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(sizes: &[u64]) -> Vec<(String, Vec<u64>, u64)> {
        sizes.iter().enumerate().map(|(i, n)| (format!("t{i}"), vec![*n / 2], *n)).collect()
    }

    fn lay(sizes: &[u64], shard_size: u64, single: Option<&str>) -> Layout {
        let owned = items(sizes);
        let items: Vec<Item<'_>> = owned
            .iter()
            .map(|(name, shape, bytes)| Item { name, dtype: DType::BF16, shape, bytes: *bytes })
            .collect();
        lay_out(&items, shard_size, single).unwrap()
    }

    #[test]
    fn shards_are_filled_in_order_and_never_over_the_limit() {
        let layout = lay(&[4, 4, 4, 20, 2], 10, None);
        let shards: Vec<usize> = layout.places.iter().map(|p| p.shard).collect();
        assert_eq!(shards, [0, 0, 1, 2, 3]);
        assert_eq!(layout.shards[0].name, "model-00001-of-00004.safetensors");
        let index: serde_json::Value = serde_json::from_slice(layout.index.as_deref().unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 34);
        assert_eq!(index["weight_map"]["t3"], "model-00003-of-00004.safetensors");
    }

    #[test]
    fn one_file_holds_everything_and_begins_like_the_format_says() {
        let layout = lay(&[4, 4], 1, Some("out.safetensors"));
        assert_eq!(layout.shards.len(), 1);
        assert!(layout.index.is_none());
        let expected = br#"{"__metadata__":{"format":"pt"},"t0":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"t1":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}}"#;
        let header = &layout.shards[0].header;
        let length = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
        assert_eq!(length % 8, 0);
        assert_eq!(header.len(), 8 + length);
        assert_eq!(header[8..8 + expected.len()], expected[..]);
        assert!(header[8 + expected.len()..].iter().all(|b| *b == b' '));
        assert_eq!(layout.places[1].offset, header.len() as u64 + 4);
        assert_eq!(layout.shards[0].bytes, header.len() as u64 + 8);
    }

    #[test]
    fn wide_elements_come_first() {
        let shape = [3];
        let items = [
            Item { name: "bytes", dtype: DType::U8, shape: &shape, bytes: 3 },
            Item { name: "numbers", dtype: DType::F32, shape: &shape, bytes: 12 },
        ];
        let layout = lay_out(&items, 100, None).unwrap();
        assert_eq!(layout.places[1].offset % 4, 0);
        assert!(layout.places[0].offset > layout.places[1].offset);
    }

    #[test]
    fn an_output_without_tensors_is_still_a_file() {
        let layout = lay_out(&[], 100, None).unwrap();
        assert_eq!((layout.shards.len(), layout.total_size), (1, 0));
    }
}

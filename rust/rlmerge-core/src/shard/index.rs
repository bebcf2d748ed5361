//! Strict parser of `model.safetensors.index.json`: which tensor is in which shard.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::header::MAX_TENSORS;
use super::source::read_bounded;
use super::strict::{Anything, Context, Fault, Keys, Scalar, Text, duplicate};
use crate::error::{self, Error, escape};

/// Longest index, in bytes.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// A parsed index.
#[derive(Debug, Clone)]
pub struct Index {
    /// Tensor and the shard that holds it, in the order of the file. Shard names are plain file names.
    pub weight_map: Vec<(String, String)>,
    /// `metadata.total_size`, when it is a natural number.
    pub total_size: Option<u64>,
    /// What is odd but readable.
    pub warnings: Vec<String>,
}

/// Reads and checks an index file.
///
/// # Errors
/// [`Error::BadIndex`] for every broken rule, [`Error::Io`] when reading fails.
pub fn read_index(path: &Path) -> error::Result<Index> {
    let bad = |message: String, tensor| Error::BadIndex { path: path.to_path_buf(), message, tensor };
    let bytes = read_bounded(path, MAX_INDEX_BYTES, |message| bad(message, None))?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|e| bad(format!("not UTF-8 at byte {}", e.valid_up_to()), None))?;
    let context = Context::new(text, 0);
    let parsed = context.parse(Document(&context)).map_err(|Fault { message, tensor, offset }| {
        let place = offset.map_or_else(String::new, |at| format!(" at byte {at}"));
        bad(format!("bad index: {message}{place}"), tensor)
    })?;
    let weight_map =
        parsed.weight_map.ok_or_else(|| bad("bad index: `weight_map` is missing".into(), None))?;
    if weight_map.is_empty() {
        return Err(bad("bad index: `weight_map` names no tensor".into(), None));
    }
    let mut warnings = Vec::new();
    let total_size = match parsed.total_size {
        Some(Scalar::Natural(bytes)) => Some(bytes),
        Some(Scalar::Other) => {
            warnings.push("`total_size` of the index is not an integer from 0 to 2^64-1".into());
            None
        }
        None => None,
    };
    Ok(Index { weight_map, total_size, warnings })
}

/// Why `name` is no name of a shard: it must be one plain component of a path, so that an index can
/// lead nowhere but into its own folder.
fn fault_of_shard_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "" => "is empty",
        "." | ".." => "is a folder",
        n if n.contains(['/', '\\']) => "has a path separator",
        n if n.chars().any(char::is_control) => "has a control character",
        n if n.len() > 255 => "is longer than 255 bytes",
        n if !n.ends_with(".safetensors") => "does not end in `.safetensors`",
        _ => return None,
    })
}

/// What the JSON of an index says.
#[derive(Default)]
struct Parsed {
    weight_map: Option<Vec<(String, String)>>,
    total_size: Option<Scalar>,
}

/// Which object is being read.
#[derive(Clone, Copy)]
enum Part {
    Document,
    Metadata,
    WeightMap,
}

/// An object of the index, whose keys go into `parsed`.
struct Object<'a, 'de> {
    context: &'a Context<'de>,
    part: Part,
    parsed: &'a mut Parsed,
}

/// The whole index.
struct Document<'a, 'de>(&'a Context<'de>);

impl<'de> DeserializeSeed<'de> for Document<'_, 'de> {
    type Value = Parsed;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        let mut parsed = Parsed::default();
        Object { context: self.0, part: Part::Document, parsed: &mut parsed }.deserialize(deserializer)?;
        Ok(parsed)
    }
}

impl<'de> DeserializeSeed<'de> for Object<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.part {
            Part::Document => "an object with `weight_map`",
            Part::Metadata => "`metadata` as an object",
            Part::WeightMap => "`weight_map` as an object of file names",
        })
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        match self.part {
            // Some writers have nothing to say there.
            Part::Metadata => Ok(()),
            _ => Err(E::invalid_type(serde::de::Unexpected::Unit, &self)),
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { context, part, parsed } = self;
        if matches!(part, Part::WeightMap) {
            parsed.weight_map = Some(Vec::new());
        }
        let mut keys = Keys::default();
        while let Some(key) = map.next_key_seed(Text("a key"))? {
            let new = keys.add(key.clone());
            if matches!(part, Part::WeightMap) {
                context.enter(Some(key.clone()));
            }
            if !new {
                return Err(duplicate(context, &key));
            }
            match (part, key.as_ref()) {
                (Part::Document, "metadata") => {
                    map.next_value_seed(Object { context, part: Part::Metadata, parsed: &mut *parsed })?;
                }
                (Part::Document, "weight_map") => {
                    map.next_value_seed(Object { context, part: Part::WeightMap, parsed: &mut *parsed })?;
                }
                (Part::Metadata, "total_size") => {
                    parsed.total_size = Some(map.next_value_seed(Anything(context))?);
                }
                (Part::WeightMap, _) => {
                    let shard = map.next_value_seed(Text("a shard's file name as a string"))?;
                    if let Some(fault) = fault_of_shard_name(&shard) {
                        let message = format!("the shard name `{}` {fault}", escape(&shard));
                        return Err(context.refuse(message, context.offset_of(&shard)));
                    }
                    let entries = parsed.weight_map.get_or_insert_default();
                    if entries.len() >= MAX_TENSORS {
                        return Err(context
                            .refuse(format!("more than {MAX_TENSORS} tensors"), context.offset_of(&key)));
                    }
                    entries.push((key.into_owned(), shard.into_owned()));
                    context.enter(None);
                }
                _ => {
                    map.next_value_seed(Anything(context))?;
                }
            }
        }
        Ok(())
    }
}

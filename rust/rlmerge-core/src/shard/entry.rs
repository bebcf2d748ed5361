//! The JSON of a header, checked entry by entry. How the entries lie in the file is checked in
//! `header`.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::header::{MAX_RANK, MAX_TENSORS};
use super::strict::{Anything, Context, Keys, Natural, Text, duplicate};
use crate::dtype::DType;
use crate::error::escape;

/// A dimension over this in a tensor of no bytes at all earns a warning.
const ABSURD_DIMENSION: u64 = 1 << 32;

/// What the JSON of a header says, checked entry by entry.
pub(super) struct Parsed {
    pub(super) entries: Vec<Entry>,
    pub(super) metadata: Option<BTreeMap<String, String>>,
    null_metadata: bool,
    /// Number of unknown fields, and the first.
    unknown: (u64, Option<String>),
    /// Number of empty tensors of absurd shape, and the first.
    absurd: (u64, Option<String>),
}

impl Parsed {
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.null_metadata {
            warnings.push("`__metadata__` is null instead of an object".into());
        }
        if let (count, Some(first)) = &self.unknown {
            warnings.push(format!("{count} unknown fields in tensor entries are ignored, first {first}"));
        }
        if let (count, Some(first)) = &self.absurd {
            warnings.push(format!("{count} empty tensors have a dimension over 2^32, first {first}"));
        }
        warnings
    }
}

/// One tensor, with offsets as the header has them: counted from the end of the header.
pub(super) struct Entry {
    pub(super) name: String,
    /// Where its key is in the file.
    pub(super) at: Option<u64>,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// The whole header.
pub(super) struct Document<'a, 'de>(pub(super) &'a Context<'de>);

impl<'de> DeserializeSeed<'de> for Document<'_, 'de> {
    type Value = Parsed;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, 'de> {
    type Value = Parsed;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one key a tensor")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let context = self.0;
        let mut keys = Keys::default();
        let mut parsed = Parsed {
            entries: Vec::new(),
            metadata: None,
            null_metadata: false,
            unknown: (0, None),
            absurd: (0, None),
        };
        while let Some(key) = map.next_key_seed(Text("a tensor name"))? {
            if key == "__metadata__" {
                if !keys.add(key.clone()) {
                    return Err(duplicate(context, &key));
                }
                parsed.metadata = map.next_value_seed(Metadata(context))?;
                parsed.null_metadata = parsed.metadata.is_none();
                continue;
            }
            let at = context.offset_of(&key);
            context.enter(Some(key.clone()));
            if !keys.add(key.clone()) {
                return Err(context.refuse("this tensor name is in the header twice", at));
            }
            if parsed.entries.len() >= MAX_TENSORS {
                return Err(context.refuse(format!("more than {MAX_TENSORS} tensors"), at));
            }
            let (fields, unknown) = map.next_value_seed(Fields { context, at })?;
            let entry = fields.check(context, &key, at)?;
            count(
                &mut parsed.unknown,
                unknown.0,
                unknown.1.as_ref().map(|f| format!("`{}` of `{}`", escape(f), escape(&key))),
            );
            let absurd = entry.begin == entry.end && entry.shape.iter().any(|d| *d > ABSURD_DIMENSION);
            count(&mut parsed.absurd, u64::from(absurd), absurd.then(|| format!("`{}`", escape(&key))));
            parsed.entries.push(entry);
            context.enter(None);
        }
        Ok(parsed)
    }
}

/// Adds to a number of findings, and keeps the first.
fn count(findings: &mut (u64, Option<String>), more: u64, first: Option<String>) {
    findings.0 = findings.0.saturating_add(more);
    if findings.1.is_none() {
        findings.1 = first;
    }
}

/// `__metadata__`: strings by strings, or null.
struct Metadata<'a, 'de>(&'a Context<'de>);

impl<'de> DeserializeSeed<'de> for Metadata<'_, 'de> {
    type Value = Option<BTreeMap<String, String>>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_, 'de> {
    type Value = Option<BTreeMap<String, String>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`__metadata__` as an object of strings")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = BTreeMap::new();
        while let Some(key) = map.next_key_seed(Text("a key of `__metadata__`"))? {
            let value = map.next_value_seed(Text("a string as value in `__metadata__`"))?;
            if metadata.contains_key(key.as_ref()) {
                let message = format!("duplicate key `{}` in `__metadata__`", escape(&key));
                return Err(self.0.refuse(message, self.0.offset_of(&key)));
            }
            metadata.insert(key.into_owned(), value.into_owned());
        }
        Ok(Some(metadata))
    }
}

/// The fields of one entry, none of them checked against another.
#[derive(Default)]
struct RawEntry {
    dtype: Option<DType>,
    shape: Option<Vec<u64>>,
    offsets: Option<(u64, u64)>,
}

impl RawEntry {
    /// The entry, with all that one entry alone can break checked.
    fn check<E: serde::de::Error>(
        self,
        context: &Context<'_>,
        name: &str,
        at: Option<u64>,
    ) -> Result<Entry, E> {
        let missing = |field: &str| context.refuse::<E>(format!("`{field}` is missing"), at);
        let dtype = self.dtype.ok_or_else(|| missing("dtype"))?;
        let shape = self.shape.ok_or_else(|| missing("shape"))?;
        let (begin, end) = self.offsets.ok_or_else(|| missing("data_offsets"))?;
        let held = end.checked_sub(begin).ok_or_else(|| {
            context.refuse::<E>(format!("`data_offsets` [{begin}, {end}] end before they begin"), at)
        })?;
        // From left to right, like the reference: a zero further right does not save an overflow.
        let bits = shape
            .iter()
            .try_fold(1u64, |product, d| product.checked_mul(*d))
            .and_then(|n| n.checked_mul(dtype.bits()));
        let bits = bits.ok_or_else(|| {
            context.refuse::<E>(format!("the size of {dtype} {shape:?} overflows 64 bits"), at)
        })?;
        if !bits.is_multiple_of(8) {
            let message = format!("{dtype} {shape:?} has {bits} bits, which do not fill whole bytes");
            return Err(context.refuse(message, at));
        }
        let needed = bits / 8;
        if needed != held {
            let message = format!(
                "{dtype} {shape:?} needs {needed} bytes, but `data_offsets` [{begin}, {end}] hold {held}"
            );
            return Err(context.refuse(message, at));
        }
        Ok(Entry { name: name.to_owned(), at, dtype, shape, begin, end })
    }
}

/// Unknown fields of an entry: how many, and the first.
type Unknown = (u64, Option<String>);

/// The object of one entry.
struct Fields<'a, 'de> {
    context: &'a Context<'de>,
    at: Option<u64>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_, 'de> {
    type Value = (RawEntry, Unknown);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        // Not `deserialize_map`: it would not name what stands there instead as well.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_, 'de> {
    type Value = (RawEntry, Unknown);
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let context = self.context;
        let mut keys = Keys::default();
        let mut raw = RawEntry::default();
        let mut unknown = (0, None);
        while let Some(key) = map.next_key_seed(Text("a field name"))? {
            if !keys.add(key.clone()) {
                return Err(duplicate(context, &key));
            }
            match key.as_ref() {
                "dtype" => {
                    let name = map.next_value_seed(Text("`dtype` as a string"))?;
                    let dtype = DType::parse(&name);
                    let message = || format!("unknown dtype `{}`", escape(&name));
                    raw.dtype =
                        Some(dtype.ok_or_else(|| {
                            context.refuse(message(), context.offset_of(&name).or(self.at))
                        })?);
                }
                "shape" => raw.shape = Some(map.next_value_seed(Shape(context))?),
                "data_offsets" => raw.offsets = Some(map.next_value_seed(Offsets(context))?),
                other => {
                    map.next_value_seed(Anything(context))?;
                    count(&mut unknown, 1, Some(other.to_owned()));
                }
            }
        }
        Ok((raw, unknown))
    }
}

/// `shape`.
struct Shape<'a, 'de>(&'a Context<'de>);

impl<'de> DeserializeSeed<'de> for Shape<'_, 'de> {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u64>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_, 'de> {
    type Value = Vec<u64>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`shape` as a list of integers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u64>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = list.next_element_seed(Natural("a dimension of `shape`"))? {
            if shape.len() >= MAX_RANK {
                return Err(self.0.refuse(format!("`shape` has more than {MAX_RANK} dimensions"), None));
            }
            shape.push(dimension);
        }
        shape.shrink_to_fit();
        Ok(shape)
    }
}

/// `data_offsets`.
struct Offsets<'a, 'de>(&'a Context<'de>);

impl<'de> DeserializeSeed<'de> for Offsets<'_, 'de> {
    type Value = (u64, u64);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(u64, u64), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Offsets<'_, 'de> {
    type Value = (u64, u64);
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`data_offsets` as a list of two integers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(u64, u64), A::Error> {
        let offset = Natural("an offset of `data_offsets`");
        let begin = list.next_element_seed(offset)?;
        let end = list.next_element_seed(offset)?;
        let more = list.next_element_seed(offset)?;
        match (begin, end, more) {
            (Some(begin), Some(end), None) => Ok((begin, end)),
            _ => Err(self.0.refuse("`data_offsets` must be a list of two integers", None)),
        }
    }
}

//! What header and index share: JSON by serde's visitors, with duplicate keys refused at every depth
//! and each fault tied to its tensor and its byte.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::escape;

/// Why a text was refused.
pub(super) struct Fault {
    pub(super) message: String,
    /// The tensor whose entry it was.
    pub(super) tensor: Option<String>,
    /// Byte offset in the file.
    pub(super) offset: Option<u64>,
}

/// One text under the parser: where it lies in its file, and which tensor is being read.
pub(super) struct Context<'de> {
    text: &'de str,
    start: u64,
    tensor: RefCell<Option<Cow<'de, str>>>,
    fault: RefCell<Option<Fault>>,
}

impl<'de> Context<'de> {
    /// A text that begins at byte `start` of its file.
    pub(super) fn new(text: &'de str, start: u64) -> Self {
        Self { text, start, tensor: RefCell::new(None), fault: RefCell::new(None) }
    }

    /// Says which tensor's entry is read from here on.
    pub(super) fn enter(&self, tensor: Option<Cow<'de, str>>) {
        *self.tensor.borrow_mut() = tensor;
    }

    /// Offset in the file of a string's opening quote, when the string is a piece of the text. One with
    /// escapes is a copy and has none.
    pub(super) fn offset_of(&self, piece: &str) -> Option<u64> {
        let at = piece.as_ptr().addr().checked_sub(self.text.as_ptr().addr())?;
        let quote = at.checked_sub(1).filter(|quote| *quote < self.text.len())?;
        self.start.checked_add(u64::try_from(quote).ok()?)
    }

    /// Keeps why the text is refused, and gives the error that ends the parse.
    pub(super) fn refuse<E: serde::de::Error>(&self, message: impl Into<String>, offset: Option<u64>) -> E {
        let tensor = self.tensor.borrow().as_deref().map(str::to_owned);
        *self.fault.borrow_mut() = Some(Fault { message: message.into(), tensor, offset });
        // The text is ours alone: serde_json looks for positions in what it is given here, and the
        // message may quote the file.
        E::custom("refused")
    }

    /// Runs `seed` over the whole text, and puts tensor and byte to whatever goes wrong.
    pub(super) fn parse<S: DeserializeSeed<'de>>(&self, seed: S) -> Result<S::Value, Fault> {
        let mut parser = serde_json::Deserializer::from_str(self.text);
        let outcome = seed.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
        outcome.map_err(|e| {
            let offset = self.position(&e);
            if let Some(fault) = self.fault.borrow_mut().take() {
                return Fault { offset: fault.offset.or(offset), ..fault };
            }
            let tensor = self.tensor.borrow().as_deref().map(str::to_owned);
            Fault { message: complaint(&e), tensor, offset }
        })
    }

    /// serde_json's line and column as a byte offset in the file.
    fn position(&self, e: &serde_json::Error) -> Option<u64> {
        let lines_before = e.line().checked_sub(1)?;
        let line_start = match lines_before.checked_sub(1) {
            None => 0,
            Some(nth) => {
                let newline = self.text.bytes().enumerate().filter(|(_, b)| *b == b'\n').nth(nth);
                newline.and_then(|(at, _)| at.checked_add(1))?
            }
        };
        let at = line_start.saturating_add(e.column().saturating_sub(1)).min(self.text.len());
        self.start.checked_add(u64::try_from(at).ok()?)
    }
}

/// serde_json's message without its position, which we give in bytes, and without the length that a
/// hostile string lends it.
fn complaint(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let position = format!(" at line {} column {}", e.line(), e.column());
    let text = escape(text.strip_suffix(&position).unwrap_or(&text));
    if e.is_data() { text } else { format!("not valid JSON: {text}") }
}

/// The keys of one object, to find duplicates. Compared after unescaping, as every reader does.
#[derive(Default)]
pub(super) struct Keys<'de>(HashSet<Cow<'de, str>>);

impl<'de> Keys<'de> {
    /// Whether `key` is new.
    pub(super) fn add(&mut self, key: Cow<'de, str>) -> bool {
        self.0.insert(key)
    }
}

/// A string, borrowed from the text when it has no escapes. Anything else is an error that says what
/// was expected.
#[derive(Clone, Copy)]
pub(super) struct Text(pub(super) &'static str);

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// An integer from 0 to 2^64-1, written without fraction, exponent or sign.
#[derive(Clone, Copy)]
pub(super) struct Natural(pub(super) &'static str);

impl<'de> DeserializeSeed<'de> for Natural {
    type Value = u64;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_u64(self)
    }
}

impl Visitor<'_> for Natural {
    type Value = u64;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as an integer from 0 to 2^64-1", self.0)
    }
    fn visit_u64<E>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }
}

/// A number that JSON holds, as far as the index wants to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar {
    Natural(u64),
    Other,
}

/// Any value: read to its end, nested duplicates refused, natural numbers kept.
#[derive(Clone, Copy)]
pub(super) struct Anything<'a, 'de>(pub(super) &'a Context<'de>);

impl<'de> DeserializeSeed<'de> for Anything<'_, 'de> {
    type Value = Scalar;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Anything<'_, 'de> {
    type Value = Scalar;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
        Ok(Scalar::Natural(value))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }
    fn visit_str<E>(self, _: &str) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }
    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(Scalar::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        let mut keys = Keys::default();
        while let Some(key) = map.next_key_seed(Text("a key"))? {
            if !keys.add(key.clone()) {
                return Err(duplicate(self.0, &key));
            }
            map.next_value_seed(self)?;
        }
        Ok(Scalar::Other)
    }
}

/// Refusal of a key that its object has already.
pub(super) fn duplicate<E: serde::de::Error>(context: &Context<'_>, key: &str) -> E {
    context.refuse(format!("duplicate key `{}`", escape(key)), context.offset_of(key))
}

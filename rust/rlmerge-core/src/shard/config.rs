//! The few facts that a merge needs from `config.json`.

use std::path::Path;

use serde_json::Value;

use super::source::read_bounded;
use crate::error::{Error, Result, escape};

/// Longest `config.json`, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Where multimodal models keep the configuration of their language model.
const LANGUAGE_PARTS: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// What `config.json` says, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFacts {
    /// The first of `architectures`.
    pub architecture: Option<String>,
    /// `model_type`.
    pub model_type: Option<String>,
    /// `tie_word_embeddings`; `None` when the file does not say, which means "yes" for most models.
    pub tie_word_embeddings: Option<bool>,
    /// How the model is quantised, in words, if it is.
    pub quantization: Option<String>,
}

impl ConfigFacts {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::BadConfig`] when it is not a JSON object, or over 16 MiB.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bad = |message: String| Error::BadConfig { path: path.to_path_buf(), message };
        let contents = read_bounded(path, MAX_CONFIG_BYTES, bad)?;
        let config =
            parse(&contents).map_err(|e| bad(format!("not valid JSON: {}", escape(&e.to_string()))))?;
        if !config.is_object() {
            return Err(bad("not a JSON object".into()));
        }
        Ok(Self::of(&config))
    }

    fn of(config: &Value) -> Self {
        let parts = || std::iter::once(config).chain(LANGUAGE_PARTS.iter().filter_map(|key| config.get(key)));
        Self {
            architecture: config["architectures"][0].as_str().map(str::to_owned),
            model_type: config["model_type"].as_str().map(str::to_owned),
            tie_word_embeddings: parts().find_map(|part| part.get("tie_word_embeddings")?.as_bool()),
            quantization: parts().find_map(quantization),
        }
    }
}

/// How a configuration says that its model is quantised.
fn quantization(part: &Value) -> Option<String> {
    ["quantization_config", "compression_config", "quantization"].iter().find_map(|key| {
        let value = part.get(key).filter(|v| v.is_object())?;
        let method = value.get("quant_method").or_else(|| value.get("quant_algo")).and_then(Value::as_str);
        Some(method.map_or_else(|| (*key).to_owned(), |m| format!("{key}: {}", escape(m))))
    })
}

/// JSON, or what Python's `json` writes for infinities: `[0.0, Infinity]` is in the configuration of
/// real models (`time_step_limit`). None of the facts is a float, so null stands in for them.
fn parse(contents: &[u8]) -> serde_json::Result<Value> {
    let strict = serde_json::from_slice(contents);
    if strict.is_ok() {
        return strict;
    }
    let finite = without_infinities(contents);
    serde_json::from_slice(&finite).or(strict)
}

/// `contents` with `NaN`, `Infinity` and `-Infinity` outside of strings replaced by `null`.
fn without_infinities(contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(contents.len());
    let mut rest = contents;
    let mut in_string = false;
    while let [first, tail @ ..] = rest {
        let words: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
        if !in_string && let Some(word) = words.iter().find(|w| rest.starts_with(w)) {
            out.extend_from_slice(b"null");
            rest = &rest[word.len()..];
            continue;
        }
        out.push(*first);
        rest = tail;
        match (first, tail) {
            (b'"', _) => in_string = !in_string,
            (b'\\', [escaped, after @ ..]) => {
                out.push(*escaped);
                rest = after;
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(json: &str) -> ConfigFacts {
        ConfigFacts::of(&parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn says_nothing_that_the_file_does_not_say() {
        assert_eq!(facts("{}"), ConfigFacts::default());
        assert_eq!(facts(r#"{"tie_word_embeddings": null, "architectures": []}"#), ConfigFacts::default());
    }

    #[test]
    fn looks_into_the_language_model_of_a_multimodal_one() {
        let nested = r#"{"architectures": ["A"], "text_config": {"tie_word_embeddings": false}}"#;
        assert_eq!(facts(nested).tie_word_embeddings, Some(false));
        let both = r#"{"tie_word_embeddings": true, "llm_config": {"tie_word_embeddings": false}}"#;
        assert_eq!(facts(both).tie_word_embeddings, Some(true));
    }

    #[test]
    fn reads_infinities_as_python_writes_them() {
        let json = r#"{"time_step_limit": [0.0, Infinity, -Infinity, NaN], "x": "NaN \" Infinity",
                       "tie_word_embeddings": true}"#;
        assert_eq!(facts(json).tie_word_embeddings, Some(true));
        assert_eq!(parse(json.as_bytes()).unwrap()["x"], "NaN \" Infinity");
        assert!(parse(b"{\"a\": Infinity").is_err());
    }

    #[test]
    fn names_the_quantisation() {
        let gptq = facts(r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#);
        assert_eq!(gptq.quantization.as_deref(), Some("quantization_config: gptq"));
        assert_eq!(facts(r#"{"quantization": {"bits": 4}}"#).quantization.as_deref(), Some("quantization"));
        assert_eq!(facts(r#"{"quantization_config": null}"#).quantization, None);
    }
}

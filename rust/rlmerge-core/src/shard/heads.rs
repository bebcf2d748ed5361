//! Output heads that are tied to the embedding: a model may store the one tensor and mean both.

use super::checkpoint::{Checkpoint, Tensor};

const HEAD: &str = "lm_head.weight";
const EMBEDDINGS: &[&str] =
    &["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight"];

/// Whether a tensor of this name is an output head.
#[must_use]
pub fn is_head(name: &str) -> bool {
    name == HEAD || name.strip_suffix(HEAD).is_some_and(|prefix| prefix.ends_with('.'))
}

/// The embedding that stands in for the missing head `name`, if the model may have tied them.
#[must_use]
pub fn tied_embedding<'a>(model: &'a Checkpoint, name: &str) -> Option<&'a Tensor> {
    if !is_head(name) || model.config().and_then(|c| c.tie_word_embeddings) == Some(false) {
        return None;
    }
    let mut found = model.tensors().iter().filter(|t| is_embedding(&t.name));
    let embedding = found.next()?;
    found.next().is_none().then_some(embedding)
}

/// Whether a tensor of this name is an embedding that heads are tied to.
#[must_use]
pub fn is_embedding(name: &str) -> bool {
    EMBEDDINGS.iter().any(|e| name == *e || name.strip_suffix(e).is_some_and(|prefix| prefix.ends_with('.')))
}

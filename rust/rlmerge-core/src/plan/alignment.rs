//! Which tensor of each model belongs to which output tensor: by name and shape, without any
//! knowledge of architectures.
//!
//! One exception, the output head: a model whose `lm_head.weight` is tied to its embedding often does not
//! store it. Where some models store a head and others do not, the embedding of a model without one
//! stands in for it, unless its configuration says that the two are not tied; the output then holds
//! the head, and its configuration says that it is not tied. Where no model stores a head, neither
//! does the output.

use std::collections::HashSet;

use serde::Serialize;

use crate::dtype::DType;
use crate::error::{Error, Result, escape};
use crate::shard::{Checkpoint, Tensor, is_head, tied_embedding};

/// One output tensor with its tensor in every model.
pub struct Aligned<'a> {
    /// Name in the output.
    pub name: &'a str,
    /// The tensor of each model, in the order of the models.
    pub sources: Vec<&'a Tensor>,
}

/// All output tensors, in the file order of the reference model.
pub struct Alignment<'a> {
    /// The tensors.
    pub tensors: Vec<Aligned<'a>>,
    /// Set when the output must say that its head is not tied.
    pub untied_head: bool,
    /// What was decided on the way.
    pub notes: Vec<String>,
}

/// A tensor that not all models have, or not in one shape.
#[derive(Debug, Clone, Serialize)]
pub struct Unmatched {
    /// Its name.
    pub name: String,
    /// What each model has by that name.
    pub models: Vec<Option<Stored>>,
}

/// How a model stores a tensor.
#[derive(Debug, Clone, Serialize)]
pub struct Stored {
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// Aligns what all models have alike, and says what else there is.
///
/// # Errors
/// As for [`align`], when they have nothing alike.
pub fn align_common<'a>(models: &[&'a Checkpoint]) -> Result<(Alignment<'a>, Vec<Unmatched>)> {
    let mut known = HashSet::new();
    let names = models.iter().flat_map(|m| m.tensors().iter().map(|t| t.name.as_str()));
    let mut out = Alignment { tensors: Vec::new(), untied_head: false, notes: Vec::new() };
    let mut unmatched = Vec::new();
    for name in names.filter(|name| known.insert(*name)) {
        let found: Vec<Option<&Tensor>> = models.iter().map(|model| model.get(name)).collect();
        let alike = |a: &Tensor, b: &Tensor| {
            a.shape == b.shape
                && (a.dtype == b.dtype || (a.dtype.has_arithmetic() && b.dtype.has_arithmetic()))
        };
        match found.iter().copied().collect::<Option<Vec<_>>>() {
            Some(sources) if sources.windows(2).all(|w| alike(w[0], w[1])) => {
                out.tensors.push(Aligned { name, sources });
            }
            _ => {
                let stored = |t: &Tensor| Stored { dtype: t.dtype, shape: t.shape.clone() };
                let models = found.iter().map(|t| t.map(stored)).collect();
                unmatched.push(Unmatched { name: name.into(), models });
            }
        }
    }
    if out.tensors.is_empty() {
        return Ok((align(models, 0)?, unmatched));
    }
    Ok((out, unmatched))
}

/// Aligns all models with the reference model.
///
/// # Errors
/// [`Error::ModelsDoNotFit`] with every missing, extra and mismatched tensor at once.
pub fn align<'a>(models: &[&'a Checkpoint], reference: usize) -> Result<Alignment<'a>> {
    let mut names: Vec<&'a str> = models[reference].tensors().iter().map(|t| t.name.as_str()).collect();
    let mut known: HashSet<&str> = names.iter().copied().collect();
    for model in models {
        for tensor in model.tensors() {
            if is_head(&tensor.name) && known.insert(&tensor.name) {
                names.push(&tensor.name);
            }
        }
    }

    let mut out = Alignment { tensors: Vec::new(), untied_head: false, notes: Vec::new() };
    let mut problems = Vec::new();
    let mut first = None;
    let mut problem = |tensor: &str, text: String| {
        first.get_or_insert_with(|| tensor.to_string());
        problems.push(text);
    };
    let show = |at: usize| escape(&models[at].path().to_string_lossy());

    for name in names {
        let mut found: Vec<(usize, &Tensor)> = Vec::with_capacity(models.len());
        for (at, model) in models.iter().enumerate() {
            if let Some(tensor) = model.get(name) {
                found.push((at, tensor));
            } else if let Some(embedding) = tied_embedding(model, name) {
                out.untied_head = true;
                out.notes.push(format!(
                    "{} stores no `{}`: its `{}` stands in, and the output's head is not tied",
                    show(at),
                    escape(name),
                    escape(&embedding.name)
                ));
                found.push((at, embedding));
            } else {
                problem(name, format!("`{}` is missing from {}", escape(name), show(at)));
            }
        }
        // Where the reference model itself lacks the tensor, the others are compared among themselves.
        let Some(&(stated, expected)) = found.iter().find(|(at, _)| *at == reference).or(found.first())
        else {
            continue;
        };
        for &(at, tensor) in &found {
            if tensor.shape != expected.shape {
                problem(
                    name,
                    format!(
                        "`{}`: shape {:?} in {}, {:?} in {}",
                        escape(name),
                        expected.shape,
                        show(stated),
                        tensor.shape,
                        show(at)
                    ),
                );
            } else if tensor.dtype != expected.dtype
                && !(tensor.dtype.has_arithmetic() && expected.dtype.has_arithmetic())
            {
                problem(
                    name,
                    format!(
                        "`{}`: {} in {}, {} in {}",
                        escape(name),
                        expected.dtype,
                        show(stated),
                        tensor.dtype,
                        show(at)
                    ),
                );
            }
        }
        out.tensors.push(Aligned { name, sources: found.into_iter().map(|(_, tensor)| tensor).collect() });
    }
    for (at, model) in models.iter().enumerate() {
        for tensor in model.tensors().iter().filter(|t| !known.contains(t.name.as_str())) {
            problem(
                &tensor.name,
                format!("`{}` of {} is not in {}", escape(&tensor.name), show(at), show(reference)),
            );
        }
    }
    if problems.is_empty() { Ok(out) } else { Err(Error::ModelsDoNotFit { problems, tensor: first }) }
}

//! Statistics that the user brings for the experts, held against the tensors that they are about.

use super::family::Statistic;
use super::role::Matrix;
use super::{Action, PlannedTensor, Source};
use crate::dtype::DType;
use crate::error::{Error, Result, escape};
use crate::shard::Checkpoint;

/// Shape of the statistics of a tensor; `None` where there can be none.
pub fn shape(statistic: &Statistic, tensor: &PlannedTensor) -> Option<Vec<u64>> {
    if !statistic.gram {
        return Some(tensor.shape.clone());
    }
    let Matrix { rows, columns, transposed, .. } = tensor.matrix?;
    let inputs = if transposed { rows } else { columns };
    Some(if tensor.shape.len() == 3 { vec![tensor.shape[0], inputs, inputs] } else { vec![inputs, inputs] })
}

/// Adds the statistics to the sources of every tensor of the recipe's method that has them in all files that are used, and gives the others
/// to program `otherwise`. Names that no model has, shapes and dtypes that do not fit are errors, all at once.
///
/// # Errors
/// [`Error::ModelsDoNotFit`].
pub fn place(
    statistic: &Statistic,
    files: &[Checkpoint],
    models: usize,
    tensors: &mut [PlannedTensor],
    otherwise: usize,
) -> Result<Vec<String>> {
    let used: Vec<&Checkpoint> = statistic.files.iter().map(|at| &files[at - models]).collect();
    let mut problems = Vec::new();
    let mut first = None;
    let mut problem = |tensor: &str, text: String| {
        first.get_or_insert_with(|| tensor.to_string());
        problems.push(text);
    };
    let show = |file: &Checkpoint| escape(&file.path().to_string_lossy());

    let mut missing = Vec::new();
    for tensor in tensors.iter_mut().filter(|t| t.action == Action::Compute && t.program == 0) {
        let expected = shape(statistic, tensor);
        let mut found = 0;
        for file in &used {
            let Some(there) = file.get(&tensor.name) else { continue };
            found += 1;
            let name = escape(&tensor.name);
            match &expected {
                None => problem(
                    &tensor.name,
                    format!("`{name}` of {} is about a tensor that is no matrix", show(file)),
                ),
                Some(shape) if *shape != there.shape => problem(
                    &tensor.name,
                    format!("`{name}`: shape {:?} in {}, {shape:?} expected", there.shape, show(file)),
                ),
                Some(_) if !there.dtype.has_arithmetic() => {
                    problem(&tensor.name, format!("`{name}`: {} in {}", there.dtype, show(file)));
                }
                Some(_) => {}
            }
        }
        if found == used.len() {
            continue;
        }
        tensor.program = otherwise;
        // Where a matrix could have had statistics, or some file does have them, the user should know.
        if expected.is_some() || found > 0 {
            missing.push((tensor.name.clone(), found));
        }
    }
    let known: std::collections::HashSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    for file in &used {
        for tensor in file.tensors().iter().filter(|t| !known.contains(t.name.as_str())) {
            problem(&tensor.name, format!("`{}` of {} is in no model", escape(&tensor.name), show(file)));
        }
    }
    if !problems.is_empty() {
        return Err(Error::ModelsDoNotFit { problems, tensor: first });
    }

    for tensor in tensors.iter_mut() {
        for file in files {
            let source =
                file.get(&tensor.name).filter(|_| tensor.action == Action::Compute && tensor.program == 0);
            tensor.wide |= !statistic.gram && source.is_some_and(|s| s.dtype == DType::F64);
            tensor
                .sources
                .push(source.map_or(Source { shard: 0, begin: 0, end: 0, dtype: tensor.dtype }, |t| {
                    Source { shard: t.shard, begin: t.begin, end: t.end, dtype: t.dtype }
                }));
        }
    }
    Ok(notes(statistic, &missing))
}

fn notes(statistic: &Statistic, missing: &[(String, usize)]) -> Vec<String> {
    let Some((first, _)) = missing.first() else { return Vec::new() };
    let some = missing.iter().filter(|(_, found)| *found > 0).count();
    let partly =
        if some > 0 { format!(" ({some} of them lack it for some models only)") } else { String::new() };
    vec![format!(
        "{} tensors have no `{}` statistics for every model{partly} and are averaged by weight, first `{}`",
        missing.len(),
        statistic.parameter,
        escape(first)
    )]
}

//! Opening the models of a recipe: checkpoints, and adapters together with their bases.

use std::path::{Path, PathBuf};

use super::recipe::Recipe;
use crate::error::{Error, Result};
use crate::shard::{Adapter, Checkpoint, compose, is_adapter, quantised};

/// The base, if there is one, and then the experts.
///
/// # Errors
/// Those of opening a checkpoint or an adapter, [`Error::Quantised`], and [`Error::ModelsDoNotFit`] with whatever in
/// any adapter does not fit its base.
pub fn open(recipe: &Recipe) -> Result<Vec<Checkpoint>> {
    let base = recipe.base.iter().map(|path| (path, &recipe.base_adapter));
    let entries = base.chain(recipe.models.iter().map(|m| (&m.path, &m.adapter)));
    let mut models = Vec::new();
    let mut problems = Vec::new();
    for (at, (path, adapter)) in entries.enumerate() {
        let is_base = at == 0 && recipe.base.is_some();
        let (base, adapter, shown) = match adapter {
            Some(adapter) => (path, adapter, joined(path, adapter)),
            None if !is_adapter(path) => {
                models.push(plain(path)?);
                continue;
            }
            None => match &recipe.base {
                Some(_) if !is_base && recipe.base_adapter.is_some() => return Err(two_adapters(path)),
                Some(base) if !is_base => (base, path, path.clone()),
                _ => return Err(Error::AdapterWithoutBase { path: path.clone() }),
            },
        };
        let (model, found) = compose(plain(base)?, Adapter::open(adapter)?, shown);
        models.push(model);
        problems.extend(found);
    }
    match problems.first().map(|(tensor, _)| tensor.clone()) {
        Some(first) => Err(Error::ModelsDoNotFit {
            tensor: (!first.is_empty()).then_some(first),
            problems: problems.into_iter().map(|(_, text)| text).collect(),
        }),
        None => Ok(models),
    }
}

fn plain(path: &Path) -> Result<Checkpoint> {
    let model = Checkpoint::open(path)?;
    quantised(&model).map_or(Ok(model), Err)
}

fn two_adapters(adapter: &Path) -> Error {
    let adapter = adapter.display();
    Error::RecipeInvalid {
        message: format!(
            "{adapter} is an adapter of a base that is itself changed by one; say which model it belongs to, as MODEL+{adapter}"
        ),
    }
}

fn joined(base: &Path, adapter: &Path) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push("+");
    path.push(adapter);
    path.into()
}

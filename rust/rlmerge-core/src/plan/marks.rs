//! The file of masks beside a merged model: one bit for each element and task, known to the byte before anything is
//! computed, like every other file of the output.
//!
//! It is a safetensors file under a name that no model loader looks for. For each tensor `NAME` it holds
//! `masks/NAME`, of dtype U8 and shape (tasks, ⌈elements / 8⌉): element i is bit i mod 8, counted from the lowest, of
//! byte ⌊i / 8⌋, and bits beyond the last element are zero. `scales`, F64, has a factor for each task.

use serde_json::json;

use super::family::Program;
use super::recipe::{OutputForm, Recipe, Settings};
use super::{Action, MergePlan, PlannedTensor, TILE_ELEMENTS};
use crate::error::{Error, Result, escape};

/// Name of the file in an output folder.
pub const FILE: &str = "rlmerge.masks";
/// Name and version of the format, in the file's metadata and in the report.
pub const FORMAT: &str = "rlmerge.masks/1";
/// Name of the tensor of scales.
pub const SCALES: &str = "scales";
/// Bytes of one task's bits in a tile.
pub const TILE_BYTES: usize = (TILE_ELEMENTS / 8) as usize;

/// Name of the tensor with the masks of a model's tensor.
#[must_use]
pub fn name(tensor: &str) -> String {
    format!("masks/{tensor}")
}

/// Bytes of one task's bits of so many elements.
#[must_use]
pub const fn row_bytes(elements: u64) -> u64 {
    elements.div_ceil(8)
}

/// Place in a tile's bits of the element with this index in its tensor; chunks begin at whole bytes.
#[must_use]
pub const fn byte_in_tile(element: u64) -> usize {
    (element % TILE_ELEMENTS / 8) as usize
}

/// The bits of a chunk among those of its tile, which has [`TILE_BYTES`] for each task.
pub fn of_chunk(tile: &mut [u8], task: usize, first: u64, len: usize) -> &mut [u8] {
    let at = task * TILE_BYTES + byte_in_tile(first);
    &mut tile[at..at + len.div_ceil(8)]
}

/// The file of masks of a merge.
#[derive(Debug, Clone)]
pub struct MarksFile {
    /// Length prefix and header.
    pub header: Vec<u8>,
    /// Size of the file.
    pub bytes: u64,
    /// Names of the tasks, all different.
    pub tasks: Vec<String>,
    /// Whether each task has a scale other than 1.
    pub scaled: bool,
    /// Offset of the scales.
    pub scales: u64,
    /// Offset of the first task's bits of each planned tensor that has masks.
    pub rows: Vec<Option<u64>>,
}

impl MarksFile {
    /// Lays out the masks of those tensors that have some.
    ///
    /// # Errors
    /// [`Error::Internal`] when a size does not fit 64 bits.
    pub fn lay_out(
        tasks: Vec<String>,
        scaled: bool,
        method: &str,
        tensors: &[(&PlannedTensor, bool)],
    ) -> Result<Self> {
        let count = tasks.len() as u64;
        let mut header = serde_json::Map::new();
        header.insert(
            "__metadata__".into(),
            json!({"format": FORMAT, "method": method, "tasks": json!(tasks).to_string()}),
        );
        let mut end = 8 * count;
        header.insert(SCALES.into(), json!({"dtype": "F64", "shape": [count], "data_offsets": [0, end]}));
        let mut rows = Vec::with_capacity(tensors.len());
        for (tensor, marked) in tensors {
            if !marked {
                rows.push(None);
                continue;
            }
            let row = row_bytes(tensor.elements);
            let begin = end;
            end = row
                .checked_mul(count)
                .and_then(|all| begin.checked_add(all))
                .ok_or_else(|| Error::Internal { message: "the masks exceed 2^64 bytes".into() })?;
            header.insert(
                name(&tensor.name),
                json!({"dtype": "U8", "shape": [count, row], "data_offsets": [begin, end]}),
            );
            rows.push(Some(begin));
        }
        let mut text = serde_json::Value::Object(header).to_string();
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        let start = bytes.len() as u64;
        let rows = rows.into_iter().map(|at| at.map(|at| at + start)).collect();
        Ok(Self { header: bytes, bytes: start + end, tasks, scaled, scales: start, rows })
    }

    /// What the user should know of it.
    #[must_use]
    pub fn note(&self) -> String {
        let tasks: Vec<String> = self.tasks.iter().map(|t| format!("`{}`", escape(t))).collect();
        let list = tasks.join(", ");
        format!(
            "masks of the tasks {list} go beside the model; `rlmerge expand` rebuilds a task's model from them"
        )
    }
}

/// Names for tasks: those given, with a number behind every one that came before.
#[must_use]
pub fn distinct(names: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(names.len());
    for name in names {
        let mut numbered = (1u32..).map(|n| if n == 1 { name.clone() } else { format!("{name}-{n}") });
        // Numbers do not run out before names do.
        out.extend(numbered.find(|candidate| !out.contains(candidate)));
    }
    out
}

impl MergePlan {
    /// The file of masks of a plan in the making.
    pub(super) fn lay_out_marks(
        recipe: &Recipe,
        settings: &Settings,
        programs: &[Program],
        tensors: &[PlannedTensor],
    ) -> Result<Option<MarksFile>> {
        let Some(made) = programs.iter().find_map(|p| p.family().marks()) else { return Ok(None) };
        if recipe.output_kind == OutputForm::File {
            let message = format!(
                "method `{}` writes masks beside the model, so that the output has to be a folder",
                settings.method.name
            );
            return Err(Error::RecipeInvalid { message });
        }
        let first = usize::from(recipe.base.is_some());
        let task = |model: &usize| {
            let entry = &recipe.models[model - first];
            let last = || entry.path.file_name().unwrap_or(entry.path.as_os_str()).to_string_lossy();
            let name = entry.name.clone().unwrap_or_else(|| last().into_owned());
            name.strip_suffix(".safetensors").unwrap_or(&name).to_string()
        };
        let tasks = distinct(&made.experts.iter().map(task).collect::<Vec<_>>());
        let marked =
            |t: &PlannedTensor| t.action == Action::Compute && programs[t.program].family().marks().is_some();
        let tensors: Vec<(&PlannedTensor, bool)> = tensors.iter().map(|t| (t, marked(t))).collect();
        MarksFile::lay_out(tasks, made.scaled, settings.method.name, &tensors).map(Some)
    }

    /// Number of masks that the computation of a tensor gives.
    #[must_use]
    pub fn mark_rows(&self, tensor: &PlannedTensor) -> usize {
        if tensor.action != Action::Compute {
            return 0;
        }
        match (&self.marks, &self.expected) {
            (Some(marks), _) if self.program(tensor).family().marks().is_some() => marks.tasks.len(),
            (_, Some(_)) => 1,
            _ => 0,
        }
    }

    /// Number of models, the first ones, whose tensors get a checksum besides those of the output.
    #[must_use]
    pub fn hashed_models(&self) -> usize {
        if self.recipe.verify_inputs {
            return self.models.len() + self.statistics.len();
        }
        match (&self.marks, &self.expected) {
            (_, Some(_)) => 2,
            (Some(_), _) => 1,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_get_distinct_names() {
        let names = ["a", "b", "a", "a-2", "a"].map(String::from);
        assert_eq!(distinct(&names), ["a", "b", "a-2", "a-2-2", "a-3"]);
    }

    #[test]
    fn chunks_find_their_bits() {
        let mut tile = vec![0; 2 * TILE_BYTES];
        of_chunk(&mut tile, 1, TILE_ELEMENTS + 1024, 9).fill(7);
        let set: Vec<usize> = (0..tile.len()).filter(|i| tile[*i] == 7).collect();
        assert_eq!(set, [TILE_BYTES + 128, TILE_BYTES + 129]);
    }
}

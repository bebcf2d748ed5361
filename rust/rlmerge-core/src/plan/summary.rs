//! A plan as JSON (schema `rlmerge.plan/1`).

use serde_json::{Map, Value, json};

use super::{Action, MergePlan, PlannedModel, PlannedShard};

/// The files of a model.
fn shards(model: &PlannedModel) -> Value {
    let shard = |s: &PlannedShard| {
        let mut facts = json!({
            "path": s.path,
            "bytes": s.identity.size,
            "mtime_ns": s.identity.mtime_ns,
            "inode": s.identity.ino,
            "header_blake3": s.header_blake3,
        });
        if let Some(real) = &s.real_path {
            facts["real_path"] = json!(real);
        }
        facts
    };
    model.shards.iter().map(shard).collect()
}

impl MergePlan {
    /// The whole plan, with the list of tensors.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut plan = self.summary();
        if let Some(map) = plan.as_object_mut() {
            let list = self.tensors.iter().map(|t| {
                json!({
                    "name": t.name,
                    "dtype": t.dtype,
                    "shape": t.shape,
                    "action": t.action.name(),
                    "shard": self.layout.shards[t.shard].name,
                    "bytes": t.bytes,
                })
            });
            map.insert("tensor_list".into(), list.collect());
        }
        plan
    }

    /// The plan without the list of tensors.
    #[must_use]
    pub fn summary(&self) -> Value {
        let count = |action: Action| self.tensors.iter().filter(|t| t.action == action).count();
        let recipe = &self.recipe;
        let first_expert = usize::from(self.base.is_some());
        let models = self.models.iter().enumerate().map(|(at, model)| {
            let parameters = at.checked_sub(first_expert).map(|e| &self.settings.experts[e]);
            json!({
                "path": model.path,
                "role": if Some(at) == self.base { "base" } else { "expert" },
                "kind": model.kind.name(),
                "adapter": model.parts.as_ref().map(|p| json!({"path": p.adapter, "base": p.base})),
                "tensors": model.tensors,
                "bytes": model.bytes,
                "parameters": parameters.map_or_else(|| Value::Object(Map::new()), |p| json!(p)),
                "shards": shards(model),
            })
        });
        let mut masks = Map::new();
        if let Some(marks) = &self.marks {
            let facts = json!({"file": super::marks::FILE, "bytes": marks.bytes, "tasks": marks.tasks});
            masks.insert("masks".into(), facts);
        }
        let donor = self.models.iter().position(|m| m.config.is_some());
        let mut plan = json!({
            "schema": "rlmerge.plan/1",
            "version": env!("CARGO_PKG_VERSION"),
            "method": self.settings.method.name,
            "compat": recipe.compat,
            "seed": recipe.seed,
            "dtype": recipe.dtype,
            "threads": self.threads,
            "io": recipe.io,
            "durability": recipe.durability,
            "on_overflow": recipe.on_overflow,
            "int_from": recipe.int_from,
            "verify_inputs": recipe.verify_inputs,
            "parameters": self.settings.global,
            "modifiers": recipe.modifiers,
            "base": self.base,
            "models": models.collect::<Vec<_>>(),
            "statistics": self.statistics.iter().map(|file| json!({
                "path": file.path,
                "bytes": file.bytes,
                "shards": shards(file),
            })).collect::<Vec<_>>(),
            "config_donor": donor.unwrap_or(0),
            "output": {
                "path": recipe.output,
                "kind": recipe.output_kind,
                "shards": self.layout.shards.iter().map(|s| json!({
                    "name": s.name, "bytes": s.bytes, "tensors": s.tensors,
                })).collect::<Vec<_>>(),
                "index": self.layout.index.is_some(),
                "total_size": self.layout.total_size,
                "tie_word_embeddings": self.tie_word_embeddings,
            },
            "reads": self.reads(),
            "bytes_to_read": self.bytes_to_read(),
            "bytes_to_write": self.bytes_to_write(),
            "memory_bound_bytes": self.memory_bound(),
            "tensors": {
                "total": self.tensors.len(),
                "computed": count(Action::Compute),
                "copied": count(Action::Copy),
                "compared": count(Action::Compare),
            },
            "notes": self.notes,
            "warnings": self.warnings,
        });
        if let Some(plan) = plan.as_object_mut() {
            plan.extend(masks);
        }
        plan
    }
}

//! Modifiers: what a recipe may ask of any method. Some tensors can be left out of it (`treat`), experts can be
//! brought to one norm before it (`match_norm`), and what it adds to the base can be scaled by depth (`lines`).

use serde::{Deserialize, Serialize};

use super::role::{Role, layer};
use crate::error::{Error, Result};

/// What is done with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Treatment {
    /// The recipe's method.
    Merge,
    /// The mean of the experts.
    Mean,
    /// The base's tensor.
    Base,
}

/// A treatment for the tensors that a pattern names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `embeddings`, `head`, `norms`, `biases`, `attention`, `feed_forward`, `routers`, or a tensor's name with
    /// `*` for any run of characters.
    pub pattern: String,
    /// What is done.
    pub treatment: Treatment,
}

/// The scale of the first layer, and of everything outside the layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Alpha {
    /// This number.
    Given(f64),
    /// `‖Σ δᵢ‖₁ / (T · ‖δ‖₁)` over the whole model, for T experts and the merged delta δ.
    Auto(AutoWord),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoWord {
    /// The word.
    Auto,
}

/// Layer-linear scaling (Wang et al., LiNeS, ICLR 2025): the merged delta of layer l of L is multiplied by
/// α + β·l/(L−1), that of tensors outside the layers by α.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    /// α.
    pub alpha: Alpha,
    /// β.
    pub beta: f64,
}

/// The norm that the experts' deltas are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MatchNorm {
    /// Of all experts.
    Over(Over),
    /// That of this expert, counted from 1.
    Expert(usize),
}

/// A norm made from those of all experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Their mean.
    Mean,
    /// The smallest.
    Min,
}

impl MatchNorm {
    /// What each expert's delta is multiplied by to have the norm, out of the norms of the experts. A delta whose
    /// norm is zero or not finite stays as it is and does not count; where the named expert's is so, all stay.
    /// `place` finds the norm of an expert by its number.
    #[must_use]
    pub fn factors(self, norms: &[f64], place: impl Fn(usize) -> Option<usize>) -> Vec<f64> {
        let usable = |n: f64| n > 0.0 && n.is_finite();
        let counted = || norms.iter().copied().filter(|n| usable(*n));
        let target = match self {
            Self::Over(Over::Mean) => counted().sum::<f64>() / counted().count() as f64,
            Self::Over(Over::Min) => counted().fold(f64::INFINITY, f64::min),
            Self::Expert(number) => place(number).map_or(f64::NAN, |at| norms[at]),
        };
        norms.iter().map(|n| if usable(*n) && usable(target) { target / n } else { 1.0 }).collect()
    }
}

/// Where the norms of experts are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatchScope {
    /// Over the whole model: one factor an expert.
    #[default]
    Model,
    /// In each tensor.
    Tensor,
}

/// All modifiers of a recipe.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Modifiers {
    /// The first rule that names a tensor counts; the method treats tensors that none names.
    pub treat: Vec<Rule>,
    /// Layer-linear scaling.
    pub lines: Option<Lines>,
    /// Norm matching.
    pub match_norm: Option<MatchNorm>,
    /// Its scope.
    pub match_norm_scope: MatchScope,
}

impl Modifiers {
    /// Checks what can be checked without the models.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`] for patterns without meaning, numbers out of range, and modifiers of deltas where
    /// there are none.
    pub fn check(&self, method: &str, merges_deltas: bool, has_base: bool, experts: usize) -> Result<()> {
        let refuse = |message: String| Err(Error::RecipeInvalid { message });
        for rule in &self.treat {
            if rule.pattern.is_empty() {
                return refuse("`treat` has an empty pattern".into());
            }
            if rule.treatment == Treatment::Base && !has_base {
                return refuse(format!(
                    "`treat` gives `{}` the base's tensors, but there is no base",
                    rule.pattern
                ));
            }
        }
        for (name, given) in [("lines", self.lines.is_some()), ("match_norm", self.match_norm.is_some())] {
            if given && !merges_deltas {
                return refuse(format!(
                    "`{name}` scales deltas from a base, and method `{method}` merges none here"
                ));
            }
        }
        if let Some(lines) = self.lines {
            let alpha = if let Alpha::Given(alpha) = lines.alpha { alpha } else { 0.0 };
            if !alpha.is_finite() || !lines.beta.is_finite() {
                return refuse("`lines` takes finite numbers".into());
            }
        }
        if let Some(MatchNorm::Expert(number)) = self.match_norm
            && !(1..=experts).contains(&number)
        {
            return refuse(format!("`match_norm` names expert {number} of {experts}; they count from 1"));
        }
        Ok(())
    }

    /// Checks that the expert whose norm counts is among the models that are read.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`].
    pub fn check_experts(&self, read: &[usize]) -> Result<()> {
        match self.match_norm {
            Some(MatchNorm::Expert(number)) if !read.contains(&number) => {
                let message =
                    format!("`match_norm` names expert {number}, which has weight 0 and takes no part");
                Err(Error::RecipeInvalid { message })
            }
            _ => Ok(()),
        }
    }

    /// What is done with the tensor of this name.
    #[must_use]
    pub fn treatment(&self, name: &str) -> Treatment {
        self.treat
            .iter()
            .find(|rule| names(&rule.pattern, name))
            .map_or(Treatment::Merge, |rule| rule.treatment)
    }

    /// Rules that name none of the tensors.
    pub fn idle<'a>(&'a self, tensors: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let used = move |pattern: &str| tensors.iter().any(|name| names(pattern, name));
        self.treat.iter().map(|rule| rule.pattern.as_str()).filter(move |pattern| !used(pattern))
    }
}

/// Whether a pattern names a tensor.
fn names(pattern: &str, tensor: &str) -> bool {
    let role = match pattern {
        "embeddings" => Some(Role::Embedding),
        "head" => Some(Role::Head),
        "norms" => Some(Role::Norm),
        "biases" => Some(Role::Bias),
        "attention" => Some(Role::Attention),
        "feed_forward" => Some(Role::FeedForward),
        "routers" => Some(Role::Router),
        _ => None,
    };
    role.map_or_else(|| matches(pattern.as_bytes(), tensor.as_bytes()), |role| Role::of(tensor) == role)
}

/// Whether a text is a pattern with each `*` replaced by something. Goes back to the last `*` only, which is enough.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut last: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            last = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((star, from)) = last {
            last = Some((star, from + 1));
            (p, t) = (star + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Position of each tensor between the first layer (0) and the last (1); tensors outside the layers are at 0.
#[must_use]
pub fn depths(names: &[&str]) -> Vec<f64> {
    let layers: Vec<Option<u32>> = names.iter().map(|name| layer(name)).collect();
    let last = layers.iter().flatten().max().copied().unwrap_or(0);
    let depth = |number: u32| if last == 0 { 0.0 } else { f64::from(number) / f64::from(last) };
    layers.into_iter().map(|number| number.map_or(0.0, depth)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_roles_or_names_with_stars() {
        for (pattern, tensor, expected) in [
            ("embeddings", "model.embed_tokens.weight", true),
            ("embeddings", "lm_head.weight", false),
            ("routers", "model.layers.0.mlp.gate.weight", true),
            ("model.layers.0.*", "model.layers.0.mlp.gate.weight", true),
            ("model.layers.0.*", "model.layers.10.mlp.gate.weight", false),
            ("*gate*", "model.layers.0.mlp.gate.weight", true),
            ("*.gate", "model.layers.0.mlp.gate.weight", false),
            ("lm_head.weight", "lm_head.weight", true),
            ("*a*ab", "aaab", true),
            ("*", "", true),
        ] {
            assert_eq!(names(pattern, tensor), expected, "{pattern} {tensor}");
        }
    }

    #[test]
    fn the_first_rule_counts() {
        let rule = |pattern: &str, treatment| Rule { pattern: pattern.into(), treatment };
        let modifiers = Modifiers {
            treat: vec![
                rule("*.bias", Treatment::Base),
                rule("norms", Treatment::Mean),
                rule("lonely", Treatment::Mean),
            ],
            ..Modifiers::default()
        };
        assert_eq!(modifiers.treatment("h.0.ln_1.bias"), Treatment::Base);
        assert_eq!(modifiers.treatment("h.0.ln_1.weight"), Treatment::Mean);
        assert_eq!(modifiers.treatment("h.0.mlp.c_fc.weight"), Treatment::Merge);
        assert_eq!(modifiers.idle(&["h.0.ln_1.bias", "h.0.ln_1.weight"]).collect::<Vec<_>>(), ["lonely"]);
    }

    #[test]
    fn depth_goes_from_the_first_layer_to_the_last() {
        let names = ["embed_tokens.weight", "layers.0.a", "layers.1.a", "layers.4.a"];
        assert_eq!(depths(&names), [0.0, 0.0, 0.25, 1.0]);
        assert_eq!(depths(&["layers.0.a"]), [0.0]);
    }

    #[test]
    fn norms_are_matched_where_there_are_any() {
        let factors = |norm: MatchNorm, norms: &[f64]| norm.factors(norms, |number| Some(number - 1));
        assert_eq!(factors(MatchNorm::Over(Over::Mean), &[1.0, 3.0]), [2.0, 2.0 / 3.0]);
        assert_eq!(factors(MatchNorm::Over(Over::Min), &[4.0, 2.0]), [0.5, 1.0]);
        assert_eq!(factors(MatchNorm::Expert(2), &[4.0, 2.0, 0.0]), [0.5, 1.0, 1.0]);
        assert_eq!(factors(MatchNorm::Over(Over::Min), &[4.0, 0.0, 8.0]), [1.0, 1.0, 0.5]);
        assert_eq!(factors(MatchNorm::Over(Over::Mean), &[0.0, 0.0]), [1.0, 1.0]);
        assert_eq!(factors(MatchNorm::Expert(1), &[0.0, 2.0]), [1.0, 1.0]);
    }
}

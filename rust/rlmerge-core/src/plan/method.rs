//! A row of the table of methods. The rows themselves stand in [`super::family`], beside what they have in
//! common; from them the plan validates recipes, and everything that describes methods (`rlmerge methods`,
//! the documentation, the tests' lists) is made.

use serde::Serialize;
use serde_json::{Value, json};

use super::family::{Program, Setup};
use crate::error::Result;

/// What a method does with a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseUse {
    /// Deltas from a base are merged.
    Required,
    /// Deltas are merged if a base is given, otherwise the models as they are.
    Optional,
    /// A base may be given as one of the models.
    Model,
    /// Models are merged as they are.
    None,
}

/// What the memory of a merge grows with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// With the tile, which has a fixed size.
    Tile,
    /// With the longest row of a matrix.
    Row,
    /// With the largest matrix.
    Matrix,
}

/// Values that a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A finite number with `low ≤ x ≤ high`, or `low < x` when `open`.
    Number {
        /// Least value.
        low: f64,
        /// Greatest value.
        high: f64,
        /// Whether the least value itself is excluded.
        open: bool,
    },
    /// A whole number with `low ≤ x ≤ high`.
    Integer {
        /// Least value.
        low: i64,
        /// Greatest value.
        high: i64,
    },
    /// True or false.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A safetensors file or a folder of them, with statistics of an expert.
    Path,
}

impl Kind {
    /// The range in words, as messages and documentation give it.
    #[must_use]
    pub fn range(&self) -> String {
        match self {
            Self::Number { low, high, .. } if low.is_infinite() && high.is_infinite() => {
                "any finite number".into()
            }
            Self::Number { low, high, open } => {
                format!("a number in {}{low}, {high}]", if *open { '(' } else { '[' })
            }
            Self::Integer { low, high } => format!("a whole number in [{low}, {high}]"),
            Self::Flag => "true or false".into(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Path => "a path".into(),
        }
    }
}

/// A default value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Default {
    /// None: the parameter must be given.
    Missing,
    /// A number.
    Number(f64),
    /// A whole number.
    Integer(i64),
    /// A flag.
    Flag(bool),
    /// A word.
    Word(&'static str),
}

impl Default {
    fn json(self) -> Value {
        match self {
            Self::Missing => Value::Null,
            Self::Number(n) => json!(n),
            Self::Integer(n) => json!(n),
            Self::Flag(b) => json!(b),
            Self::Word(w) => json!(w),
        }
    }
}

/// One parameter of a method.
#[derive(Debug)]
pub struct Parameter {
    /// Its name, the papers' and mergekit's word.
    pub name: &'static str,
    /// Its values.
    pub kind: Kind,
    /// Whether it may differ between experts.
    pub per_expert: bool,
    /// Default in `compat: paper`.
    pub default: Default,
    /// Default in `compat: mergekit`.
    pub default_mergekit: Default,
    /// What it does.
    pub meaning: &'static str,
}

/// One method: a row of the table.
#[derive(Debug)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// Its name in prose.
    pub title: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// Its formula.
    pub formula: &'static str,
    /// Title and address of the source.
    pub paper: (&'static str, &'static str),
    /// The base.
    pub base: BaseUse,
    /// Least and greatest number of models besides the base.
    pub experts: (usize, Option<usize>),
    /// How often the inputs are read when nothing unusual is asked for.
    pub reads: u32,
    /// What its memory grows with.
    pub memory: Memory,
    /// Whether its result depends on the seed.
    pub seeded: bool,
    /// Fills in the numbers of a recipe.
    pub program: fn(&Setup<'_>) -> Result<Program>,
    /// Its parameters.
    pub parameters: &'static [Parameter],
    /// Names that mergekit takes for this method without using them.
    pub ignored_in_mergekit: &'static [&'static str],
    /// How `compat: mergekit` differs.
    pub modes: &'static str,
}

/// Any finite number.
pub const ANY: Kind = Kind::Number { low: f64::NEG_INFINITY, high: f64::INFINITY, open: false };
/// A share, not zero.
pub const SHARE: Kind = Kind::Number { low: 0.0, high: 1.0, open: true };
/// A share or a position.
pub const UNIT: Kind = Kind::Number { low: 0.0, high: 1.0, open: false };
/// Ways to make up for dropped elements. A flag is taken too: true is the method's own way.
pub const RESCALE: Kind = Kind::Choice(&["none", "inverse_p", "l1", "l2"]);

/// A parameter with one default.
pub const fn both(
    name: &'static str,
    kind: Kind,
    per_expert: bool,
    default: Default,
    meaning: &'static str,
) -> Parameter {
    Parameter { name, kind, per_expert, default, default_mergekit: default, meaning }
}

/// A parameter whose default mergekit chooses otherwise.
pub const fn split(
    name: &'static str,
    kind: Kind,
    per_expert: bool,
    (default, default_mergekit): (Default, Default),
    meaning: &'static str,
) -> Parameter {
    Parameter { name, kind, per_expert, default, default_mergekit, meaning }
}

/// All methods, in the order in which they are listed.
pub fn methods() -> impl Iterator<Item = &'static Method> {
    super::family::METHODS.iter().copied().flatten()
}

impl Method {
    /// The method of that name or alias; `-` and `_` are the same.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        let name = name.replace('-', "_").to_ascii_lowercase();
        methods().find(|m| m.name == name || m.aliases.contains(&name.as_str()))
    }

    /// Its parameter of that name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|p| p.name == name)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "aliases": self.aliases,
            "title": self.title,
            "summary": self.summary,
            "formula": self.formula,
            "paper": {"title": self.paper.0, "url": self.paper.1},
            "base": self.base,
            "experts": {"min": self.experts.0, "max": self.experts.1},
            "reads": self.reads,
            "memory": self.memory,
            "seeded": self.seeded,
            "parameters": self.parameters.iter().map(|p| json!({
                "name": p.name,
                "kind": match p.kind { Kind::Number { .. } => "number", Kind::Integer { .. } => "integer", Kind::Flag => "flag", Kind::Choice(_) => "choice", Kind::Path => "path" },
                "choices": match p.kind { Kind::Choice(words) => json!(words), _ => Value::Null },
                "range": p.kind.range(),
                "per_expert": p.per_expert,
                "default": p.default.json(),
                "default_mergekit": p.default_mergekit.json(),
                "meaning": p.meaning,
            })).collect::<Vec<_>>(),
            "modes": self.modes,
        })
    }
}

/// The table as JSON.
#[must_use]
pub fn methods_json() -> Value {
    methods().map(Method::json).collect()
}

/// The candidate nearest to a misspelt word, if one is near.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .map(|c| (distance(word, c), c))
        .filter(|(d, _)| *d <= limit + 1)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c.to_string())
}

/// Edit distance with insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_in_every_spelling() {
        let mut seen = std::collections::HashSet::new();
        for m in methods() {
            for name in std::iter::once(&m.name).chain(m.aliases) {
                assert!(seen.insert(*name), "{name} twice");
                assert_eq!(Method::find(&name.replace('_', "-")).map(|f| f.name), Some(m.name));
            }
        }
    }

    #[test]
    fn misspellings_find_their_neighbour() {
        let names = || methods().map(|m| m.name);
        assert_eq!(nearest("teis", names()).as_deref(), Some("ties"));
        assert_eq!(nearest("task_aritmetic", names()).as_deref(), Some("task_arithmetic"));
        assert_eq!(nearest("completely_else", names()), None);
        assert_eq!(nearest("densty", ["density", "weight"].into_iter()).as_deref(), Some("density"));
    }
}

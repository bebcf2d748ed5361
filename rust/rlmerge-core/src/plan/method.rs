//! The table of methods: one row a method, from which the plan validates recipes and everything that
//! describes methods (`rlmerge methods`, the documentation, the tests' lists) is made.

use serde::Serialize;
use serde_json::{Value, json};

/// What a method does with a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseUse {
    /// Deltas from a base are merged.
    Required,
    /// A base may be given as one of the models.
    Optional,
    /// Models are merged as they are.
    None,
}

/// How the deltas of a task-vector method are made sparse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparsify {
    /// Not at all.
    Nothing,
    /// The largest magnitudes are kept.
    Magnitude,
    /// A random share is kept.
    Random,
}

/// The arithmetic that a method shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Weighted sum of the models.
    Linear,
    /// Base plus a combination of sparse deltas, with or without an election of signs.
    Deltas(Sparsify, bool),
    /// Linear combination whose factors come from angles.
    Slerp,
    /// One model, scaled.
    Passthrough,
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
    /// True or false.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
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
            Self::Flag => "true or false".into(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
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
    /// Its arithmetic.
    pub family: Family,
    /// Its parameters.
    pub parameters: &'static [Parameter],
    /// Names that mergekit takes for this method without using them.
    pub ignored_in_mergekit: &'static [&'static str],
    /// How `compat: mergekit` differs.
    pub modes: &'static str,
}

const ANY: Kind = Kind::Number { low: f64::NEG_INFINITY, high: f64::INFINITY, open: false };
const SHARE: Kind = Kind::Number { low: 0.0, high: 1.0, open: true };
const UNIT: Kind = Kind::Number { low: 0.0, high: 1.0, open: false };
/// Ways to make up for dropped elements. A flag is taken too: true is the method's own way.
pub const RESCALE: Kind = Kind::Choice(&["none", "inverse_p", "l1", "l2"]);

const fn both(
    name: &'static str,
    kind: Kind,
    per_expert: bool,
    default: Default,
    meaning: &'static str,
) -> Parameter {
    Parameter { name, kind, per_expert, default, default_mergekit: default, meaning }
}

const fn split(
    name: &'static str,
    kind: Kind,
    per_expert: bool,
    (default, default_mergekit): (Default, Default),
    meaning: &'static str,
) -> Parameter {
    Parameter { name, kind, per_expert, default, default_mergekit, meaning }
}

const WEIGHT: Parameter = split(
    "weight",
    ANY,
    true,
    (Default::Number(1.0), Default::Missing),
    "factor of the expert; an expert of weight 0 takes no part",
);
const LAMBDA: Parameter = both(
    "lambda",
    ANY,
    false,
    Default::Number(1.0),
    "factor of the merged delta before it is added to the base",
);
const ZERO_SIGN: Parameter = both(
    "zero_sign",
    Kind::Choice(&["plus", "minus", "majority"]),
    false,
    Default::Word("plus"),
    "sign elected where the deltas cancel exactly; `majority` is the TIES paper's rule and costs one more read",
);

const fn normalize(paper: bool, mergekit: bool, meaning: &'static str) -> Parameter {
    split("normalize", Kind::Flag, false, (Default::Flag(paper), Default::Flag(mergekit)), meaning)
}

const fn density(paper: f64, meaning: &'static str) -> Parameter {
    split("density", SHARE, true, (Default::Number(paper), Default::Number(1.0)), meaning)
}

const fn rescale(paper: &'static str, mergekit: &'static str) -> Parameter {
    split(
        "rescale",
        RESCALE,
        false,
        (Default::Word(paper), Default::Word(mergekit)),
        "how kept elements make up for dropped ones: divide by the density, or restore the L1 or L2 norm of the delta",
    )
}

const BY_SUM: &str = "divide by the sum of the weights";
const BY_AGREEING: &str =
    "divide each element by the weights of the experts that agree with the elected sign";

/// All methods, in the order in which they are listed.
pub static METHODS: &[Method] = &[
    Method {
        name: "linear",
        aliases: &["average", "weighted_average", "soup"],
        title: "Weighted average",
        summary: "The weighted mean of the models.",
        formula: "θ = Σ wᵢ θᵢ / Σ wᵢ",
        paper: ("Wortsman et al., Model soups, ICML 2022", "https://arxiv.org/abs/2203.05482"),
        base: BaseUse::None,
        experts: (1, None),
        reads: 1,
        family: Family::Linear,
        parameters: &[WEIGHT, normalize(true, true, BY_SUM)],
        ignored_in_mergekit: &[],
        modes: "mergekit requires a weight for each model; the numbers are the same.",
    },
    Method {
        name: "task_arithmetic",
        aliases: &["ta"],
        title: "Task arithmetic",
        summary: "Adds the weighted sum of the experts' deltas to the base.",
        formula: "θ = θ₀ + λ Σ wᵢ δᵢ",
        paper: (
            "Ilharco et al., Editing models with task arithmetic, ICLR 2023",
            "https://arxiv.org/abs/2212.04089",
        ),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        family: Family::Deltas(Sparsify::Nothing, false),
        parameters: &[WEIGHT, LAMBDA, normalize(false, false, BY_SUM)],
        ignored_in_mergekit: &["density", "rescale"],
        modes: "mergekit requires a weight for each expert; the numbers are the same.",
    },
    Method {
        name: "ties",
        aliases: &[],
        title: "TIES",
        summary: "Trims each delta to its largest elements, elects a sign for each element, and averages the deltas that agree with it.",
        formula: "δ̂ᵢ = top-k(|δᵢ|); γ = sign Σ wᵢ δ̂ᵢ; θ = θ₀ + λ Σ_{sign(wᵢδ̂ᵢ)=γ} wᵢ δ̂ᵢ / Σ_{sign(wᵢδ̂ᵢ)=γ} |wᵢ|",
        paper: ("Yadav et al., TIES-Merging, NeurIPS 2023", "https://arxiv.org/abs/2306.01708"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        family: Family::Deltas(Sparsify::Magnitude, true),
        parameters: &[
            WEIGHT,
            density(0.2, "share of each delta's elements that is kept, the largest first"),
            LAMBDA,
            normalize(true, true, BY_AGREEING),
            rescale("none", "none"),
            both(
                "scope",
                Kind::Choice(&["tensor", "model"]),
                false,
                Default::Word("tensor"),
                "whether the share is taken of each tensor or of the whole model (the paper's rule; one more read)",
            ),
            both(
                "ties",
                Kind::Choice(&["index", "all"]),
                false,
                Default::Word("index"),
                "elements exactly at the threshold: keep the first ones up to k, or all of them (the paper's rule)",
            ),
            ZERO_SIGN,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit divides by the signed sum of the agreeing weights, keeps ⌊density·n⌋ elements, has density 1 by default and rescales by the L1 norm when asked to.",
    },
    Method {
        name: "dare_linear",
        aliases: &["dare"],
        title: "DARE",
        summary: "Drops a random share of each delta, divides the rest by the share kept, and adds the weighted sum to the base.",
        formula: "δ̂ᵢ = mᵢ ⊙ δᵢ / p, mᵢ ~ Bernoulli(p); θ = θ₀ + λ Σ wᵢ δ̂ᵢ",
        paper: ("Yu et al., Language models are super Mario, ICML 2024", "https://arxiv.org/abs/2311.03099"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        family: Family::Deltas(Sparsify::Random, false),
        parameters: &[
            WEIGHT,
            density(0.5, "probability p with which an element is kept"),
            LAMBDA,
            normalize(false, false, BY_SUM),
            rescale("inverse_p", "l1"),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit restores each tensor's L1 norm instead of dividing by p, and has density 1 by default.",
    },
    Method {
        name: "dare_ties",
        aliases: &[],
        title: "DARE with TIES",
        summary: "Drops a random share of each delta, divides the rest by the share kept, elects signs and averages the deltas that agree, as TIES does.",
        formula: "δ̂ᵢ = mᵢ ⊙ δᵢ / p, mᵢ ~ Bernoulli(p); then as `ties` without its trim",
        paper: ("Yu et al., Language models are super Mario, ICML 2024", "https://arxiv.org/abs/2311.03099"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        family: Family::Deltas(Sparsify::Random, true),
        parameters: &[
            WEIGHT,
            density(0.5, "probability p with which an element is kept"),
            LAMBDA,
            normalize(true, false, BY_AGREEING),
            rescale("inverse_p", "l1"),
            ZERO_SIGN,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit restores each tensor's L1 norm instead of dividing by p, sums instead of averaging, and has density 1 by default.",
    },
    Method {
        name: "slerp",
        aliases: &[],
        title: "Spherical interpolation",
        summary: "Moves from the first model to the second along the arc between them, one angle for each tensor.",
        formula: "θ = sin((1−t)φ)/sin φ · θ₁ + sin(tφ)/sin φ · θ₂, cos φ = ⟨θ₁,θ₂⟩/(‖θ₁‖‖θ₂‖); a straight line where |cos φ| > 0.9995",
        paper: (
            "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
            "https://doi.org/10.1145/325334.325242",
        ),
        base: BaseUse::Optional,
        experts: (1, Some(2)),
        reads: 1,
        family: Family::Slerp,
        parameters: &[split(
            "t",
            UNIT,
            false,
            (Default::Number(0.5), Default::Missing),
            "position between the first model (0; the base, if one is given) and the second (1)",
        )],
        ignored_in_mergekit: &[],
        modes: "mergekit requires t and treats a zero tensor as if its norm were one; otherwise a zero tensor is interpolated along a straight line.",
    },
    Method {
        name: "passthrough",
        aliases: &[],
        title: "Passthrough",
        summary: "Copies one model, byte for byte, or scales it.",
        formula: "θ = s θ₁",
        paper: ("mergekit", "https://github.com/arcee-ai/mergekit"),
        base: BaseUse::None,
        experts: (1, Some(1)),
        reads: 1,
        family: Family::Passthrough,
        parameters: &[both("scale", ANY, false, Default::Number(1.0), "factor of every element")],
        ignored_in_mergekit: &[],
        modes: "The same in both.",
    },
];

impl Method {
    /// The method of that name or alias; `-` and `_` are the same.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        let name = name.replace('-', "_").to_ascii_lowercase();
        METHODS.iter().find(|m| m.name == name || m.aliases.contains(&name.as_str()))
    }

    /// Its parameter of that name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|p| p.name == name)
    }

    /// Whether its result depends on the seed.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        matches!(self.family, Family::Deltas(Sparsify::Random, _))
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
            "seeded": self.is_seeded(),
            "parameters": self.parameters.iter().map(|p| json!({
                "name": p.name,
                "kind": match p.kind { Kind::Number { .. } => "number", Kind::Flag => "flag", Kind::Choice(_) => "choice" },
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
    METHODS.iter().map(Method::json).collect()
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
        for m in METHODS {
            for name in std::iter::once(&m.name).chain(m.aliases) {
                assert!(seen.insert(*name), "{name} twice");
                assert_eq!(Method::find(&name.replace('_', "-")).map(|f| f.name), Some(m.name));
            }
        }
    }

    #[test]
    fn misspellings_find_their_neighbour() {
        let names = || METHODS.iter().map(|m| m.name);
        assert_eq!(nearest("teis", names()).as_deref(), Some("ties"));
        assert_eq!(nearest("task_aritmetic", names()).as_deref(), Some("task_arithmetic"));
        assert_eq!(nearest("completely_else", names()), None);
        assert_eq!(nearest("densty", ["density", "weight"].into_iter()).as_deref(), Some("density"));
    }
}

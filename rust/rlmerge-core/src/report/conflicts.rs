//! What experts changed and where they conflict, as plain data (schema `rlmerge.conflicts/1`).
//!
//! [`Sums`] are what was gathered; they add up over tensors. [`Level`] is what they say: of a tensor, of a layer, of
//! a kind of module, of the whole model. A number without a value (0/0, or a NaN among the deltas) is null.

use serde::Serialize;
use serde_json::{Value, json};

use super::Norm;
use super::spectra::Spectra;
use crate::dtype::DType;

/// Shares of the elements whose energy is reported.
pub const TOP: [f64; 2] = [0.01, 0.1];

/// What was gathered of one expert.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpertSums {
    /// Σ δ².
    pub square: f64,
    /// Σ δ⁴.
    pub fourth: f64,
    /// Σ δ² over changed elements.
    pub changed_square: f64,
    /// Σ δ² over the largest of each tensor, for each share of [`TOP`].
    pub top: [f64; 2],
    /// Σ δ² of what TIES keeps at the density.
    pub kept_square: f64,
    /// Σ δ² of what it keeps and then drops by the sign election.
    pub lost_square: f64,
    /// Elements whose bits differ.
    pub different: u64,
    /// Elements with `|δ| > ε`.
    pub changed: u64,
    /// Elements with `|δ| > r·max(|w|, |w′|)`.
    pub changed_relative: u64,
    /// Elements that differ in bf16.
    pub changed_bf16: u64,
    /// Changed elements that another expert changed too.
    pub shared: u64,
    /// Changed elements whose base is among the smallest.
    pub changed_low: u64,
    /// Elements that TIES keeps at the density.
    pub kept: u64,
    /// Of which dropped by the election.
    pub lost: u64,
    /// Deltas that are NaN or infinite.
    pub non_finite: u64,
    /// The largest |δ|.
    pub max: f64,
    /// Element counts by the power of two below |δ|, from [`ExpertSums::FIRST`] on; zeros are in none.
    pub histogram: Vec<u64>,
}

impl ExpertSums {
    /// Power of two of the first bin.
    pub const FIRST: i32 = -150;

    fn add(&mut self, o: &Self) {
        self.square += o.square;
        self.fourth += o.fourth;
        self.changed_square += o.changed_square;
        for (a, b) in self.top.iter_mut().zip(o.top) {
            *a += b;
        }
        self.kept_square += o.kept_square;
        self.lost_square += o.lost_square;
        self.different += o.different;
        self.changed += o.changed;
        self.changed_relative += o.changed_relative;
        self.changed_bf16 += o.changed_bf16;
        self.shared += o.shared;
        self.changed_low += o.changed_low;
        self.kept += o.kept;
        self.lost += o.lost;
        self.non_finite += o.non_finite;
        self.max = self.max.max(o.max);
        if self.histogram.len() < o.histogram.len() {
            self.histogram.resize(o.histogram.len(), 0);
        }
        for (a, b) in self.histogram.iter_mut().zip(&o.histogram) {
            *a += b;
        }
    }
}

/// What was gathered of a pair of experts; `c = δa·δb`, and c⁻ is c where it is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairSums {
    /// Σ c.
    pub dot: f64,
    /// Σ |c⁻|.
    pub negative: f64,
    /// Σ c².
    pub square: f64,
    /// Σ (c⁻)².
    pub negative_square: f64,
    /// Σ c where both changed.
    pub overlap_dot: f64,
    /// Σ δa² there.
    pub overlap_a: f64,
    /// Σ δb² there.
    pub overlap_b: f64,
    /// Σ δa² where b changed.
    pub a_on_b: f64,
    /// Σ δb² where a changed.
    pub b_on_a: f64,
    /// Elements that both changed.
    pub both: u64,
    /// Of which with different signs.
    pub opposed: u64,
    /// Elements among the largest of both.
    pub top_both: u64,
    /// Of which with different signs.
    pub top_opposed: u64,
}

impl PairSums {
    fn add(&mut self, o: &Self) {
        self.dot += o.dot;
        self.negative += o.negative;
        self.square += o.square;
        self.negative_square += o.negative_square;
        self.overlap_dot += o.overlap_dot;
        self.overlap_a += o.overlap_a;
        self.overlap_b += o.overlap_b;
        self.a_on_b += o.a_on_b;
        self.b_on_a += o.b_on_a;
        self.both += o.both;
        self.opposed += o.opposed;
        self.top_both += o.top_both;
        self.top_opposed += o.top_opposed;
    }
}

/// What was gathered of some tensors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    /// Number of tensors.
    pub tensors: u64,
    /// Number of elements.
    pub elements: u64,
    /// Σ w² of the base.
    pub base_square: f64,
    /// Elements of the base that are among the smallest of their tensor.
    pub low: u64,
    /// Each expert.
    pub experts: Vec<ExpertSums>,
    /// Each pair, in the order of [`pairs`].
    pub pairs: Vec<PairSums>,
}

impl Sums {
    /// Nothing yet, of so many experts.
    #[must_use]
    pub fn new(experts: usize) -> Self {
        Self {
            experts: vec![ExpertSums::default(); experts],
            pairs: vec![PairSums::default(); pairs(experts).count()],
            ..Self::default()
        }
    }

    /// Adds what was gathered of others.
    pub fn add(&mut self, other: &Self) {
        self.tensors += other.tensors;
        self.elements += other.elements;
        self.base_square += other.base_square;
        self.low += other.low;
        for (a, b) in self.experts.iter_mut().zip(&other.experts) {
            a.add(b);
        }
        for (a, b) in self.pairs.iter_mut().zip(&other.pairs) {
            a.add(b);
        }
    }
}

/// All pairs of so many experts, the lower number first.
pub fn pairs(experts: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..experts).flat_map(move |a| (a + 1..experts).map(move |b| (a, b)))
}

/// A quotient; without a value when it is divided by zero.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { f64::NAN } else { a / b }
}

/// A share of a count.
fn share(a: u64, b: u64) -> f64 {
    ratio(a as f64, b as f64)
}

/// One expert at some level.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "docs/conflict-report.md describes every key; a test holds the two together")]
pub struct ExpertLevel {
    pub norm: Norm,
    pub relative_norm: Norm,
    pub max: Norm,
    pub changed: Norm,
    pub changed_relative: Norm,
    pub changed_bf16: Norm,
    pub energy_share: Norm,
    pub kurtosis: Norm,
    pub top1_energy: Norm,
    pub top10_energy: Norm,
    pub low_overlap: Norm,
    pub low_overlap_chance: Norm,
    pub ram_overlap: Norm,
    pub ties_density: Norm,
    pub ties_interference: Norm,
    pub ties_trim_loss: Norm,
    pub ties_election_loss: Norm,
    pub ties_survival: Norm,
    pub counts: Value,
    pub histogram: Value,
}

/// A pair of experts at some level.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "docs/conflict-report.md describes every key; a test holds the two together")]
pub struct PairLevel {
    pub a: usize,
    pub b: usize,
    pub cosine: Norm,
    pub cosine_chance: Norm,
    pub cosine_overlap: Norm,
    pub cosine_overlap_chance: Norm,
    pub sign_disagreement: Norm,
    pub sign_disagreement_error: Norm,
    pub sign_disagreement_top: Norm,
    pub sign_disagreement_top_error: Norm,
    pub conflict_norm: Norm,
    pub conflict_norm_matched: Norm,
    pub conflict_l2: Norm,
    pub conflict_l1: Norm,
    pub conflict_cosine: Norm,
    pub jaccard: Norm,
    pub jaccard_chance: Norm,
    pub retention_a: Norm,
    pub retention_b: Norm,
    pub capture_a: Norm,
    pub capture_b: Norm,
    pub counts: Value,
}

/// All experts together at some level.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "docs/conflict-report.md describes every key; a test holds the two together")]
pub struct TogetherLevel {
    pub dilution: Norm,
    pub dilution_chance: Norm,
    pub sum_norm: Norm,
    pub mean_norm: Norm,
}

/// Some tensors: one, a layer, a kind of module, or all.
#[derive(Debug, Clone, Serialize)]
pub struct Level {
    /// Number of tensors.
    pub tensors: u64,
    /// Number of elements.
    pub parameters: u64,
    /// Norm of the base.
    pub base_norm: Norm,
    /// Each expert.
    pub experts: Vec<ExpertLevel>,
    /// Each pair.
    pub pairs: Vec<PairLevel>,
    /// All together.
    pub together: TogetherLevel,
}

/// What every level is compared with.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Of the whole model: elements, and Σ δ² of each expert.
    pub elements: u64,
    /// Σ δ² of each expert.
    pub squares: Vec<f64>,
    /// λ of the direction retention.
    pub lambda: f64,
}

impl Reference {
    /// The whole model as the reference.
    #[must_use]
    pub fn new(model: &Sums, lambda: f64) -> Self {
        let squares =
            model.experts.iter().map(|e| if e.non_finite > 0 { f64::NAN } else { e.square }).collect();
        Self { elements: model.elements, squares, lambda }
    }

    /// The norm that all experts are brought to where norms are matched: the geometric mean of those that moved.
    #[must_use]
    pub fn matched_norm(&self) -> f64 {
        let norms: Vec<f64> = self.squares.iter().map(|s| s.sqrt()).filter(|n| *n > 0.0).collect();
        ratio(norms.iter().map(|n| n.ln()).sum(), norms.len() as f64).exp()
    }
}

impl Level {
    /// What sums say.
    #[must_use]
    pub fn new(sums: &Sums, reference: &Reference) -> Self {
        let pairs = pairs(sums.experts.len())
            .zip(&sums.pairs)
            .map(|((a, b), pair)| PairLevel::new(sums, (a, b), pair, reference));
        Self {
            tensors: sums.tensors,
            parameters: sums.elements,
            base_norm: Norm(sums.base_square.sqrt()),
            experts: (0..sums.experts.len()).map(|at| ExpertLevel::new(sums, at, reference)).collect(),
            pairs: pairs.collect(),
            together: TogetherLevel::new(sums),
        }
    }
}

impl ExpertLevel {
    fn new(sums: &Sums, at: usize, reference: &Reference) -> Self {
        let e = &sums.experts[at];
        let n = sums.elements;
        let defined = |value: f64| Norm(if e.non_finite > 0 { f64::NAN } else { value });
        let energy = |part: f64| defined(ratio(part, e.square));
        Self {
            norm: defined(e.square.sqrt()),
            relative_norm: defined(ratio(e.square.sqrt(), sums.base_square.sqrt())),
            max: defined(e.max),
            changed: defined(share(e.changed, n)),
            changed_relative: defined(share(e.changed_relative, n)),
            changed_bf16: defined(share(e.changed_bf16, n)),
            energy_share: defined(ratio(
                ratio(e.square, reference.squares[at]),
                share(n, reference.elements),
            )),
            kurtosis: defined(n as f64 * ratio(e.fourth, e.square * e.square)),
            top1_energy: energy(e.top[0]),
            top10_energy: energy(e.top[1]),
            low_overlap: defined(share(e.changed_low, e.changed)),
            low_overlap_chance: defined(share(sums.low, n)),
            ram_overlap: defined(share(e.shared, e.changed - e.shared)),
            ties_density: defined(share(e.kept, n)),
            ties_interference: defined(share(e.lost, e.kept)),
            ties_trim_loss: energy(e.square - e.kept_square),
            ties_election_loss: energy(e.lost_square),
            ties_survival: energy(e.kept_square - e.lost_square),
            counts: json!({
                "different": e.different,
                "changed": e.changed,
                "changed_relative": e.changed_relative,
                "changed_bf16": e.changed_bf16,
                "changed_low": e.changed_low,
                "low": sums.low,
                "shared": e.shared,
                "kept": e.kept,
                "lost": e.lost,
                "non_finite": e.non_finite,
            }),
            histogram: histogram(&e.histogram),
        }
    }
}

fn histogram(counts: &[u64]) -> Value {
    let Some(first) = counts.iter().position(|c| *c > 0) else {
        return json!({"first": 0, "counts": []});
    };
    let last = counts.iter().rposition(|c| *c > 0).unwrap_or(first);
    json!({"first": ExpertSums::FIRST + first as i32, "counts": counts[first..=last]})
}

impl PairLevel {
    fn new(sums: &Sums, (a, b): (usize, usize), p: &PairSums, reference: &Reference) -> Self {
        let (x, y) = (&sums.experts[a], &sums.experts[b]);
        let odd = x.non_finite + y.non_finite > 0;
        let defined = |value: f64| Norm(if odd { f64::NAN } else { value });
        let norms = (x.square * y.square).sqrt();
        let chance = |n: u64| defined(ratio(1.0, (n as f64).sqrt()));
        let error = |n: u64| defined(ratio(0.5, (n as f64).sqrt()));
        let (at_a, at_b) = (share(x.changed, sums.elements), share(y.changed, sums.elements));
        let lambda = reference.lambda;
        // cos(δa, δa + λδb) = (‖δa‖² + λ⟨δa,δb⟩) / (‖δa‖ ‖δa + λδb‖), all of it known from three sums.
        let retention = |own: f64, other: f64| {
            let sum = own + 2.0 * lambda * p.dot + lambda * lambda * other;
            ratio(own + lambda * p.dot, (own * sum.max(0.0)).sqrt())
        };
        let whole = (reference.squares[a] * reference.squares[b]).sqrt();
        let matched = reference.matched_norm();
        Self {
            a,
            b,
            cosine: defined(ratio(p.dot, norms)),
            cosine_chance: chance(sums.elements),
            cosine_overlap: defined(ratio(p.overlap_dot, (p.overlap_a * p.overlap_b).sqrt())),
            cosine_overlap_chance: chance(p.both),
            sign_disagreement: defined(share(p.opposed, p.both)),
            sign_disagreement_error: error(p.both),
            sign_disagreement_top: defined(share(p.top_opposed, p.top_both)),
            sign_disagreement_top_error: error(p.top_both),
            conflict_norm: defined(p.negative_square.sqrt()),
            conflict_norm_matched: defined(ratio(p.negative_square.sqrt() * matched * matched, whole)),
            conflict_l2: defined(ratio(p.negative_square, p.square).sqrt()),
            // Σ|c| = Σc + 2 Σ|c⁻|.
            conflict_l1: defined(ratio(p.negative, p.dot + 2.0 * p.negative)),
            conflict_cosine: defined(ratio(p.negative_square.sqrt(), norms)),
            jaccard: defined(share(p.both, x.changed + y.changed - p.both)),
            jaccard_chance: defined(ratio(at_a * at_b, at_a + at_b - at_a * at_b)),
            retention_a: defined(retention(x.square, y.square)),
            retention_b: defined(retention(y.square, x.square)),
            capture_a: defined(ratio(p.b_on_a, x.changed_square)),
            capture_b: defined(ratio(p.a_on_b, y.changed_square)),
            counts: json!({
                "both": p.both,
                "opposed": p.opposed,
                "top_both": p.top_both,
                "top_opposed": p.top_opposed,
            }),
        }
    }
}

impl TogetherLevel {
    fn new(sums: &Sums) -> Self {
        let odd = sums.experts.iter().any(|e| e.non_finite > 0);
        let defined = |value: f64| Norm(if odd { f64::NAN } else { value });
        let squares: f64 = sums.experts.iter().map(|e| e.square).sum();
        let dots: f64 = sums.pairs.iter().map(|p| p.dot).sum();
        let norms: f64 = sums.experts.iter().map(|e| e.square.sqrt()).sum();
        let sum_norm = (squares + 2.0 * dots).max(0.0).sqrt();
        let count = sums.experts.len() as f64;
        Self {
            dilution: defined(ratio(sum_norm, norms)),
            dilution_chance: defined(ratio(squares.sqrt(), norms)),
            sum_norm: defined(sum_norm),
            mean_norm: defined(sum_norm / count),
        }
    }
}

/// One tensor of a report.
#[derive(Debug, Clone)]
pub struct TensorConflicts {
    /// Name.
    pub name: String,
    /// Dtype in the base.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
    /// Number of its layer.
    pub layer: Option<u32>,
    /// Kind of module.
    pub kind: &'static str,
    /// For tensors without arithmetic: which experts hold the base's bytes.
    pub equal: Option<Vec<bool>>,
    /// What was gathered.
    pub sums: Sums,
    /// The largest |δ| of each expert: δ and its flat index.
    pub peaks: Vec<Option<(f64, u64)>>,
    /// Its spectral statistics, where they were wanted and it is made of matrices.
    pub spectra: Option<Spectra>,
}

/// Everything that was gathered.
#[derive(Debug, Clone)]
pub struct Conflicts {
    /// All tensors; sorted by layer and name, so that sums over them do not depend on how they were stored.
    pub tensors: Vec<TensorConflicts>,
    /// |δ| of each expert, over the whole model, that each share of its elements reaches: `(share, |δ|)`.
    pub quantiles: Vec<Vec<(f64, f64)>>,
    /// λ of the direction retention.
    pub lambda: f64,
}

impl Conflicts {
    /// Sums of the tensors that are alike by `of`, in the order in which they first come, and means of their spectral
    /// statistics, by numbers of elements.
    fn grouped<K: PartialEq>(
        &self,
        experts: usize,
        of: impl Fn(&TensorConflicts) -> K,
    ) -> Vec<(K, Sums, Option<Spectra>)> {
        type Weighted<'s> = Vec<(f64, &'s Spectra)>;
        let mut groups: Vec<(K, Sums, Weighted<'_>)> = Vec::new();
        for tensor in self.tensors.iter().filter(|t| t.equal.is_none()) {
            let key = of(tensor);
            let at = groups.iter().position(|(k, ..)| *k == key).unwrap_or_else(|| {
                groups.push((key, Sums::new(experts), Vec::new()));
                groups.len() - 1
            });
            groups[at].1.add(&tensor.sums);
            groups[at].2.extend(tensor.spectra.iter().map(|s| (tensor.sums.elements as f64, s)));
        }
        groups.into_iter().map(|(key, sums, spectra)| (key, sums, Spectra::mean(&spectra))).collect()
    }

    /// The report's numbers: of the whole model, each kind, each layer, each kind in each layer, and each tensor.
    #[must_use]
    pub fn json(&self, experts: usize) -> Value {
        let (model, spectra) = self
            .grouped(experts, |_| ())
            .pop()
            .map_or_else(|| (Sums::new(experts), None), |(_, s, m)| (s, m));
        let reference = Reference::new(&model, self.lambda);
        let level = |keys: Value, sums: &Sums, spectra: &Option<Spectra>| {
            let mut value = json!(Level::new(sums, &reference));
            if let (Some(map), Value::Object(keys)) = (value.as_object_mut(), keys) {
                if let Some(spectra) = spectra {
                    let odd: Vec<bool> = sums.experts.iter().map(|e| e.non_finite > 0).collect();
                    let pairs: Vec<(usize, usize)> = pairs(experts).collect();
                    map.insert("spectral".into(), spectra.json(&odd, &pairs));
                }
                map.extend(keys);
            }
            value
        };
        let mut kinds = self.grouped(experts, |t| t.kind);
        kinds.sort_by_key(|(kind, ..)| crate::report::conflicts::order(kind));
        let layers = self.grouped(experts, |t| t.layer);
        let cells = self.grouped(experts, |t| (t.layer, t.kind));
        let tensors = self.tensors.iter().map(|t| {
            let mut keys = json!({
                "name": t.name, "layer": t.layer, "kind": t.kind, "dtype": t.dtype, "shape": t.shape,
            });
            if let (Some(equal), Some(map)) = (&t.equal, keys.as_object_mut()) {
                map.insert("equal".into(), json!(equal));
                return keys;
            }
            let peak =
                |p: &Option<(f64, u64)>| p.map(|(delta, at)| json!({"delta": Norm(delta), "index": at}));
            if let Some(map) = keys.as_object_mut() {
                map.insert("peaks".into(), t.peaks.iter().map(peak).collect());
                if let Some(curves) = t.spectra.as_ref().and_then(|s| s.curves.as_ref()) {
                    map.insert("spectrum".into(), curves.json());
                }
            }
            level(keys, &t.sums, &t.spectra)
        });
        json!({
            "matched_norm": Norm(reference.matched_norm()),
            "quantiles": self.quantiles.iter().map(|q| {
                q.iter().map(|(share, size)| json!({"share": share, "delta": Norm(*size)})).collect::<Vec<_>>()
            }).collect::<Vec<_>>(),
            "model": level(json!({}), &model, &spectra),
            "kinds": kinds.iter().map(|(kind, s, m)| level(json!({"kind": kind}), s, m)).collect::<Vec<_>>(),
            "layers": layers.iter().map(|(layer, s, m)| level(json!({"layer": layer}), s, m)).collect::<Vec<_>>(),
            "cells": cells.iter().map(|((layer, kind), s, m)| {
                level(json!({"layer": layer, "kind": kind}), s, m)
            }).collect::<Vec<_>>(),
            "tensors": tensors.collect::<Vec<_>>(),
        })
    }
}

/// Place of a kind of module in tables and pictures: as data flows through a layer.
fn order(kind: &str) -> usize {
    const ORDER: [&str; 16] = [
        "embedding",
        "norm",
        "qkv",
        "q",
        "k",
        "v",
        "attention",
        "o",
        "router",
        "gate_up",
        "gate",
        "up",
        "feed_forward",
        "down",
        "bias",
        "other",
    ];
    ORDER.iter().position(|k| *k == kind).unwrap_or(ORDER.len())
}

//! Methods that decide for each element which expert, or how much of it, goes into the merge: by the size of the
//! change (MagMax), by nearness (NearSwap), by the spread over experts (SCE), by scores of importance (Arcee Fusion,
//! PCB), or by one weight an expert that follows from norms (MetaGPT).

use super::{Family, LAMBDA, Passes, Program, Setup};
use crate::error::Result;
use crate::plan::PlannedTensor;
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, Parameter, SHARE, UNIT, both, split};

const NOT_IN_MERGEKIT: &str = "mergekit does not have this method; the numbers are the same.";

const fn scope(default: &'static str, meaning: &'static str) -> Parameter {
    both("scope", Kind::Choice(&["tensor", "model"]), false, Default::Word(default), meaning)
}

const fn lambda(default: f64) -> Parameter {
    Parameter { default: Default::Number(default), default_mergekit: Default::Number(default), ..LAMBDA }
}

/// The rows of this family.
pub const METHODS: &[Method] = &[
    Method {
        name: "magmax",
        aliases: &[],
        title: "MagMax",
        summary: "Takes, for each element, the delta of the expert that changed it most.",
        formula: "θ = θ₀ + λ δₖ, k = argmaxᵢ |δᵢ| for each element; of equals the last expert's",
        paper: ("Marczak et al., MagMax, ECCV 2024", "https://arxiv.org/abs/2407.06322"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: magmax,
        parameters: &[lambda(0.5)],
        ignored_in_mergekit: &[],
        modes: NOT_IN_MERGEKIT,
    },
    Method {
        name: "nearswap",
        aliases: &[],
        title: "NearSwap",
        summary: "Takes the expert's elements that lie within t of the base, and moves the others by t towards the expert.",
        formula: "θ = θ₀ + q δ, q = min(t / |δ|, 1)",
        paper: (
            "alchemonaut, QuartetAnemoi-70B-t0.0001",
            "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        ),
        base: BaseUse::Required,
        experts: (1, Some(1)),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: nearswap,
        parameters: &[split(
            "t",
            Kind::Number { low: 0.0, high: f64::INFINITY, open: false },
            false,
            (Default::Number(1e-4), Default::Missing),
            "distance from the base up to which an element is the expert's, and by which others are moved",
        )],
        ignored_in_mergekit: &[],
        modes: "mergekit requires t and divides by |δ| or 1e-6, whichever is more: with t < 1e-6 it goes only the share t / 1e-6 of the way to nearer elements.",
    },
    Method {
        name: "sce",
        aliases: &[],
        title: "SCE (FuseChat)",
        summary: "Selects the elements that vary most between the experts, weighs the experts by the squares of what is left, and erases the deltas against the elected sign.",
        formula: "keep the ⌊τ n + ½⌋ largest of the n non-zero variances of δ₁…δₙ, one at least; ωᵢ = mean δᵢ² / Σ mean δⱼ²; γ = sign Σ δᵢ; θ = θ₀ + Σ_{sign δᵢ=γ} ωᵢ δᵢ / Σ_{sign δᵢ=γ} ωᵢ",
        paper: (
            "Wan et al., FuseChat: knowledge fusion of chat models, 2024",
            "https://arxiv.org/abs/2408.07990",
        ),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: sce,
        parameters: &[split(
            "select_topk",
            UNIT,
            false,
            (Default::Number(0.1), Default::Number(1.0)),
            "share τ of the elements with any variance that is kept, the largest variances first; 1 keeps all elements",
        )],
        ignored_in_mergekit: &["int8_mask"],
        modes: "mergekit weighs all experts alike where the mean squares sum to less than 1e-6, as those of most fine-tunes do, keeps ⌊τ n⌋ elements, even if that is none, and selects nothing of a single expert. Otherwise a single expert is copied.",
    },
    Method {
        name: "arcee_fusion",
        aliases: &[],
        title: "Arcee Fusion",
        summary: "Takes the expert's elements whose change, times the divergence of their row, stands out, and leaves the rest of the base as it is.",
        formula: "sᵢ = |δᵢ| · KL(softmax θ₁ + ε ‖ softmax θ₀ + ε) over the row, ε = 1e-8; θ = θ₁ where s ≥ median + 1.5 (Q₃ − Q₁) of the tensor, otherwise θ₀",
        paper: ("Arcee AI, Arcee Fusion in mergekit", "https://github.com/arcee-ai/mergekit"),
        base: BaseUse::Required,
        experts: (1, Some(1)),
        reads: 1,
        memory: Memory::Row,
        seeded: false,
        program: arcee_fusion,
        parameters: &[],
        ignored_in_mergekit: &["normalize", "rescale", "int8_mask"],
        modes: "The same in both: scores are computed in f64 and quartiles are exact, where mergekit rounds scores to the dtype of the checkpoint and draws a sample of tensors above a million elements.",
    },
    Method {
        name: "pcb",
        aliases: &["pcb_merging"],
        title: "PCB-Merging",
        summary: "Averages the deltas by scores that favour elements large in their own expert and in line with the others, and drops all but the highest scores.",
        formula: "mᵢ = minmax |δᵢ| between its quantiles q and 1−q; βᵢ = exp(n mᵢ²) tanh(δᵢ Σ δⱼ); ωᵢ = minmax of the top share r of βᵢ, otherwise 0; θ = θ₀ + λ Σ ωᵢ δ̂ᵢ / Σ ωᵢ, δ̂ᵢ with clipped magnitude",
        paper: (
            "Du et al., Parameter competition balancing for model merging, NeurIPS 2024",
            "https://arxiv.org/abs/2410.02396",
        ),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: pcb,
        parameters: &[
            both(
                "ratio",
                SHARE,
                false,
                Default::Number(0.1),
                "share r of each expert's elements that is kept, the highest scores first",
            ),
            both(
                "clip",
                Kind::Number { low: 0.0, high: 0.5, open: false },
                false,
                Default::Number(1e-4),
                "share q of the magnitudes at either end that is clipped",
            ),
            lambda(1.2),
            scope(
                "tensor",
                "whether quantiles, minima and maxima are of each tensor or of the whole model (the authors' code; two more reads, because the scores rest on quantiles)",
            ),
        ],
        ignored_in_mergekit: &[],
        modes: NOT_IN_MERGEKIT,
    },
    Method {
        name: "metagpt",
        aliases: &[],
        title: "MetaGPT",
        summary: "Task arithmetic with weights in closed form: each expert's share of the squared norms.",
        formula: "θ = θ₀ + Σ λᵢ δᵢ, λᵢ = ‖δᵢ‖² / Σ ‖δⱼ‖²",
        paper: ("Zhou et al., MetaGPT, EMNLP 2024", "https://arxiv.org/abs/2406.11385"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 2,
        memory: Memory::Tile,
        seeded: false,
        program: metagpt,
        parameters: &[scope(
            "model",
            "whether norms are of the whole model (the paper's rule) or of each tensor (one read)",
        )],
        ignored_in_mergekit: &[],
        modes: NOT_IN_MERGEKIT,
    },
];

/// How elements are decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// The largest change.
    MagMax {
        /// Factor of the merged delta.
        lambda: f64,
    },
    /// A step towards one expert.
    NearSwap {
        /// Longest step.
        t: f64,
        /// mergekit's least divisor.
        mergekit: bool,
    },
    /// The largest variances.
    Sce {
        /// Share of the elements that is kept.
        select_topk: f64,
        /// mergekit's ways of counting and weighing.
        mergekit: bool,
    },
    /// Scores that stand out in their tensor.
    ArceeFusion,
    /// Scores that compete.
    Pcb {
        /// Share of the elements that is kept.
        ratio: f64,
        /// Share of the magnitudes that is clipped at either end.
        clip: f64,
        /// Factor of the merged delta.
        lambda: f64,
        /// Whether quantiles are of the whole model.
        whole_model: bool,
    },
    /// Weights from norms.
    MetaGpt {
        /// Whether norms are of the whole model.
        whole_model: bool,
    },
}

/// An element-wise method. The base is model 0, the experts follow it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Element {
    /// Number of experts.
    pub experts: usize,
    /// The method.
    pub rule: Rule,
}

/// Rows of a tensor whose divergences Arcee Fusion remembers: of too many, none; they are computed anew in every scan.
#[must_use]
pub const fn remembered_rows(rows: u64) -> u64 {
    if rows <= 1 << 17 { rows } else { 0 }
}

fn element(setup: &Setup<'_>, rule: Rule) -> Result<Program> {
    Ok(Program::Element(Element { experts: setup.experts(), rule }))
}

fn magmax(setup: &Setup<'_>) -> Result<Program> {
    let lambda = setup.settings.number("lambda");
    if setup.experts() == 1 && lambda == 1.0 {
        return Ok(Program::copy(1));
    }
    element(setup, Rule::MagMax { lambda })
}

fn nearswap(setup: &Setup<'_>) -> Result<Program> {
    let t = setup.settings.number("t");
    if t == 0.0 {
        Ok(Program::copy(0))
    } else {
        element(setup, Rule::NearSwap { t, mergekit: setup.mergekit() })
    }
}

fn sce(setup: &Setup<'_>) -> Result<Program> {
    let (select_topk, mergekit) = (setup.settings.number("select_topk"), setup.mergekit());
    let alone = setup.experts() == 1;
    Ok(match select_topk {
        0.0 => Program::copy(0),
        // One expert has no variance.
        share if alone && mergekit && share < 1.0 => Program::copy(0),
        _ if alone => Program::copy(1),
        _ => return element(setup, Rule::Sce { select_topk, mergekit }),
    })
}

fn arcee_fusion(setup: &Setup<'_>) -> Result<Program> {
    element(setup, Rule::ArceeFusion)
}

fn pcb(setup: &Setup<'_>) -> Result<Program> {
    let number = |name| setup.settings.number(name);
    let (ratio, clip, lambda) = (number("ratio"), number("clip"), number("lambda"));
    let whole_model = setup.settings.word("scope") == "model";
    element(setup, Rule::Pcb { ratio, clip, lambda, whole_model })
}

fn metagpt(setup: &Setup<'_>) -> Result<Program> {
    if setup.experts() == 1 {
        return Ok(Program::copy(1));
    }
    element(setup, Rule::MetaGpt { whole_model: setup.settings.word("scope") == "model" })
}

impl Family for Element {
    fn models(&self) -> Vec<usize> {
        (0..=self.experts).collect()
    }

    fn passes(&self) -> Passes {
        let of_tensor = |scans| Passes { scans, whole_model: false };
        match self.rule {
            Rule::MagMax { .. } | Rule::NearSwap { .. } => of_tensor(0),
            Rule::Sce { select_topk, .. } => of_tensor(if select_topk < 1.0 { 2 } else { 1 }),
            Rule::ArceeFusion => of_tensor(1),
            // Between two experts one scan finds it all, where there are not too many candidates.
            Rule::Pcb { whole_model, .. } => {
                Passes { scans: if self.experts == 2 && !whole_model { 1 } else { 2 }, whole_model }
            }
            Rule::MetaGpt { whole_model } => Passes { scans: 1, whole_model },
        }
    }

    fn memory(&self, tensor: &PlannedTensor) -> (u64, u64) {
        match self.rule {
            Rule::ArceeFusion => (0, 8 * remembered_rows(tensor.elements / self.group(tensor).max(1))),
            _ => (0, 0),
        }
    }

    fn group(&self, tensor: &PlannedTensor) -> u64 {
        match self.rule {
            // The softmax is over the last axis.
            Rule::ArceeFusion => tensor.shape.last().copied().unwrap_or(1),
            _ => 1,
        }
    }
}

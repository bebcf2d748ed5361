//! What a tensor is for, as far as its name and shape tell: some methods and modifiers treat embeddings,
//! norms or matrices differently. Unknown names are no error; they are [`Role::Other`].

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token or position embeddings.
    Embedding,
    /// The output head.
    Head,
    /// A normalisation's scale or shift.
    Norm,
    /// A bias.
    Bias,
    /// A matrix of an attention block.
    Attention,
    /// A matrix of a feed-forward block, experts of a mixture included.
    FeedForward,
    /// The gate that chooses among the experts of a mixture.
    Router,
    /// Anything else.
    Other,
}

impl Role {
    /// Its name in recipes and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Norm => "norm",
            Self::Bias => "bias",
            Self::Attention => "attention",
            Self::FeedForward => "feed_forward",
            Self::Router => "router",
            Self::Other => "other",
        }
    }

    /// The role that a tensor's name gives away.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let parts: Vec<&str> = name.split('.').collect();
        let stem = |suffix: &str| parts.iter().any(|p| p.ends_with(suffix));
        let is = |words: &[&str]| parts.iter().any(|p| words.contains(p));
        if is(&["lm_head", "embed_out", "output_projection", "score"]) {
            Self::Head
        } else if is(&["wte", "wpe", "embeddings", "embed_positions"])
            || stem("embed_tokens")
            || stem("word_embeddings")
            || stem("tok_embeddings")
            || stem("embed_in")
        {
            // The norm that follows an embedding is a norm.
            if stem("norm") || is(&["LayerNorm", "ln"]) { Self::Norm } else { Self::Embedding }
        } else if stem("norm")
            || stem("layernorm")
            || stem("LayerNorm")
            || is(&["ln_1", "ln_2", "ln_f", "ln"])
        {
            Self::Norm
        } else if parts.last() == Some(&"bias") {
            Self::Bias
        } else if is(&["router", "gate", "expert_gate", "shared_expert_gate"]) {
            Self::Router
        } else if stem("attn") || stem("attention") || is(&["attn", "q_proj", "k_proj", "v_proj", "o_proj"]) {
            Self::Attention
        } else if is(&["mlp", "ffn", "feed_forward", "experts", "block_sparse_moe"]) || stem("mlp") {
            Self::FeedForward
        } else {
            Self::Other
        }
    }
}

/// Kind of module that a tensor belongs to, finer than its [`Role`]: `q`, `k`, `v` and `o` of attention, `gate`, `up`
/// and `down` of a feed-forward block; `qkv` and `gate_up` where several are stored as one.
#[must_use]
pub fn kind(name: &str) -> &'static str {
    const KINDS: [(&str, &[&str]); 9] = [
        ("q", &["q_proj", "query", "q_lin", "wq"]),
        ("k", &["k_proj", "key", "k_lin", "wk"]),
        ("v", &["v_proj", "value", "v_lin", "wv"]),
        ("qkv", &["qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv"]),
        ("o", &["o_proj", "out_proj", "out_lin", "wo"]),
        ("gate", &["gate_proj", "w1"]),
        ("up", &["up_proj", "w3", "c_fc", "fc1", "dense_h_to_4h"]),
        ("down", &["down_proj", "w2", "fc2", "dense_4h_to_h"]),
        ("gate_up", &["gate_up_proj", "gate_up"]),
    ];
    let role = Role::of(name);
    if !matches!(role, Role::Attention | Role::FeedForward | Role::Other) {
        return role.name();
    }
    let parts = || name.split('.');
    let found = KINDS.iter().find(|(_, words)| parts().any(|p| words.contains(&p)));
    match (found, role) {
        (Some((kind, _)), _) => kind,
        // GPT-2 and its like call the last matrix of either block by one name.
        (None, Role::Attention) if parts().any(|p| p == "c_proj" || p == "dense") => "o",
        (None, Role::FeedForward) if parts().any(|p| p == "c_proj") => "down",
        (None, _) => role.name(),
    }
}

/// Number of the layer that a tensor belongs to: the first whole number among the parts of its name that
/// follows a word for a stack of layers, or simply the first one.
#[must_use]
pub fn layer(name: &str) -> Option<u32> {
    const STACKS: [&str; 6] = ["layers", "h", "blocks", "block", "layer", "resblocks"];
    let parts: Vec<&str> = name.split('.').collect();
    let number = |part: &&str| part.parse::<u32>().ok();
    let after_stack = parts.windows(2).find(|w| STACKS.contains(&w[0]) && number(&w[1]).is_some());
    after_stack.and_then(|w| number(&w[1])).or_else(|| parts.iter().find_map(number))
}

/// A tensor seen as one matrix, or as a batch of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Number of matrices: the experts of a stacked tensor, otherwise 1.
    pub batch: u64,
    /// Rows as stored.
    pub rows: u64,
    /// Columns as stored: the elements of a row are neighbours.
    pub columns: u64,
    /// Whether a row as stored is an input and a column an output, as in GPT-2's `Conv1D` and in gpt-oss;
    /// otherwise a row is an output, as in PyTorch's `Linear`.
    pub transposed: bool,
}

/// The tensor as a matrix: a 2-D tensor, or a 3-D one that stacks the experts of a mixture. Other tensors (norms,
/// biases, convolution kernels) are none.
#[must_use]
pub fn matrix(name: &str, shape: &[u64], model_type: Option<&str>) -> Option<Matrix> {
    const CONV1D_MODELS: [&str; 4] = ["gpt2", "imagegpt", "decision_transformer", "openai-gpt"];
    const CONV1D_NAMES: [&str; 4] =
        ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"];
    let conv1d = CONV1D_NAMES.iter().any(|n| name.ends_with(n))
        && model_type.is_none_or(|t| CONV1D_MODELS.contains(&t));
    match *shape {
        [rows, columns] => Some(Matrix { batch: 1, rows, columns, transposed: conv1d }),
        [batch, rows, columns] if name.split('.').any(|p| p == "experts") => {
            Some(Matrix { batch, rows, columns, transposed: model_type == Some("gpt_oss") })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_common_names() {
        for (name, role) in [
            ("model.embed_tokens.weight", Role::Embedding),
            ("transformer.wte.weight", Role::Embedding),
            ("lm_head.weight", Role::Head),
            ("model.norm.weight", Role::Norm),
            ("model.layers.3.input_layernorm.weight", Role::Norm),
            ("model.layers.3.self_attn.q_norm.weight", Role::Norm),
            ("transformer.h.0.ln_1.bias", Role::Norm),
            ("model.layers.3.self_attn.q_proj.weight", Role::Attention),
            ("model.layers.3.self_attn.q_proj.bias", Role::Bias),
            ("transformer.h.0.attn.c_attn.weight", Role::Attention),
            ("model.layers.3.mlp.down_proj.weight", Role::FeedForward),
            ("model.layers.3.mlp.gate_proj.weight", Role::FeedForward),
            ("model.layers.3.mlp.gate.weight", Role::Router),
            ("model.layers.3.block_sparse_moe.gate.weight", Role::Router),
            ("model.layers.3.mlp.router.weight", Role::Router),
            ("model.layers.3.mlp.experts.gate_up_proj", Role::FeedForward),
            ("model.layers.3.block_sparse_moe.experts.7.w2.weight", Role::FeedForward),
            ("something", Role::Other),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }

    #[test]
    fn kinds_of_common_names() {
        for (name, expected) in [
            ("model.embed_tokens.weight", "embedding"),
            ("lm_head.weight", "head"),
            ("model.layers.3.input_layernorm.weight", "norm"),
            ("model.layers.3.self_attn.q_proj.weight", "q"),
            ("model.layers.3.self_attn.q_proj.bias", "bias"),
            ("model.layers.3.self_attn.o_proj.weight", "o"),
            ("transformer.h.0.attn.c_attn.weight", "qkv"),
            ("transformer.h.0.attn.c_proj.weight", "o"),
            ("transformer.h.0.mlp.c_proj.weight", "down"),
            ("transformer.h.0.mlp.c_fc.weight", "up"),
            ("model.layers.3.mlp.gate_proj.weight", "gate"),
            ("model.layers.3.mlp.gate.weight", "router"),
            ("model.layers.3.mlp.experts.gate_up_proj", "gate_up"),
            ("model.layers.3.block_sparse_moe.experts.7.w2.weight", "down"),
            ("something", "other"),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn layers_are_found_behind_their_stack() {
        assert_eq!(layer("model.layers.12.mlp.experts.3.w1.weight"), Some(12));
        assert_eq!(layer("transformer.h.0.attn.c_attn.weight"), Some(0));
        assert_eq!(layer("model.visual.blocks.4.attn.qkv.weight"), Some(4));
        assert_eq!(layer("model.embed_tokens.weight"), None);
    }

    #[test]
    fn matrices_and_what_is_none() {
        let of = |name, shape: &[u64], model| matrix(name, shape, model).map(|m| (m.batch, m.transposed));
        assert_eq!(of("a.q_proj.weight", &[4, 6], Some("llama")), Some((1, false)));
        assert_eq!(of("h.0.attn.c_attn.weight", &[4, 12], Some("gpt2")), Some((1, true)));
        assert_eq!(of("h.0.attn.c_attn.weight", &[12, 4], Some("gpt_bigcode")), Some((1, false)));
        assert_eq!(of("layers.0.mlp.experts.down_proj", &[8, 4, 6], None), Some((8, false)));
        assert_eq!(of("conv1.weight", &[8, 4, 3], None), None);
        assert_eq!(of("norm.weight", &[8], None), None);
    }
}

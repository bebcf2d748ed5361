//! The coefficients of ResMerge, from inner products alone.
//!
//! "ResMerge", arXiv 2606.02252, and its authors' release: the residual directions are averaged on the sphere, the norm
//! shrinks with their coherence, and the largest components come back as far as they agree. Their ε of 1e-8 in
//! divisions is replaced by exact rules for what is zero.

/// A residual of less than this share of its delta is rounding noise: the delta has rank 1.
const NOTHING_LEFT: f64 = 1e-6;

/// Inner products over the matrix of deltas and of their largest components, each a square table of experts.
#[derive(Debug, Clone)]
pub struct Inner {
    experts: usize,
    /// `⟨Δᵢ, Δⱼ⟩`.
    pub deltas: Vec<f64>,
    /// `⟨Δᵢ, Hⱼ⟩`.
    pub crossed: Vec<f64>,
    /// `⟨Hᵢ, Hⱼ⟩`.
    pub heads: Vec<f64>,
}

impl Inner {
    /// Zeros for so many experts.
    #[must_use]
    pub fn new(experts: usize) -> Self {
        let table = || vec![0.0; experts * experts];
        Self { experts, deltas: table(), crossed: table(), heads: table() }
    }

    /// `⟨Rᵢ, Rⱼ⟩`.
    fn residuals(&self, i: usize, j: usize) -> f64 {
        let at = i * self.experts + j;
        self.deltas[at] - self.crossed[at] - self.crossed[j * self.experts + i] + self.heads[at]
    }

    /// `‖Rᵢ‖`.
    fn residual_norm(&self, i: usize) -> f64 {
        let norm = self.residuals(i, i).max(0.0).sqrt();
        let whole = self.deltas[i * self.experts + i].max(0.0).sqrt();
        if norm > NOTHING_LEFT * whole { norm } else { 0.0 }
    }
}

/// The merged delta as a combination: `Σ residuals[i] Δᵢ + Σ heads[i] Hᵢ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// Factors of the deltas.
    pub residuals: Vec<f64>,
    /// Factors of their largest components.
    pub heads: Vec<f64>,
}

/// The combination that ResMerge takes. `scored` says whether agreement counts towards the exponent.
#[must_use]
pub fn mix(inner: &Inner, scored: bool, (beta_min, beta_max): (f64, f64), budget: f64) -> Mix {
    let n = inner.experts;
    let count = n as f64;
    let norms: Vec<f64> = (0..n).map(|i| inner.residual_norm(i)).collect();
    let cosine = |i: usize, j: usize| {
        if norms[i] == 0.0 || norms[j] == 0.0 { 0.0 } else { inner.residuals(i, j) / (norms[i] * norms[j]) }
    };
    let backbone = backbone(&norms, &cosine, scored, (beta_min, beta_max), count);
    let mut square = 0.0;
    for i in 0..n {
        for j in 0..n {
            if norms[i] != 0.0 && norms[j] != 0.0 {
                square += backbone[i] * backbone[j] * inner.residuals(i, j);
            }
        }
    }
    let size = square.max(0.0).sqrt();
    let total: f64 = inner.heads.iter().sum();
    let trace: f64 = (0..n).map(|i| inner.heads[i * n + i]).sum();
    // Components that cancel leave no direction to come back along.
    let back = if total > NOTHING_LEFT * NOTHING_LEFT * trace {
        budget * agreement(inner) * size / total.sqrt()
    } else {
        0.0
    };
    Mix { heads: backbone.iter().map(|b| back - b).collect(), residuals: backbone }
}

/// Factors of the residuals.
fn backbone(
    norms: &[f64],
    cosine: &impl Fn(usize, usize) -> f64,
    scored: bool,
    (beta_min, beta_max): (f64, f64),
    count: f64,
) -> Vec<f64> {
    let n = norms.len();
    let mean = |norm: &f64| if *norm == 0.0 { 0.0 } else { 1.0 / count };
    if norms.iter().all(|norm| *norm == 0.0) {
        return vec![0.0; n];
    }
    // `⟨qᵢ, Σ qⱼ⟩`; a residual of zero has no direction, yet counts as an expert, as in the authors' release.
    let along: Vec<f64> = (0..n)
        .map(|i| {
            (0..n).map(|j| if i == j { f64::from(u8::from(norms[i] > 0.0)) } else { cosine(i, j) }).sum()
        })
        .collect();
    let sum_norm = along.iter().sum::<f64>().max(0.0).sqrt();
    if sum_norm <= NOTHING_LEFT {
        return norms.iter().map(mean).collect();
    }
    let coherence = (along.iter().sum::<f64>() / sum_norm / count).clamp(0.0, 1.0);
    // One of the fallback's two equal sides is rounded; orthogonal residuals belong to it.
    if coherence <= (1.0 + 1e-12) / count.sqrt() {
        return norms.iter().map(mean).collect();
    }
    let pairs = count * (count - 1.0) / 2.0;
    let similarity =
        (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).map(|(i, j)| cosine(i, j)).sum::<f64>() / pairs;
    let score = (f64::midpoint((similarity + 1.0) / 2.0, (coherence + 1.0) / 2.0)).clamp(0.0, 1.0);
    let beta = beta_max - (beta_max - beta_min) * if scored { score } else { 0.0 };
    let size = coherence.powf(beta) * norms.iter().sum::<f64>() / count;
    norms.iter().map(|norm| if *norm == 0.0 { 0.0 } else { size / (norm * sum_norm) }).collect()
}

/// Mean cosine between the components, negative ones counted as zero; 1 where there is only one.
fn agreement(inner: &Inner) -> f64 {
    let n = inner.experts;
    let there: Vec<usize> = (0..n).filter(|i| inner.heads[i * n + i] > 0.0).collect();
    let mut cosines = Vec::new();
    for (at, i) in there.iter().enumerate() {
        for j in &there[at + 1..] {
            let norms = (inner.heads[i * n + i] * inner.heads[j * n + j]).sqrt();
            cosines.push((inner.heads[i * n + j] / norms).max(0.0));
        }
    }
    match (there.len(), cosines.len()) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (_, pairs) => (cosines.iter().sum::<f64>() / pairs as f64).min(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two experts whose parts have these inner products.
    fn two(residual: [f64; 3], head: [f64; 3]) -> Inner {
        let table = |[a, b, c]: [f64; 3]| vec![a, b, b, c];
        let (r, heads) = (table(residual), table(head));
        // Residuals and components of one expert are orthogonal, and here those of different experts too.
        Inner {
            experts: 2,
            deltas: r.iter().zip(&heads).map(|(r, h)| r + h).collect(),
            crossed: heads.clone(),
            heads,
        }
    }

    #[test]
    fn equal_experts_keep_their_residual_and_a_fifth_of_its_norm() {
        let mix = mix(&two([4.0; 3], [9.0; 3]), true, (0.7, 1.0), 0.2);
        for i in 0..2 {
            assert!((mix.residuals[i] - 0.5).abs() < 1e-15);
            assert!((mix.heads[i] - (0.2 * 2.0 / 6.0 - 0.5)).abs() < 1e-15);
        }
    }

    #[test]
    fn orthogonal_and_opposite_residuals_are_averaged() {
        for product in [0.0, -4.0] {
            let mix = mix(&two([4.0, product, 4.0], [9.0, 0.0, 9.0]), true, (0.7, 1.0), 0.2);
            assert_eq!(mix, Mix { residuals: vec![0.5; 2], heads: vec![-0.5; 2] });
        }
    }

    #[test]
    fn a_delta_of_rank_one_leaves_nothing() {
        let mix = mix(&two([1e-13, 0.0, 1e-13], [1.0, 0.5, 1.0]), true, (0.7, 1.0), 0.2);
        assert_eq!(mix, Mix { residuals: vec![0.0; 2], heads: vec![0.0; 2] });
    }
}

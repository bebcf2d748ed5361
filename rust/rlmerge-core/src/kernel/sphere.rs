//! Coefficients of linear combinations of vectors, from their Gram matrix alone: arcs and means on the sphere, and
//! Model Stock. Every result of these methods lies in the span of its inputs, so a few inner products settle it.
//!
//! Plain f64 on a handful of numbers: nothing here depends on a SIMD level.

use super::gram::entry;

/// Cosine beyond which `slerp` takes the arc as straight, as mergekit does.
const COLINEAR: f64 = 0.9995;
/// Norm at or below which mergekit's `slerp` replaces the norm by one.
const SLERP_TINY: f64 = 1e-8;
/// Least norm in mergekit's `nuslerp`.
const NUSLERP_TINY: f64 = 1e-7;
/// Least product of two norms in mergekit's `model_stock`.
const STOCK_TINY: f64 = 1e-6;
/// Squared sine below which mergekit's `nuslerp` takes vectors as colinear.
const STRAIGHT: f64 = 1e-16;
/// Length of a weighted sum of unit vectors, in units of the weights, that is no more than rounding: its square
/// comes out of a difference of numbers with sixteen digits.
const NO_DIRECTION: f64 = 1e-7;
/// Squared sine below which an angle is 0.
const NO_ANGLE: f64 = 1e-12;
/// Squared sine below which an angle is π. The factor of a direction grows as the inverse of the sine, and the
/// digits of a length in coefficients are lost with its square: here a part in 10¹⁰ is left.
const OPPOSITE: f64 = 1e-6;

/// How an arc treats ends that are colinear or have no length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// `slerp`: straight where |cos| > 0.9995 or an end is zero.
    Slerp,
    /// mergekit's `slerp`: the same, but a tiny norm counts as one.
    SlerpMergekit,
    /// `nuslerp`: straight where the ends are (nearly) opposite, equal up to length, or zero.
    Nuslerp,
    /// mergekit's `nuslerp`: straight where they are colinear; a tiny norm counts as 1e-7.
    NuslerpMergekit,
}

/// Factors of the two ends of an arc at `t`, for their Gram matrix `[aa, ab, bb]`.
///
/// Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; that the ends are not normalised in the
/// combination is mergekit's.
pub fn arc(gram: &[f64], t: f64, ends: Ends, out: &mut [f64]) {
    let [aa, ab, bb] = gram[..] else { unreachable!("an arc has two ends") };
    let (na, nb) = (aa.sqrt(), bb.sqrt());
    let straight = [1.0 - t, t];
    if !(aa.is_finite() && ab.is_finite() && bb.is_finite()) {
        return out.fill(f64::NAN);
    }
    let (na, nb) = match ends {
        Ends::Slerp | Ends::Nuslerp if na == 0.0 || nb == 0.0 => return out.copy_from_slice(&straight),
        Ends::Slerp | Ends::Nuslerp => (na, nb),
        Ends::SlerpMergekit => {
            let usable = |norm: f64| if norm <= SLERP_TINY { 1.0 } else { norm };
            (usable(na), usable(nb))
        }
        Ends::NuslerpMergekit => (na.max(NUSLERP_TINY), nb.max(NUSLERP_TINY)),
    };
    let cosine = (ab / na / nb).clamp(-1.0, 1.0);
    let is_straight = match ends {
        Ends::Slerp | Ends::SlerpMergekit => cosine.abs() > COLINEAR,
        // Between opposite ends there is no one arc, and the formula's factors grow without bound.
        Ends::Nuslerp => cosine < -COLINEAR || 1.0 - cosine * cosine <= STRAIGHT,
        // mergekit's test is meant for cosines with the digits of an f32, of which the last is far above it.
        Ends::NuslerpMergekit => {
            let rounded = cosine as f32;
            f64::from(1.0 - rounded * rounded) <= STRAIGHT
        }
    };
    let angle = cosine.acos();
    let sine = angle.sin();
    if is_straight || sine == 0.0 {
        return out.copy_from_slice(&straight);
    }
    out.copy_from_slice(&[((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine]);
}

/// Length of `Σ aᵢ vᵢ`.
fn length(gram: &[f64], a: &[f64]) -> f64 {
    let mut square = 0.0;
    for (i, x) in a.iter().enumerate() {
        for (j, y) in a.iter().enumerate() {
            square += x * y * gram[entry(a.len(), i, j)];
        }
    }
    square.max(0.0).sqrt()
}

/// Norms of the vectors.
fn norms(gram: &[f64], count: usize) -> Vec<f64> {
    (0..count).map(|i| gram[entry(count, i, i)].sqrt()).collect()
}

/// `multislerp`: the direction of `Σ wᵢ uᵢ` at the length `Σ wᵢ ‖vᵢ‖`, where uᵢ = vᵢ/‖vᵢ‖ (with mergekit,
/// vᵢ/(‖vᵢ‖ + eps)). This closed form is what the published recipe comes to: its tangents are taken at that very
/// direction, where their weighted sum is zero. A sum shorter than `eps` has no direction; then `Σ wᵢ vᵢ`.
pub fn mean(gram: &[f64], weights: &[f64], eps: f64, mergekit: bool, out: &mut [f64]) {
    let norms = norms(gram, weights.len());
    let added = if mergekit { eps } else { 0.0 };
    let units: Vec<f64> =
        weights.iter().zip(&norms).map(|(w, n)| if *n == 0.0 { 0.0 } else { w / (n + added) }).collect();
    let sum = length(gram, &units);
    let size: f64 = weights.iter().map(|w| w.abs()).sum();
    if sum < eps || sum <= NO_DIRECTION * size {
        return out.copy_from_slice(weights);
    }
    let long: f64 = weights.iter().zip(&norms).map(|(w, n)| w * n).sum();
    for (o, unit) in out.iter_mut().zip(&units) {
        *o = unit / sum * long;
    }
}

/// `karcher`: the point of the sphere from which the mean of all directions vanishes (the Fréchet mean), at the mean
/// of all lengths. Vectors without length have no direction: those of norm 0, with mergekit those up to `tol`.
pub fn karcher(gram: &[f64], count: usize, max_iter: u32, tol: f64, mergekit: bool, out: &mut [f64]) {
    out.fill(0.0);
    let norms = norms(gram, count);
    let tiny = if mergekit { tol } else { 0.0 };
    let long: Vec<usize> = (0..count).filter(|i| norms[*i] > tiny).collect();
    if long.is_empty() {
        return;
    }
    let k = long.len();
    let share = 1.0 / k as f64;
    // Cosines between the directions, as a Gram matrix of its own.
    let mut cosines = vec![1.0; super::gram::entries(k)];
    for (i, a) in long.iter().enumerate() {
        for (j, b) in long.iter().enumerate().skip(i + 1) {
            let cosine = gram[entry(count, *a, *b)] / norms[*a] / norms[*b];
            cosines[entry(k, i, j)] = cosine.clamp(-1.0, 1.0);
        }
    }
    // The point as a combination of the directions.
    let mut point = vec![share; k];
    let first = length(&cosines, &point);
    if first < tol || first <= NO_DIRECTION {
        point.fill(0.0);
        point[0] = 1.0;
    } else {
        point.iter_mut().for_each(|p| *p /= first);
    }
    for _ in 0..max_iter {
        let mut tangent = vec![0.0; k];
        for i in 0..k {
            let dot: f64 = (0..k).map(|j| point[j] * cosines[entry(k, i, j)]).sum();
            let cosine = dot.clamp(-1.0, 1.0);
            let (angle, squared_sine) = (cosine.acos(), 1.0 - cosine * cosine);
            if mergekit && angle < tol {
                continue;
            }
            let factor = match squared_sine {
                // Opposite to the point: every way there is as short as any other.
                s if cosine < 0.0 && s <= OPPOSITE => continue,
                s if s <= NO_ANGLE => 1.0,
                s => angle / s.sqrt(),
            };
            for (t, p) in tangent.iter_mut().zip(&point) {
                *t -= share * factor * cosine * p;
            }
            tangent[i] += share * factor;
        }
        let step = length(&cosines, &tangent);
        if step < tol || step == 0.0 {
            break;
        }
        for (p, t) in point.iter_mut().zip(&tangent) {
            *p = step.cos() * *p + step.sin() / step * t;
        }
        let now = length(&cosines, &point);
        if now == 0.0 {
            break;
        }
        point.iter_mut().for_each(|p| *p /= now);
    }
    let mean = norms.iter().sum::<f64>() / count as f64;
    for (at, p) in long.iter().zip(&point) {
        out[*at] = mean * p / norms[*at];
    }
}

/// `model_stock` (Jang et al., ECCV 2024, arXiv 2403.19522): base + t · mean delta with
/// t = N cos/(1 + (N−1) cos), where cos is the mean over the pairs. Where the experts do not agree, t is 0: the
/// derivation is for acute angles, and the formula has a pole where the deltas cancel. mergekit goes beyond.
pub fn stock(gram: &[f64], count: usize, mergekit: bool, out: &mut [f64]) {
    let n = count as f64;
    let mut sum = 0.0;
    for i in 0..count {
        for j in i + 1..count {
            let size = gram[entry(count, i, i)].sqrt() * gram[entry(count, j, j)].sqrt();
            let size = if mergekit { size.max(STOCK_TINY) } else { size };
            let dot = gram[entry(count, i, j)];
            // A delta of zero agrees with nobody.
            sum += if size == 0.0 { 0.0 } else { (dot / size).clamp(-1.0, 1.0) };
        }
    }
    let cosine = sum / (n * (n - 1.0) / 2.0);
    let divisor = 1.0 + (n - 1.0) * cosine;
    let t = match mergekit {
        true if divisor.abs() < STOCK_TINY => 0.0,
        false if cosine <= 0.0 => 0.0,
        _ => n * cosine / divisor,
    };
    out.fill(t / n);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::gram::entries;

    fn gram(vectors: &[Vec<f64>]) -> Vec<f64> {
        let n = vectors.len();
        let mut out = vec![0.0; entries(n)];
        for i in 0..n {
            for j in i..n {
                out[entry(n, i, j)] = vectors[i].iter().zip(&vectors[j]).map(|(x, y)| x * y).sum();
            }
        }
        out
    }

    fn at(gram: [f64; 3], t: f64, ends: Ends) -> [f64; 2] {
        let mut out = [0.0; 2];
        arc(&gram, t, ends, &mut out);
        out
    }

    const ALL: [Ends; 4] = [Ends::Slerp, Ends::SlerpMergekit, Ends::Nuslerp, Ends::NuslerpMergekit];

    #[test]
    fn half_way_between_orthogonal_vectors() {
        for ends in ALL {
            let found = at([4.0, 0.0, 9.0], 0.5, ends);
            assert!(found.iter().all(|c| (c - 0.5f64.sqrt()).abs() < 1e-15), "{ends:?}");
        }
    }

    #[test]
    fn colinear_opposite_and_zero_vectors_interpolate_linearly() {
        for ends in ALL {
            for (aa, ab, bb) in [(1.0, 2.0, 4.0), (1.0, -2.0, 4.0)] {
                assert_eq!(at([aa, ab, bb], 0.25, ends), [0.75, 0.25], "{ends:?}");
            }
            assert!(at([f64::NAN, 0.0, 1.0], 0.5, ends)[0].is_nan());
            assert!(at([f64::INFINITY, 1.0, 1.0], 0.5, ends)[1].is_nan());
        }
        for ends in [Ends::Slerp, Ends::Nuslerp] {
            assert_eq!(at([0.0, 0.0, 4.0], 0.25, ends), [0.75, 0.25]);
        }
        for ends in [Ends::SlerpMergekit, Ends::NuslerpMergekit] {
            assert!((at([0.0, 0.0, 4.0], 0.5, ends)[1] - 0.5f64.sqrt()).abs() < 1e-15);
        }
    }

    #[test]
    fn nuslerp_has_no_shortcut_for_small_angles_and_none_for_opposite_ends() {
        let cosine = 0.99999;
        let found = at([1.0, cosine, 1.0], 0.25, Ends::Nuslerp);
        assert!((found[1] - 0.25).abs() > 1e-8 && (found[1] - 0.25).abs() < 1e-4);
        assert_eq!(at([1.0, -cosine, 1.0], 0.25, Ends::Nuslerp), [0.75, 0.25]);
    }

    #[test]
    fn the_mean_of_orthogonal_vectors_lies_between_them() {
        let mut out = [0.0; 2];
        mean(&gram(&[vec![2.0, 0.0], vec![0.0, 6.0]]), &[0.5, 0.5], 1e-8, false, &mut out);
        // Direction (1,1)/√2 at length 4.
        assert!((2.0 * out[0] - 8f64.sqrt()).abs() < 1e-14 && (6.0 * out[1] - 8f64.sqrt()).abs() < 1e-14);
    }

    #[test]
    fn opposite_or_frozen_vectors_have_a_plain_mean() {
        let mut out = [0.0; 2];
        mean(&gram(&[vec![1.0, 2.0], vec![-3.0, -6.0]]), &[0.5, 0.5], 1e-8, false, &mut out);
        assert_eq!(out, [0.5, 0.5]);
        let mut out = [0.0; 3];
        for mergekit in [false, true] {
            mean(&[0.0; 6], &[0.5, 0.25, 0.25], 1e-8, mergekit, &mut out);
            assert_eq!(out, [0.5, 0.25, 0.25]);
        }
    }

    #[test]
    fn the_karcher_mean_of_two_is_the_middle_of_the_arc() {
        let vectors = [vec![1.0, 0.0, 0.0], vec![-0.6, 0.8, 0.0]];
        let (mut middle, mut found) = ([0.0; 2], [0.0; 2]);
        arc(&gram(&vectors), 0.5, Ends::Slerp, &mut middle);
        karcher(&gram(&vectors), 2, 100, 1e-14, false, &mut found);
        assert!(found.iter().zip(&middle).all(|(f, m)| (f - m).abs() < 1e-12), "{found:?} {middle:?}");
    }

    #[test]
    fn karcher_of_opposite_and_zero_vectors_is_finite() {
        for vectors in [
            vec![vec![1.0], vec![2.0], vec![-3.0]],
            vec![vec![1.0, 2.0], vec![-1.0, -2.0]],
            vec![vec![0.0], vec![0.0], vec![0.0]],
            vec![vec![0.0, 0.0], vec![0.0, 3.0], vec![0.0, 0.0]],
        ] {
            for mergekit in [false, true] {
                let mut out = vec![9.0; vectors.len()];
                karcher(&gram(&vectors), vectors.len(), 10, 1e-5, mergekit, &mut out);
                assert!(out.iter().all(|c| c.abs() <= 3.0), "{vectors:?} {out:?}");
            }
        }
        let mut out = [9.0; 2];
        karcher(&[0.0, 0.0, 9.0], 2, 10, 1e-5, false, &mut out);
        assert_eq!(out, [0.0, 0.5], "the mean of the lengths counts zeros");
    }

    #[test]
    fn stock_goes_from_the_base_to_the_mean() {
        let of = |vectors: &[Vec<f64>], mergekit| {
            let mut out = vec![0.0; vectors.len()];
            stock(&gram(vectors), vectors.len(), mergekit, &mut out);
            out
        };
        let equal = [vec![1.0, 2.0], vec![1.0, 2.0]];
        assert!(of(&equal, false).iter().all(|c| (c - 0.5).abs() < 1e-15));
        assert_eq!(of(&[vec![1.0, 0.0], vec![0.0, 3.0]], false), [0.0, 0.0]);
        // N = 2, cos 60°: t = 2·½/1½ = ⅔.
        let sixty = [vec![1.0, 0.0], vec![0.5, 0.75f64.sqrt()]];
        assert!(of(&sixty, false).iter().all(|c| (c - 1.0 / 3.0).abs() < 1e-15));
        let opposite = [vec![1.0, 0.2], vec![-1.0, 0.0]];
        assert_eq!(of(&opposite, false), [0.0, 0.0]);
        assert!(of(&opposite, true)[0] < -10.0, "mergekit flies off");
        assert_eq!(of(&[vec![1.0], vec![-1.0]], true), [0.0, 0.0]);
        assert_eq!(of(&[vec![0.0], vec![0.0]], false), [0.0, 0.0]);
        // Small deltas count as much as large ones, except with mergekit.
        let small = equal.map(|v| v.iter().map(|x| x * 1e-5).collect());
        assert!(of(&small, false)[0] > 0.49 && of(&small, true)[0] < 0.01);
    }
}

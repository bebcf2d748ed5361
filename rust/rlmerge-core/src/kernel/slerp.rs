//! Spherical interpolation of two vectors, in coefficient space: two norms and a dot product give
//! the factors of a linear combination.
//!
//! Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; the colinear fallback and
//! the un-normalised end points are mergekit's.

/// Cosine beyond which the arc is taken as straight.
pub const COLINEAR: f64 = 0.9995;
/// Norm at or below which mergekit replaces the norm by one.
const TINY_NORM: f64 = 1e-8;

/// How the two factors came about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arc {
    /// Factor of the vector at t = 0.
    pub start: f64,
    /// Factor of the vector at t = 1.
    pub end: f64,
    /// A vector of norm zero has no direction, so the interpolation is linear.
    pub zero_norm: bool,
}

/// Factors at `t` for vectors with squared norms `aa`, `cc` and dot product `ac`; `None` when these
/// are not finite. With `mergekit`, tiny norms are replaced by one instead of interpolating linearly.
#[must_use]
pub fn arc(aa: f64, ac: f64, cc: f64, t: f64, mergekit: bool) -> Option<Arc> {
    if !(aa.is_finite() && ac.is_finite() && cc.is_finite()) {
        return None;
    }
    let straight = |zero_norm| Some(Arc { start: 1.0 - t, end: t, zero_norm });
    let (mut na, mut nc) = (aa.sqrt(), cc.sqrt());
    if mergekit {
        na = if na <= TINY_NORM { 1.0 } else { na };
        nc = if nc <= TINY_NORM { 1.0 } else { nc };
    } else if na == 0.0 || nc == 0.0 {
        return straight(true);
    }
    let cosine = (ac / na / nc).clamp(-1.0, 1.0);
    if cosine.abs() > COLINEAR {
        return straight(false);
    }
    let angle = cosine.acos();
    let sine = angle.sin();
    Some(Arc { start: ((1.0 - t) * angle).sin() / sine, end: (t * angle).sin() / sine, zero_norm: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_way_between_orthogonal_vectors() {
        let a = arc(4.0, 0.0, 9.0, 0.5, false).unwrap();
        assert!((a.start - 0.5f64.sqrt()).abs() < 1e-15 && (a.end - 0.5f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn colinear_opposite_and_zero_vectors_interpolate_linearly() {
        for (aa, ac, cc) in [(1.0, 2.0, 4.0), (1.0, -2.0, 4.0)] {
            assert_eq!(arc(aa, ac, cc, 0.25, false), Some(Arc { start: 0.75, end: 0.25, zero_norm: false }));
        }
        assert_eq!(arc(0.0, 0.0, 4.0, 0.25, false), Some(Arc { start: 0.75, end: 0.25, zero_norm: true }));
        let theirs = arc(0.0, 0.0, 4.0, 0.5, true).unwrap();
        assert!((theirs.end - 0.5f64.sqrt()).abs() < 1e-15);
        assert_eq!(arc(f64::NAN, 0.0, 1.0, 0.5, false), None);
    }
}

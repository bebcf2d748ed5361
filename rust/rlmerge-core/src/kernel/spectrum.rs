//! What singular values say, and what those of noise would be.

use std::f64::consts::PI;

/// Singular values below this share of the largest do not count: Gram matrices in f64 do not resolve them.
const RESOLVED: f64 = 1.0 / (1u64 << 21) as f64;
/// Steps in the integral over the density of the singular values of noise.
const STEPS: usize = 4096;

/// Gavish and Donoho's ω(β): singular values of noise lie below so many times their median.
#[must_use]
pub fn omega(beta: f64) -> f64 {
    0.56 * beta * beta * beta - 0.95 * beta * beta + 1.82 * beta + 1.43
}

/// The size below which singular values (the largest first) count as noise.
#[must_use]
pub fn noise_edge(values: &[f64], beta: f64) -> f64 {
    let half = values.len() / 2;
    let median = match values.len() {
        0 => return 0.0,
        odd if odd % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    };
    (omega(beta) * median).max(RESOLVED * values[0])
}

/// How many of the values are above noise.
#[must_use]
pub fn noise_rank(values: &[f64], beta: f64) -> usize {
    let edge = noise_edge(values, beta);
    values.iter().take_while(|v| **v > edge).count()
}

/// The exponential of the entropy of the shares of energy: how many directions, were they equal.
#[must_use]
pub fn effective_rank(values: &[f64]) -> f64 {
    let energy: f64 = values.iter().map(|v| v * v).sum();
    let entropy: f64 = values.iter().map(|v| v * v / energy).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// The singular values of a matrix of independent numbers, `short` × `long`, whose squares add up to `short`: the law of
/// Marchenko and Pastur.
#[derive(Debug, Clone)]
pub struct Noise {
    short: f64,
    beta: f64,
    /// For angles φ from 0 on, what share of the values is at least √(1 + β + 2√β cos φ).
    counts: Vec<f64>,
}

impl Noise {
    /// Of a matrix with these sides.
    #[must_use]
    pub fn new(short: u64, long: u64) -> Self {
        let beta = short as f64 / long as f64;
        let step = PI / STEPS as f64;
        let mut sum = 0.0;
        let mut counts = vec![0.0];
        for i in 0..STEPS {
            let phi = (i as f64 + 0.5) * step;
            let x = 1.0 + beta + 2.0 * beta.sqrt() * phi.cos();
            sum += 2.0 / PI * phi.sin() * phi.sin() / x * step;
            counts.push(sum);
        }
        counts.iter_mut().for_each(|c| *c /= sum);
        Self { short: short as f64, beta, counts }
    }

    /// The angle at which so many of the values are passed.
    fn angle(&self, count: f64) -> f64 {
        let share = (count / self.short).min(1.0);
        let after = self.counts.partition_point(|c| *c < share).clamp(1, STEPS);
        let (low, high) = (self.counts[after - 1], self.counts[after]);
        (after as f64 - 1.0 + ((share - low) / (high - low)).clamp(0.0, 1.0)) * PI / STEPS as f64
    }

    /// The value of this index, the largest first.
    #[must_use]
    pub fn value(&self, index: usize) -> f64 {
        let phi = self.angle(index as f64 + 0.5);
        (1.0 + self.beta + 2.0 * self.beta.sqrt() * phi.cos()).max(0.0).sqrt()
    }

    /// Share of the energy in the largest so many.
    #[must_use]
    pub fn energy(&self, count: usize) -> f64 {
        let phi = self.angle(count as f64);
        (phi - phi.sin() * phi.cos()) / PI
    }

    /// ‖·‖_F² / ‖·‖₂².
    #[must_use]
    pub fn stable_rank(&self) -> f64 {
        self.short / ((1.0 + self.beta.sqrt()) * (1.0 + self.beta.sqrt()))
    }

    /// The effective rank (Page, 1993).
    #[must_use]
    pub fn effective_rank(&self) -> f64 {
        self.short * (-self.beta / 2.0).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_large_values_above_many_small_ones() {
        let mut values = vec![10.0, 9.0, 8.0];
        let noise = Noise::new(97, 97);
        values.extend((0..97).map(|i| noise.value(i)));
        assert_eq!(noise_rank(&values, 1.0), 3);
        assert_eq!(noise_rank(&values[3..], 1.0), 0);
        assert_eq!(noise_rank(&[5.0, 4.0, 1e-9, 1e-9, 1e-9], 1.0), 2);
        assert_eq!(noise_rank(&[0.0; 4], 1.0), 0);
        assert_eq!(noise_rank(&[], 1.0), 0);
    }

    #[test]
    fn ranks_of_equal_values_are_their_number() {
        assert!((effective_rank(&[2.0; 7]) - 7.0).abs() < 1e-12);
        assert!((effective_rank(&[2.0, 0.0, 0.0]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn noise_has_the_energy_and_the_ranks_that_its_values_give() {
        for (short, long) in [(100, 100), (100, 400), (64, 4096)] {
            let noise = Noise::new(short, long);
            let values: Vec<f64> = (0..short as usize).map(|i| noise.value(i)).collect();
            let energy: f64 = values.iter().map(|v| v * v).sum();
            assert!((energy / short as f64 - 1.0).abs() < 0.01, "{energy}");
            let eight: f64 = values[..8].iter().map(|v| v * v).sum::<f64>() / energy;
            assert!((noise.energy(8) - eight).abs() < 0.01);
            assert!((noise.effective_rank() / effective_rank(&values) - 1.0).abs() < 0.01);
            assert!((noise.energy(short as usize) - 1.0).abs() < 1e-12);
        }
    }
}

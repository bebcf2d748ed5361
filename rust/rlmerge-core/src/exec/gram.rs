//! Methods that see a tensor as one vector a model (or one for each row or column): a scan for all inner products,
//! a rule that makes coefficients of them, and a linear combination.

use std::sync::Arc;

use super::columns::{ColumnPartial, ColumnSums, Shape};
use super::job::{Chunk, Job, Partial, Scope, Ties};
use crate::error::{Error, Result};
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::sphere::{self, Ends};
use crate::kernel::{combine, gram};
use crate::plan::family::gram::{Gram, Rule, Vectors};

/// Coefficients of the experts' vectors.
enum Coefficients {
    /// Not known yet.
    Open,
    /// Each row has its own, found when it is merged.
    OfRows(usize),
    /// One for each expert.
    OfTensor(Vec<f64>),
    /// For each column of the first expert, then of the second, and so on.
    OfColumns(Vec<f64>),
}

/// A Gram method at work on a tensor.
pub struct GramJob<'p> {
    plan: &'p Gram,
    columns: Option<Arc<ColumnSums>>,
    coefficients: Coefficients,
    /// Whether all vectors of the tensor are equal.
    equal: bool,
}

impl<'p> GramJob<'p> {
    /// For a tensor.
    pub fn new(plan: &'p Gram, scope: Scope<'_>) -> Self {
        let vectors = scope.tensor.map_or(Vectors::Whole, |t| plan.vectors(t));
        let entries = gram::entries(plan.experts.len());
        let (columns, coefficients) = match vectors {
            Vectors::Whole => (None, Coefficients::Open),
            Vectors::Rows(len) => (None, Coefficients::OfRows(len as usize)),
            Vectors::Columns { rows, columns } => {
                let shape = Shape { rows, columns, total: scope.elements / rows };
                (Some(Arc::new(ColumnSums::new(shape, entries))), Coefficients::Open)
            }
        };
        Self { plan, columns, coefficients, equal: false }
    }

    const fn count(&self) -> usize {
        self.plan.experts.len()
    }

    const fn first(&self) -> usize {
        self.plan.base.is_some() as usize
    }

    /// The experts' vectors into their buffers.
    fn load(&self, chunk: &mut Chunk<'_>) {
        let base = self.plan.base.map(|_| &chunk.values[0]);
        for (at, expert) in chunk.values[self.first()..].iter().enumerate() {
            gram::vector(chunk.level, expert, base, chunk.scratch.delta(at, chunk.len));
        }
    }

    /// What the rule makes of inner products.
    fn coefficients(&self, products: &[f64], out: &mut [f64]) {
        let mergekit = self.plan.mergekit;
        match &self.plan.rule {
            Rule::Slerp { t } => {
                let ends = if mergekit { Ends::SlerpMergekit } else { Ends::Slerp };
                sphere::arc(products, *t, ends, out);
            }
            Rule::Nuslerp { t } => {
                let ends = if mergekit { Ends::NuslerpMergekit } else { Ends::Nuslerp };
                sphere::arc(products, *t, ends, out);
            }
            Rule::Mean { weights, eps } => sphere::mean(products, weights, *eps, mergekit, out),
            Rule::Karcher { max_iter, tol } => {
                sphere::karcher(products, self.count(), *max_iter, *tol, mergekit, out);
            }
            Rule::Stock => sphere::stock(products, self.count(), mergekit, out),
        }
    }

    /// Multiplies the vectors of a chunk of whole rows, each row by coefficients of its own.
    fn weigh_rows(&self, chunk: &mut Chunk<'_>, row: usize) {
        let (level, count, stride) = (chunk.level, self.count(), chunk.scratch.stride);
        let mut sums = vec![Lanes::default(); gram::entries(count)];
        let (mut products, mut coefficients) = (vec![0.0; sums.len()], vec![0.0; count]);
        for start in (0..chunk.len).step_by(row) {
            sums.fill(Lanes::default());
            gram::add_gram(level, &chunk.scratch.deltas[start..], stride, row, count, &mut sums);
            gram::totals(&sums, &mut products);
            self.coefficients(&products, &mut coefficients);
            for (at, coefficient) in coefficients.iter().enumerate() {
                let values = &mut chunk.scratch.deltas[at * stride + start..][..row];
                combine::scale(level, values, *coefficient);
            }
        }
    }

    /// Multiplies each element by the coefficient of its column.
    fn weigh_columns(&self, chunk: &mut Chunk<'_>, coefficients: &[f64]) {
        let Some(shape) = self.columns.as_ref().map(|c| c.shape()) else { return };
        let (level, stride) = (chunk.level, chunk.scratch.stride);
        shape.for_pieces(chunk.first, chunk.len, |piece, column| {
            for (at, of_expert) in coefficients.chunks_exact(shape.total as usize).enumerate() {
                let values = &mut chunk.scratch.deltas[at * stride..][piece.clone()];
                gram::multiply_each(level, values, &of_expert[column as usize..][..piece.len()]);
            }
        });
    }

    fn learn_columns(&mut self, sums: &ColumnSums) {
        let (count, total) = (self.count(), sums.shape().total as usize);
        let totals = sums.totals();
        let mut products = vec![0.0; gram::entries(count)];
        let mut coefficients = vec![0.0; count];
        let mut all = vec![0.0; count * total];
        self.equal = true;
        for column in 0..total {
            for (entry, product) in products.iter_mut().enumerate() {
                *product = totals[entry * total + column];
            }
            self.equal &= are_equal(&products);
            self.coefficients(&products, &mut coefficients);
            for (at, coefficient) in coefficients.iter().enumerate() {
                all[at * total + column] = *coefficient;
            }
        }
        self.coefficients = Coefficients::OfColumns(all);
    }
}

/// Whether inner products are those of equal vectors.
fn are_equal(products: &[f64]) -> bool {
    products.iter().all(|p| *p == products[0])
}

impl Job for GramJob<'_> {
    /// Deltas of nothing add nothing. Without a base, coefficients need not sum to one: they do if the vectors are
    /// equal as a whole and the rule is a mean.
    fn keeps_common_values(&self) -> bool {
        let alone = matches!(self.coefficients, Coefficients::OfRows(_));
        self.plan.base.is_some() || (self.plan.rule.keeps_equal() && (alone || self.equal))
    }

    fn needs_scan(&self) -> bool {
        matches!(self.coefficients, Coefficients::Open)
    }

    fn partial(&self) -> Partial {
        match &self.columns {
            Some(sums) => Partial::with_columns(ColumnPartial::new(sums.clone())),
            None => Partial::with_lanes(gram::entries(self.count())),
        }
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        let (level, len, count) = (chunk.level, chunk.len, self.count());
        if let Some(columns) = &mut partial.columns {
            self.load(chunk);
            columns.add(level, &chunk.scratch.deltas, chunk.scratch.stride, count, chunk.first, len);
            return;
        }
        let base = self.plan.base.map(|_| &chunk.values[0]);
        match (&chunk.values[self.first()..], <&mut [Lanes; 3]>::try_from(&mut partial.lanes[..])) {
            ([a, b], Ok(sums)) => gram::add_pair(level, a, b, base, sums),
            _ => {
                self.load(chunk);
                let scratch = &*chunk.scratch;
                gram::add_gram(level, &scratch.deltas, scratch.stride, len, count, &mut partial.lanes);
            }
        }
    }

    fn learn(&mut self, partial: Partial, tensor: &str) -> Result<()> {
        if let Some(sums) = self.columns.clone() {
            self.learn_columns(&sums);
            return Ok(());
        }
        let products = partial.sums();
        if products.iter().any(|p| !p.is_finite()) {
            return Err(Error::NonFinite {
                tensor: tensor.into(),
                message: "the angle between the models is undefined, because a value is NaN or infinite"
                    .into(),
            });
        }
        self.equal = are_equal(&products);
        let mut coefficients = vec![0.0; self.count()];
        self.coefficients(&products, &mut coefficients);
        self.coefficients = Coefficients::OfTensor(coefficients);
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len, first) = (chunk.level, chunk.len, self.first());
        let base = self.plan.base.map(|_| &chunk.values[0]);
        let experts = &chunk.values[first..];
        let squares = &mut squares[first..];
        match &self.coefficients {
            Coefficients::Open => return,
            Coefficients::OfTensor(coefficients) => {
                let each = experts.iter().zip(coefficients).zip(squares).enumerate();
                for (at, ((expert, factor), squares)) in each {
                    let buffer = chunk.scratch.delta(at, len);
                    match base {
                        Some(base) => expert.cut_delta(level, base, 0, false, *factor, buffer, squares),
                        None if at == 0 => {
                            expert.weigh(level, *factor, &mut chunk.scratch.out[..len], squares);
                        }
                        None => {
                            let out = &mut chunk.scratch.out[..len];
                            expert.add_weighed(level, *factor, 1.0, out, squares);
                        }
                    }
                }
                if base.is_none() {
                    return;
                }
            }
            Coefficients::OfRows(_) | Coefficients::OfColumns(_) => {
                self.load(chunk);
                for (at, squares) in squares.iter_mut().enumerate().take(self.count()) {
                    let inner = &chunk.scratch.deltas[at * chunk.scratch.stride..][chunk.inner.clone()];
                    lanes::add_squares_wide(level, inner, squares);
                }
                match &self.coefficients {
                    Coefficients::OfColumns(coefficients) => self.weigh_columns(chunk, coefficients),
                    Coefficients::OfRows(row) => self.weigh_rows(chunk, *row),
                    Coefficients::Open | Coefficients::OfTensor(_) => {}
                }
            }
        }
        let base = self.plan.base.map(|_| &chunk.values[0]);
        let scratch = &mut *chunk.scratch;
        gram::add_up(level, base, &mut scratch.deltas, scratch.stride, self.count(), &mut scratch.out[..len]);
    }
}

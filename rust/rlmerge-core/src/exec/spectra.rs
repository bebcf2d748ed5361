//! The spectral statistics of a conflict report: of each matrix, the singular values of the base, of each expert and of
//! each delta, and the directions of the largest of them.
//!
//! They come from Gram matrices on the shorter side, gathered from a few rows at a time, so that memory grows with the
//! square of the shorter side and with no matrix. Three passes: Gram matrices; the directions on the longer side, and
//! what experts have in each other's; the elements that the base's largest directions make large. A worker takes one
//! matrix at a time, the dearest first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::job::Look;
use super::observer::Observer;
use super::pass::{TileMap, Workers};
use super::tile::{Slice, Span, Work};
use crate::error::{Error, Result};
use crate::kernel::products::{DEPTH, Exact, Packed, Part, add_products};
use crate::kernel::spectrum::{Noise, effective_rank, noise_edge, noise_rank};
use crate::kernel::stats::{self, KEYS};
use crate::kernel::tridiagonal::Tridiagonal;
use crate::kernel::{CHUNK, Level};
use crate::plan::{Action, MergePlan};
use crate::report::conflicts::pairs;
use crate::report::spectra::{Curves, Spectra};
use crate::shard::Checkpoint;

/// Most directions that vectors are found for.
pub const MOST_DIRECTIONS: u32 = DEPTH as u32;
/// Bytes that the Gram matrices of all workers may take.
const GRAM_BYTES: u64 = 512 << 20;
/// Longest of shorter sides: the Gram matrix takes all that there is.
const LONGEST: u64 = 8192;
/// Bytes of the rows that a Gram matrix of rows is made from at a time.
const PANEL_BYTES: u64 = 64 << 20;
/// Singular values in a picture.
const CURVE: usize = 24;
/// Share of the energy above noise that the directions of an alignment hold.
const ALIGNED: f64 = 0.95;

/// What the statistics are told.
#[derive(Debug, Clone, Copy)]
pub struct Spectral {
    /// Most directions of each matrix.
    pub directions: usize,
    /// A larger |δ| is a change.
    pub epsilon: f64,
    /// Share of the elements that count as principal.
    pub share: f64,
}

/// Matrices of a tensor: how many, and their rows and columns.
fn matrices(shape: &[u64]) -> Option<(u64, u64, u64)> {
    let [leading @ .., rows, columns] = shape else { return None };
    (rows.min(columns) > &1).then(|| (leading.iter().product(), *rows, *columns))
}

/// The statistics of each tensor of a plan that is made of matrices, by its index; and what was left out.
///
/// # Errors
/// Whatever reading can meet.
pub fn gather(
    plan: &MergePlan,
    models: &[Checkpoint],
    settings: Spectral,
    observer: &Observer,
) -> Result<(BTreeMap<usize, Spectra>, Vec<String>)> {
    let computed = plan.tensors.iter().enumerate().filter(|(_, t)| t.action != Action::Compare);
    let mut warnings = Vec::new();
    let mut wanted = Vec::new();
    let mut experts = 0;
    for (index, tensor) in computed {
        experts = plan.read_models(tensor).len() - 1;
        let Some((count, rows, columns)) = matrices(&tensor.shape).filter(|(count, ..)| *count > 0) else {
            continue;
        };
        if rows.min(columns) > LONGEST {
            warnings.push(format!(
                "tensor `{}`: no spectral statistics, both sides are longer than {LONGEST}",
                crate::error::escape(&tensor.name)
            ));
            continue;
        }
        let short = rows.min(columns) as f64;
        wanted.push((short * short * (rows.max(columns) as f64 + short), index, count, rows, columns));
    }
    wanted.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| plan.tensors[a.1].name.cmp(&plan.tensors[b.1].name))
    });
    let side = wanted.iter().map(|(_, _, _, rows, columns)| *rows.min(columns)).max().unwrap_or(1);
    let threads = plan.threads.min((GRAM_BYTES / (side * side * 8)).max(1) as usize).max(1);
    let level = Level::choose();
    let workers = Workers::start(threads, || Work::new(level, experts + 1, CHUNK))?;
    let map = TileMap::of(wanted.iter().map(|(_, _, count, ..)| *count));
    let found: Mutex<BTreeMap<(usize, u64), Spectra>> = Mutex::default();
    workers.run(
        &map,
        map.all(),
        observer,
        || (),
        |work, (), id, given_up| {
            let (_, index, _, rows, columns) = wanted[id.tensor];
            let matrix = Matrix {
                plan,
                models,
                index,
                first: id.index * rows * columns,
                rows: rows as usize,
                columns: columns as usize,
                experts,
                level,
                exact: if plan.tensors[index].wide { Exact::No } else { Exact::Yes },
                room: GRAM_BYTES / threads as u64,
                given_up,
            };
            let spectra = matrix.spectra(work, settings, id.index == 0)?;
            found.lock().unwrap_or_else(PoisonError::into_inner).insert((index, id.index), spectra);
            observer.add_bytes(plan.source_bytes(&plan.tensors[index]) * 3 / wanted[id.tensor].2);
            Ok(())
        },
    )?;
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut tensors = BTreeMap::new();
    for (_, index, count, ..) in wanted {
        let parts: Vec<(f64, &Spectra)> =
            (0..count).filter_map(|at| Some((1.0, found.get(&(index, at))?))).collect();
        tensors.extend(Spectra::mean(&parts).map(|mean| (index, mean)));
    }
    Ok((tensors, warnings))
}

/// Bytes that the statistics go through, for progress.
pub fn bytes(plan: &MergePlan) -> u64 {
    let is_wanted = |shape: &[u64]| {
        matrices(shape).is_some_and(|(count, rows, columns)| count > 0 && rows.min(columns) <= LONGEST)
    };
    let wanted = plan.tensors.iter().filter(|t| t.action != Action::Compare && is_wanted(&t.shape));
    wanted.map(|t| 3 * plan.source_bytes(t)).sum()
}

/// A matrix in all models. Of `experts` experts there are `2 · experts + 1` matrices: the deltas, the base, the experts.
struct Matrix<'a> {
    plan: &'a MergePlan,
    models: &'a [Checkpoint],
    index: usize,
    /// Its first element in the tensor.
    first: u64,
    rows: usize,
    columns: usize,
    experts: usize,
    level: Level,
    exact: Exact,
    /// Bytes for Gram matrices.
    room: u64,
    given_up: &'a dyn Fn() -> bool,
}

/// Singular values, the largest first, and the vectors of the first few on the shorter side, one after the other.
#[derive(Default)]
struct Values {
    sizes: Vec<f64>,
    near: Vec<f64>,
    count: usize,
}

/// Directions of a matrix on both sides, `count` unit vectors one after the other.
#[derive(Default)]
struct Directions {
    left: Vec<f64>,
    right: Vec<f64>,
    count: usize,
}

impl Matrix<'_> {
    fn short(&self) -> usize {
        self.rows.min(self.columns)
    }

    fn long(&self) -> usize {
        self.rows.max(self.columns)
    }

    /// Whether Gram matrices are those of columns.
    fn is_tall(&self) -> bool {
        self.columns <= self.rows
    }

    fn beta(&self) -> f64 {
        self.short() as f64 / self.long() as f64
    }

    /// Rows of some of the matrices, in f64. A matrix that is not wanted is empty.
    fn load(&self, work: &mut Work, rows: Range<usize>, wanted: &Range<usize>) -> Result<Vec<Vec<f64>>> {
        if (self.given_up)() {
            return Err(Error::Cancelled);
        }
        let len = (rows.end - rows.start) * self.columns;
        let first = self.first + (rows.start * self.columns) as u64;
        let mut out: Vec<Vec<f64>> = (0..2 * self.experts + 1)
            .map(|at| vec![0.0; if wanted.contains(&at) { len } else { 0 }])
            .collect();
        let slice = Slice::new(self.plan, self.models, self.index, first, len as u64);
        slice.fetch(work, Look::Values)?;
        let level = self.level;
        slice.for_chunks(work, Span::Elements, Look::Values, |chunk, _| {
            let begin = (chunk.first - first) as usize;
            for (at, out) in out.iter_mut().enumerate().filter(|(_, out)| !out.is_empty()) {
                let out = &mut out[begin..begin + chunk.len];
                if at < self.experts {
                    chunk.values[at + 1].delta(level, &chunk.values[0], out);
                } else {
                    chunk.values[at - self.experts].widen(level, out);
                }
            }
        });
        slice.check_intact()?;
        slice.release();
        Ok(out)
    }

    /// Runs of rows, so many at a time.
    fn runs(&self, step: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.rows;
        (0..rows).step_by(step).map(move |at| at..(at + step).min(rows))
    }

    /// Gram matrices, on the shorter side, of some of the matrices; the part on and below the diagonal.
    fn grams(&self, work: &mut Work, wanted: &Range<usize>) -> Result<Vec<Vec<f64>>> {
        let side = self.short();
        let mut grams: Vec<Vec<f64>> = wanted.clone().map(|_| vec![0.0; side * side]).collect();
        let (mut a, mut b) = (Packed::default(), Packed::default());
        if self.is_tall() {
            for rows in self.runs(DEPTH) {
                let numbers = self.load(work, rows.clone(), wanted)?;
                for (gram, numbers) in grams.iter_mut().zip(&numbers[wanted.clone()]) {
                    a.set_rows(numbers, side, rows.len(), side);
                    add_products(self.level, &a, &a, Part::Lower, self.exact, gram, side);
                }
            }
            return Ok(grams);
        }
        let bytes = (self.columns * 8 * wanted.len()) as u64;
        let step = ((PANEL_BYTES / bytes) as usize / DEPTH * DEPTH).max(DEPTH);
        for low in self.runs(step) {
            let below = self.load(work, low.clone(), wanted)?;
            for high in self.runs(step).take_while(|high| high.start <= low.start) {
                let same = high.start == low.start;
                let above = if same { Vec::new() } else { self.load(work, high.clone(), wanted)? };
                let part = if same { Part::Lower } else { Part::All };
                for (at, gram) in wanted.clone().zip(&mut grams) {
                    let other = if same { &below[at] } else { &above[at] };
                    let out = &mut gram[low.start * side + high.start..];
                    for column in (0..self.columns).step_by(DEPTH) {
                        let depth = DEPTH.min(self.columns - column);
                        a.set_columns(&below[at][column..], self.columns, depth, low.len());
                        b.set_columns(&other[column..], self.columns, depth, high.len());
                        add_products(self.level, &a, &b, part, self.exact, out, side);
                    }
                }
            }
        }
        Ok(grams)
    }

    /// Singular values of all matrices, with as many vectors as will be needed; `None` for those that are not finite.
    fn values(&self, work: &mut Work, settings: Spectral) -> Result<Vec<Option<Values>>> {
        let (side, all) = (self.short(), 2 * self.experts + 1);
        let at_once = (self.room / (side * side * 8) as u64).clamp(1, all as u64) as usize;
        let mut found = Vec::with_capacity(all);
        for begin in (0..all).step_by(at_once) {
            let wanted = begin..(begin + at_once).min(all);
            for (at, gram) in wanted.clone().zip(self.grams(work, &wanted)?) {
                if (self.given_up)() {
                    return Err(Error::Cancelled);
                }
                found.push(self.values_of(at, gram, settings));
            }
        }
        Ok(found)
    }

    fn values_of(&self, at: usize, gram: Vec<f64>, settings: Spectral) -> Option<Values> {
        let side = self.short();
        let diagonal = || gram.iter().step_by(side + 1);
        if diagonal().any(|v| !v.is_finite()) {
            return None;
        }
        if diagonal().all(|v| *v == 0.0) {
            return Some(Values { sizes: vec![0.0; side], ..Values::default() });
        }
        let three = Tridiagonal::new(self.level, side, gram);
        let squares = three.values()?;
        let sizes: Vec<f64> = squares.iter().map(|v| v.max(0.0).sqrt()).collect();
        let count = if at < self.experts {
            noise_rank(&sizes, self.beta()).min(settings.directions)
        } else {
            principal(side, settings).min(sizes.iter().filter(|v| **v > 0.0).count())
        };
        let near = three.vectors(self.level, &squares, count);
        Some(Values { sizes, near, count })
    }

    /// The directions on both sides; and for experts a and b, at `a · experts + b`, what share of the norm of delta a lies
    /// in the directions of delta b that hold [`ALIGNED`] of its energy above noise.
    fn directions(&self, work: &mut Work, values: &[Option<Values>]) -> Result<(Vec<Directions>, Vec<f64>)> {
        let (rows, columns, experts) = (self.rows, self.columns, self.experts);
        let count = |at: usize| values[at].as_ref().map_or(0, |v| v.count);
        let near = |at: usize| values[at].as_ref().map_or(&[][..], |v| &v.near);
        let mut far: Vec<Vec<f64>> = (0..values.len()).map(|at| vec![0.0; count(at) * self.long()]).collect();
        let mut inside: Vec<Vec<f64>> =
            (0..experts * experts).map(|at| vec![0.0; count(at % experts) * columns]).collect();
        let (mut a, mut b, mut left) = (Packed::default(), Packed::default(), Packed::default());
        for run in self.runs(DEPTH) {
            let numbers = self.load(work, run.clone(), &(0..values.len()))?;
            for (at, numbers) in numbers.iter().enumerate().filter(|(at, _)| count(*at) > 0) {
                if self.is_tall() {
                    for column in (0..columns).step_by(DEPTH) {
                        let depth = DEPTH.min(columns - column);
                        a.set_columns(&near(at)[column..], columns, depth, count(at));
                        b.set_columns(&numbers[column..], columns, depth, run.len());
                        let out = &mut far[at][run.start..];
                        add_products(self.level, &a, &b, Part::All, Exact::No, out, rows);
                    }
                } else {
                    a.set_columns(&near(at)[run.start..], rows, run.len(), count(at));
                    b.set_rows(numbers, columns, run.len(), columns);
                    add_products(self.level, &a, &b, Part::All, Exact::No, &mut far[at], columns);
                }
            }
            for (of, numbers) in numbers[..experts].iter().enumerate() {
                b.set_rows(numbers, columns, run.len(), columns);
                for other in (0..experts).filter(|other| *other != of && count(*other) > 0) {
                    let vectors = if self.is_tall() { &far[other][..] } else { near(other) };
                    left.set_columns(&vectors[run.start..], rows, run.len(), count(other));
                    let out = &mut inside[of * experts + other];
                    add_products(self.level, &left, &b, Part::All, Exact::No, out, columns);
                }
            }
        }
        let mut shares = vec![f64::NAN; experts * experts];
        for (at, inside) in inside.iter().enumerate() {
            let (of, other) = (at / experts, at % experts);
            let (Some(own), Some(into)) = (&values[of], &values[other]) else { continue };
            let norm = square(&own.sizes);
            if of == other || into.count == 0 || norm == 0.0 {
                continue;
            }
            // On the longer side vectors still have the length of their singular values.
            let lengths = |k: usize| if self.is_tall() { into.sizes[k] * into.sizes[k] } else { 1.0 };
            let part: f64 = (0..aligned(into, self.beta()))
                .map(|k| square(&inside[k * columns..(k + 1) * columns]) / lengths(k))
                .sum();
            shares[at] = (part / norm).sqrt();
        }
        let directions = values.iter().zip(far).map(|(values, mut far)| {
            let Some(values) = values else { return Directions::default() };
            for (vector, size) in far.chunks_exact_mut(self.long()).zip(&values.sizes) {
                vector.iter_mut().for_each(|v| *v /= size);
            }
            let near = values.near.clone();
            let (left, right) = if self.is_tall() { (far, near) } else { (near, far) };
            Directions { left, right, count: values.count }
        });
        Ok((directions.collect(), shares))
    }

    /// Inner products of directions, a row for each of `a`.
    fn inner(&self, a: &[f64], b: &[f64], side: usize) -> Vec<f64> {
        let (m, n) = (a.len() / side, b.len() / side);
        let mut out = vec![0.0; m * n];
        let (mut x, mut y) = (Packed::default(), Packed::default());
        for at in (0..side).step_by(DEPTH) {
            let depth = DEPTH.min(side - at);
            if m > 0 && n > 0 {
                x.set_columns(&a[at..], side, depth, m);
                y.set_columns(&b[at..], side, depth, n);
                add_products(self.level, &x, &y, Part::All, Exact::No, &mut out, n);
            }
        }
        out
    }

    /// The largest principal angle between two sets of directions, and the one of the mean squared sine; in degrees.
    fn angles(&self, a: &[f64], b: &[f64], side: usize) -> [f64; 2] {
        let cosines = self.inner(a, b, side);
        let count = a.len() / side;
        if count == 0 || count != b.len() / side {
            return [f64::NAN; 2];
        }
        let mut squares = vec![0.0; count * count];
        for i in 0..count {
            for j in 0..=i {
                squares[i * count + j] =
                    (0..count).map(|k| cosines[k * count + i] * cosines[k * count + j]).sum();
            }
        }
        let Some(values) = Tridiagonal::new(self.level, count, squares).values() else {
            return [f64::NAN; 2];
        };
        let angle = |cosine: f64| (1.0 - cosine).clamp(0.0, 1.0).sqrt().asin().to_degrees();
        [angle(values[count - 1]), angle(square(&cosines) / count as f64)]
    }

    /// ‖(UᵀU − I) Σ (VᵀV − I)‖₁ of the directions of some experts side by side, the same over ‖Σ‖₁, and what that is for
    /// directions that have nothing to do with each other.
    fn interference(&self, values: &[Option<Values>], directions: &[Directions], of: &[usize]) -> [f64; 3] {
        // With more directions than a side has, even unrelated ones meet.
        let most = self.short() / of.len();
        let mut sizes = Vec::new();
        let mut owner = Vec::new();
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for at in of {
            let Some(own) = &values[*at] else { return [f64::NAN; 3] };
            let count = own.count.min(most);
            sizes.extend_from_slice(&own.sizes[..count]);
            owner.resize(sizes.len(), *at);
            left.extend_from_slice(&directions[*at].left[..count * self.rows]);
            right.extend_from_slice(&directions[*at].right[..count * self.columns]);
        }
        let count = sizes.len();
        let total: f64 = sizes.iter().sum();
        if total == 0.0 {
            return [f64::NAN; 3];
        }
        let mut u = self.inner(&left, &left, self.rows);
        let mut v = self.inner(&right, &right, self.columns);
        for i in 0..count {
            for j in (0..count).filter(|j| owner[i] == owner[*j]) {
                // Directions of one expert are orthogonal.
                (u[i * count + j], v[i * count + j]) = (0.0, 0.0);
            }
        }
        let (mut found, mut chance) = (0.0, 0.0);
        let sides = (self.rows * self.columns) as f64;
        for i in 0..count {
            let mut row = vec![0.0; count];
            for k in 0..count {
                let factor = u[i * count + k] * sizes[k];
                for (o, v) in row.iter_mut().zip(&v[k * count..(k + 1) * count]) {
                    *o += factor * v;
                }
            }
            found += row.iter().map(|v| v.abs()).sum::<f64>();
            for j in 0..count {
                let others = (0..count).filter(|k| owner[*k] != owner[i] && owner[*k] != owner[j]);
                let variance: f64 = others.map(|k| sizes[k] * sizes[k] / sides).sum();
                chance += (2.0 / std::f64::consts::PI * variance).sqrt();
            }
        }
        [found, found / total, chance / total]
    }

    /// Of the elements that each expert changed, the share that the largest directions of the base make large, and what
    /// share of all elements that is.
    fn principal(
        &self,
        work: &mut Work,
        values: &[Option<Values>],
        directions: &[Directions],
        settings: Spectral,
    ) -> Result<Vec<[f64; 2]>> {
        let experts = self.experts;
        let undefined = vec![[f64::NAN; 2]; experts];
        let (Some(base), of) = (&values[experts], &directions[experts]) else { return Ok(undefined) };
        if of.count == 0 {
            return Ok(undefined);
        }
        let mut scaled = of.right.clone();
        for (vector, size) in scaled.chunks_exact_mut(self.columns).zip(&base.sizes) {
            vector.iter_mut().for_each(|v| *v *= size);
        }
        let (mut a, mut b) = (Packed::default(), Packed::default());
        b.set_rows(&scaled, self.columns, of.count, self.columns);
        let mut tables = vec![vec![0u64; KEYS]; experts + 1];
        let mut near = Vec::new();
        let mut keys: Vec<u32> = Vec::new();
        for run in self.runs(DEPTH) {
            let deltas = self.load(work, run.clone(), &(0..experts))?;
            a.set_rows(&of.left[run.start..], self.rows, of.count, run.len());
            near.clear();
            near.resize(run.len() * self.columns, 0.0);
            add_products(self.level, &a, &b, Part::All, Exact::No, &mut near, self.columns);
            keys.clear();
            keys.extend(near.iter().map(|v| stats::key(*v) as u32));
            let (all, own) = tables.split_at_mut(1);
            keys.iter().for_each(|key| all[0][*key as usize] += 1);
            for (table, delta) in own.iter_mut().zip(&deltas) {
                for (key, delta) in keys.iter().zip(delta) {
                    table[*key as usize] += u64::from(delta.abs() > settings.epsilon);
                }
            }
        }
        let elements = (self.rows * self.columns) as f64;
        let wanted = (settings.share * elements).ceil() as u64;
        let (mut cut, mut count) = (KEYS, 0);
        while cut > 1 && count < wanted {
            cut -= 1;
            count += tables[0][cut];
        }
        let share = |table: &Vec<u64>| {
            let (inside, changed): (u64, u64) = (table[cut..].iter().sum(), table.iter().sum());
            if changed == 0 { f64::NAN } else { inside as f64 / changed as f64 }
        };
        Ok(tables[1..].iter().map(|table| [share(table), count as f64 / elements]).collect())
    }

    /// All statistics of the matrix.
    fn spectra(&self, work: &mut Work, settings: Spectral, draw: bool) -> Result<Spectra> {
        let (experts, beta) = (self.experts, self.beta());
        let all_pairs: Vec<(usize, usize)> = pairs(experts).collect();
        let values = self.values(work, settings)?;
        let (directions, shares) = self.directions(work, &values)?;
        let principal = self.principal(work, &values, &directions, settings)?;
        let noise = Noise::new(self.short() as u64, self.long() as u64);
        let mut found = Spectra::undefined(experts, all_pairs.len());
        let base = values[experts].as_ref();
        for (at, numbers) in found.experts.iter_mut().enumerate() {
            let Some(own) = &values[at] else { continue };
            let energy = square(&own.sizes);
            let share = |count: usize| square(&own.sizes[..count.min(own.sizes.len())]) / energy;
            let rank = noise_rank(&own.sizes, beta);
            numbers[..10].copy_from_slice(&[
                energy / (own.sizes[0] * own.sizes[0]),
                noise.stable_rank(),
                if energy > 0.0 { effective_rank(&own.sizes) } else { f64::NAN },
                noise.effective_rank(),
                rank as f64,
                share(rank),
                share(1),
                noise.energy(1),
                share(8),
                noise.energy(8.min(self.short())),
            ]);
            let (Some(base), Some(tuned)) = (base, &values[experts + 1 + at]) else { continue };
            let (from, to) = (&directions[experts], &directions[experts + 1 + at]);
            let [left, left_typical] = self.angles(&from.left, &to.left, self.rows);
            let [right, right_typical] = self.angles(&from.right, &to.right, self.columns);
            let chance = |side: usize| {
                let unrelated = 1.0 - from.count as f64 / side as f64;
                unrelated.max(0.0).sqrt().asin().to_degrees()
            };
            let moved: f64 = base.sizes.iter().zip(&tuned.sizes).map(|(a, b)| (a - b) * (a - b)).sum();
            numbers[10..].copy_from_slice(&[
                left,
                right,
                left_typical,
                right_typical,
                chance(self.rows),
                chance(self.columns),
                (moved / square(&base.sizes)).sqrt(),
                (moved / energy).sqrt(),
                1.0 / (self.long() as f64).sqrt(),
                principal[at][0],
                principal[at][1],
            ]);
        }
        for ((a, b), numbers) in all_pairs.iter().zip(&mut found.pairs) {
            let chance = |of: usize| {
                let count = values[of].as_ref().map_or(0, |v| aligned(v, beta));
                if count == 0 { f64::NAN } else { (count as f64 / self.rows as f64).sqrt() }
            };
            let [sum, share, expected] = self.interference(&values, &directions, &[*a, *b]);
            *numbers = [
                shares[a * experts + b],
                chance(*b),
                shares[b * experts + a],
                chance(*a),
                sum,
                share,
                expected,
            ];
        }
        if experts > 1 {
            let everybody: Vec<usize> = (0..experts).collect();
            found.together = self.interference(&values, &directions, &everybody);
        }
        if draw {
            found.curves = Some(self.curves(&values, &noise));
        }
        Ok(found)
    }

    /// Some singular values for a picture, evenly spaced in the logarithm of their index.
    fn curves(&self, values: &[Option<Values>], noise: &Noise) -> Curves {
        let side = self.short();
        let mut index: Vec<usize> = (0..CURVE)
            .map(|i| ((side as f64).powf(i as f64 / (CURVE - 1) as f64) - 1.0).round() as usize)
            .map(|i| i.min(side - 1))
            .collect();
        index.dedup();
        let some = |at: usize| -> Vec<f64> {
            index.iter().map(|i| values[at].as_ref().map_or(f64::NAN, |v| v.sizes[*i])).collect()
        };
        let root = (side as f64).sqrt();
        Curves {
            sides: [side as u64, self.long() as u64],
            base: some(self.experts),
            deltas: (0..self.experts).map(some).collect(),
            edges: (0..self.experts)
                .map(|at| values[at].as_ref().map_or(f64::NAN, |v| noise_edge(&v.sizes, self.beta())))
                .collect(),
            noise: index.iter().map(|i| noise.value(*i) / root).collect(),
            index,
        }
    }
}

/// How many of a weight's directions are its principal ones.
fn principal(side: usize, settings: Spectral) -> usize {
    settings.directions.min(side.div_ceil(4))
}

/// How many of the directions hold [`ALIGNED`] of the energy above noise; at most as many as there are vectors.
fn aligned(values: &Values, beta: f64) -> usize {
    let rank = noise_rank(&values.sizes, beta);
    let wanted = ALIGNED * square(&values.sizes[..rank]);
    let mut sum = 0.0;
    for (at, size) in values.sizes.iter().enumerate().take(values.count) {
        sum += size * size;
        if sum >= wanted {
            return at + 1;
        }
    }
    values.count
}

fn square(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum()
}

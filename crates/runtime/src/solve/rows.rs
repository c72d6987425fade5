//! Features as the solver reads them: centred, scaled where asked to, with a one for the bias, padded to whole vectors, a
//! few hundred rows at a time.
//!
//! Centring costs nothing, since the bias is free, and saves the digits that a large common offset would take from
//! float32 products.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::kernel::LANES;
use crate::features::Features;
use crate::panels::vectorised;
use crate::random::Random;
use crate::scratch::AlignedVec;

/// Numbers up to which prepared rows are kept, 32 MiB: what the last cache may hold. Beyond, every pass prepares them
/// again, and memory does not grow with the features.
const MAX_READY: usize = 8 << 20;

/// Numbers that are prepared at once where outputs are few: half of a second cache of 1 MiB.
const CHUNK_NUMBERS: usize = 1 << 17;

/// The most rows that are prepared at once where outputs are few or a gradient small.
pub(super) const MAX_CHUNK: usize = 128;

/// Rows whose mean is near enough to that of all for sums about it.
const FEW_ROWS: usize = 64;

/// Rows that are taken at once where a gradient lies in memory: it is read and written once for all of them.
pub(super) const MANY_CHUNK: usize = 512;

/// `[N, stride]`: D features, a one, zeros.
#[derive(Debug)]
pub(super) struct Rows<'f> {
    features: &'f Features,
    /// `[D]`.
    pub(super) centre: Vec<f32>,
    /// `[D]`: 1, or one over the standard deviation.
    pub(super) scale: Vec<f32>,
    /// `[D]`: the sums of squares of the prepared features.
    pub(super) squares: Vec<f64>,
    /// Numbers from one prepared row to the next.
    pub(super) stride: usize,
    /// Rows that are prepared at once where outputs are few.
    pub(super) chunk_rows: usize,
    ready: Option<AlignedVec>,
    /// Per class the sum of its prepared rows, `[K, stride]`, where they are known.
    class_sums: Option<Vec<f64>>,
}

/// The class of each row, and how many there are.
pub(super) type Classes<'c> = (&'c [u32], usize);

/// Room for rows that are being prepared.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    raw: Vec<f32>,
    rows: AlignedVec,
}

impl<'f> Rows<'f> {
    pub(super) fn new(features: &'f Features, standardise: bool) -> Rows<'f> {
        Rows::with_classes(features, standardise, None)
    }

    /// Also adds up the rows of each class, where these are few, while they are being read anyway.
    pub(super) fn with_classes(
        features: &'f Features,
        standardise: bool,
        classes: Option<Classes<'_>>,
    ) -> Rows<'f> {
        let (n, d) = (features.n_rows(), features.n_features());
        // About the mean of a few rows, which loses no digits where a common offset is large.
        let few = spread(n, FEW_ROWS);
        let mut about = vec![0.0f64; d];
        let mut raw = Vec::new();
        for row in &few {
            let values = features.rows(*row..*row + 1, &mut raw);
            about
                .iter_mut()
                .zip(values)
                .for_each(|(sum, x)| *sum += f64::from(*x));
        }
        about
            .iter_mut()
            .for_each(|sum| *sum = f64::from((*sum / few.len() as f64) as f32));
        let moments = moments(features, &about, classes);
        let sums = moments.sums();
        let mut rows = Rows::bare(features, vec![0.0; d], moments.squares.clone());
        for (j, square) in rows.squares.iter_mut().enumerate() {
            let mean = about[j] + sums[j] / n as f64;
            rows.centre[j] = mean as f32;
            let off = f64::from(rows.centre[j]) - about[j];
            *square = (*square - off * (2.0 * sums[j] - n as f64 * off)).max(0.0);
            if standardise {
                let n = n as f64;
                let variance = *square / n;
                // scikit-learn's bound below which a variance is only the rounding of the mean.
                let rounding = n * f64::EPSILON * variance + (n * mean * f64::EPSILON).powi(2);
                if variance > rounding {
                    rows.scale[j] = (1.0 / variance.sqrt()) as f32;
                }
                *square *= f64::from(rows.scale[j]).powi(2);
            }
        }
        rows.class_sums = rows.prepared_sums(&moments, &about);
        rows.make_ready();
        rows
    }

    /// About a given centre, not scaled; see [`with_classes`](Rows::with_classes).
    pub(super) fn centred(
        features: &'f Features,
        centre: Vec<f32>,
        classes: Option<Classes<'_>>,
    ) -> Rows<'f> {
        let about: Vec<f64> = centre.iter().map(|x| f64::from(*x)).collect();
        let moments = moments(features, &about, classes);
        let mut rows = Rows::bare(features, centre, moments.squares.clone());
        rows.class_sums = rows.prepared_sums(&moments, &about);
        rows.make_ready();
        rows
    }

    fn bare(features: &'f Features, centre: Vec<f32>, squares: Vec<f64>) -> Rows<'f> {
        let (stride, chunk_rows) = shape(centre.len());
        Rows {
            features,
            scale: vec![1.0; centre.len()],
            squares,
            centre,
            stride,
            chunk_rows,
            ready: None,
            class_sums: None,
        }
    }

    /// Per class the sum of its prepared rows, from those about other numbers.
    fn prepared_sums(&self, moments: &Moments, about: &[f64]) -> Option<Vec<f64>> {
        let d = about.len();
        let counts = moments.counts.as_ref()?;
        let mut out = vec![0.0; counts.len() * self.stride];
        let of_classes = moments.class_sums.chunks_exact(d).zip(counts);
        for (out, (sums, n)) in out.chunks_exact_mut(self.stride).zip(of_classes) {
            for (j, sum) in sums.iter().enumerate() {
                let off = f64::from(self.centre[j]) - about[j];
                out[j] = (sum - n * off) * f64::from(self.scale[j]);
            }
            out[d] = *n;
        }
        Some(out)
    }

    /// Per class the sum of its prepared rows, `[K, stride]`, where it was told the classes and they are few.
    pub(super) fn class_sums(&self) -> Option<&[f64]> {
        self.class_sums.as_deref()
    }

    fn make_ready(&mut self) {
        let (n, stride, chunk_rows) = (self.n_rows(), self.stride, self.chunk_rows);
        if n * stride > MAX_READY {
            return;
        }
        let mut ready = AlignedVec::zeros(n * stride);
        let n_numbers = chunk_rows * stride;
        let fill = |(chunk, out): (usize, &mut [f32])| {
            let first = chunk * chunk_rows;
            self.prepare(first..first + out.len() / stride, &mut Vec::new(), out);
        };
        if n * stride < SMALL {
            ready.chunks_mut(n_numbers).enumerate().for_each(fill);
        } else {
            ready.par_chunks_mut(n_numbers).enumerate().for_each(fill);
        }
        self.ready = Some(ready);
    }

    /// N.
    pub(super) fn n_rows(&self) -> usize {
        self.features.n_rows()
    }

    /// D.
    pub(super) fn n_features(&self) -> usize {
        self.features.n_features()
    }

    /// Some rows as the products read them; a caller takes a few hundred at a time.
    pub(super) fn chunk<'a>(&'a self, rows: Range<usize>, scratch: &'a mut Scratch) -> &'a [f32] {
        if let Some(ready) = &self.ready {
            return &ready[rows.start * self.stride..rows.end * self.stride];
        }
        scratch.rows.resize(rows.len() * self.stride);
        self.prepare(rows, &mut scratch.raw, &mut scratch.rows);
        &scratch.rows
    }

    fn prepare(&self, rows: Range<usize>, raw: &mut Vec<f32>, out: &mut [f32]) {
        let values = self.features.rows(rows, raw);
        pulp::Arch::new().dispatch(Prepare {
            values,
            centre: &self.centre,
            scale: &self.scale,
            stride: self.stride,
            out,
        });
    }
}

struct Prepare<'a> {
    values: &'a [f32],
    centre: &'a [f32],
    scale: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
}

// A type and not a closure: a closure would not be compiled for the wider vectors.
impl pulp::NullaryFnOnce for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let d = self.centre.len();
        let rows = self.values.chunks_exact(d);
        for (out, row) in self.out.chunks_exact_mut(self.stride).zip(rows) {
            let (numbers, rest) = out.split_at_mut(d);
            let affine = self.centre.iter().zip(self.scale);
            for ((out, x), (centre, scale)) in numbers.iter_mut().zip(row).zip(affine) {
                *out = (x - centre) * scale;
            }
            rest.fill(0.0);
            rest[0] = 1.0;
        }
    }
}

/// Numbers of a prepared row, and rows of a chunk.
fn shape(d: usize) -> (usize, usize) {
    let stride = (d + 1).next_multiple_of(LANES);
    (
        stride,
        (CHUNK_NUMBERS / stride / LANES * LANES).clamp(LANES, MAX_CHUNK),
    )
}

/// `n` of the rows that stand for all: one of each of `n` runs, so that neither an order by class nor one that comes back every
/// few rows shows in them. All of them where there are no more.
pub(super) fn spread(n_rows: usize, n: usize) -> Vec<usize> {
    if n >= n_rows {
        return (0..n_rows).collect();
    }
    let mut random = Random::new(0, "rows that stand for all");
    let of_run = |run: usize| {
        let place = |run: usize| (run as u64 * n_rows as u64 / n as u64) as usize;
        let (first, end) = (place(run), place(run + 1));
        first + random.below(end - first)
    };
    (0..n).map(of_run).collect()
}

/// Sums over rows of what lies above some numbers.
struct Moments {
    /// `[K, D]`, of all rows where there are no classes.
    class_sums: Vec<f64>,
    /// `[D]`: of the squares.
    squares: Vec<f64>,
    /// `[K]`: rows of each class.
    counts: Option<Vec<f64>>,
}

impl Moments {
    /// `[D]`: over all rows.
    fn sums(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.squares.len()];
        for of_class in self.class_sums.chunks_exact(sums.len()) {
            let both = sums.iter_mut().zip(of_class);
            both.for_each(|(sum, of_class)| *sum += of_class);
        }
        sums
    }
}

/// Per column the sum of what lies above `about`, and of its square; by class, where there are a few whose sums stay in the
/// second cache.
fn moments(features: &Features, about: &[f64], classes: Option<Classes<'_>>) -> Moments {
    /// Classes, each of which looks for its rows, and numbers of their sums.
    const FEW: usize = 16;
    const NEAR: usize = 1 << 15;
    let d = about.len();
    let (_, chunk_rows) = shape(d);
    let classes = classes.filter(|(_, k)| *k <= FEW && k * d <= NEAR);
    let k = classes.map_or(1, |(_, k)| k);
    let segments = Segments::new(features.n_rows(), d, (k + 1) * d);
    let mut class_sums = segments.sum(|rows| {
        let mut both = vec![0.0f64; (k + 1) * d];
        let (sums, squares) = both.split_at_mut(k * d);
        let mut raw = Vec::new();
        for start in rows.clone().step_by(chunk_rows) {
            let chunk = start..(start + chunk_rows).min(rows.end);
            let values = features.rows(chunk.clone(), &mut raw);
            for (class, sums) in sums.chunks_exact_mut(d).enumerate() {
                let is_own = |at: usize| classes.is_none_or(|(labels, _)| labels[start + at] == class as u32);
                let own = values.chunks_exact(d).enumerate();
                let own: Vec<&[f32]> = own.filter(|(at, _)| is_own(*at)).map(|(_, row)| row).collect();
                add_moments(&own, about, sums, squares);
            }
        }
        both
    });
    let squares = class_sums.split_off(k * d);
    let counts = classes.map(|(labels, k)| {
        let mut counts = vec![0.0; k];
        labels.iter().for_each(|label| counts[*label as usize] += 1.0);
        counts
    });
    Moments {
        class_sums,
        squares,
        counts,
    }
}

vectorised! {
    fn add_moments(rows: &'a [&'a [f32]], about: &'a [f64], sums: &'a mut [f64], squares: &'a mut [f64]) {
        let d = about.len();
        let (sums, squares) = (&mut sums[..d], &mut squares[..d]);
        // Four rows at once, since sums of many columns are further away than the innermost cache.
        let (fours, rest) = rows.as_chunks::<4>();
        for rows in fours {
            let [first, second, third, fourth] = rows.map(|row| &row[..d]);
            for j in 0..d {
                let (mut sum, mut square) = (sums[j], squares[j]);
                for x in [first[j], second[j], third[j], fourth[j]] {
                    let above = f64::from(x) - about[j];
                    sum += above;
                    square += above * above;
                }
                (sums[j], squares[j]) = (sum, square);
            }
        }
        for row in rest {
            let row = &row[..d];
            for j in 0..d {
                let above = f64::from(row[j]) - about[j];
                sums[j] += above;
                squares[j] += above * above;
            }
        }
    }
}

/// Numbers of work below which waking a second thread costs more than it saves.
const SMALL: usize = 1 << 16;

/// Runs of rows over which sums are made apart, and then added in order: they depend on the problem and not on the
/// threads, and so does the result.
#[derive(Debug)]
pub(super) struct Segments {
    n_rows: usize,
    rows_each: usize,
}

impl Segments {
    /// For `work` multiplications a row and `n_sums` numbers of sums.
    pub(super) fn new(n_rows: usize, work: usize, n_sums: usize) -> Segments {
        const MAX_SEGMENTS: usize = 16;
        /// All sums together: 64 MiB, or four of them where those are more.
        const MAX_NUMBERS: usize = 8 << 20;
        let n = if n_rows.saturating_mul(work) < SMALL {
            1
        } else {
            (MAX_NUMBERS / n_sums.max(1)).clamp(4, MAX_SEGMENTS)
        };
        Segments {
            n_rows,
            rows_each: n_rows.div_ceil(n).next_multiple_of(LANES).max(1),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.n_rows.div_ceil(self.rows_each)
    }

    /// The rows of one.
    pub(super) fn rows(&self, segment: usize) -> Range<usize> {
        let start = segment * self.rows_each;
        start..(start + self.rows_each).min(self.n_rows)
    }

    /// Adds up what `partial` makes of each.
    pub(super) fn sum(&self, partial: impl Fn(Range<usize>) -> Vec<f64> + Sync) -> Vec<f64> {
        if self.len() == 1 {
            return partial(self.rows(0));
        }
        let parts: Vec<Vec<f64>> = (0..self.len())
            .into_par_iter()
            .map(|segment| partial(self.rows(segment)))
            .collect();
        let mut parts = parts.into_iter();
        let mut total = parts.next().unwrap_or_default();
        for part in parts {
            let both = total.iter_mut().zip(part);
            both.for_each(|(total, part)| *total += part);
        }
        total
    }

    /// Runs `work` for each with room of its own.
    pub(super) fn each<W: Send>(&self, rooms: &[Mutex<W>], work: impl Fn(Range<usize>, &mut W) + Sync) {
        let of_one = |segment: usize| {
            // A room whose last user panicked is as good as any: it is written before it is read.
            let mut room = rooms[segment]
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            work(self.rows(segment), &mut room);
        };
        if self.len() == 1 {
            of_one(0);
        } else {
            (0..self.len()).into_par_iter().for_each(of_one);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_stand_for_all_are_one_of_each_run_and_of_every_class_that_comes_back() {
        let chosen = spread(4000, 250);
        assert!(chosen.iter().enumerate().all(|(run, row)| row / 16 == run));
        for class in 0..8 {
            let n = chosen.iter().filter(|row| *row % 8 == class).count();
            assert!((15..=50).contains(&n), "{class}: {n}");
        }
        assert_eq!(spread(5, 9), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn centres_and_squares_are_those_of_all_rows() {
        // A large common offset, a constant column, and more rows than a first mean is taken of.
        let (n, d) = (30_000, 3);
        let mut random = Random::new(3, "rows test");
        let value = |at: usize, random: &mut Random| match at % d {
            0 => 1000.0 + random.below(100) as f32 / 100.0,
            1 => 0.3,
            _ => (at / d) as f32 / n as f32,
        };
        let values: Vec<f32> = (0..n * d).map(|at| value(at, &mut random)).collect();
        let features = Features::new(values.clone(), d).unwrap();
        // The last class has no row.
        let labels: Vec<u32> = (0..n as u32).map(|row| (row * row) % 3).collect();
        for standardise in [false, true] {
            let rows = Rows::with_classes(&features, standardise, Some((&labels, 3)));
            let centre = rows.centre.clone();
            let about = Rows::centred(&features, centre, Some((&labels, 3)));
            for rows in [&rows, &about] {
                let mut scratch = Scratch::default();
                let prepared = rows.chunk(0..n, &mut scratch);
                let sums = rows.class_sums().unwrap().chunks_exact(rows.stride);
                for (class, sums) in sums.enumerate() {
                    for (j, sum) in sums.iter().enumerate() {
                        let own = prepared.chunks_exact(rows.stride).zip(&labels);
                        let own = own.filter(|(_, label)| **label == class as u32);
                        let terms: Vec<f64> = own.map(|(row, _)| f64::from(row[j])).collect();
                        let size: f64 = terms.iter().map(|x| x.abs()).sum();
                        assert!(
                            (terms.iter().sum::<f64>() - sum).abs() <= 1e-6 * size,
                            "{class} {j}"
                        );
                    }
                }
            }
            for j in 0..d {
                let column = || values.iter().skip(j).step_by(d).map(|x| f64::from(*x));
                let mean = column().sum::<f64>() / n as f64;
                assert!((f64::from(rows.centre[j]) - mean).abs() <= 1e-7 * mean.abs());
                let scale = f64::from(rows.scale[j]);
                let centre = f64::from(rows.centre[j]);
                let square: f64 = column().map(|x| ((x - centre) * scale).powi(2)).sum();
                assert!(
                    (rows.squares[j] - square).abs() <= 1e-9 * square,
                    "{j}: {} {square}",
                    rows.squares[j]
                );
                let deviation = (square / n as f64).sqrt();
                let want = if !standardise || j == 1 {
                    scale
                } else {
                    scale / deviation
                };
                assert!((scale - want).abs() <= 1e-6 * want && (j != 1 || scale == 1.0));
            }
        }
    }
}

//! Second moments of prepared rows: the one matrix that all values of C, all classes, and the closed forms share.

use rayon::prelude::*;

use super::kernel::LANES;
use super::linalg::transposed_matmul;
use super::rows::{Rows, Scratch, Segments, spread};
use crate::panels::{Outer, Place, pack};
use crate::scratch::{self, AlignedVec};

/// Rows whose products are added in float32 before they go into float64; no power of two, so that panels of them do not meet in
/// the same places of a cache.
pub(super) const FLUSH_ROWS: usize = 1000;

/// Rows and columns of a block that one thread makes.
const BAND: usize = 96;

/// `Σ x xᵀ` over prepared rows, `[stride, stride]`, of which the lower triangle is filled; for a preconditioner, in
/// float32 products. Where `max_rows` is less than N, as many rows stand for all. `weights`, `[N]`, are how much each row
/// counts.
pub(super) fn gram(rows: &Rows<'_>, max_rows: usize, weights: Option<&[f32]>) -> Vec<f64> {
    let stride = rows.stride;
    let used = spread(rows.n_rows(), max_rows.max(1));
    let mut sums = vec![0.0f64; stride * stride];
    let (mut block, mut panels, mut weighted) = (
        AlignedVec::default(),
        AlignedVec::default(),
        AlignedVec::default(),
    );
    for (part, which) in used.chunks(FLUSH_ROWS).enumerate() {
        gather(rows, which, &mut block);
        let n = which.len();
        put_into_panels(&block, stride, &mut panels);
        if let Some(weights) = weights {
            let here: Vec<f32> = which.iter().map(|row| weights[*row]).collect();
            weighted.resize(panels.len());
            weighted.copy_from_slice(&panels);
            weighted.par_chunks_exact_mut(n * LANES).for_each(|panel| {
                for (row, weight) in panel.chunks_exact_mut(LANES).zip(&here) {
                    row.iter_mut().for_each(|x| *x *= weight);
                }
            });
        }
        let left = if weights.is_some() { &weighted } else { &panels };
        // Each band of the matrix is one thread's, so that no sum depends on their number.
        let of_band = |(band, out): (usize, &mut [f64])| {
            let first = band * BAND;
            let height = out.len() / stride;
            let n_columns = first + height;
            let mut room = scratch::take(height * stride);
            let product = room.as_mut();
            Outer {
                a: &left[first * n..],
                a_row: LANES,
                a_panel: n * LANES,
                n_a: height,
                b: &panels,
                b_panel: n * LANES,
                n_rows: n,
                out: &mut *product,
                place: Place {
                    row: stride,
                    panel: LANES,
                    n_columns,
                    is_added: false,
                },
            }
            .run();
            for (out, product) in out.chunks_exact_mut(stride).zip(product.chunks_exact(stride)) {
                let both = out[..n_columns].iter_mut().zip(product);
                // Fresh zeros are not read: reading them first makes a page twice.
                if part == 0 {
                    both.for_each(|(out, product)| *out = f64::from(*product));
                } else {
                    both.for_each(|(out, product)| *out += f64::from(*product));
                }
            }
        };
        if n * stride * stride < 1 << 22 {
            sums.chunks_mut(BAND * stride).enumerate().for_each(of_band);
        } else {
            // One by one, since they are of different length.
            let bands = sums.par_chunks_mut(BAND * stride).enumerate();
            bands.with_max_len(1).for_each(of_band);
        }
    }
    let scale = rows.n_rows() as f64 / used.len() as f64;
    if scale != 1.0 {
        sums.iter_mut().for_each(|sum| *sum *= scale);
    }
    sums
}

fn gather(rows: &Rows<'_>, which: &[usize], block: &mut AlignedVec) {
    let stride = rows.stride;
    block.resize(which.len() * stride);
    block
        .par_chunks_mut(rows.chunk_rows * stride)
        .zip(which.par_chunks(rows.chunk_rows))
        .for_each_init(Scratch::default, |scratch, (out, which)| {
            if which[which.len() - 1] - which[0] + 1 == which.len() {
                let range = which[0]..which[0] + which.len();
                out.copy_from_slice(rows.chunk(range, scratch));
                return;
            }
            for (row, out) in which.iter().zip(out.chunks_exact_mut(stride)) {
                out.copy_from_slice(rows.chunk(*row..*row + 1, scratch));
            }
        });
}

/// `[n, stride]` in panels of columns.
fn put_into_panels(block: &[f32], stride: usize, out: &mut AlignedVec) {
    /// Columns that one thread moves at once: whole lines of the cache.
    const COLUMNS: usize = 8 * LANES;
    let n = block.len() / stride;
    out.resize(block.len());
    out.par_chunks_mut(COLUMNS * n).enumerate().for_each(|(at, out)| {
        let n_columns = out.len() / n;
        pack(&block[at * COLUMNS..], stride, n, n_columns, out);
    });
}

/// [`gram`] of all rows with float64 products, the whole matrix: for what is solved with it directly.
pub(super) fn exact_gram(rows: &Rows<'_>) -> Vec<f64> {
    let stride = rows.stride;
    let segments = Segments::new(rows.n_rows(), stride * stride, stride * stride);
    segments.sum(|range| {
        let mut sums = vec![0.0f64; stride * stride];
        let mut product = vec![0.0f64; stride * stride];
        let (mut scratch, mut wide) = (Scratch::default(), Vec::new());
        for start in range.clone().step_by(FLUSH_ROWS) {
            wide.clear();
            let end = (start + FLUSH_ROWS).min(range.end);
            for start in (start..end).step_by(rows.chunk_rows) {
                let chunk = rows.chunk(start..(start + rows.chunk_rows).min(end), &mut scratch);
                wide.extend(chunk.iter().map(|x| f64::from(*x)));
            }
            transposed_matmul(&wide, &wide, &mut product, stride, stride);
            sums.iter_mut()
                .zip(&product)
                .for_each(|(sum, value)| *sum += value);
        }
        sums
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::random::Random;

    #[test]
    fn rows_count_by_their_weights_in_every_band() {
        // More columns than a band has and than one thread moves at once, and more rows than are added in float32.
        let (n, d) = (FLUSH_ROWS + 76, 150);
        let mut random = Random::new(5, "gram test");
        let values = (0..n * d)
            .map(|_| random.below(1000) as f32 / 500.0 - 1.0)
            .collect();
        let features = Features::new(values, d).unwrap();
        let rows = Rows::new(&features, false);
        let stride = rows.stride;
        let weights: Vec<f32> = (0..n).map(|row| (row % 4) as f32 * 0.5).collect();
        let mut scratch = Scratch::default();
        let prepared = rows.chunk(0..n, &mut scratch);
        for (by, got) in [
            (None, gram(&rows, n, None)),
            (Some(&weights), gram(&rows, n, Some(&weights))),
        ] {
            for (i, j) in (0..=d).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let terms = prepared.chunks_exact(stride).enumerate().map(|(row, x)| {
                    f64::from(by.map_or(1.0, |weights| weights[row])) * f64::from(x[i]) * f64::from(x[j])
                });
                let want: f64 = terms.sum();
                assert!((got[i * stride + j] - want).abs() < 1e-6 * n as f64, "{i} {j}");
            }
        }
    }

    #[test]
    fn both_equal_the_definition() {
        let (n, d) = (2311, 37);
        let mut random = Random::new(1, "gram test");
        let values = (0..n * d)
            .map(|_| random.below(1000) as f32 / 500.0 - 1.0)
            .collect();
        let features = Features::new(values, d).unwrap();
        let rows = Rows::new(&features, false);
        let (fast, exact) = (gram(&rows, n, None), exact_gram(&rows));
        let values = features.values();
        let stride = rows.stride;
        for i in 0..=d {
            for j in 0..=i {
                let x = |row: usize, at: usize| {
                    if at == d {
                        1.0
                    } else {
                        f64::from(values[row * d + at] - rows.centre[at])
                    }
                };
                let want: f64 = (0..n).map(|row| x(row, i) * x(row, j)).sum();
                let close = |got: f64, digits: f64| (got - want).abs() <= digits * n as f64;
                assert!(
                    close(fast[i * stride + j], 1e-6),
                    "{i} {j}: {} {want}",
                    fast[i * stride + j]
                );
                assert!(close(exact[i * stride + j], 1e-13) && close(exact[j * stride + i], 1e-13));
            }
        }
        let part = gram(&rows, 800, None);
        assert!((part[0] / exact[0] - 1.0).abs() < 0.2);
        let weights: Vec<f32> = (0..n).map(|row| (row % 3) as f32).collect();
        let weighted = gram(&rows, n, Some(&weights));
        let want: f64 = (0..n)
            .map(|row| (row % 3) as f64 * f64::from(values[row * d] - rows.centre[0]).powi(2))
            .sum();
        assert!((weighted[0] / want - 1.0).abs() < 1e-6);
    }
}

//! The best approximation of a matrix by one of low rank (Eckart and Young 1936), as two factors.
//!
//! Small matrices by QR and Jacobi, to the last digits. Large ones by a randomized range finder (Halko, Martinsson and Tropp, "Finding
//! structure with randomness", SIAM Review 53, 2011, algorithm 4.4): power iterations, orthonormalised on both sides, until what is
//! left over moves no more. They are read in chunks of rows and never held. What is random depends on a name alone.

use super::matrix::{Columns, Strided, jacobi_svd, multiply_add, thin_qr};
use crate::Error;
use crate::lazy::{Distribution, Draw};

/// A matrix that is read in chunks of rows.
pub(super) trait Rows {
    /// Rows and columns.
    fn size(&self) -> (usize, usize);

    /// Calls `visit` for chunks of whole rows in order, each with the number of its first row.
    fn for_each_chunk(&self, visit: &mut dyn FnMut(usize, &[f64])) -> Result<(), Error>;
}

/// A matrix of that many columns, row by row in memory.
pub(super) struct Held {
    pub(super) n_cols: usize,
    pub(super) values: Vec<f64>,
}

impl Rows for Held {
    fn size(&self) -> (usize, usize) {
        (self.values.len() / self.n_cols.max(1), self.n_cols)
    }

    fn for_each_chunk(&self, visit: &mut dyn FnMut(usize, &[f64])) -> Result<(), Error> {
        visit(0, &self.values);
        Ok(())
    }
}

/// `left · rightᵀ`, with the square roots of the singular values in both.
#[derive(Debug)]
pub(super) struct LowRank {
    pub(super) left: Columns,
    pub(super) right: Columns,
}

/// Up to that smaller side a matrix is decomposed exactly.
pub(super) const EXACT_SIDE: usize = 256;
/// Power iterations at least and at most.
const MIN_ITERATIONS: usize = 4;
const MAX_ITERATIONS: usize = 32;

/// Columns that are iterated for a rank: half more, and at least eight more, for those that are asked for to come out well.
pub(super) fn sketch_width(rank: usize, size: (usize, usize)) -> usize {
    (rank + (rank / 2).max(8)).min(size.0).min(size.1)
}

/// The best approximation of rank `rank` of a matrix in memory.
pub(super) fn approximate_held(matrix: &Held, rank: usize, name: &str) -> Result<LowRank, Error> {
    let (m, n) = matrix.size();
    let side = m.min(n);
    if side > EXACT_SIDE && sketch_width(rank, (m, n)) < side {
        return approximate(matrix, rank, name);
    }
    if m >= n {
        let (q, r) = thin_qr(Columns::of_rows(m, n, &matrix.values));
        let svd = jacobi_svd(r);
        return Ok(shared(&svd.s, rank, q.times(&svd.u.first(rank)), svd.v));
    }
    // Row by row is the transposed column by column.
    let (q, r) = thin_qr(Columns {
        n_rows: n,
        n_cols: m,
        values: matrix.values.clone(),
    });
    let svd = jacobi_svd(r);
    Ok(shared(&svd.s, rank, svd.v, q.times(&svd.u.first(rank))))
}

/// The approximation of rank `rank` of a matrix of any size; the norm of what is left over is within 1e-4 of the best.
pub(super) fn approximate(matrix: &dyn Rows, rank: usize, name: &str) -> Result<LowRank, Error> {
    /// Iterations end when the square of what is left over moves by less than that part of itself.
    const SETTLED: f64 = 1e-5;
    let (m, n) = matrix.size();
    let width = sketch_width(rank, (m, n));
    let mut start = vec![0.0; n * width];
    Draw::new(Distribution::Normal { mean: 0.0, std: 1.0 }, 0, name).fill(0, &mut start);
    let (product, total) = times(matrix, &start, width)?;
    let (mut q, _) = thin_qr(product);
    let mut left_over = f64::INFINITY;
    let mut iteration = 0;
    let (right, r) = loop {
        let back = transposed_times(matrix, &q)?;
        let captured: f64 = back.values.iter().map(|value| value * value).sum();
        let (right, r) = thin_qr(back);
        let now = (total - captured).max(0.0);
        // Below the last digits of the whole, what is left over is rounding.
        let is_settled = left_over - now <= SETTLED * now + 1e-14 * total;
        if iteration >= MAX_ITERATIONS || (iteration >= MIN_ITERATIONS && is_settled) {
            break (right, r);
        }
        left_over = now;
        let rows = right.transposed();
        (q, _) = thin_qr(times(matrix, &rows.values, width)?.0);
        iteration += 1;
    };
    // The matrix is nearly Q (right R)ᵀ = Q Rᵀ rightᵀ, and R is small.
    let svd = jacobi_svd(r);
    let (u, v) = (svd.u.first(rank), svd.v.first(rank));
    Ok(shared(&svd.s, rank, q.times(&v), right.times(&u)))
}

/// The best approximation of rank `rank` of `left · rightᵀ`, which is never made.
pub(super) fn truncate(left: Columns, right: Columns, rank: usize) -> LowRank {
    let ((left, left_core), (right, right_core)) = (thin_qr(left), thin_qr(right));
    let svd = jacobi_svd(left_core.times(&right_core.transposed()));
    let (u, v) = (svd.u.first(rank), svd.v.first(rank));
    shared(&svd.s, rank, left.times(&u), right.times(&v))
}

/// The first `rank` columns of both sides, times the square roots of `s`; zeros where there are fewer.
fn shared(s: &[f64], rank: usize, left: Columns, right: Columns) -> LowRank {
    let scaled = |side: Columns| {
        let mut side = side.first(rank);
        for (j, s) in s.iter().take(side.n_cols).enumerate() {
            side.column_mut(j).iter_mut().for_each(|value| *value *= s.sqrt());
        }
        side.values.resize(side.n_rows * rank, 0.0);
        side.n_cols = rank;
        side
    };
    LowRank {
        left: scaled(left),
        right: scaled(right),
    }
}

/// `matrix · other` for what lies row by row and is `width` wide, and the sum of the matrix' squares.
fn times(matrix: &dyn Rows, other: &[f64], width: usize) -> Result<(Columns, f64), Error> {
    let (m, n) = matrix.size();
    let mut product = vec![0.0; m * width];
    let mut squares = 0.0;
    matrix.for_each_chunk(&mut |first, rows| {
        squares += rows.iter().map(|value| value * value).sum::<f64>();
        let n_rows = rows.len() / n;
        let out = &mut product[first * width..][..n_rows * width];
        multiply_add(Strided::rows(rows, n_rows, n), other, width, out);
    })?;
    Ok((Columns::of_rows(m, width, &product), squares))
}

/// `matrixᵀ · q`
fn transposed_times(matrix: &dyn Rows, q: &Columns) -> Result<Columns, Error> {
    let (_, n) = matrix.size();
    let width = q.n_cols;
    let by_rows = q.transposed().values;
    let mut product = vec![0.0; n * width];
    matrix.for_each_chunk(&mut |first, rows| {
        let n_rows = rows.len() / n;
        let part = &by_rows[first * width..][..n_rows * width];
        multiply_add(
            Strided::rows(rows, n_rows, n).transposed(),
            part,
            width,
            &mut product,
        );
    })?;
    Ok(Columns::of_rows(n, width, &product))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n_rows: usize, n_cols: usize, name: &str) -> Columns {
        let mut out = Columns::zeros(n_rows, n_cols);
        let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
        Draw::new(normal, 1, name).fill(0, &mut out.values);
        out
    }

    fn held(matrix: &Columns) -> Held {
        Held {
            n_cols: matrix.n_cols,
            values: matrix.transposed().values,
        }
    }

    fn distance(a: &Columns, low: &LowRank) -> f64 {
        let product = low.left.times(&low.right.transposed());
        let pairs = a.values.iter().zip(&product.values);
        pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }

    /// The norm of what the best approximation leaves over.
    fn optimum(a: &Columns, rank: usize) -> f64 {
        let s = jacobi_svd(a.clone()).s;
        s[rank.min(s.len())..].iter().map(|s| s * s).sum::<f64>().sqrt()
    }

    #[test]
    fn approximations_are_as_good_as_a_full_decomposition() {
        for (m, n, rank) in [(40, 30, 5), (30, 40, 5), (7, 3, 3), (3, 7, 8)] {
            let a = random(m, n, "a");
            let low = approximate_held(&held(&a), rank, "w").unwrap();
            assert_eq!((low.left.n_cols, low.right.n_cols), (rank, rank));
            assert!(distance(&a, &low) <= optimum(&a, rank) + 1e-12, "{m} {n} {rank}");
        }
    }

    #[test]
    fn sketches_are_nearly_optimal_even_where_singular_values_are_close() {
        // Gaussian matrices have the flattest spectrum.
        for (m, n, rank) in [(120, 160, 8), (200, 120, 20)] {
            let a = random(m, n, "flat");
            let low = approximate(&held(&a), rank, "w").unwrap();
            let (found, best) = (distance(&a, &low), optimum(&a, rank));
            assert!(found <= best * (1.0 + 1e-4), "{m} {n} {rank}: {found} for {best}");
        }
        // Singular values that fall by half each, to 1e-9 of the first.
        let mut left = thin_qr(random(320, 30, "l")).0;
        for j in 0..30 {
            let s = 0.5_f64.powi(j32(j));
            left.column_mut(j).iter_mut().for_each(|value| *value *= s);
        }
        let a = left.times(&thin_qr(random(300, 30, "r")).0.transposed());
        for rank in [1, 10, 25] {
            let low = approximate(&held(&a), rank, "w").unwrap();
            let best = 0.5_f64.powi(j32(rank)) * (4.0_f64 / 3.0).sqrt();
            assert!(distance(&a, &low) <= best * (1.0 + 1e-4), "{rank}");
        }
    }

    fn j32(j: usize) -> i32 {
        i32::try_from(j).unwrap()
    }

    #[test]
    fn low_rank_is_recovered_and_repeatable() {
        let (left, right) = (random(500, 4, "l"), random(280, 4, "r"));
        let a = left.times(&right.transposed());
        let low = approximate_held(&held(&a), 6, "w").unwrap();
        assert!(distance(&a, &low) < 1e-10);
        let again = approximate_held(&held(&a), 6, "w").unwrap();
        assert_eq!(low.left, again.left);
        // Both sides have the same share.
        let norm = |side: &Columns| side.values.iter().map(|value| value * value).sum::<f64>();
        assert!((norm(&low.left) / norm(&low.right) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn factors_are_truncated_without_their_product() {
        for (m, n, k, rank) in [(30, 20, 6, 3), (4, 20, 6, 3), (9, 2, 5, 4), (12, 12, 3, 8)] {
            let (left, right) = (random(m, k, "l"), random(n, k, "r"));
            let a = left.times(&right.transposed());
            let low = truncate(left, right, rank);
            assert_eq!(low.left.n_cols, rank);
            assert!(
                distance(&a, &low) <= optimum(&a, rank) + 1e-11,
                "{m} {n} {k} {rank}"
            );
        }
    }
}

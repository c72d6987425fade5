//! Dense linear algebra in float64, as far as low-rank factors need it: products, thin QR, one-sided Jacobi.
//!
//! Loops are written for the compiler to make vectors of, and compiled for the widest that the machine has.

/// Rows times columns, with the columns one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Columns {
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    pub(super) values: Vec<f64>,
}

impl Columns {
    pub(super) fn zeros(n_rows: usize, n_cols: usize) -> Columns {
        Columns {
            n_rows,
            n_cols,
            values: vec![0.0; n_rows * n_cols],
        }
    }

    /// The matrix whose rows lie one after the other in `values`.
    pub(super) fn of_rows(n_rows: usize, n_cols: usize, values: &[f64]) -> Columns {
        Columns {
            n_rows: n_cols,
            n_cols: n_rows,
            values: values.to_vec(),
        }
        .transposed()
    }

    pub(super) fn column(&self, j: usize) -> &[f64] {
        &self.values[j * self.n_rows..][..self.n_rows]
    }

    pub(super) fn column_mut(&mut self, j: usize) -> &mut [f64] {
        &mut self.values[j * self.n_rows..][..self.n_rows]
    }

    /// The first `n` columns.
    pub(super) fn first(mut self, n: usize) -> Columns {
        self.n_cols = self.n_cols.min(n);
        self.values.truncate(self.n_cols * self.n_rows);
        self
    }

    /// Also what lies row by row in memory, seen from the other side.
    pub(super) fn transposed(&self) -> Columns {
        let mut out = Columns::zeros(self.n_cols, self.n_rows);
        for j in 0..self.n_cols {
            for (i, value) in self.column(j).iter().enumerate() {
                out.values[i * self.n_cols + j] = *value;
            }
        }
        out
    }

    /// `self · other`
    pub(super) fn times(&self, other: &Columns) -> Columns {
        let mut out = Columns::zeros(self.n_rows, other.n_cols);
        // Column by column, a product is the transposed product of what lies there row by row.
        let rows = Strided::rows(&other.values, other.n_cols, other.n_rows);
        multiply_add(rows, &self.values, self.n_rows, &mut out.values);
        out
    }
}

/// A matrix of any strides, in elements.
#[derive(Clone, Copy)]
pub(super) struct Strided<'m> {
    values: &'m [f64],
    n_rows: usize,
    n_cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'m> Strided<'m> {
    /// Rows one after the other.
    pub(super) fn rows(values: &'m [f64], n_rows: usize, n_cols: usize) -> Strided<'m> {
        Strided {
            values,
            n_rows,
            n_cols,
            row_stride: n_cols,
            col_stride: 1,
        }
    }

    pub(super) fn transposed(self) -> Strided<'m> {
        Strided {
            n_rows: self.n_cols,
            n_cols: self.n_rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Rows and columns that one pass of the inner loop adds to: their sums fit the registers of AVX2 and AVX-512.
const TILE_ROWS: usize = 6;
const TILE_COLS: usize = 8;
/// Terms that are added before the sums go back to memory: a tile's share of both sides stays in the first cache.
const DEPTH: usize = 256;

/// `out += a · b`; `b` and `out` row by row, `n` wide.
pub(super) fn multiply_add(a: Strided<'_>, b: &[f64], n: usize, out: &mut [f64]) {
    assert!(
        b.len() == a.n_cols * n && out.len() == a.n_rows * n,
        "matrices that fit"
    );
    pulp::Arch::new().dispatch(Product { a, b, n, out });
}

struct Product<'a> {
    a: Strided<'a>,
    b: &'a [f64],
    n: usize,
    out: &'a mut [f64],
}

impl pulp::NullaryFnOnce for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Product { a, b, n, out } = self;
        let n_panels = n.div_ceil(TILE_COLS);
        let mut panels = vec![[0.0; TILE_COLS]; n_panels * DEPTH];
        let mut side = [[0.0; TILE_ROWS]; DEPTH];
        for first in (0..a.n_cols).step_by(DEPTH) {
            let depth = DEPTH.min(a.n_cols - first);
            for panel in 0..n_panels {
                let (at, width) = (panel * TILE_COLS, TILE_COLS.min(n - panel * TILE_COLS));
                for k in 0..depth {
                    let row = &mut panels[panel * DEPTH + k];
                    *row = [0.0; TILE_COLS];
                    row[..width].copy_from_slice(&b[(first + k) * n + at..][..width]);
                }
            }
            for row in (0..a.n_rows).step_by(TILE_ROWS) {
                let height = TILE_ROWS.min(a.n_rows - row);
                for (k, side) in side[..depth].iter_mut().enumerate() {
                    *side = [0.0; TILE_ROWS];
                    for (i, value) in side[..height].iter_mut().enumerate() {
                        *value = a.values[(row + i) * a.row_stride + (first + k) * a.col_stride];
                    }
                }
                for panel in 0..n_panels {
                    let mut sums = [[0.0; TILE_COLS]; TILE_ROWS];
                    for (side, row) in side[..depth].iter().zip(&panels[panel * DEPTH..][..depth]) {
                        for (sums, factor) in sums.iter_mut().zip(side) {
                            for (sum, value) in sums.iter_mut().zip(row) {
                                *sum += factor * value;
                            }
                        }
                    }
                    let (at, width) = (panel * TILE_COLS, TILE_COLS.min(n - panel * TILE_COLS));
                    for (i, sums) in sums[..height].iter().enumerate() {
                        let out = &mut out[(row + i) * n + at..][..width];
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 16];
    let (a_blocks, b_blocks) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest = a_blocks.remainder().iter().zip(b_blocks.remainder());
    let mut sum: f64 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    sum += lanes.iter().sum::<f64>();
    sum
}

/// `A = Q R` with orthonormal columns of Q, as many as A's smaller side, by Householder's reflections. Any rank.
pub(super) fn thin_qr(a: Columns) -> (Columns, Columns) {
    pulp::Arch::new().dispatch(Qr(a))
}

struct Qr(Columns);

impl pulp::NullaryFnOnce for Qr {
    type Output = (Columns, Columns);

    #[inline(always)]
    fn call(self) -> (Columns, Columns) {
        let mut a = self.0;
        let (m, n) = (a.n_rows, a.n_cols);
        let k = m.min(n);
        // Reflector j is 1 - factor v vᵀ, with v from row j on in the place of what it has made zero.
        let mut factors = vec![0.0; k];
        let mut diagonal = vec![0.0; k];
        for j in 0..k {
            let (left, right) = a.values.split_at_mut((j + 1) * m);
            let v = &mut left[j * m + j..];
            // The scale keeps the squares of small numbers from vanishing.
            let scale = v.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
            if scale == 0.0 {
                continue;
            }
            v.iter_mut().for_each(|value| *value /= scale);
            let norm = dot(v, v).sqrt();
            let beta = -norm.copysign(v[0]);
            let head = v[0] - beta;
            v.iter_mut().for_each(|value| *value /= head);
            v[0] = 1.0;
            diagonal[j] = beta * scale;
            factors[j] = -head / beta;
            for column in right.chunks_exact_mut(m) {
                reflect(v, factors[j], &mut column[j..]);
            }
        }
        let mut r = Columns::zeros(k, n);
        for j in 0..n {
            let above = j.min(k);
            let column = &a.values[j * m..];
            r.column_mut(j)[..above].copy_from_slice(&column[..above]);
        }
        for (j, value) in diagonal.into_iter().enumerate() {
            r.column_mut(j)[j] = value;
        }
        let mut q = Columns::zeros(m, k);
        for j in (0..k).rev() {
            q.column_mut(j)[j] = 1.0;
            let v = &a.values[j * m + j..(j + 1) * m];
            for column in q.values[j * m..].chunks_exact_mut(m) {
                reflect(v, factors[j], &mut column[j..]);
            }
        }
        (q, r)
    }
}

#[inline(always)]
fn reflect(v: &[f64], factor: f64, column: &mut [f64]) {
    if factor != 0.0 {
        let along = factor * dot(v, column);
        column
            .iter_mut()
            .zip(v)
            .for_each(|(value, v)| *value -= along * v);
    }
}

/// `A = U S Vᵀ`, singular values in descending order; columns of U whose singular value is 0 are 0.
pub(super) struct Svd {
    pub(super) u: Columns,
    pub(super) s: Vec<f64>,
    pub(super) v: Columns,
}

/// All singular values to the last digits, by one-sided Jacobi (Hestenes 1958): pairs of columns are turned until all are orthogonal.
pub(super) fn jacobi_svd(a: Columns) -> Svd {
    pulp::Arch::new().dispatch(Jacobi(a))
}

struct Jacobi(Columns);

impl pulp::NullaryFnOnce for Jacobi {
    type Output = Svd;

    #[inline(always)]
    fn call(self) -> Svd {
        /// What no matrix of numbers has been seen to need.
        const MAX_SWEEPS: usize = 60;
        let mut a = self.0;
        let (m, n) = (a.n_rows, a.n_cols);
        let mut v = Columns::zeros(n, n);
        (0..n).for_each(|j| v.column_mut(j)[j] = 1.0);
        let tolerance = f64::EPSILON * (m.max(1) as f64).sqrt();
        for _ in 0..MAX_SWEEPS {
            let mut has_turned = false;
            for i in 0..n.saturating_sub(1) {
                for j in i + 1..n {
                    let (left, right) = a.values.split_at_mut(j * m);
                    let (x, y) = (&mut left[i * m..][..m], &mut right[..m]);
                    let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
                    if xy == 0.0 || xy.abs() <= tolerance * xx.sqrt() * yy.sqrt() {
                        continue;
                    }
                    has_turned = true;
                    let zeta = (yy - xx) / (2.0 * xy);
                    let t = 1.0_f64.copysign(zeta) / (zeta.abs() + zeta.hypot(1.0));
                    let c = 1.0 / t.hypot(1.0);
                    let s = c * t;
                    turn(x, y, c, s);
                    let (left, right) = v.values.split_at_mut(j * n);
                    turn(&mut left[i * n..][..n], &mut right[..n], c, s);
                }
            }
            if !has_turned {
                break;
            }
        }
        let norms: Vec<f64> = (0..n).map(|j| dot(a.column(j), a.column(j)).sqrt()).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
        let mut svd = Svd {
            u: Columns::zeros(m, n),
            s: order.iter().map(|&j| norms[j]).collect(),
            v: Columns::zeros(n, n),
        };
        for (to, &from) in order.iter().enumerate() {
            svd.v.column_mut(to).copy_from_slice(v.column(from));
            if norms[from] > 0.0 {
                let unit = svd.u.column_mut(to).iter_mut().zip(a.column(from));
                unit.for_each(|(u, value)| *u = value / norms[from]);
            }
        }
        svd
    }
}

#[inline(always)]
fn turn(x: &mut [f64], y: &mut [f64], c: f64, s: f64) {
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lazy::{Distribution, Draw};

    fn random(n_rows: usize, n_cols: usize) -> Columns {
        let mut out = Columns::zeros(n_rows, n_cols);
        let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
        Draw::new(normal, 0, &format!("{n_rows}x{n_cols}")).fill(0, &mut out.values);
        out
    }

    fn naive(a: &Columns, b: &Columns) -> Columns {
        let mut out = Columns::zeros(a.n_rows, b.n_cols);
        for i in 0..a.n_rows {
            for j in 0..b.n_cols {
                out.column_mut(j)[i] = (0..a.n_cols).map(|k| a.column(k)[i] * b.column(j)[k]).sum();
            }
        }
        out
    }

    fn off_by(a: &Columns, b: &Columns) -> f64 {
        assert_eq!((a.n_rows, a.n_cols), (b.n_rows, b.n_cols));
        let pairs = a.values.iter().zip(&b.values);
        pairs.fold(0.0, |max: f64, (a, b)| max.max((a - b).abs()))
    }

    fn is_orthonormal(q: &Columns) -> bool {
        let square = naive(&q.transposed(), q);
        let mut one = Columns::zeros(q.n_cols, q.n_cols);
        (0..q.n_cols).for_each(|j| one.column_mut(j)[j] = 1.0);
        off_by(&square, &one) < 1e-13
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (m, k, n) in [(1, 1, 1), (5, 3, 7), (6, 8, 8), (13, 600, 17), (64, 257, 30)] {
            let (a, b) = (random(m, k), random(k, n));
            assert!(off_by(&a.times(&b), &naive(&a, &b)) < 1e-11, "{m} {k} {n}");
            let mut out = vec![1.0; m * n];
            // `a` lies column by column, which is its transposed row by row.
            let rows = Strided::rows(&a.values, k, m).transposed();
            multiply_add(rows, &b.transposed().values, n, &mut out);
            let found = Columns::of_rows(m, n, &out);
            let mut expected = naive(&a, &b);
            expected.values.iter_mut().for_each(|value| *value += 1.0);
            assert!(off_by(&found, &expected) < 1e-11, "{m} {k} {n}");
        }
    }

    #[test]
    fn qr_is_orthonormal_and_gives_the_matrix_back() {
        let low_rank = random(20, 2).times(&random(2, 6));
        let mut tiny = random(9, 4);
        tiny.values.iter_mut().for_each(|value| *value *= 1e-200);
        for a in [
            random(20, 6),
            random(4, 9),
            random(7, 7),
            low_rank,
            Columns::zeros(5, 3),
            tiny,
        ] {
            let (q, r) = thin_qr(a.clone());
            assert_eq!(q.n_cols, a.n_rows.min(a.n_cols));
            assert!(is_orthonormal(&q));
            let scale = a.values.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
            assert!(off_by(&q.times(&r), &a) <= 1e-13 * scale * 20.0);
            for j in 0..r.n_cols {
                assert!(r.column(j).iter().skip(j + 1).all(|value| *value == 0.0));
            }
        }
    }

    #[test]
    fn jacobi_finds_given_singular_values() {
        let (u, _) = thin_qr(random(30, 5));
        let (v, _) = thin_qr(random(8, 5));
        // Twelve orders of magnitude, and one that is not there.
        let given = [1e6, 3.0, 3.0, 1e-6, 0.0];
        let mut scaled = u.clone();
        for (j, s) in given.iter().enumerate() {
            scaled.column_mut(j).iter_mut().for_each(|value| *value *= s);
        }
        let a = scaled.times(&v.transposed());
        let svd = jacobi_svd(a.clone());
        for (found, expected) in svd.s.iter().zip(given.iter().chain(&[0.0; 3])) {
            assert!((found - expected).abs() < 1e-9, "{found} for {expected}");
        }
        assert!(is_orthonormal(&svd.v));
        assert!(is_orthonormal(&svd.u.clone().first(4)));
        let mut back = svd.u.clone();
        for j in 0..8 {
            back.column_mut(j).iter_mut().for_each(|value| *value *= svd.s[j]);
        }
        assert!(off_by(&back.times(&svd.v.transposed()), &a) < 1e-8);
    }
}

//! Interpolation along one dimension as a matrix, with the weights of `torch.nn.functional.interpolate(align_corners=False)`.

/// Which weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Nearest,
    Linear,
    Cubic,
}

/// A matrix `[rows, cols]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) values: Vec<f64>,
}

impl Matrix {
    fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix {
            rows,
            cols,
            values: vec![0.0; rows * cols],
        }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.cols + col]
    }

    fn add(&mut self, row: usize, col: usize, value: f64) {
        self.values[row * self.cols + col] += value;
    }

    fn transposed(&self) -> Matrix {
        let mut out = Matrix::zeros(self.cols, self.rows);
        for row in 0..self.rows {
            for col in 0..self.cols {
                out.add(col, row, self.at(row, col));
            }
        }
        out
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(self.rows, other.cols);
        for row in 0..self.rows {
            for k in 0..self.cols {
                for col in 0..other.cols {
                    out.add(row, col, self.at(row, k) * other.at(k, col));
                }
            }
        }
        out
    }

    /// The solution X of `self` X = `right`, by Gauss with the largest pivot. None where `self` has no inverse.
    fn solve(mut self, mut right: Matrix) -> Option<Matrix> {
        let n = self.rows;
        for k in 0..n {
            let pivot = (k..n).max_by(|&a, &b| self.at(a, k).abs().total_cmp(&self.at(b, k).abs()))?;
            if self.at(pivot, k).abs() < 1e-12 {
                return None;
            }
            for matrix in [&mut self, &mut right] {
                for col in 0..matrix.cols {
                    matrix
                        .values
                        .swap(k * matrix.cols + col, pivot * matrix.cols + col);
                }
            }
            for row in (0..n).filter(|&row| row != k) {
                let factor = self.at(row, k) / self.at(k, k);
                for matrix in [&mut self, &mut right] {
                    for col in 0..matrix.cols {
                        let value = factor * matrix.at(k, col);
                        matrix.add(row, col, -value);
                    }
                }
            }
        }
        for row in 0..n {
            let pivot = self.at(row, row);
            for col in 0..right.cols {
                right.values[row * right.cols + col] /= pivot;
            }
        }
        Some(right)
    }

    /// The pseudo-inverse of the transpose, `[rows, cols]` as the matrix itself, which must have full rank.
    pub(crate) fn pinv_of_transpose(&self) -> Option<Matrix> {
        let transposed = self.transposed();
        if self.rows >= self.cols {
            // R (R'R)^-1: the transpose of the solution of (R'R) X = R'.
            Some(transposed.times(self).solve(transposed)?.transposed())
        } else {
            self.times(&transposed).solve(self.clone())
        }
    }
}

/// The matrix `[to, from]` that interpolates `from` values to `to`.
///
/// With `antialias` the kernel widens when there are fewer values than before, and cubic has Pillow's a = -0.5; without, a = -0.75 and
/// values repeat beyond the edge.
pub(crate) fn matrix(from: usize, to: usize, kernel: Kernel, antialias: bool) -> Matrix {
    let mut out = Matrix::zeros(to, from);
    let scale = from as f64 / to as f64;
    for row in 0..to {
        if kernel == Kernel::Nearest {
            let col = ((row as f64 * scale).floor() as usize).min(from - 1);
            out.add(row, col, 1.0);
        } else if antialias {
            antialiased(&mut out, row, scale, kernel);
        } else {
            let center = (row as f64 + 0.5) * scale - 0.5;
            // Linear does not look beyond the first value; cubic does.
            let center = if kernel == Kernel::Linear {
                center.max(0.0)
            } else {
                center
            };
            let first = center.floor();
            let reach: std::ops::RangeInclusive<i64> = if kernel == Kernel::Linear { 0..=1 } else { -1..=2 };
            for step in reach {
                let place = first as i64 + step;
                let weight = kernel_at(kernel, center - place as f64, -0.75);
                let col = place.clamp(0, from as i64 - 1) as usize;
                out.add(row, col, weight);
            }
        }
    }
    out
}

fn antialiased(out: &mut Matrix, row: usize, scale: f64, kernel: Kernel) {
    let half = if kernel == Kernel::Linear { 1.0 } else { 2.0 };
    let widening = scale.max(1.0);
    let support = half * widening;
    let center = scale * (row as f64 + 0.5);
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(out.cols);
    let weight = |col: usize| kernel_at(kernel, (col as f64 - center + 0.5) / widening, -0.5);
    let total: f64 = (first..end).map(weight).sum();
    for col in first..end {
        out.add(row, col, weight(col) / total);
    }
}

/// The kernel's value at a distance; `a` is the parameter of Keys' cubic convolution (1981).
fn kernel_at(kernel: Kernel, distance: f64, a: f64) -> f64 {
    let x = distance.abs();
    match kernel {
        Kernel::Nearest => 1.0,
        Kernel::Linear => (1.0 - x).max(0.0),
        Kernel::Cubic if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        Kernel::Cubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        Kernel::Cubic => 0.0,
    }
}

/// The matrix `[points, places]` of linear interpolation between values at ascending `places`; beyond the ends, the last value.
pub(crate) fn linear(places: &[f64], points: &[f64]) -> Matrix {
    let mut out = Matrix::zeros(points.len(), places.len());
    for (row, point) in points.iter().enumerate() {
        let right = places
            .partition_point(|place| place < point)
            .clamp(1, places.len() - 1);
        let (a, b) = (places[right - 1], places[right]);
        let t = ((point - a) / (b - a)).clamp(0.0, 1.0);
        out.add(row, right - 1, 1.0 - t);
        out.add(row, right, t);
    }
    out
}

/// The matrix `[points, places]` of the cubic spline through values at ascending `places`, not a knot at the second and the last but
/// one, as FITPACK's interpolating splines; beyond the ends, the value at the end. Of fewer than four places, linear.
pub(crate) fn spline(places: &[f64], points: &[f64]) -> Matrix {
    let n = places.len();
    if n < 4 {
        return linear(places, points);
    }
    let (first, last) = (places[0], places[n - 1]);
    let mut knots = vec![first; 4];
    knots.extend_from_slice(&places[2..n - 2]);
    knots.extend([last; 4]);
    let basis = |points: &[f64]| {
        let mut out = Matrix::zeros(points.len(), n);
        for (row, &point) in points.iter().enumerate() {
            let x = point.clamp(first, last);
            let span = (3..n).rev().find(|&i| knots[i] <= x).unwrap_or(3);
            // Cox and de Boor's recurrence, of the four splines that are not zero here.
            let mut values = vec![1.0];
            for degree in 1..=3 {
                let mut next = vec![0.0; degree + 1];
                for (i, value) in values.iter().enumerate() {
                    let (left, right) = (knots[span + 1 + i - degree], knots[span + 1 + i]);
                    let t = (x - left) / (right - left);
                    next[i] += (1.0 - t) * value;
                    next[i + 1] += t * value;
                }
                values = next;
            }
            for (i, value) in values.into_iter().enumerate() {
                out.add(row, span - 3 + i, value);
            }
        }
        out
    };
    // Values at points = basis at points, times coefficients; these are the inverse of the basis at places, times values.
    let mut identity = Matrix::zeros(n, n);
    (0..n).for_each(|i| identity.add(i, i, 1.0));
    match basis(places).solve(identity) {
        Some(inverse) => basis(points).times(&inverse),
        None => linear(places, points),
    }
}

/// `values`, seen as `[outer, n, inner]`, with `matrix` applied along the middle: `[outer, rows, inner]`.
pub(crate) fn apply(values: &[f64], matrix: &Matrix, inner: usize) -> Vec<f64> {
    let n = matrix.cols;
    let outer = values.len().checked_div(n * inner).unwrap_or(0);
    let mut out = vec![0.0; outer * matrix.rows * inner];
    for block in 0..outer {
        for row in 0..matrix.rows {
            let to = &mut out[(block * matrix.rows + row) * inner..][..inner];
            for col in 0..n {
                let weight = matrix.at(row, col);
                if weight != 0.0 {
                    let from = &values[(block * n + col) * inner..][..inner];
                    to.iter_mut()
                        .zip(from)
                        .for_each(|(to, from)| *to += weight * from);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_add_up_to_one_and_equal_sizes_change_nothing() {
        for kernel in [Kernel::Nearest, Kernel::Linear, Kernel::Cubic] {
            for antialias in [false, true] {
                for (from, to) in [(7, 7), (7, 3), (3, 8), (14, 24)] {
                    let m = matrix(from, to, kernel, antialias);
                    for row in 0..to {
                        let sum: f64 = (0..from).map(|col| m.at(row, col)).sum();
                        assert!((sum - 1.0).abs() < 1e-12);
                        if from == to {
                            assert!((m.at(row, row) - 1.0).abs() < 1e-12);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_pseudo_inverse_is_one() {
        for (from, to) in [(16, 14), (14, 16), (8, 16)] {
            let r = matrix(from, to, Kernel::Cubic, true);
            let p = r.pinv_of_transpose().unwrap();
            let t = r.transposed();
            // Moore and Penrose's first two conditions, of the transpose and its pseudo-inverse.
            let again = t.times(&p).times(&t);
            assert!(
                again
                    .values
                    .iter()
                    .zip(&t.values)
                    .all(|(a, b)| (a - b).abs() < 1e-9)
            );
            let again = p.times(&t).times(&p);
            assert!(
                again
                    .values
                    .iter()
                    .zip(&p.values)
                    .all(|(a, b)| (a - b).abs() < 1e-9)
            );
        }
    }
}

//! Dense products and the Cholesky factor. Products of one call run on one thread; callers split the rows.
//!
//! `unsafe` here is the calls into the `gemm` crate, which takes pointers and strides.

/// The two number types that products are made in.
pub(crate) trait Real: Copy + Send + Sync + 'static {
    const ZERO: Self;
    const ONE: Self;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// `out[n, c] = rows[n, d] · weight[c, d]ᵀ`, all row-major.
pub(crate) fn matmul_transposed<T: Real>(rows: &[T], weight: &[T], out: &mut [T], d: usize) {
    let (n, c) = (rows.len() / d, weight.len() / d);
    assert!(rows.len() == n * d && weight.len() == c * d && out.len() == n * c);
    // SAFETY: the sizes above cover every element that the strides reach; `out` is exclusive.
    unsafe {
        gemm::gemm(
            n,
            c,
            d,
            out.as_mut_ptr(),
            1,
            c.cast_signed(),
            false,
            rows.as_ptr(),
            1,
            d.cast_signed(),
            weight.as_ptr(),
            d.cast_signed(),
            1,
            T::ZERO,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out[c, d] = residual[n, c]ᵀ · rows[n, d]`, all row-major.
pub(super) fn transposed_matmul<T: Real>(residual: &[T], rows: &[T], out: &mut [T], c: usize, d: usize) {
    let n = rows.len() / d;
    assert!(rows.len() == n * d && residual.len() == n * c && out.len() == c * d);
    // SAFETY: as above.
    unsafe {
        gemm::gemm(
            c,
            d,
            n,
            out.as_mut_ptr(),
            1,
            d.cast_signed(),
            false,
            residual.as_ptr(),
            c.cast_signed(),
            1,
            rows.as_ptr(),
            1,
            d.cast_signed(),
            T::ZERO,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A lower-triangular factor L of a symmetric positive definite matrix, `A = L Lᵀ`; `[d, d]` row-major.
#[derive(Debug, Clone)]
pub(super) struct Cholesky {
    lower: Vec<f64>,
    d: usize,
}

impl Cholesky {
    /// Factors `a`, of which only the lower triangle is read. `None` where it is not positive definite.
    pub(super) fn new(mut a: Vec<f64>, d: usize) -> Option<Cholesky> {
        assert_eq!(a.len(), d * d);
        for row in 0..d {
            let (above, current) = a.split_at_mut(row * d);
            for column in 0..row {
                let other = &above[column * d..column * d + column + 1];
                let sum = dot(&current[..column], &other[..column]);
                current[column] = (current[column] - sum) / other[column];
            }
            let pivot = current[row] - dot(&current[..row], &current[..row]);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            current[row] = pivot.sqrt();
        }
        Some(Cholesky { lower: a, d })
    }

    /// Solves `L x = b` in place.
    pub(super) fn solve(&self, x: &mut [f64]) {
        for row in 0..self.d {
            let lower = &self.lower[row * self.d..row * self.d + row + 1];
            x[row] = (x[row] - dot(&lower[..row], &x[..row])) / lower[row];
        }
    }

    /// Solves `Lᵀ x = b` in place.
    pub(super) fn solve_transposed(&self, x: &mut [f64]) {
        for row in (0..self.d).rev() {
            let lower = &self.lower[row * self.d..row * self.d + row + 1];
            x[row] /= lower[row];
            let value = x[row];
            x[..row].iter_mut().zip(lower).for_each(|(x, l)| *x -= l * value);
        }
    }

    /// `x = Lᵀ x` in place.
    pub(super) fn multiply_transposed(&self, x: &mut [f64]) {
        for row in 0..self.d {
            let column = self.lower[row * self.d + row..].iter().step_by(self.d);
            x[row] = column.zip(&x[row..]).map(|(lower, x)| lower * x).sum();
        }
    }
}

/// The sum of products, in eight interleaved partial sums: a fixed order that vectorises.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_multiplies_back_and_solves() {
        let d = 13;
        let root: Vec<f64> = (0..d * d)
            .map(|n| ((n * 7919) % 31) as f64 / 31.0 - 0.5)
            .collect();
        let mut a = vec![0.0; d * d];
        for i in 0..d {
            for j in 0..d {
                a[i * d + j] = (0..d).map(|k| root[i * d + k] * root[j * d + k]).sum::<f64>()
                    + f64::from(u8::from(i == j));
            }
        }
        let factor = Cholesky::new(a.clone(), d).unwrap();
        let x: Vec<f64> = (0..d).map(|n| n as f64 - 4.0).collect();
        let mut b: Vec<f64> = (0..d)
            .map(|i| (0..d).map(|j| a[i * d + j] * x[j]).sum())
            .collect();
        factor.solve(&mut b);
        let mut half = x.clone();
        factor.multiply_transposed(&mut half);
        assert!(b.iter().zip(&half).all(|(a, b)| (a - b).abs() < 1e-10));
        factor.solve_transposed(&mut b);
        assert!(b.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-10));
        assert!(Cholesky::new(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    #[test]
    fn products_equal_their_definition() {
        let (n, c, d) = (7, 3, 5);
        let value = |seed: usize| move |i: usize| ((i * seed) % 17) as f32 - 8.0;
        let rows: Vec<f32> = (0..n * d).map(value(5)).collect();
        let weight: Vec<f32> = (0..c * d).map(value(11)).collect();
        let residual: Vec<f32> = (0..n * c).map(value(3)).collect();
        let mut logits = vec![0f32; n * c];
        matmul_transposed(&rows, &weight, &mut logits, d);
        let mut gradient = vec![0f32; c * d];
        transposed_matmul(&residual, &rows, &mut gradient, c, d);
        for class in 0..c {
            for row in 0..n {
                let want: f32 = (0..d).map(|k| rows[row * d + k] * weight[class * d + k]).sum();
                assert_eq!(logits[row * c + class], want);
            }
            for k in 0..d {
                let want: f32 = (0..n)
                    .map(|row| residual[row * c + class] * rows[row * d + k])
                    .sum();
                assert_eq!(gradient[class * d + k], want);
            }
        }
    }
}

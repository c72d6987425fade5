//! Dense products in row-major order. Products of one call run on one thread; callers split the rows.
//!
//! `unsafe` here is the calls into the `gemm` crate, which takes pointers and strides.

/// The two number types that products are made in.
pub(crate) trait Real: Copy + Send + Sync + 'static {
    const ZERO: Self;
    const ONE: Self;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
}

/// A matrix of `n_rows` by `n_columns` numbers and how far it is to the next of each.
pub(crate) struct View<'v, T> {
    values: &'v [T],
    n_rows: usize,
    n_columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'v, T> View<'v, T> {
    /// Rows behind each other.
    pub(crate) fn new(values: &'v [T], n_columns: usize) -> View<'v, T> {
        let n_rows = values.len() / n_columns.max(1);
        assert_eq!(values.len(), n_rows * n_columns);
        View {
            values,
            n_rows,
            n_columns,
            row_stride: n_columns,
            column_stride: 1,
        }
    }

    pub(crate) fn transposed(self) -> View<'v, T> {
        View {
            n_rows: self.n_columns,
            n_columns: self.n_rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

fn product<T: Real>(a: &View<'_, T>, b: &View<'_, T>, out: &mut [T]) {
    multiply_into(a, b, out, false);
}

/// `out = a · b`, or `out += a · b`.
pub(crate) fn multiply_into<T: Real>(a: &View<'_, T>, b: &View<'_, T>, out: &mut [T], is_added: bool) {
    assert!(a.n_columns == b.n_rows && out.len() == a.n_rows * b.n_columns);
    // SAFETY: a view's sizes and strides stay inside its slice, and `out` is as large as the product and exclusive.
    unsafe {
        gemm::gemm(
            a.n_rows,
            b.n_columns,
            a.n_columns,
            out.as_mut_ptr(),
            1,
            b.n_columns.cast_signed(),
            is_added,
            a.values.as_ptr(),
            a.column_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.values.as_ptr(),
            b.column_stride.cast_signed(),
            b.row_stride.cast_signed(),
            if is_added { T::ONE } else { T::ZERO },
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out[n, c] = rows[n, d] · weight[c, d]ᵀ`.
pub(crate) fn matmul_transposed<T: Real>(rows: &[T], weight: &[T], out: &mut [T], d: usize) {
    product(&View::new(rows, d), &View::new(weight, d).transposed(), out);
}

/// `out[c, d] = residual[n, c]ᵀ · rows[n, d]`.
pub(super) fn transposed_matmul<T: Real>(residual: &[T], rows: &[T], out: &mut [T], c: usize, d: usize) {
    product(&View::new(residual, c).transposed(), &View::new(rows, d), out);
}

/// Numbers of either width, for sums in float64.
pub(super) trait Number: Copy + Send + Sync {
    fn wide(self) -> f64;
}

impl Number for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

/// The sum of products, in eight interleaved partial sums: a fixed order that vectorises.
#[inline(always)]
pub(super) fn dot<A: Number, B: Number>(a: &[A], b: &[B]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane].wide() * b[lane].wide();
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a.wide() * b.wide());
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for row in 0..n {
            for class in 0..c {
                let want: f32 = (0..d).map(|k| rows[row * d + k] * weight[class * d + k]).sum();
                assert_eq!(logits[row * c + class], want);
            }
        }
        for class in 0..c {
            for k in 0..d {
                let want: f32 = (0..n)
                    .map(|row| residual[row * c + class] * rows[row * d + k])
                    .sum();
                assert_eq!(gradient[class * d + k], want);
            }
        }
    }
}

//! Eigenvalues and eigenvectors of a symmetric matrix: Householder's tridiagonal form, then implicit QR steps (Golub and
//! Van Loan, sections 8.3.1 and 8.3.3).
//!
//! The rotations of many steps are collected and applied to a strip of columns at a time, which stays in the second
//! cache, by all threads: that is where the time goes.

use rayon::prelude::*;

use super::linalg::dot;
use crate::error::Error;

/// `A = Vᵀ diag(values) V`.
#[derive(Debug, Clone)]
pub(super) struct Eigen {
    /// `[d]`, in no particular order.
    pub(super) values: Vec<f64>,
    /// `[d, d]`, an eigenvector in each row.
    pub(super) vectors: Vec<f64>,
}

/// Columns of a strip.
const STRIP: usize = 64;
/// Numbers below which a second thread is not woken.
const SMALL: usize = 1 << 15;

impl Eigen {
    /// Of a whole symmetric matrix, `[d, d]`.
    ///
    /// # Errors
    /// [`Error::Features`] where the numbers are not finite.
    pub(super) fn new(mut a: Vec<f64>, d: usize) -> Result<Eigen, Error> {
        assert_eq!(a.len(), d * d);
        let reflections = tridiagonal(&mut a, d);
        let mut diagonal: Vec<f64> = (0..d).map(|i| a[i * d + i]).collect();
        let mut off: Vec<f64> = (1..d).map(|i| a[i * d + i - 1]).collect();
        let mut vectors = product_of(&reflections, d);
        if diagonal.iter().chain(&off).any(|value| !value.is_finite()) {
            return Err(Error::Features("their scale is beyond float64".to_owned()));
        }
        diagonalise(&mut diagonal, &mut off, &mut vectors, d)?;
        Ok(Eigen {
            values: diagonal,
            vectors,
        })
    }
}

/// A unit vector's tail: `I - 2 v vᵀ` on the indices from `first` on.
struct Reflection {
    first: usize,
    v: Vec<f64>,
}

/// Makes `a` tridiagonal; what is left beside the three diagonals means nothing.
fn tridiagonal(a: &mut [f64], d: usize) -> Vec<Reflection> {
    let mut reflections = Vec::new();
    for k in 0..d.saturating_sub(2) {
        let first = k + 1;
        let n = d - first;
        let mut v: Vec<f64> = (first..d).map(|i| a[i * d + k]).collect();
        let norm = dot(&v, &v).sqrt();
        if norm == 0.0 || v[1..].iter().all(|x| *x == 0.0) {
            continue;
        }
        let target = -norm.copysign(v[0]);
        v[0] -= target;
        let length = dot(&v, &v).sqrt();
        v.iter_mut().for_each(|x| *x /= length);
        a[first * d + k] = target;
        let below = &mut a[first * d..];
        // p = 2 A v, w = p - (p · v) v: A - v wᵀ - w vᵀ is the reflected matrix.
        let times = |row: &[f64]| 2.0 * Dot(&row[first..], &v).run();
        let mut w: Vec<f64> = if n * n < SMALL {
            below.chunks_exact(d).map(times).collect()
        } else {
            below.par_chunks_exact(d).map(times).collect()
        };
        let along = dot(&w, &v);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= along * v);
        let update = |(i, row): (usize, &mut [f64])| {
            Update {
                row: &mut row[first..],
                v: &v,
                w: &w,
                factors: (v[i], w[i]),
            }
            .run();
        };
        if n * n < SMALL {
            below.chunks_exact_mut(d).enumerate().for_each(update);
        } else {
            below.par_chunks_exact_mut(d).enumerate().for_each(update);
        }
        reflections.push(Reflection { first, v });
    }
    reflections
}

/// The product of all reflections, the last first: `[d, d]`.
fn product_of(reflections: &[Reflection], d: usize) -> Vec<f64> {
    let mut q = vec![0.0; d * d];
    (0..d).for_each(|i| q[i * d + i] = 1.0);
    // Rows are independent: each is multiplied by the reflections in turn, the last first.
    let each = |row: &mut [f64]| {
        for Reflection { first, v } in reflections.iter().rev() {
            let along = 2.0 * Dot(&row[*first..], v).run();
            Add {
                out: &mut row[*first..],
                factor: -along,
                x: v,
            }
            .run();
        }
    };
    q.par_chunks_exact_mut(d.max(1)).for_each(each);
    q
}

/// A rotation of rows `k` and `k + 1`.
#[derive(Clone, Copy)]
struct Rotation {
    k: usize,
    c: f64,
    s: f64,
}

/// Drives `off` to zero, rotating the rows of `vectors` along.
fn diagonalise(a: &mut [f64], b: &mut [f64], vectors: &mut [f64], d: usize) -> Result<(), Error> {
    /// Steps per eigenvalue; fewer than three are usual.
    const MAX_STEPS: usize = 60;
    let most = 32 * d;
    let mut rotations: Vec<Rotation> = Vec::with_capacity(most + d);
    let mut steps = 0;
    let mut hi = d.saturating_sub(1);
    while hi > 0 {
        let is_zero =
            |k: usize, a: &[f64], b: &[f64]| b[k].abs() <= f64::EPSILON * (a[k].abs() + a[k + 1].abs());
        if is_zero(hi - 1, a, b) {
            hi -= 1;
            continue;
        }
        let mut lo = hi - 1;
        while lo > 0 && !is_zero(lo - 1, a, b) {
            lo -= 1;
        }
        steps += 1;
        if steps > MAX_STEPS * d {
            return Err(Error::Features(
                "their second moments have no eigenvalues in float64".to_owned(),
            ));
        }
        step(a, b, lo, hi, &mut rotations);
        if rotations.len() >= most {
            rotate(vectors, &rotations, d);
            rotations.clear();
        }
    }
    rotate(vectors, &rotations, d);
    Ok(())
}

/// One implicit QR step with Wilkinson's shift on the rows `lo..=hi`.
fn step(a: &mut [f64], b: &mut [f64], lo: usize, hi: usize, rotations: &mut Vec<Rotation>) {
    let delta = (a[hi - 1] - a[hi]) / 2.0;
    let last = b[hi - 1];
    let shift = a[hi] - last * (last / (delta + delta.hypot(last).copysign(delta)));
    let (mut x, mut z) = (a[lo] - shift, b[lo]);
    for k in lo..hi {
        let r = x.hypot(z);
        let (c, s) = if r == 0.0 { (1.0, 0.0) } else { (x / r, z / r) };
        if k > lo {
            b[k - 1] = r;
        }
        let (above, beside, below) = (a[k], b[k], a[k + 1]);
        a[k] = c * c * above + 2.0 * c * s * beside + s * s * below;
        a[k + 1] = s * s * above - 2.0 * c * s * beside + c * c * below;
        b[k] = c * s * (below - above) + (c * c - s * s) * beside;
        if k + 1 < hi {
            x = b[k];
            z = s * b[k + 1];
            b[k + 1] *= c;
        }
        rotations.push(Rotation { k, c, s });
    }
}

/// Applies rotations to the rows of `vectors`.
fn rotate(vectors: &mut [f64], rotations: &[Rotation], d: usize) {
    if rotations.is_empty() {
        return;
    }
    let mut strips: Vec<Vec<f64>> = (0..d)
        .step_by(STRIP)
        .map(|start| {
            let end = (start + STRIP).min(d);
            vectors
                .chunks_exact(d)
                .flat_map(|row| {
                    row[start..end]
                        .iter()
                        .copied()
                        .chain(std::iter::repeat_n(0.0, STRIP - (end - start)))
                })
                .collect()
        })
        .collect();
    let each = |strip: &mut Vec<f64>| pulp::Arch::new().dispatch(Rotate { strip, rotations });
    if rotations.len() * d < SMALL {
        strips.iter_mut().for_each(each);
    } else {
        strips.par_iter_mut().for_each(each);
    }
    for (at, strip) in strips.iter().enumerate() {
        let start = at * STRIP;
        let end = (start + STRIP).min(d);
        for (row, strip) in vectors.chunks_exact_mut(d).zip(strip.chunks_exact(STRIP)) {
            row[start..end].copy_from_slice(&strip[..end - start]);
        }
    }
}

// What follows are types and not closures: those would not be compiled for the wider vectors.

struct Rotate<'a> {
    strip: &'a mut [f64],
    rotations: &'a [Rotation],
}

impl pulp::NullaryFnOnce for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for Rotation { k, c, s } in self.rotations {
            let pair = &mut self.strip[k * STRIP..(k + 2) * STRIP];
            let (above, below) = pair.split_at_mut(STRIP);
            for (x, y) in above.iter_mut().zip(below) {
                (*x, *y) = (c * *x + s * *y, c * *y - s * *x);
            }
        }
    }
}

struct Dot<'a>(&'a [f64], &'a [f64]);

impl Dot<'_> {
    fn run(self) -> f64 {
        pulp::Arch::new().dispatch(self)
    }
}

impl pulp::NullaryFnOnce for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        dot(self.0, self.1)
    }
}

struct Add<'a> {
    out: &'a mut [f64],
    factor: f64,
    x: &'a [f64],
}

impl Add<'_> {
    fn run(self) {
        pulp::Arch::new().dispatch(self);
    }
}

impl pulp::NullaryFnOnce for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.out
            .iter_mut()
            .zip(self.x)
            .for_each(|(out, x)| *out += self.factor * x);
    }
}

struct Update<'a> {
    row: &'a mut [f64],
    v: &'a [f64],
    w: &'a [f64],
    factors: (f64, f64),
}

impl Update<'_> {
    fn run(self) {
        pulp::Arch::new().dispatch(self);
    }
}

impl pulp::NullaryFnOnce for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (of_v, of_w) = self.factors;
        for ((a, v), w) in self.row.iter_mut().zip(self.v).zip(self.w) {
            *a -= of_v * w + of_w * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn the_parts_multiply_back() {
        let mut random = Random::new(6, "eigen test");
        for d in [1, 2, 3, 17, 130] {
            let root: Vec<f64> = (0..d * d)
                .map(|_| random.below(1000) as f64 / 500.0 - 1.0)
                .collect();
            let mut a = vec![0.0; d * d];
            for i in 0..d {
                for j in 0..d {
                    // Half of the directions are missing: eigenvalues of zero.
                    a[i * d + j] = (0..d.div_ceil(2))
                        .map(|k| root[i * d + k] * root[j * d + k])
                        .sum::<f64>();
                }
            }
            let Eigen { values, vectors } = Eigen::new(a.clone(), d).unwrap();
            for i in 0..d {
                for j in 0..d {
                    let back: f64 = (0..d)
                        .map(|k| values[k] * vectors[k * d + i] * vectors[k * d + j])
                        .sum();
                    assert!(
                        (back - a[i * d + j]).abs() < 1e-11 * d as f64,
                        "{d}: {i} {j} {back} {}",
                        a[i * d + j]
                    );
                    let unit: f64 = (0..d).map(|k| vectors[i * d + k] * vectors[j * d + k]).sum();
                    assert!((unit - f64::from(u8::from(i == j))).abs() < 1e-12 * d as f64);
                }
            }
        }
        assert!(Eigen::new(vec![f64::NAN; 9], 3).is_err());
    }
}

//! Vectors of all unknowns of a search, on as many threads as their length is worth.
//!
//! Sums are made of parts of one length and then added in order, so that threads do not show.

use rayon::prelude::*;

use super::linalg::{self, Number};

/// Numbers that one thread takes at a time.
const PART: usize = 1 << 14;

/// The sum of products.
pub(super) fn dot<A: Number, B: Number>(a: &[A], b: &[B]) -> f64 {
    assert_eq!(a.len(), b.len());
    let of_part = |(a, b): (&[A], &[B])| pulp::Arch::new().dispatch(Dot { a, b });
    if a.len() <= PART {
        return of_part((a, b));
    }
    let parts: Vec<f64> = a.par_chunks(PART).zip(b.par_chunks(PART)).map(of_part).collect();
    parts.iter().sum()
}

/// `out += factor · x`.
pub(super) fn add<X: Number>(out: &mut [f64], factor: f64, x: &[X]) {
    assert_eq!(out.len(), x.len());
    let of_part = |(out, x): (&mut [f64], &[X])| pulp::Arch::new().dispatch(Add { out, factor, x });
    if out.len() <= PART {
        return of_part((out, x));
    }
    out.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(of_part);
}

/// `out += factor · x`, and then the sum of products of `out` and `y`: one reading of `out` for both.
pub(super) fn add_and_dot<X: Number, Y: Number>(out: &mut [f64], factor: f64, x: &[X], y: &[Y]) -> f64 {
    assert!(out.len() == x.len() && out.len() == y.len());
    let of_part = |((out, x), y): ((&mut [f64], &[X]), &[Y])| {
        pulp::Arch::new().dispatch(Add {
            out: &mut *out,
            factor,
            x,
        });
        pulp::Arch::new().dispatch(Dot { a: y, b: &*out })
    };
    if out.len() <= PART {
        return of_part(((out, x), y));
    }
    let parts = out
        .par_chunks_mut(PART)
        .zip(x.par_chunks(PART))
        .zip(y.par_chunks(PART));
    parts.map(of_part).collect::<Vec<f64>>().iter().sum()
}

/// `out *= factor`.
pub(super) fn multiply(out: &mut [f64], factor: f64) {
    let of_part = |out: &mut [f64]| out.iter_mut().for_each(|out| *out *= factor);
    if out.len() <= PART {
        return of_part(out);
    }
    out.par_chunks_mut(PART).for_each(of_part);
}

/// `out = factor · x`.
pub(super) fn set(out: &mut [f64], factor: f64, x: &[f32]) {
    assert_eq!(out.len(), x.len());
    let of_part = |(out, x): (&mut [f64], &[f32])| {
        let both = out.iter_mut().zip(x);
        both.for_each(|(out, x)| *out = factor * f64::from(*x));
    };
    if out.len() <= PART {
        return of_part((out, x));
    }
    out.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(of_part);
}

/// The sum of vectors, in their order. None of it is read before it is written: a page of fresh zeros would be made twice.
pub(super) fn total(vectors: &[&[f64]]) -> Vec<f64> {
    let mut out = vec![0.0; vectors.first().map_or(0, |first| first.len())];
    out.par_chunks_mut(PART).enumerate().for_each(|(part, out)| {
        for (at, vector) in vectors.iter().enumerate() {
            let x = &vector[part * PART..][..out.len()];
            match at {
                0 => out.copy_from_slice(x),
                _ => pulp::Arch::new().dispatch(Add {
                    out: &mut *out,
                    factor: 1.0,
                    x,
                }),
            }
        }
    });
    out
}

/// In float32.
pub(super) fn narrow(x: &[f64]) -> Vec<f32> {
    combine(x, x, |x, _| x as f32)
}

/// `f(a, b)` of each two.
pub(super) fn combine<T: Number>(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> T + Sync) -> Vec<T> {
    assert_eq!(a.len(), b.len());
    let of_two = |(a, b): (&f64, &f64)| f(*a, *b);
    if a.len() <= PART {
        return a.iter().zip(b).map(of_two).collect();
    }
    a.par_iter().zip(b).with_min_len(PART).map(of_two).collect()
}

/// Runs `work` on all chunks of `n` numbers of `out` and of `x`.
pub(super) fn each_chunk(out: &mut [f64], x: &[f64], n: usize, work: impl Fn(&mut [f64], &[f64]) + Sync) {
    assert_eq!(out.len(), x.len());
    if out.len() <= PART {
        out.chunks_exact_mut(n)
            .zip(x.chunks_exact(n))
            .for_each(|(out, x)| work(out, x));
    } else {
        out.par_chunks_exact_mut(n)
            .zip(x.par_chunks_exact(n))
            .with_min_len((PART / n).max(1))
            .for_each(|(out, x)| work(out, x));
    }
}

// Types and not closures: those would not be compiled for the wider vectors.
struct Dot<'a, A, B> {
    a: &'a [A],
    b: &'a [B],
}

impl<A: Number, B: Number> pulp::NullaryFnOnce for Dot<'_, A, B> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        linalg::dot(self.a, self.b)
    }
}

struct Add<'a, X> {
    out: &'a mut [f64],
    factor: f64,
    x: &'a [X],
}

impl<X: Number> pulp::NullaryFnOnce for Add<'_, X> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out += self.factor * x.wide();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_vectors_are_the_sum_of_their_parts() {
        let n = 3 * PART + 11;
        let a: Vec<f64> = (0..n).map(|i| (i % 7) as f64 - 3.0).collect();
        let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32).collect();
        let want: f64 = a.iter().zip(&b).map(|(a, b)| a * f64::from(*b)).sum();
        assert_eq!(dot(&a, &b), want);
        let mut out = a.clone();
        add(&mut out, 2.0, &b);
        assert!((0..n).all(|i| out[i] == a[i] + 2.0 * f64::from(b[i])));
        let differences: Vec<f32> = combine(&out, &a, |out, a| (out - a) as f32);
        assert!((0..n).all(|i| differences[i] == 2.0 * b[i]));
        let mut again = a.clone();
        assert_eq!(add_and_dot(&mut again, 2.0, &b, &b), dot(&b, &out));
        assert_eq!(again, out);
        set(&mut again, 0.5, &b);
        assert!((0..n).all(|i| again[i] == 0.5 * f64::from(b[i])));
        assert_eq!(
            total(&[&a, &out, &a]),
            (0..n).map(|i| a[i] + out[i] + a[i]).collect::<Vec<_>>()
        );
        multiply(&mut again, 4.0);
        assert!((0..n).all(|i| again[i] == 2.0 * f64::from(b[i])));
        each_chunk(&mut out[..n - 11], &a[..n - 11], 4, |out, a| out[0] = a[3]);
        assert!((0..n / 4 - 3).all(|i| out[4 * i] == a[4 * i + 3]));
    }
}

//! `kernels/layer.cu`.

use super::Args;
use super::rows::{philox, uniform};
use crate::device::backend::Kind;

const F: Kind = Kind::F32;

/// The normal distribution's density and cumulative function, the latter by Simpson's rule over 2000 intervals.
fn normal(z: f64) -> (f64, f64) {
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let (n, h) = (2000, z.clamp(-12.0, 12.0) / 2000.0);
    let inner: f64 = (1..n)
        .map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    (
        density(z),
        0.5 + h / 3.0 * (density(0.0) + inner + density(f64::from(n) * h)),
    )
}

/// An activation and its slope.
fn activate(z: f64, kind: usize) -> (f64, f64) {
    match kind {
        1 => (z.max(0.0), f64::from(u8::from(z > 0.0))),
        2 => {
            let (density, cumulative) = normal(z);
            (z * cumulative, cumulative + z * density)
        }
        _ => (z, 1.0),
    }
}

/// What dropout multiplies a number by.
fn kept(a: &Args, from: usize, at: usize, width: usize) -> f64 {
    let (p, key, [_, _, step]) = (a.real(from), a.number(from + 1) as u64, a.cursor(from + 2));
    let (step0, number0) = (a.number(from + 3), a.number(from + 4));
    let bits = philox(
        key,
        (step + step0) as u64,
        (at / width) as u32,
        (number0 + at % width) as u32,
    );
    if p > 0.0 && uniform(bits) < p {
        0.0
    } else {
        1.0 / (1.0 - p)
    }
}

pub(super) fn activation(a: &Args, kind: Kind) {
    let z = a.reals(1, kind);
    let (n_rows, width) = (a.number(3), a.number(4));
    for (at, mut value) in z.into_iter().enumerate().take(n_rows * width) {
        if !a.is_null(2) {
            a.set(1, kind, at, value + a.reals(2, F)[at % width]);
            value = a.reals(1, kind)[at];
        }
        if !a.is_null(0) {
            a.set(
                0,
                kind,
                at,
                activate(value, a.number(5)).0 * kept(a, 6, at, width),
            );
        }
    }
}

pub(super) fn activation_backward(a: &Args, kind: Kind) {
    let (gradient, z) = (a.reals(0, kind), a.reals(1, kind));
    let (n_rows, width) = (a.number(2), a.number(3));
    for at in 0..n_rows * width {
        a.set(
            0,
            kind,
            at,
            gradient[at] * activate(z[at], a.number(4)).1 * kept(a, 5, at, width),
        );
    }
}

/// Mean and biased variance.
fn moments(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (
        mean,
        values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64,
    )
}

pub(super) fn row_moments(a: &Args, kind: Kind) {
    let (z, width) = (a.reals(2, kind), a.number(4));
    for (row, values) in z.chunks_exact(width).enumerate().take(a.number(3)) {
        let (mean, variance) = moments(values);
        a.set(0, F, row, mean);
        a.set(1, F, row, 1.0 / (variance + a.real(5)).sqrt());
    }
}

pub(super) fn column_moments(a: &Args, kind: Kind) {
    let (z, n_rows, width, momentum) = (a.reals(4, kind), a.number(5), a.number(6), a.real(8));
    for column in 0..width {
        let values: Vec<f64> = (0..n_rows).map(|row| z[row * width + column]).collect();
        let (mean, variance) = moments(&values);
        a.set(0, F, column, mean);
        a.set(1, F, column, 1.0 / (variance + a.real(7)).sqrt());
        if !a.is_null(2) {
            let unbiased = variance * n_rows as f64 / (n_rows as f64 - 1.0);
            for (running, new) in [(2, mean), (3, unbiased)] {
                let before = a.reals(running, F)[column];
                a.set(running, F, column, (1.0 - momentum) * before + momentum * new);
            }
        }
    }
}

pub(super) fn inverse_roots(a: &Args) {
    let variances = a.reals(1, F);
    for (at, variance) in variances.iter().enumerate().take(a.number(2)) {
        a.set(0, F, at, 1.0 / (variance + a.real(3)).sqrt());
    }
}

pub(super) fn normalise(a: &Args, kind: Kind) {
    let z = a.reals(1, kind);
    let (n_rows, width, by_row, n_heads) = (a.number(6), a.number(7), a.number(8) != 0, a.number(9));
    let [mean, inverse, weight, bias] = [2, 3, 4, 5].map(|at| a.reals(at, F));
    for at in 0..n_rows * width {
        let (row, column) = (at / width, at % width);
        let of = if by_row { row } else { column };
        let parameter = if by_row {
            row % n_heads * width + column
        } else {
            column
        };
        a.set(
            0,
            kind,
            at,
            (z[at] - mean[of]) * inverse[of] * weight[parameter] + bias[parameter],
        );
    }
}

pub(super) fn normalise_sums(a: &Args, kind: Kind) {
    let (gradient, z) = (a.reals(2, kind), a.reals(3, kind));
    let (n_rows, width, by_row, n_heads) = (a.number(6), a.number(7), a.number(8) != 0, a.number(9));
    let [mean, inverse] = [4, 5].map(|at| a.reals(at, F));
    for head in 0..n_heads {
        for column in 0..width {
            let (mut of_weight, mut of_bias) = (0.0, 0.0);
            for row in (head..n_rows).step_by(n_heads) {
                let (at, of) = (row * width + column, if by_row { row } else { column });
                of_weight += gradient[at] * (z[at] - mean[of]) * inverse[of];
                of_bias += gradient[at];
            }
            a.set(0, F, head * width + column, of_weight);
            a.set(1, F, head * width + column, of_bias);
        }
    }
}

pub(super) fn row_norm_backward(a: &Args, kind: Kind) {
    let (gradient, z) = (a.reals(0, kind), a.reals(1, kind));
    let [mean, inverse, weight] = [2, 3, 4].map(|at| a.reals(at, F));
    let (n_rows, width, n_heads) = (a.number(5), a.number(6), a.number(7));
    for row in 0..n_rows {
        let scaled: Vec<f64> = (0..width)
            .map(|c| (z[row * width + c] - mean[row]) * inverse[row])
            .collect();
        let g: Vec<f64> = (0..width)
            .map(|c| gradient[row * width + c] * weight[row % n_heads * width + c])
            .collect();
        let sum = g.iter().sum::<f64>() / width as f64;
        let product = g.iter().zip(&scaled).map(|(g, x)| g * x).sum::<f64>() / width as f64;
        for c in 0..width {
            a.set(
                0,
                kind,
                row * width + c,
                inverse[row] * (g[c] - sum - scaled[c] * product),
            );
        }
    }
}

pub(super) fn column_norm_backward(a: &Args, kind: Kind) {
    let (gradient, z) = (a.reals(0, kind), a.reals(1, kind));
    let [mean, inverse, weight, of_weight, of_bias] = [2, 3, 4, 5, 6].map(|at| a.reals(at, F));
    let (n_rows, width) = (a.number(7), a.number(8));
    for at in 0..n_rows * width {
        let c = at % width;
        let scaled = (z[at] - mean[c]) * inverse[c];
        let centred = gradient[at] - (of_bias[c] + scaled * of_weight[c]) / n_rows as f64;
        a.set(0, kind, at, inverse[c] * weight[c] * centred);
    }
}

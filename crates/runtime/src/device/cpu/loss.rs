//! `kernels/loss.cu`.

use super::Args;
use super::rows::mark;
use crate::device::backend::Kind;

/// The second label's row, and the first one's share.
fn mixed(a: &Args, [share, partner]: [usize; 2], order: &[usize], first: usize, row: usize) -> (usize, f64) {
    if a.is_null(partner) {
        return (order[first + row], 1.0);
    }
    let other = a.numbers(partner)[first + row];
    (order[first + other], a.reals(share, Kind::F32)[first + row])
}

pub(super) fn softmax_ce(a: &Args, (from, to): (Kind, Kind)) {
    let (logits, bias, labels, order) = (
        a.reals(1, from),
        a.reals(2, Kind::F32),
        a.numbers(4),
        a.numbers(5),
    );
    let [first, ..] = a.cursor(6);
    let (first, n_rows, n_heads, c, stride) = (
        first + a.number(7),
        a.number(8),
        a.number(9),
        a.number(10),
        a.number(11),
    );
    let smoothing = a.real(14);
    let weight: Vec<f64> = if a.is_null(13) {
        vec![1.0; c]
    } else {
        a.reals(13, Kind::F32)
    };
    for row in 0..n_rows {
        for head in 0..n_heads {
            let at = row * stride + head * c;
            let z: Vec<f64> = (0..c).map(|j| logits[at + j] + bias[head * c + j]).collect();
            let (other, share) = mixed(a, [15, 16], &order, first, row);
            let (label, second) = (labels[order[first + row]], labels[other]);
            let highest = z.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let log_sum = highest + z.iter().map(|z| (z - highest).exp()).sum::<f64>().ln();
            // The loss as torch has it, term by term.
            let minus_log = |j: usize| log_sum - z[j];
            let spread: f64 = (0..c).map(|j| weight[j] * minus_log(j)).sum::<f64>() * smoothing / c as f64;
            let of = |y: usize| (1.0 - smoothing) * weight[y] * minus_log(y) + spread;
            let loss = share * of(label) + (1.0 - share) * of(second);
            let ahead = (0..c)
                .filter(|&j| z[j] > z[label] || (z[j] == z[label] && j < label))
                .count();
            let mass = share * weight[label] + (1.0 - share) * weight[second];
            let right = |n: usize| f64::from(u8::from(ahead < n && !z[label].is_nan()));
            for (i, value) in [loss, mass, right(1), right(5)].into_iter().enumerate() {
                a.set(3, Kind::F32, (row * n_heads + head) * 4 + i, value);
            }
            if a.is_null(0) {
                continue;
            }
            for j in 0..c {
                let p = (z[j] - log_sum).exp();
                // d/dz_j of Σ_t q_t·(log_sum - z_t) is (Σ q)·p_j - q_j.
                let q = |t: usize| {
                    let sure = |y: usize| if y == t { weight[y] } else { 0.0 };
                    (1.0 - smoothing) * (share * sure(label) + (1.0 - share) * sure(second))
                        + smoothing / c as f64 * weight[t]
                };
                let total: f64 = (0..c).map(q).sum();
                a.set(0, to, at + j, total * p - q(j));
            }
        }
    }
}

pub(super) fn dense(a: &Args, (from, to): (Kind, Kind), sigmoid: bool) {
    let (outputs, bias, targets, order) = (
        a.reals(1, from),
        a.reals(2, Kind::F32),
        a.reals(4, Kind::F32),
        a.numbers(5),
    );
    let [first, ..] = a.cursor(6);
    let (first, n_rows, n_heads, c, stride) = (
        first + a.number(7),
        a.number(8),
        a.number(9),
        a.number(10),
        a.number(11),
    );
    let smoothing = a.real(14);
    let weight: Vec<f64> = if a.is_null(13) {
        vec![1.0; 2 * c]
    } else {
        a.reals(13, Kind::F32)
    };
    for row in 0..n_rows {
        for head in 0..n_heads {
            let (other, share) = mixed(a, [15, 16], &order, first, row);
            let (mut loss, mut right) = (0.0, 0.0);
            for j in 0..c {
                let at = row * stride + head * c + j;
                let z = outputs[at] + bias[head * c + j];
                let mut t =
                    share * targets[order[first + row] * c + j] + (1.0 - share) * targets[other * c + j];
                right += f64::from(u8::from((z > 0.0) == (t > 0.5)));
                let slope = if sigmoid {
                    t = t * (1.0 - smoothing) + smoothing / 2.0;
                    let p = 1.0 / (1.0 + (-z).exp());
                    // log(1 + e^±z) by its parts, so that nothing overflows.
                    let log = (-z.abs()).exp().ln_1p();
                    let (present, absent) = (weight[j] * t, weight[c + j] * (1.0 - t));
                    loss += present * ((-z).max(0.0) + log) + absent * (z.max(0.0) + log);
                    absent * p - present * (1.0 - p)
                } else {
                    loss += (z - t).powi(2);
                    2.0 * (z - t)
                };
                if !a.is_null(0) {
                    a.set(0, to, at, slope);
                }
            }
            for (i, value) in [loss, c as f64, right, right].into_iter().enumerate() {
                a.set(3, Kind::F32, (row * n_heads + head) * 4 + i, value);
            }
        }
    }
}

pub(super) fn batch_stats(a: &Args) {
    let stats = a.reals(3, Kind::F32);
    let (n_rows, n_heads) = (a.number(4), a.number(5));
    for head in 0..n_heads {
        let sum = |i: usize| -> f64 { (0..n_rows).map(|row| stats[(row * n_heads + head) * 4 + i]).sum() };
        let sums: Vec<f64> = (0..4).map(sum).collect();
        let is_mean = sums[0].is_finite() && sums[1] > 0.0;
        if !is_mean && !a.is_null(2) {
            let [_, step, _] = a.cursor(6);
            mark(a, 2, head, step + a.number(7));
        }
        if a.is_null(2) || a.numbers(2)[head] == 0 {
            let totals = a.doubles(0);
            for (i, sum) in sums.iter().enumerate() {
                a.put(0, (head * 4 + i) * 8, &(totals[head * 4 + i] + sum).to_le_bytes());
            }
        }
        if !a.is_null(1) {
            a.set(1, Kind::F32, head, 1.0 / sums[1]);
        }
    }
}

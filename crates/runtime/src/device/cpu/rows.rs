//! `kernels/rows.cu` and `kernels/gemm.cu`.

use super::Args;
use crate::device::backend::Kind;

pub(super) fn advance(a: &Args) {
    let numbers = a.numbers(0);
    for (at, add) in [(0, a.number(1)), (1, a.number(2))] {
        a.put(0, at * 4, &((numbers[at] + add) as u32).to_le_bytes());
    }
}

pub(super) fn gather_rows(a: &Args) {
    let (source, order, [first, ..]) = (a.bytes(1), a.numbers(2), a.cursor(3));
    let (row0, n_rows, n_bytes) = (a.number(4), a.number(5), a.number(6) * 16);
    for row in 0..n_rows {
        let from = order[first + row0 + row] * n_bytes;
        a.put(0, row * n_bytes, &source[from..from + n_bytes]);
    }
}

pub(super) fn gather_mix(a: &Args, kind: Kind) {
    let (source, order, [first, _, step]) = (a.reals(1, kind), a.numbers(2), a.cursor(3));
    let (row0, step0, n_rows, width, padded) =
        (a.number(4), a.number(5), a.number(6), a.number(7), a.number(8));
    let (sigma, key) = (a.real(11), a.number(12) as u64);
    let first = first + row0;
    for row in 0..n_rows {
        for column in 0..padded {
            let mut value = 0.0;
            if column < width {
                value = source[order[first + row] * padded + column];
                if !a.is_null(9) {
                    let (share, partner) = (a.reals(9, Kind::F32)[first + row], a.numbers(10)[first + row]);
                    value = share * value + (1.0 - share) * source[order[first + partner] * padded + column];
                }
                if sigma > 0.0 {
                    value += sigma * normal(key, (step + step0) as u64, row as u32, column as u32);
                }
            }
            a.set(0, kind, row * padded + column, value);
        }
    }
}

/// Philox4x32-10 as its authors write it.
pub(super) fn philox(key: u64, step: u64, row: u32, number: u32) -> u32 {
    let mut counter = [number / 4, row, step as u32, (step >> 32) as u32];
    let mut keys = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let first = 0xD251_1F53_u64 * u64::from(counter[0]);
        let second = 0xCD9E_8D57_u64 * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ keys[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ keys[1],
            first as u32,
        ];
        keys = [
            keys[0].wrapping_add(0x9E37_79B9),
            keys[1].wrapping_add(0xBB67_AE85),
        ];
    }
    counter[number as usize % 4]
}

pub(super) fn uniform(bits: u32) -> f64 {
    f64::from(bits >> 8) / 16_777_216.0
}

fn normal(key: u64, step: u64, row: u32, number: u32) -> f64 {
    let pair = number / 16 * 16 + number % 8;
    let radius = (-2.0 * (1.0 - uniform(philox(key, step, row, pair))).ln()).sqrt();
    let angle = std::f64::consts::TAU * uniform(philox(key, step, row, pair + 8));
    radius * if number % 16 < 8 { angle.cos() } else { angle.sin() }
}

pub(super) fn convert(a: &Args, (from, to): (Kind, Kind)) {
    let source = a.reals(1, from);
    let (n_rows, width, padded) = (a.number(2), a.number(3), a.number(4));
    for row in 0..n_rows {
        for column in 0..padded {
            let mut value = 0.0;
            if column < width {
                value = source[row * width + column];
                if !a.is_null(5) {
                    value -= a.reals(5, Kind::F32)[column];
                }
                if !a.is_null(6) {
                    value *= a.reals(6, Kind::F32)[column];
                }
            }
            a.set(0, to, row * padded + column, value);
        }
    }
}

pub(super) fn split(a: &Args, kind: Kind) {
    let source = a.reals(2, Kind::F32);
    for (at, value) in source.iter().enumerate().take(a.number(3)) {
        a.set(0, kind, at, *value);
        let high = a.reals(0, kind)[at];
        a.set(1, kind, at, (value - high) * 4096.0);
    }
}

pub(super) fn column_sums(a: &Args, kind: Kind) {
    let source = a.reals(1, kind);
    let (n_rows, n_columns, stride, segment) = (a.number(2), a.number(3), a.number(4), a.number(5));
    for part in 0..n_rows.div_ceil(segment) {
        for column in 0..n_columns {
            let rows = part * segment..n_rows.min((part + 1) * segment);
            let sum = rows.map(|row| source[row * stride + column]).sum();
            a.set(0, Kind::F32, part * n_columns + column, sum);
        }
    }
}

pub(super) fn sum_segments(a: &Args) {
    let partial = a.reals(1, Kind::F32);
    let (n, n_segments) = (a.number(2), a.number(3));
    for at in 0..n {
        let sum: f64 = (0..n_segments).map(|segment| partial[segment * n + at]).sum();
        a.set(0, Kind::F32, at, sum);
        if !a.is_null(4) && !sum.is_finite() {
            let [_, step, _] = a.cursor(5);
            mark(a, 4, at / a.number(7), step + a.number(6));
        }
    }
}

/// Marks a head's first step that failed.
pub(super) fn mark(a: &Args, faults: usize, head: usize, step: usize) {
    if a.numbers(faults)[head] == 0 {
        a.put(faults, head * 4, &(step as u32 + 1).to_le_bytes());
    }
}

pub(super) fn gemm(a: &Args, (kind, out_kind): (Kind, Kind)) {
    let (left, right) = (a.reals(1, kind), a.reals(2, kind));
    let (m, n, k) = (a.number(3), a.number(4), a.number(5));
    let (a_row, a_step, b_row, b_step) = (a.number(6), a.number(7), a.number(8), a.number(9));
    let (stride, segment, alpha, beta) = (a.number(10), a.number(11), a.real(12), a.real(13));
    let before = a.reals(0, out_kind);
    for part in 0..k.div_ceil(segment) {
        for row in 0..m {
            for column in 0..n {
                let terms = part * segment..k.min((part + 1) * segment);
                let sum: f64 = terms
                    .map(|k| left[row * a_row + k * a_step] * right[column * b_row + k * b_step])
                    .sum();
                let at = (part * m + row) * stride + column;
                let value = alpha * sum + if beta == 0.0 { 0.0 } else { beta * before[at] };
                a.set(0, out_kind, at, value);
            }
        }
    }
}

//! Functions of many numbers at once. Every operation is one that all machines round alike, so that the bits do not depend
//! on the vectors at hand; the functions are inlined into loops that are compiled for those.

use super::kernel::{LANES, tree_sum};

/// `eˣ` to 1 ulp in the normal range; 0 below -87.3, infinite above 88.7. After Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.336_54, 88.722_84);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, clamped);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, coefficient);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ in two factors: one alone overflows at n = 128.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let value = p * power(half) * power(n - half);
    if x < -87.336_54 {
        0.0
    } else if x > 88.722_84 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        value
    }
}

/// `ln x` of a positive normal number to about 1 ulp. After Cephes' `logf`.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    let bits = x.to_bits() as i32;
    // The mantissa in [√½, √2).
    let n = (bits - 0x3f35_04f3) >> 23;
    let m = f32::from_bits((bits - (n << 23)) as u32) - 1.0;
    let n = n as f32;
    let mut p = 7.037_683_6e-2f32;
    for coefficient in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p.mul_add(m, coefficient);
    }
    let square = m * m;
    let mut y = p * m * square;
    y = n.mul_add(-2.121_944_4e-4, y);
    y = square.mul_add(-0.5, y);
    n.mul_add(0.693_359_4, m + y)
}

/// [`ln`] of numbers that may be infinite or none, of which there is none.
#[inline(always)]
pub(super) fn ln_of_finite(x: f32) -> f32 {
    if x.is_finite() { ln(x) } else { f32::NAN }
}

/// Sine and cosine of `turns · 2π` for `turns` in `[0, 1)`, to 1e-7.
#[inline(always)]
pub(super) fn sin_cos_of_turns(turns: f32) -> (f32, f32) {
    let eighths = turns * 8.0;
    // The nearest quarter turn, and what is left of it: at most an eighth of a turn.
    let quarter = ((eighths + 1.0) * 0.5) as i32;
    let x = turns.mul_add(4.0, -(quarter as f32)) * std::f32::consts::FRAC_PI_2;
    let square = x * x;
    let sine = (-1.951_529_6e-4f32)
        .mul_add(square, 8.332_161e-3)
        .mul_add(square, -1.666_665_5e-1)
        .mul_add(square * x, x);
    let cosine = 2.443_315_7e-5f32
        .mul_add(square, -1.388_731_6e-3)
        .mul_add(square, 4.166_664_6e-2)
        .mul_add(square * square, square.mul_add(-0.5, 1.0));
    let (sine, cosine) = if quarter & 1 == 0 {
        (sine, cosine)
    } else {
        (cosine, sine)
    };
    let sine = if quarter & 2 == 0 { sine } else { -sine };
    let cosine = if (quarter + 1) & 2 == 0 { cosine } else { -cosine };
    (sine, cosine)
}

/// The error function, to 1e-7 of its value. Minimax polynomials of our own: `x + x·P(x²)` near zero and
/// `1 - exp(-a - a·Q(a))` beyond.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    /// From here on the function is 1 in f32.
    const END: f32 = 3.95;
    let square = x * x;
    let mut near = -5.953_739e-4f32;
    for coefficient in [
        4.985_94e-3,
        -2.676_172e-2,
        1.128_168_26e-1,
        -3.761_248e-1,
        1.283_791_5e-1,
    ] {
        near = near.mul_add(square, coefficient);
    }
    let near = near.mul_add(x, x);
    let a = x.abs().min(END);
    let mut far = 1.123_147e-5f32;
    for coefficient in [
        -3.228_054_3e-4,
        3.642_465_2e-3,
        -2.376_207_5e-2,
        1.062_368_9e-1,
        6.351_513e-1,
        1.286_484_9e-1,
    ] {
        far = far.mul_add(a, coefficient);
    }
    let far = (1.0 - exp(-far.mul_add(a, a))).copysign(x);
    if x.abs() < 0.93 { near } else { far }
}

/// `eˣ` of each number.
#[inline(always)]
pub(crate) fn exp_all(values: &mut [f32]) {
    let (rows, rest) = values.as_chunks_mut::<LANES>();
    for row in rows {
        exp_row(row);
    }
    if !rest.is_empty() {
        // What is left is a row too: sixteen numbers take as long as one.
        let mut row = [0.0; LANES];
        row[..rest.len()].copy_from_slice(rest);
        exp_row(&mut row);
        rest.copy_from_slice(&row[..rest.len()]);
    }
}

#[inline(always)]
pub(super) fn exp_row(row: &mut [f32; LANES]) {
    for value in row {
        *value = exp(*value);
    }
}

/// The sum in sixteen interleaved chains and a tree.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for i in 0..LANES {
            lanes[i] += row[i];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    tree_sum(&lanes)
}

/// [`sum`] of up to sixteen numbers in each lane. Halves that would be zeros are left out.
#[inline(always)]
pub(super) fn tree_sums(terms: &[[f32; LANES]]) -> [f32; LANES] {
    let mut half = terms.len().next_power_of_two() / 2;
    let mut sums = [[0.0f32; LANES]; LANES];
    sums[..terms.len()].copy_from_slice(terms);
    while half > 0 {
        let (low, high) = sums.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            for lane in 0..LANES {
                low[lane] += high[lane];
            }
        }
        half /= 2;
    }
    sums[0]
}

/// The sum of products, likewise.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_rows, a_rest) = a.as_chunks::<LANES>();
    let (b_rows, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_rows.iter().zip(b_rows) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = a.mul_add(*b, *lane);
    }
    tree_sum(&lanes)
}

/// The largest number; none of them is NaN where the result is to be trusted.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for i in 0..LANES {
            lanes[i] = if row[i] > lanes[i] { row[i] } else { lanes[i] };
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = if *value > *lane { *value } else { *lane };
    }
    let mut top = f32::NEG_INFINITY;
    for lane in lanes {
        top = if lane > top { lane } else { top };
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest `|f - exact| / (|exact| + floor)` on a grid.
    fn worst(from: f32, to: f32, floor: f64, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let at = |i: usize| from + (to - from) * i as f32 / 100_000.0;
        let error = |x: f32| {
            let want = exact(f64::from(x));
            (f64::from(f(x)) - want).abs() / (want.abs() + floor)
        };
        (0..=100_000).map(|i| error(at(i))).fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_as_exact_as_they_claim() {
        assert!(worst(-87.0, 88.5, 0.0, exp, f64::exp) < 1.3e-7);
        assert_eq!((exp(-100.0), exp(100.0), exp(0.0)), (0.0, f32::INFINITY, 1.0));
        assert!(exp(f32::NAN).is_nan());
        assert!(worst(1e-6, 1.0, 1e-30, ln, f64::ln) < 2e-7);
        assert!(worst(1.0, 1e6, 1e-30, ln, f64::ln) < 2e-7);
        assert!(worst(-5.0, 5.0, 1e-30, erf, libm::erf) < 1.5e-7);
        let turn = |x: f64| x * std::f64::consts::TAU;
        let (sine, cosine) = (|x| sin_cos_of_turns(x).0, |x| sin_cos_of_turns(x).1);
        assert!(worst(0.0, 0.999_999, 1.0, sine, |x| turn(x).sin()) < 3e-7);
        assert!(worst(0.0, 0.999_999, 1.0, cosine, |x| turn(x).cos()) < 3e-7);
    }

    #[test]
    fn sums_go_over_all() {
        let values: Vec<f32> = (1..=37).map(|i| i as f32 - 10.0).collect();
        assert_eq!(sum(&values), 333.0);
        assert_eq!(dot(&values, &values), values.iter().map(|v| v * v).sum::<f32>());
        assert_eq!(max(&values), 27.0);
    }
}

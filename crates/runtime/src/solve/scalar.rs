//! `exp` and `log1p` for whole slices of float32: branch-free, so that the compiler makes vectors of them.
//!
//! Both are made of exactly rounded steps in one order, and so give the same bits on every machine.

/// Below this `exp` returns the same tiny number: float32 ends there.
const LEAST: f32 = -87.0;

/// `e^x` for `x <= 88`, to two units in the last place; for `x < -87`, `e^-87`.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, where Taylor's polynomial of degree 7 is off by 5e-9.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest whole number in the last bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < LEAST { LEAST } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut sum = 1.0 / 5040.0;
    sum = r.mul_add(sum, 1.0 / 720.0);
    sum = r.mul_add(sum, 1.0 / 120.0);
    sum = r.mul_add(sum, 1.0 / 24.0);
    sum = r.mul_add(sum, 1.0 / 6.0);
    sum = r.mul_add(sum, 0.5);
    sum = r.mul_add(sum, 1.0);
    sum = r.mul_add(sum, 1.0);
    // n sits in the lowest bits of `shifted`; the exponent's bias makes 2^n of it.
    sum * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// `ln(1 + x)` for `0 <= x < 1e38`, to a relative error of 3.2e-7.
///
/// `1 + x = 2^n m` with `m` near one, `ln m = 2 artanh((m - 1) / (m + 1))`; what rounding took from `1 + x` is given back
/// as a factor (Kahan).
#[inline(always)]
pub(super) fn ln_1p(x: f32) -> f32 {
    const ROOT_HALF: u32 = std::f32::consts::FRAC_1_SQRT_2.to_bits();
    let u = 1.0 + x;
    let bits = u.to_bits();
    let n = bits.wrapping_sub(ROOT_HALF).cast_signed() >> 23;
    let m = f32::from_bits(bits.wrapping_sub((n << 23).cast_unsigned()));
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 1.0 / 9.0;
    sum = square.mul_add(sum, 1.0 / 7.0);
    sum = square.mul_add(sum, 1.0 / 5.0);
    sum = square.mul_add(sum, 1.0 / 3.0);
    sum = square.mul_add(sum, 1.0);
    let log = (n as f32).mul_add(std::f32::consts::LN_2, 2.0 * s * sum);
    let taken = u - 1.0;
    if taken == 0.0 { x } else { log * (x / taken) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units_off(got: f32, want: f64) -> f64 {
        (f64::from(got) - want).abs()
            / (want.abs() * f64::from(f32::EPSILON) / 2.0).max(f64::from(f32::MIN_POSITIVE))
    }

    #[test]
    fn exp_is_right_to_two_units() {
        let worst = (0..2_000_000)
            .map(|i| i as f32 * (88.0 + 87.0) / 2e6 - 87.0)
            .map(|x| units_off(exp(x), f64::from(x).exp()))
            .fold(0.0, f64::max);
        assert!(worst <= 2.0, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 2e-38 && exp(f32::MIN) > 0.0);
    }

    #[test]
    fn ln_1p_is_right() {
        let worst = (0..2_000_000)
            .map(|i| (10f64.powf(f64::from(i) / 2e6 * 68.0 - 30.0)) as f32)
            .map(|x| units_off(ln_1p(x), f64::from(x).ln_1p()))
            .fold(0.0, f64::max);
        assert!(worst <= 5.3, "{worst}");
        assert_eq!(ln_1p(0.0), 0.0);
    }
}

//! Functions of one number.

use rayon::prelude::*;

use super::after::bounded;
use super::{Backward, CHUNK, Kept, Op, Part, Run, Sink};
use crate::panels::vectorised;
use crate::train::math::{erf, exp, ln};

/// Which function; each is what ONNX's operator of the name says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::grad) enum UnaryKind {
    Clip { low: f32, high: f32 },
    LeakyRelu { slope: f32 },
    Elu { alpha: f32 },
    HardSigmoid { alpha: f32, beta: f32 },
    HardSwish,
    Sigmoid,
    Silu,
    Tanh,
    Softplus,
    Gelu,
    GeluTanh,
    Erf,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Neg,
    Abs,
    Square,
    Power { exponent: f32 },
    Scale { factor: f32, offset: f32 },
}

/// A function of each element of its one input.
#[derive(Debug)]
pub(in crate::grad) struct Unary(pub(in crate::grad) UnaryKind);

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// To a few ulp, also near zero, where `1 - 2/(e²ˣ + 1)` would lose digits.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let square = x * x;
    // Taylor to x⁹ below a quarter.
    let near = square
        .mul_add(
            square.mul_add(square.mul_add(62.0 / 2835.0, -17.0 / 315.0), 2.0 / 15.0),
            -1.0 / 3.0,
        )
        .mul_add(square * x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    if a < 0.25 { near } else { far.copysign(x) }
}

/// `y = $f(x)` and `dx = dy · $d(x, y)` as a pair of loops.
macro_rules! function {
    ($forward:ident, $backward:ident, ($x:ident $(, $p:ident)*) $f:expr, ($y:ident) $d:expr) => {
        vectorised! {
            fn $forward(x: &'a [f32], out: &'a mut [f32] $(, $p: f32)*) {
                for (out, $x) in out.iter_mut().zip(x) {
                    let $x = *$x;
                    *out = $f;
                }
            }
        }
        vectorised! {
            fn $backward(x: &'a [f32], out: &'a [f32], d_out: &'a [f32], to: &'a mut [f32], is_added: bool $(, $p: f32)*) {
                for (((to, $x), $y), d_out) in to.iter_mut().zip(x).zip(out).zip(d_out) {
                    let ($x, $y) = (*$x, *$y);
                    let _ = ($x, $y $(, $p)*);
                    let value = d_out * $d;
                    *to = if is_added { *to + value } else { value };
                }
            }
        }
    };
}

const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// `√(2/π)`
const TANH_SCALE: f32 = 0.797_884_6;
/// `1/√(2π)`
const DENSITY: f32 = 0.398_942_3;

function!(clip, d_clip, (x, low, high) bounded(x, [low, high]), (y) if y > low && y < high { 1.0 } else { 0.0 });
function!(leaky, d_leaky, (x, slope) if x > 0.0 { x } else { slope * x }, (y) if x > 0.0 { 1.0 } else { slope });
function!(elu, d_elu, (x, alpha) if x > 0.0 { x } else { alpha * (exp(x) - 1.0) }, (y) if x > 0.0 { 1.0 } else { y + alpha });
function!(hard_sigmoid, d_hard_sigmoid, (x, alpha, beta) x.mul_add(alpha, beta).clamp(0.0, 1.0), (y) if y > 0.0 && y < 1.0 { alpha } else { 0.0 });
function!(hard_swish, d_hard_swish, (x) x * (x + 3.0).clamp(0.0, 6.0) / 6.0, (y) if x <= -3.0 { 0.0 } else if x < 3.0 { x / 3.0 + 0.5 } else { 1.0 });
function!(logistic, d_logistic, (x) sigmoid(x), (y) y * (1.0 - y));
function!(silu, d_silu, (x) x * sigmoid(x), (y) { let s = sigmoid(x); s * x.mul_add(1.0 - s, 1.0) });
function!(hyperbolic, d_hyperbolic, (x) tanh(x), (y) y.mul_add(-y, 1.0));
function!(softplus, d_softplus, (x) x.max(0.0) + ln(1.0 + exp(-x.abs())), (y) sigmoid(x));
function!(gelu, d_gelu, (x) 0.5 * x * (1.0 + erf(x * SQRT_HALF)),
    (y) (x * DENSITY).mul_add(exp(-0.5 * x * x), 0.5 * (1.0 + erf(x * SQRT_HALF))));
function!(gelu_tanh, d_gelu_tanh, (x) 0.5 * x * (1.0 + tanh(TANH_SCALE * (0.044_715 * x * x).mul_add(x, x))),
(y) {
    let t = tanh(TANH_SCALE * (0.044_715 * x * x).mul_add(x, x));
    let inner = TANH_SCALE * (0.134_145 * x).mul_add(x, 1.0);
    0.5 * (1.0 + t) + 0.5 * x * t.mul_add(-t, 1.0) * inner
});
function!(error, d_error, (x) erf(x), (y) std::f32::consts::FRAC_2_SQRT_PI * exp(-x * x));
function!(exponential, d_exponential, (x) exp(x), (y) y);
function!(logarithm, d_logarithm, (x) ln(x), (y) 1.0 / x);
function!(root, d_root, (x) x.sqrt(), (y) 0.5 / y);
function!(reciprocal, d_reciprocal, (x) 1.0 / x, (y) -y * y);
function!(absolute, d_absolute, (x) x.abs(), (y) if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { 0.0 });
function!(square, d_square, (x) x * x, (y) 2.0 * x);
function!(affine, d_affine, (x, factor, offset) x.mul_add(factor, offset), (y) factor);

/// Any exponent, one element at a time.
fn power(x: &[f32], out: &mut [f32], exponent: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = x.powf(exponent);
    }
}

fn d_power(x: &[f32], _: &[f32], d_out: &[f32], to: &mut [f32], is_added: bool, exponent: f32) {
    for ((to, x), d_out) in to.iter_mut().zip(x).zip(d_out) {
        let value = d_out * exponent * x.powf(exponent - 1.0);
        *to = if is_added { *to + value } else { value };
    }
}

impl UnaryKind {
    fn forward(self, x: &[f32], out: &mut [f32]) {
        match self {
            UnaryKind::Clip { low, high } => clip(x, out, low, high),
            UnaryKind::LeakyRelu { slope } => leaky(x, out, slope),
            UnaryKind::Elu { alpha } => elu(x, out, alpha),
            UnaryKind::HardSigmoid { alpha, beta } => hard_sigmoid(x, out, alpha, beta),
            UnaryKind::HardSwish => hard_swish(x, out),
            UnaryKind::Sigmoid => logistic(x, out),
            UnaryKind::Silu => silu(x, out),
            UnaryKind::Tanh => hyperbolic(x, out),
            UnaryKind::Softplus => softplus(x, out),
            UnaryKind::Gelu => gelu(x, out),
            UnaryKind::GeluTanh => gelu_tanh(x, out),
            UnaryKind::Erf => error(x, out),
            UnaryKind::Exp => exponential(x, out),
            UnaryKind::Log => logarithm(x, out),
            UnaryKind::Sqrt => root(x, out),
            UnaryKind::Reciprocal => reciprocal(x, out),
            UnaryKind::Neg => affine(x, out, -1.0, 0.0),
            UnaryKind::Abs => absolute(x, out),
            UnaryKind::Square => square(x, out),
            UnaryKind::Power { exponent } => power(x, out, exponent),
            UnaryKind::Scale { factor, offset } => affine(x, out, factor, offset),
        }
    }

    fn backward(self, x: &[f32], y: &[f32], dy: &[f32], to: &mut [f32], is_added: bool) {
        match self {
            UnaryKind::Clip { low, high } => d_clip(x, y, dy, to, is_added, low, high),
            UnaryKind::LeakyRelu { slope } => d_leaky(x, y, dy, to, is_added, slope),
            UnaryKind::Elu { alpha } => d_elu(x, y, dy, to, is_added, alpha),
            UnaryKind::HardSigmoid { alpha, beta } => d_hard_sigmoid(x, y, dy, to, is_added, alpha, beta),
            UnaryKind::HardSwish => d_hard_swish(x, y, dy, to, is_added),
            UnaryKind::Sigmoid => d_logistic(x, y, dy, to, is_added),
            UnaryKind::Silu => d_silu(x, y, dy, to, is_added),
            UnaryKind::Tanh => d_hyperbolic(x, y, dy, to, is_added),
            UnaryKind::Softplus => d_softplus(x, y, dy, to, is_added),
            UnaryKind::Gelu => d_gelu(x, y, dy, to, is_added),
            UnaryKind::GeluTanh => d_gelu_tanh(x, y, dy, to, is_added),
            UnaryKind::Erf => d_error(x, y, dy, to, is_added),
            UnaryKind::Exp => d_exponential(x, y, dy, to, is_added),
            UnaryKind::Log => d_logarithm(x, y, dy, to, is_added),
            UnaryKind::Sqrt => d_root(x, y, dy, to, is_added),
            UnaryKind::Reciprocal => d_reciprocal(x, y, dy, to, is_added),
            UnaryKind::Neg => d_affine(x, y, dy, to, is_added, -1.0, 0.0),
            UnaryKind::Abs => d_absolute(x, y, dy, to, is_added),
            UnaryKind::Square => d_square(x, y, dy, to, is_added),
            UnaryKind::Power { exponent } => d_power(x, y, dy, to, is_added, exponent),
            UnaryKind::Scale { factor, offset } => d_affine(x, y, dy, to, is_added, factor, offset),
        }
    }
}

impl Op for Unary {
    fn part(&self) -> Part<'_> {
        match self.0 {
            UnaryKind::Clip { low, high } => Part::Clamp([low, high]),
            _ => Part::Other,
        }
    }

    fn forward(&self, _: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        out.par_chunks_mut(CHUNK)
            .zip(inputs[0].par_chunks(CHUNK))
            .for_each(|(out, x)| self.0.forward(x, out));
    }

    fn backward(&self, _: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let Some(sink) = &mut sinks[0] else { return };
        let is_added = sink.is_added;
        sink.values
            .par_chunks_mut(CHUNK)
            .zip(pass.inputs[0].par_chunks(CHUNK))
            .zip(pass.out.par_chunks(CHUNK).zip(pass.d_out.par_chunks(CHUNK)))
            .for_each(|((to, x), (y, dy))| self.0.backward(x, y, dy, to, is_added));
    }
}

//! Every operator's derivative against differences of its own results, and convolutions against their definition.

use super::*;
use crate::grad::shape::Dim;

/// Numbers without pattern in -1..1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// An operator on inputs of some sizes.
struct Case {
    op: Box<dyn Op>,
    inputs: Vec<Vec<f32>>,
    n_out: usize,
    norm: NormMode,
}

impl Case {
    fn new(op: impl Op + 'static, sizes: &[usize], n_out: usize) -> Case {
        Case {
            op: Box::new(op),
            inputs: sizes.iter().zip(1..).map(|(n, seed)| numbers(*n, seed)).collect(),
            n_out,
            norm: NormMode::Frozen,
        }
    }

    fn run(&self) -> Run {
        Run {
            n: 3,
            norm: self.norm,
        }
    }

    fn forward(&self, inputs: &[Vec<f32>], kept: &mut Kept) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.n_out];
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        self.op.forward(self.run(), &inputs, &mut out, kept);
        out
    }

    /// The derivatives of `Σ weights · out` by all inputs, written over numbers or added to them.
    fn backward(&self, weights: &[f32], left: Option<f32>) -> Vec<Vec<f32>> {
        let mut kept = Kept::default();
        let out = self.forward(&self.inputs, &mut kept);
        let mut rooms: Vec<Vec<f32>> = self
            .inputs
            .iter()
            .map(|input| vec![left.unwrap_or(f32::NAN); input.len()])
            .collect();
        let mut sinks: Vec<Option<Sink<'_>>> = rooms
            .iter_mut()
            .map(|values| {
                Some(Sink {
                    values,
                    is_added: left.is_some(),
                })
            })
            .collect();
        let inputs: Vec<&[f32]> = self.inputs.iter().map(Vec::as_slice).collect();
        let pass = Backward {
            inputs: &inputs,
            out: &out,
            d_out: weights,
        };
        self.op.backward(self.run(), pass, &mut sinks, &mut kept);
        rooms
    }

    /// For inputs `wanted`: the derivative along a direction equals a central difference, and what is added is what would
    /// be written.
    fn check(&self, name: &str, wanted: &[usize], step: f32, tolerance: f64) {
        let weights = numbers(self.n_out, 99);
        let found = self.backward(&weights, None);
        let added = self.backward(&weights, Some(2.0));
        for &at in wanted {
            for (found, added) in found[at].iter().zip(&added[at]) {
                let scale = found.abs().max(2.0);
                assert!(
                    (added - found - 2.0).abs() < 1e-4 * scale,
                    "{name}, input {at}: {found} added is {added}"
                );
            }
            let direction = numbers(self.inputs[at].len(), 7 + at as u64);
            let along: f64 = direction
                .iter()
                .zip(&found[at])
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            let [up, down] = [step, -step].map(|step| {
                let mut inputs = self.inputs.clone();
                inputs[at]
                    .iter_mut()
                    .zip(&direction)
                    .for_each(|(x, d)| *x += step * d);
                self.forward(&inputs, &mut Kept::default())
            });
            let terms = up.iter().zip(&down).zip(&weights);
            let difference = terms.map(|((up, down), w)| (f64::from(*up) - f64::from(*down)) * f64::from(*w));
            let expected = difference.sum::<f64>() / (2.0 * f64::from(step));
            let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let scale = norm(&found[at]) * norm(&direction) / (found[at].len() as f64).sqrt();
            assert!(
                (along - expected).abs() < tolerance * scale.max(1e-3),
                "{name}, input {at}: {along} where differences say {expected} (scale {scale})"
            );
        }
    }
}

fn geometry(
    size: [usize; 2],
    c: usize,
    k: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    groups: usize,
) -> Geometry {
    dilated(size, c, k, kernel, stride, pad, groups, 1)
}

#[expect(clippy::too_many_arguments, reason = "the numbers of a convolution")]
fn dilated(
    size: [usize; 2],
    c: usize,
    k: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    groups: usize,
    dilation: usize,
) -> Geometry {
    let out = size.map(|size| (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1);
    Geometry {
        h: size[0],
        w: size[1],
        c,
        oh: out[0],
        ow: out[1],
        k,
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [dilation; 2],
        pad: [pad; 2],
        groups,
    }
}

/// The definition, in float64.
fn naive(g: &Geometry, x: &[f32], weights: &[f32], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * g.out_len()];
    let (group_c, group_k) = (g.group_c(), g.group_k());
    for (at, out) in out.iter_mut().enumerate() {
        let (pixel, k) = (at / g.k, at % g.k);
        let image = pixel / (g.oh * g.ow);
        let pixel = pixel % (g.oh * g.ow);
        for tap in 0..g.taps() {
            let Some(under) = g.under(pixel / g.ow, pixel % g.ow, tap) else {
                continue;
            };
            for c in 0..group_c {
                let channel = k / group_k * group_c + c;
                let x = x[image * g.in_len() + under * g.c + channel];
                *out += f64::from(x) * f64::from(weights[(k * group_c + c) * g.taps() + tap]);
            }
        }
    }
    out
}

#[test]
fn convolutions_are_their_definition_and_their_derivatives() {
    let oblong = Geometry {
        h: 9,
        w: 7,
        c: 3,
        oh: 4,
        ow: 9,
        k: 5,
        kernel: [3, 5],
        stride: [2, 1],
        dilation: [2, 1],
        pad: [1, 3],
        groups: 1,
    };
    let cases = [
        ("strided", geometry([9, 7], 16, 32, 3, 2, 1, 1)),
        ("odd channels", geometry([6, 5], 11, 7, 3, 1, 1, 1)),
        ("few channels", geometry([6, 5], 5, 7, 3, 1, 1, 1)),
        (
            "few channels, wider than the picture",
            geometry([4, 3], 3, 8, 7, 1, 3, 1),
        ),
        ("few channels, not square", oblong),
        ("few channels, wide padding", geometry([5, 4], 2, 5, 3, 1, 3, 1)),
        ("one channel", geometry([6, 7], 1, 6, 5, 2, 2, 1)),
        (
            "pictures, in several parts",
            geometry([100, 80], 3, 8, 7, 2, 3, 1),
        ),
        ("grouped", geometry([6, 6], 24, 40, 3, 1, 1, 4)),
        ("pixels, strided", geometry([8, 8], 32, 48, 1, 2, 0, 1)),
        ("dilated", dilated([9, 9], 8, 16, 3, 1, 2, 1, 2)),
        ("patches", geometry([8, 8], 3, 20, 4, 4, 0, 1)),
        ("depthwise", geometry([7, 7], 19, 19, 3, 1, 1, 19)),
        ("depthwise, strided", geometry([9, 8], 32, 32, 5, 2, 2, 32)),
        ("tiles, whole", geometry([8, 8], 32, 48, 3, 1, 1, 1)),
        ("tiles, cut", geometry([7, 5], 48, 32, 3, 1, 1, 1)),
        ("tiles, no padding", geometry([9, 9], 32, 32, 3, 1, 0, 1)),
        ("tiles, wide padding", geometry([6, 6], 32, 32, 3, 1, 2, 1)),
    ];
    for (name, g) in cases {
        let weights = g.k * g.group_c() * g.taps();
        let case = Case::new(Conv::new(g), &[3 * g.in_len(), weights, g.k], 3 * g.out_len());
        let out = case.forward(&case.inputs, &mut Kept::default());
        let expected = naive(&g, &case.inputs[0], &case.inputs[1], 3);
        let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        for (at, (out, expected)) in out.iter().zip(&expected).enumerate() {
            let expected = expected + f64::from(case.inputs[2][at % g.k]);
            assert!(
                (f64::from(*out) - expected).abs() < 5e-6 * largest,
                "{name} at {at}: {out} {expected}"
            );
        }
        case.check(name, &[0, 1, 2], 0.5, 2e-4);
    }
}

/// Bounds that some outputs of the cases are beyond.
const BOUNDS: [f32; 2] = [-0.5, 0.75];

#[test]
fn frozen_convolutions_are_their_definition_and_what_follows_them() {
    let cases = [
        ("strided", geometry([9, 7], 16, 32, 3, 2, 1, 1), 3),
        ("few channels", geometry([100, 80], 3, 8, 7, 2, 3, 1), 2),
        ("grouped", geometry([6, 6], 24, 40, 3, 1, 1, 4), 3),
        ("tiles, one cut", geometry([3, 2], 32, 32, 3, 1, 2, 1), 1),
        ("tiles, cut", geometry([7, 5], 48, 32, 3, 1, 1, 1), 3),
        ("tiles, no padding", geometry([18, 18], 32, 64, 3, 1, 0, 1), 2),
        (
            "tiles, several pictures in a block",
            geometry([12, 11], 32, 48, 3, 1, 1, 1),
            29,
        ),
        (
            "tiles, several blocks in a picture",
            geometry([56, 46], 32, 32, 3, 1, 1, 1),
            2,
        ),
    ];
    for (name, g, n) in cases {
        let (x, residual) = (numbers(n * g.in_len(), 1), numbers(n * g.out_len(), 2));
        let (weights, bias) = (numbers(g.k * g.group_c() * g.taps(), 3), numbers(g.k, 4));
        let expected = naive(&g, &x, &weights, n);
        let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let scale = [numbers(g.k, 5), numbers(g.k, 6)];
        for (has_bias, has_scale, has_residual, clamp) in [
            (false, false, false, None),
            (true, false, false, Some(BOUNDS)),
            (false, true, true, Some(BOUNDS)),
            (true, true, true, Some([0.0, f32::INFINITY])),
        ] {
            let frozen = FrozenProduct::of_conv(&Conv::new(g), &weights).unwrap();
            let frozen = frozen.with(Follow {
                bias: has_bias.then(|| bias.clone()),
                scale: has_scale.then(|| scale.clone()),
                clamp,
            });
            let mut out = vec![f32::NAN; n * g.out_len()];
            frozen.forward(&x, has_residual.then_some(&residual), &mut out);
            for (at, (out, expected)) in out.iter().zip(&expected).enumerate() {
                let mut expected = *expected;
                let number = |values: &[f32], at: usize| f64::from(values[at]);
                if has_bias {
                    expected += number(&bias, at % g.k);
                }
                if has_scale {
                    expected = expected * number(&scale[0], at % g.k) + number(&scale[1], at % g.k);
                }
                if has_residual {
                    expected += number(&residual, at);
                }
                let [low, high] = clamp.unwrap_or([f32::NEG_INFINITY, f32::INFINITY]).map(f64::from);
                expected = expected.clamp(low, high);
                assert!(
                    (f64::from(*out) - expected).abs() < 5e-6 * largest,
                    "{name} at {at}: {out} {expected}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_number_passes_activations() {
    let after = frozen_product_of_one(f32::NAN);
    assert!(after.iter().all(|out| out.is_nan()), "{after:?}");
    assert_eq!(frozen_product_of_one(-3.0), [0.0; 2]);
    let mut out = [0.0; 2];
    let inputs: [&[f32]; 1] = [&[f32::NAN, 7.0]];
    let run = Run {
        n: 1,
        norm: NormMode::Frozen,
    };
    Unary(UnaryKind::Clip { low: 0.0, high: 6.0 }).forward(run, &inputs, &mut out, &mut Kept::default());
    assert!(out[0].is_nan() && out[1] == 6.0, "{out:?}");
}

/// `max(0, x)` twice.
fn frozen_product_of_one(x: f32) -> [f32; 2] {
    let linear = Linear {
        n_in: 1,
        n_out: 2,
        is_transposed: false,
    };
    let frozen = FrozenProduct::of_linear(&linear, &[1.0, 1.0]).with(Follow {
        clamp: Some([0.0, f32::INFINITY]),
        ..Follow::default()
    });
    let mut out = [0.0; 2];
    frozen.forward(&[x], None, &mut out);
    out
}

#[test]
fn products_have_their_derivatives() {
    let (n, n_in, n_out) = (70, 37, 21);
    for is_transposed in [false, true] {
        let op = Linear {
            n_in,
            n_out,
            is_transposed,
        };
        let case = Case::new(op, &[n * n_in, n_in * n_out, n_out], n * n_out);
        case.check("linear", &[0, 1, 2], 0.5, 1e-4);
        for other in [false, true] {
            let op = MatMul {
                counts: [Dim::batched(2), Dim::batched(2)],
                rows: Dim::fixed(5),
                depth: Dim::fixed(7),
                columns: Dim::fixed(4),
                is_transposed: [is_transposed, other],
            };
            Case::new(op, &[6 * 35, 6 * 28], 6 * 20).check("matmul", &[0, 1], 0.5, 1e-4);
        }
        let op = MatMul {
            counts: [Dim::batched(2), Dim::ONE],
            rows: Dim::fixed(5),
            depth: Dim::fixed(7),
            columns: Dim::fixed(4),
            is_transposed: [false, is_transposed],
        };
        Case::new(op, &[6 * 35, 28], 6 * 20).check("matmul, one for all", &[0, 1], 0.5, 1e-4);
    }
}

#[test]
fn normalisations_have_their_derivatives() {
    for (norm, clamp, residual) in [
        (NormMode::Frozen, None, false),
        (NormMode::Batch, None, false),
        (NormMode::Frozen, None, true),
        (NormMode::Batch, None, true),
        // Bounds so wide that a step does not pass them.
        (NormMode::Batch, Some([-50.0, 50.0]), true),
    ] {
        let op = BatchNorm {
            n_channels: 9,
            eps: 1e-5,
            momentum: 0.1,
            clamp,
        };
        let n = 150 * 9;
        let sizes = [n, 9, 9, 9, 9, n];
        let mut case = Case::new(op, &sizes[..if residual { 6 } else { 5 }], n);
        case.norm = norm;
        case.inputs[4].iter_mut().for_each(|var| *var = var.abs() + 0.5);
        let wanted = if residual { &[0, 1, 2, 5][..] } else { &[0, 1, 2] };
        case.check("batch norm", wanted, 0.02, 2e-3);
    }
    let case = Case::new(LayerNorm { width: 21, eps: 1e-5 }, &[100 * 21, 21, 21], 100 * 21);
    case.check("layer norm", &[0, 1, 2], 0.02, 2e-3);
}

#[test]
fn a_clamp_behind_a_normalisation_stops_what_it_clamps() {
    let op = |clamp| BatchNorm {
        n_channels: 4,
        eps: 1e-5,
        momentum: 0.1,
        clamp,
    };
    let sizes = [40, 4, 4, 4, 4, 40];
    let mut free = Case::new(op(None), &sizes, 40);
    let mut clamped = Case::new(op(Some([0.0, 0.8])), &sizes, 40);
    for case in [&mut free, &mut clamped] {
        case.inputs[4].iter_mut().for_each(|var| *var = var.abs() + 0.5);
    }
    let out = free.forward(&free.inputs, &mut Kept::default());
    let weights: Vec<f32> = numbers(40, 99);
    let passing: Vec<f32> = weights
        .iter()
        .zip(&out)
        .map(|(w, y)| if *y > 0.0 && *y < 0.8 { *w } else { 0.0 })
        .collect();
    assert!(passing.iter().filter(|w| **w == 0.0).count() > 5);
    let (found, expected) = (clamped.backward(&weights, None), free.backward(&passing, None));
    for at in [0, 1, 2, 5] {
        for (found, expected) in found[at].iter().zip(&expected[at]) {
            assert!((found - expected).abs() < 1e-5, "input {at}: {found} {expected}");
        }
    }
}

#[test]
fn running_statistics_follow_as_torchs_do() {
    let op = BatchNorm {
        n_channels: 1,
        eps: 1e-5,
        momentum: 0.1,
        clamp: None,
    };
    let mut case = Case::new(op, &[4, 1, 1, 1, 1], 4);
    case.inputs[0] = vec![1.0, 2.0, 3.0, 6.0];
    case.norm = NormMode::Batch;
    let mut kept = Kept::default();
    case.forward(&case.inputs, &mut kept);
    let (mut mean, mut var) = ([1.0], [2.0]);
    case.op.update_running(&kept, &mut mean, &mut var);
    // The mean is 3, the unbiased variance (4 + 1 + 0 + 9) / 3.
    assert_eq!(mean, [0.9 + 0.3]);
    assert_eq!(var, [(0.9 * 2.0 + 0.1 * 14.0 / 3.0) as f32]);
}

#[test]
fn functions_of_one_number_have_their_derivatives() {
    let kinds = [
        UnaryKind::Clip { low: -9.0, high: 9.0 },
        UnaryKind::Elu { alpha: 0.7 },
        UnaryKind::HardSwish,
        UnaryKind::HardSigmoid {
            alpha: 0.2,
            beta: 0.5,
        },
        UnaryKind::Sigmoid,
        UnaryKind::Silu,
        UnaryKind::Tanh,
        UnaryKind::Softplus,
        UnaryKind::Gelu,
        UnaryKind::GeluTanh,
        UnaryKind::Erf,
        UnaryKind::Exp,
        UnaryKind::Neg,
        UnaryKind::Square,
        UnaryKind::Scale {
            factor: 3.0,
            offset: -1.0,
        },
    ];
    for kind in kinds {
        Case::new(Unary(kind), &[1000], 1000).check(&format!("{kind:?}"), &[0], 0.01, 2e-3);
    }
    // Of positive numbers, or without a kink within a step.
    let others = [
        UnaryKind::Log,
        UnaryKind::Sqrt,
        UnaryKind::Reciprocal,
        UnaryKind::Abs,
        UnaryKind::LeakyRelu { slope: 0.1 },
        UnaryKind::Power { exponent: 2.5 },
        UnaryKind::Clip { low: 0.0, high: 6.0 },
    ];
    for kind in others {
        let mut case = Case::new(Unary(kind), &[1000], 1000);
        case.inputs[0].iter_mut().for_each(|x| *x = x.abs() + 0.5);
        case.check(&format!("{kind:?}"), &[0], 0.01, 2e-3);
    }
    for is_log in [false, true] {
        let case = Case::new(Softmax { width: 37, is_log }, &[20 * 37], 20 * 37);
        case.check("softmax", &[0], 0.02, 2e-3);
    }
}

#[test]
fn arithmetic_sums_over_what_it_repeats() {
    let n = Dim::batched(1);
    let shape = || vec![n, Dim::fixed(4), Dim::fixed(5), Dim::fixed(17)];
    let all = vec![true; 4];
    let repeats: [&[bool]; 5] = [
        &[true, true, true, true],
        &[false, false, false, true],
        &[true, false, false, true],
        &[true, true, true, false],
        &[false, true, false, false],
    ];
    for kind in [BinaryKind::Add, BinaryKind::Sub, BinaryKind::Mul, BinaryKind::Div] {
        for has in repeats {
            let size: usize = has
                .iter()
                .zip([3, 4, 5, 17])
                .filter(|(has, _)| **has)
                .map(|(_, n)| n)
                .product();
            for swapped in [false, true] {
                let mut sizes = [3 * 4 * 5 * 17, size];
                let mut sides = [all.clone(), has.to_vec()];
                if swapped {
                    sizes.reverse();
                    sides.reverse();
                }
                let op = Binary {
                    kind,
                    shape: shape(),
                    has: sides,
                };
                let mut case = Case::new(op, &sizes, 3 * 4 * 5 * 17);
                for input in &mut case.inputs {
                    input.iter_mut().for_each(|x| *x = x.abs() + 0.7);
                }
                case.check(&format!("{kind:?} {has:?}"), &[0, 1], 0.02, 2e-3);
            }
        }
    }
}

#[test]
fn pools_and_reductions_have_their_derivatives() {
    for is_mean in [false, true] {
        for inner in [1, 8] {
            let op = Reduce {
                size: Dim::fixed(30),
                inner: Dim::fixed(inner),
                is_mean,
            };
            Case::new(op, &[3 * 30 * inner], 3 * inner).check("reduce", &[0], 0.5, 1e-4);
        }
    }
    let g = geometry([7, 8], 5, 5, 3, 2, 1, 5);
    for counts_padding in [false, true] {
        let op = AveragePool {
            window: g,
            counts_padding,
        };
        Case::new(op, &[3 * g.in_len()], 3 * g.out_len()).check("average", &[0], 0.5, 1e-4);
    }
    let case = Case::new(MaxPool(g), &[3 * g.in_len()], 3 * g.out_len());
    // So small a step that no other number becomes the largest.
    case.check("maximum", &[0], 1e-4, 2e-2);
}

#[test]
fn maxima_are_the_first_of_the_largest() {
    let g = Geometry {
        groups: 19,
        ..geometry([7, 6], 19, 19, 3, 2, 1, 19)
    };
    // Whole numbers, many of them equal, and two that are none.
    let mut x: Vec<f32> = numbers(g.in_len(), 3).iter().map(|x| (x * 3.0).round()).collect();
    (x[5], x[19 * 20 + 7]) = (f32::NAN, f32::NAN);
    let (mut out, mut kept) = (vec![0.0; g.out_len()], Kept::default());
    let run = Run {
        n: 1,
        norm: NormMode::Frozen,
    };
    MaxPool(g).forward(run, &[&x], &mut out, &mut kept);
    for (at, (out, index)) in out.iter().zip(&kept.indices).enumerate() {
        let (pixel, c) = (at / g.c, at % g.c);
        let mut best: Option<(usize, f32)> = None;
        for tap in 0..g.taps() {
            let Some(under) = g.under(pixel / g.ow, pixel % g.ow, tap) else {
                continue;
            };
            let x = x[under * g.c + c];
            if best.is_none_or(|(_, largest)| x > largest || x.is_nan()) {
                best = Some((under, x));
            }
        }
        let (under, largest) = best.unwrap();
        assert_eq!(
            (*index as usize, out.to_bits()),
            (under, largest.to_bits()),
            "{at}"
        );
    }
}

#[test]
fn linear_layers_are_the_same_for_any_number_of_threads() {
    let op = Linear {
        n_in: 37,
        n_out: 200,
        is_transposed: false,
    };
    let case = Case::new(op, &[700 * 37, 37 * 200, 200], 700 * 200);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            let out = case.forward(&case.inputs, &mut Kept::default());
            let back = case.backward(&numbers(700 * 200, 9), None);
            [vec![out], back].concat()
        })
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

#[test]
fn what_only_moves_numbers_moves_derivatives_back() {
    let whole = |size, stride| Axis {
        size,
        start: 0,
        step: 1,
        stride,
    };
    let n = Dim::batched(1);
    let fixed = Dim::fixed;
    // [n, 6, 20] with the last two exchanged; then every second of the second axis, backwards; then repeated.
    let transpose = vec![
        whole(n, fixed(120)),
        whole(fixed(20), fixed(1)),
        whole(fixed(6), fixed(20)),
    ];
    Case::new(Strided(transpose), &[360], 360).check("transpose", &[0], 0.5, 1e-4);
    let mut slice = vec![
        whole(n, fixed(120)),
        whole(fixed(3), fixed(20)),
        whole(fixed(20), fixed(1)),
    ];
    (slice[1].start, slice[1].step) = (5, -2);
    Case::new(Strided(slice), &[360], 180).check("slice", &[0], 0.5, 1e-4);
    let expand = vec![
        whole(n, fixed(0)),
        whole(fixed(6), fixed(20)),
        whole(fixed(20), fixed(1)),
    ];
    let case = Case::new(Strided(expand), &[120], 360);
    assert_eq!(
        case.forward(&case.inputs, &mut Kept::default())[120..240],
        case.inputs[0]
    );
    case.check("expand", &[0], 0.5, 1e-4);
    let concat = Concat {
        sizes: vec![fixed(2), fixed(5)],
        inner: fixed(4),
    };
    Case::new(concat, &[24, 60], 84).check("concat", &[0, 1], 0.5, 1e-4);
    let select = Select {
        size: 5,
        inner: fixed(4),
        indices: vec![3, 0, 3],
    };
    Case::new(select, &[60], 36).check("select", &[0], 0.5, 1e-4);
}

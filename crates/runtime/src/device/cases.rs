//! One table of cases for every kernel: the reference and a GPU are given the same bytes, and every buffer afterwards is
//! compared. [`emulator::gpu`] says which GPU.

use half::{bf16, f16};

use super::backend::{Arg, Backend, Kind, Shape, download, upload};
use super::cpu::Reference;
use super::cuda::{Cuda, MODULES, entries};
use super::emulator::gpu;

/// An argument of a case; every buffer is compared as what it holds.
#[derive(Debug, Clone)]
enum Input {
    Null,
    /// Numbers in a kind.
    Reals(Kind, Vec<f32>),
    Doubles(Vec<f64>),
    Words(Vec<u32>),
    U32(usize),
    I32(i32),
    U64(u64),
    F32(f32),
    /// The same buffer as that of an earlier argument.
    Same(usize),
}
use Input::{Doubles, F32, I32, Null, Reals, Same, U32, U64, Words};

impl Input {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Reals(Kind::F32, values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Reals(Kind::F16, values) => values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            Reals(Kind::Bf16, values) => values
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
            Doubles(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Words(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => Vec::new(),
        }
    }

    /// Bytes of this buffer as numbers, with the unit of the last place relative to a number.
    fn decode(&self, bytes: &[u8]) -> (Vec<f64>, f64) {
        match self {
            Reals(Kind::F32, _) => (
                bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
                    .collect(),
                1e-6,
            ),
            Reals(Kind::F16, _) => (
                bytes
                    .chunks_exact(2)
                    .map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64())
                    .collect(),
                1e-3,
            ),
            Reals(Kind::Bf16, _) => (
                bytes
                    .chunks_exact(2)
                    .map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64())
                    .collect(),
                8e-3,
            ),
            Doubles(_) => (
                bytes
                    .chunks_exact(8)
                    .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                1e-9,
            ),
            Words(_) => {
                let word = |b: &[u8]| f64::from(u32::from_le_bytes(b.try_into().unwrap()));
                (bytes.chunks_exact(4).map(word).collect(), 0.0)
            }
            other => panic!("{other:?} is no buffer"),
        }
    }
}

/// Runs it on a device; the bytes of each buffer afterwards.
fn outcome<D: Backend>(device: &D, kernel: &str, shape: Shape, inputs: &[Input]) -> Vec<Vec<u8>> {
    let buffers: Vec<Option<D::Buffer>> = inputs
        .iter()
        .map(|input| match input {
            Reals(..) | Doubles(_) | Words(_) => Some(upload(device, &input.bytes()).unwrap()),
            _ => None,
        })
        .collect();
    let buffer = |at: usize| Arg::Buffer(buffers[at].as_ref().unwrap());
    let args: Vec<Arg<'_, D::Buffer>> = inputs
        .iter()
        .enumerate()
        .map(|(at, input)| match *input {
            Null => Arg::Null,
            U32(n) => Arg::U32(n as u32),
            I32(n) => Arg::I32(n),
            U64(n) => Arg::U64(n),
            F32(n) => Arg::F32(n),
            Same(other) => buffer(other),
            _ => buffer(at),
        })
        .collect();
    device.launch(kernel, shape, &args).unwrap();
    let read = |(input, buffer): (&Input, &Option<D::Buffer>)| match buffer {
        Some(buffer) => download(device, buffer, input.bytes().len()).unwrap(),
        None => Vec::new(),
    };
    inputs.iter().zip(&buffers).map(read).collect()
}

/// Compares a kernel with its reference: |a - b| <= 20 last places of the larger of |b| and `scale`.
fn check(cuda: &Cuda, kernel: &str, shape: Shape, scale: f64, inputs: &[Input]) {
    let got = outcome(cuda, kernel, shape, inputs);
    let want = outcome(&Reference::default(), kernel, shape, inputs);
    for (at, input) in inputs.iter().enumerate().filter(|(at, _)| !got[*at].is_empty()) {
        let ((got, unit), (want, _)) = (input.decode(&got[at]), input.decode(&want[at]));
        for (i, (a, b)) in got.iter().zip(&want).enumerate() {
            let near = (a - b).abs() <= 20.0 * unit * b.abs().max(scale);
            assert!(
                near || a == b || (a.is_nan() && b.is_nan()),
                "{kernel}: argument {at}, number {i}: {a} for {b}"
            );
        }
    }
}

/// Numbers between -`size` and `size` that look random.
fn numbers(n: usize, seed: u32, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 16_777_216.0 * 2.0 - 1.0
    };
    (0..n).map(|_| next() * size).collect()
}

const KINDS: [Kind; 3] = [Kind::F32, Kind::F16, Kind::Bf16];

/// Row 3 of the epoch, step 5 of it, 2^32 + 7 steps before.
fn cursor() -> Input {
    Words(vec![3, 5, 7, 1])
}

/// An order of 20 rows, of which cases use those from 4 on.
fn order() -> Input {
    Words((0..20).map(|i| i * 7 % 20).collect())
}

fn each(n: usize) -> Shape {
    Shape::each(n)
}

fn warps(n: usize) -> Shape {
    Shape::each(n * 32)
}

#[test]
fn rows_are_those_of_the_reference() {
    let Some(cuda) = gpu(false) else { return };
    check(
        &cuda,
        "advance",
        Shape {
            grid: [1, 1, 1],
            block: [1, 1],
        },
        0.0,
        &[cursor(), U32(4), U32(1)],
    );
    let source = Reals(Kind::F32, numbers(20 * 12, 1, 9.0));
    let out = Reals(Kind::F32, vec![0.0; 7 * 12]);
    check(
        &cuda,
        "gather_rows",
        each(21),
        0.0,
        &[out, source, order(), cursor(), U32(1), U32(7), U32(3)],
    );
    for kind in KINDS {
        let name = kind.suffix();
        for (share, partner, sigma) in [
            (Null, Null, 0.0),
            (
                Reals(Kind::F32, vec![0.25; 20]),
                Words((0..20).map(|i| (i + 3) % 7).collect()),
                0.5,
            ),
        ] {
            let inputs = [
                Reals(kind, vec![9.0; 7 * 16]),
                Reals(kind, numbers(20 * 16, 2, 2.0)),
                order(),
                cursor(),
                U32(1),
                U32(2),
                U32(7),
                U32(13),
                U32(16),
                share,
                partner,
                F32(sigma),
                U64(0x1234_5678_9abc_def0),
            ];
            check(&cuda, &format!("gather_mix_{name}"), each(7 * 16), 1.0, &inputs);
        }
        let out = Reals(Kind::F32, vec![0.0; 3 * 37]);
        let inputs = [
            out,
            Reals(kind, numbers(50 * 40, 3, 1.0)),
            U32(50),
            U32(37),
            U32(40),
            U32(20),
        ];
        let shape = Shape {
            grid: [2, 3, 1],
            block: [32, 8],
        };
        check(&cuda, &format!("column_sums_{name}"), shape, 1.0, &inputs);
    }
    for (name, from, to) in [
        ("convert_f32_f32", Kind::F32, Kind::F32),
        ("convert_f32_f16", Kind::F32, Kind::F16),
        ("convert_f32_bf16", Kind::F32, Kind::Bf16),
        ("convert_f16_f32", Kind::F16, Kind::F32),
        ("convert_bf16_f32", Kind::Bf16, Kind::F32),
    ] {
        let (out, source) = (Reals(to, vec![5.0; 6 * 8]), Reals(from, numbers(6 * 5, 4, 70.0)));
        let (centre, scale) = (
            Reals(Kind::F32, numbers(5, 5, 3.0)),
            Reals(Kind::F32, numbers(5, 6, 2.0)),
        );
        let sizes = [U32(6), U32(5), U32(8)];
        let all = [
            vec![out.clone(), source.clone()],
            sizes.to_vec(),
            vec![centre, scale],
        ]
        .concat();
        check(&cuda, name, each(48), 0.0, &all);
        let plain = [vec![out, source], sizes.to_vec(), vec![Null, Null]].concat();
        check(&cuda, name, each(48), 0.0, &plain);
    }
    for kind in [Kind::F16, Kind::Bf16] {
        let n = || Reals(kind, vec![0.0; 300]);
        let inputs = [n(), n(), Reals(Kind::F32, numbers(300, 7, 3.0)), U32(300)];
        check(
            &cuda,
            &format!("split_{}", kind.suffix()),
            each(300),
            0.0,
            &inputs,
        );
    }
    let mut partial = numbers(4 * 60, 8, 1.0);
    partial[70] = f32::INFINITY;
    let faults = Words(vec![0, 0, 9]);
    let inputs = [
        Reals(Kind::F32, vec![0.0; 60]),
        Reals(Kind::F32, partial),
        U32(60),
        U32(4),
        faults,
        cursor(),
        U32(2),
        U32(20),
    ];
    check(&cuda, "sum_segments", each(60), 1.0, &inputs);
}

#[test]
fn products_are_those_of_the_reference() {
    let Some(cuda) = gpu(false) else { return };
    let kinds = [
        ("gemm_f32", Kind::F32, Kind::F32, 256),
        ("gemm_f16_f32", Kind::F16, Kind::F32, 128),
        ("gemm_f16", Kind::F16, Kind::F16, 128),
        ("gemm_bf16_f32", Kind::Bf16, Kind::F32, 128),
        ("gemm_bf16", Kind::Bf16, Kind::Bf16, 128),
    ];
    // Whole tiles, edges on every side, one row; strides that are and are not of 16 bytes; segments of k.
    for (m, n, k, segment, pad) in [
        (64, 64, 64, 64, 0),
        (70, 67, 45, 32, 3),
        (1, 9, 33, 64, 8),
        (130, 5, 100, 64, 4),
    ] {
        for (name, kind, out_kind, threads) in kinds {
            for (a_along, b_along) in [(true, true), (true, false), (false, false), (false, true)] {
                let strides = |rows: usize, along: bool| if along { (k + pad, 1) } else { (1, rows + pad) };
                let ((a_row, a_step), (b_row, b_step)) = (strides(m, a_along), strides(n, b_along));
                let room = |rows: usize, along: bool| if along { rows * (k + pad) } else { k * (rows + pad) };
                let parts = k.div_ceil(segment);
                let inputs = [
                    Reals(out_kind, numbers(parts * m * (n + 1), 1, 1.0)),
                    Reals(kind, numbers(room(m, a_along), 2, 1.0)),
                    Reals(kind, numbers(room(n, b_along), 3, 1.0)),
                    U32(m),
                    U32(n),
                    U32(k),
                    U64(a_row as u64),
                    U64(a_step as u64),
                    U64(b_row as u64),
                    U64(b_step as u64),
                    U64(n as u64 + 1),
                    U32(segment),
                    F32(0.5),
                    F32(if pad == 3 { 2.0 } else { 0.0 }),
                ];
                let shape = Shape {
                    grid: [n.div_ceil(64), m.div_ceil(64), parts],
                    block: [threads, 1],
                };
                check(&cuda, name, shape, 1.0, &inputs);
            }
        }
    }
}

#[test]
fn losses_are_those_of_the_reference() {
    let Some(cuda) = gpu(false) else { return };
    let pairs = [
        ("f32", Kind::F32, Kind::F32),
        ("f32_f16", Kind::F32, Kind::F16),
        ("f32_bf16", Kind::F32, Kind::Bf16),
        ("f16", Kind::F16, Kind::F16),
        ("bf16", Kind::Bf16, Kind::Bf16),
    ];
    let (rows, heads) = (7, 3);
    for (suffix, from, to) in pairs {
        for (c, width) in [(2, 4), (10, 16), (37, 32)] {
            let stride = heads * c + 5;
            let mut logits = numbers(rows * stride, 3, 8.0);
            // A tie, and logits whose exponentials are no numbers.
            logits[1] = logits[0];
            logits[stride] = 300.0;
            logits[stride + 1] = -300.0;
            let labels = Words((0..20).map(|i| i % c as u32).collect());
            let targets = Reals(
                Kind::F32,
                (0..20 * c).map(|i| f32::from(u8::from(i % 3 == 0))).collect(),
            );
            let weights = Reals(
                Kind::F32,
                numbers(2 * c, 4, 0.5).iter().map(|w| w + 1.0).collect(),
            );
            let mixes = [
                (Null, Null),
                (
                    Reals(Kind::F32, vec![0.75; 20]),
                    Words((0..20).map(|i| (i + 2) % 7).collect()),
                ),
            ];
            for (weights, smoothing, (share, partner)) in
                [(Null, 0.0, mixes[0].clone()), (weights, 0.1, mixes[1].clone())]
            {
                for loss in ["softmax_ce", "sigmoid_bce", "squared_error"] {
                    let of_rows = if loss == "softmax_ce" {
                        labels.clone()
                    } else {
                        targets.clone()
                    };
                    let gradient = if from == to {
                        Same(1)
                    } else {
                        Reals(to, vec![0.0; rows * stride])
                    };
                    let inputs = [
                        gradient,
                        Reals(from, logits.clone()),
                        Reals(Kind::F32, numbers(heads * c, 5, 1.0)),
                        Reals(Kind::F32, vec![0.0; rows * heads * 4]),
                        of_rows,
                        order(),
                        cursor(),
                        U32(1),
                        U32(rows),
                        U32(heads),
                        U32(c),
                        U32(stride),
                        I32(width),
                        weights.clone(),
                        F32(smoothing),
                        share.clone(),
                        partner.clone(),
                    ];
                    let shape = each(rows * heads * width as usize);
                    check(&cuda, &format!("{loss}_{suffix}"), shape, 1.0, &inputs);
                    let mut evaluation = inputs;
                    evaluation[0] = Null;
                    check(&cuda, &format!("{loss}_{suffix}"), shape, 1.0, &evaluation);
                }
            }
        }
    }
    let mut stats = numbers(600 * 3 * 4, 6, 1.0);
    stats[4] = f32::NAN;
    let shape = Shape {
        grid: [3, 1, 1],
        block: [256, 1],
    };
    for faults in [Words(vec![0, 0, 4]), Null] {
        let inputs = [
            Doubles(vec![1.0; 12]),
            Reals(Kind::F32, vec![0.0; 3]),
            faults,
            Reals(Kind::F32, stats.clone()),
            U32(600),
            U32(3),
            cursor(),
            U32(2),
        ];
        check(&cuda, "batch_stats", shape, 1.0, &inputs);
    }
}

#[test]
fn layers_are_those_of_the_reference() {
    let Some(cuda) = gpu(false) else { return };
    let (rows, width) = (12, 37);
    let n = rows * width;
    for kind in KINDS {
        let name = |stem: &str| format!("{stem}_{}", kind.suffix());
        let reals = |seed: u32, size: f32| Reals(kind, numbers(n, seed, size));
        let floats = |n: usize, seed: u32| Reals(Kind::F32, numbers(n, seed, 1.5));
        for activation in [0, 1, 2] {
            for (p, bias) in [(0.0, Null), (0.4, floats(width, 3))] {
                let sizes = [
                    U32(rows),
                    U32(width),
                    I32(activation),
                    F32(p),
                    U64(77),
                    cursor(),
                    U32(1),
                    U32(64),
                ];
                let forward = [vec![reals(1, 0.0), reals(2, 4.0), bias], sizes.to_vec()].concat();
                check(&cuda, &name("activation"), each(n), 1.0, &forward);
                let backward = [vec![reals(4, 2.0), reals(2, 4.0)], sizes.to_vec()].concat();
                check(&cuda, &name("activation_backward"), each(n), 1.0, &backward);
            }
        }
        let out = || floats(rows.max(2 * width), 5);
        let row = [out(), out(), reals(6, 3.0), U32(rows), U32(width), F32(1e-5)];
        check(&cuda, &name("row_moments"), warps(rows), 1.0, &row);
        let columns = Shape {
            grid: [2, 1, 1],
            block: [32, 32],
        };
        for running in [Null, floats(width, 7)] {
            let column = [
                out(),
                out(),
                running.clone(),
                running,
                reals(6, 3.0),
                U32(rows),
                U32(width),
                F32(1e-5),
                F32(0.1),
            ];
            check(&cuda, &name("column_moments"), columns, 1.0, &column);
        }
        for by_row in [0, 1] {
            let heads = 2;
            let of = || floats(rows.max(2 * width), 8);
            let tail = [U32(rows), U32(width), I32(by_row), U32(heads)];
            let apply = [
                vec![reals(9, 0.0), reals(6, 3.0), of(), of(), of(), of()],
                tail.to_vec(),
            ]
            .concat();
            check(&cuda, &name("normalise"), each(n), 1.0, &apply);
            let heads = if by_row == 1 { 2 } else { 1 };
            let tail = [U32(rows), U32(width), I32(by_row), U32(heads)];
            let sums = [
                vec![out(), out(), reals(10, 1.0), reals(6, 3.0), of(), of()],
                tail.to_vec(),
            ]
            .concat();
            let shape = Shape {
                grid: [2, heads, 1],
                block: [32, 32],
            };
            check(&cuda, &name("normalise_sums"), shape, 4.0, &sums);
        }
        let norm = [
            reals(10, 1.0),
            reals(6, 3.0),
            floats(rows, 11),
            floats(rows, 12),
            floats(2 * width, 13),
        ];
        let tail = [U32(rows), U32(width), U32(2)];
        check(
            &cuda,
            &name("row_norm_backward"),
            warps(rows),
            4.0,
            &[norm.to_vec(), tail.to_vec()].concat(),
        );
        let norm = [10, 6].map(|seed| reals(seed, 1.0)).to_vec();
        let figures = [11, 12, 13, 14, 15].map(|seed| floats(width, seed)).to_vec();
        let tail = vec![U32(rows), U32(width)];
        check(
            &cuda,
            &name("column_norm_backward"),
            each(n),
            4.0,
            &[norm, figures, tail].concat(),
        );
    }
    let variances = Reals(Kind::F32, numbers(40, 1, 0.5).iter().map(|v| v + 1.0).collect());
    check(
        &cuda,
        "inverse_roots",
        each(40),
        0.0,
        &[Reals(Kind::F32, vec![0.0; 40]), variances, U32(40), F32(1e-5)],
    );
}

#[test]
fn updates_are_those_of_the_reference() {
    let Some(cuda) = gpu(false) else { return };
    let (heads, per_head) = (3, 50);
    let n = heads * per_head;
    let floats = |seed: u32, size: f32| Reals(Kind::F32, numbers(n, seed, size));
    let positive = |seed: u32| Reals(Kind::F32, numbers(n, seed, 0.4).iter().map(|v| v + 0.5).collect());
    for kind in [Kind::F16, Kind::Bf16] {
        for (name, nesterov, decoupled) in [
            ("sgd", 0.0, 0.0),
            ("sgd", 1.0, 0.0),
            ("adam", 0.0, 0.0),
            ("adam", 0.0, 1.0),
        ] {
            for first in [0.0, 1.0] {
                // weight decay, dampening, nesterov, beta2, eps, decoupled; the second head has no decay.
                let dampening = if nesterov == 0.0 { 0.25 } else { 0.0 };
                let rule = |decay: f32| [decay, dampening, nesterov, 0.99, 1e-8, decoupled];
                let rules = [rule(0.01), rule(0.0), rule(0.1)].concat();
                // Steps 0..8 of the table, of which the cursor and step0 choose 6; the third head is marked.
                let row = |head: f32| [0.1 + head, 0.9 - head / 4.0, 0.2, 0.7, first];
                let table: Vec<f32> = (0..8 * heads)
                    .flat_map(|i| row((i % heads) as f32 / 10.0))
                    .collect();
                for extra in [false, true] {
                    let or_null = |input: Input| if extra { input } else { Null };
                    let inputs = [
                        floats(1, 1.0),
                        or_null(Reals(kind, vec![0.0; n])),
                        floats(2, 0.5),
                        positive(3),
                        or_null(floats(4, 1.0)),
                        floats(5, 2.0),
                        Reals(Kind::F32, vec![0.5, 1.0, 2.0]),
                        or_null(Reals(Kind::F32, vec![0.3, 1.0, 0.9])),
                        Words(vec![0, 0, 2]),
                        Reals(Kind::F32, rules.clone()),
                        Reals(Kind::F32, table.clone()),
                        cursor(),
                        U32(1),
                        U32(heads),
                        U32(per_head),
                        F32(0.98),
                    ];
                    check(&cuda, &format!("{name}_{}", kind.suffix()), each(n), 1.0, &inputs);
                }
            }
        }
    }
    let shape = Shape {
        grid: [heads, 1, 1],
        block: [1024, 1],
    };
    for add in [0, 1] {
        check(
            &cuda,
            "squares",
            shape,
            1.0,
            &[Doubles(vec![1.0; 3]), floats(1, 2.0), U32(per_head), I32(add)],
        );
    }
    let norms = Doubles(vec![4.0, 0.01, 100.0]);
    let scale = Reals(Kind::F32, vec![0.5, 1.0, 2.0]);
    check(
        &cuda,
        "clip_factor",
        each(3),
        0.0,
        &[Reals(Kind::F32, vec![0.0; 3]), norms, scale, U32(3), F32(0.8)],
    );
}

/// Each kernel is part of the table: launched by one of the tests above.
#[test]
fn every_kernel_has_cases() {
    let text = include_str!("cases.rs");
    for name in MODULES.iter().flat_map(|(_, ptx)| entries(ptx)) {
        let stem = KINDS.iter().fold(name, |stem, kind| {
            stem.trim_end_matches(&format!("_{}", kind.suffix()))
        });
        let stem = stem.trim_end_matches("_f32").trim_end_matches("_f16");
        assert!(
            text.contains(&format!("\"{stem}")) || text.contains(&format!("{stem}_")),
            "{name} has no case"
        );
    }
}

/// The PTX is of the present sources: `tools/check_kernels.py --write` notes their digest in its first line.
#[test]
fn the_ptx_is_of_the_present_kernels() {
    use sha2::{Digest, Sha256};
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let header = std::fs::read(folder.join("common.cuh")).unwrap();
    for (name, ptx) in MODULES {
        let source = std::fs::read(folder.join(format!("{name}.cu"))).unwrap();
        let mut digest = Sha256::new();
        digest.update(&header);
        digest.update(&source);
        let digest: String = digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let first = ptx.lines().next().unwrap();
        assert!(
            first.ends_with(&digest),
            "{name}.ptx is stale: run tools/check_kernels.py --write"
        );
    }
}

//! The table of small state dicts, whole. `tools/parity_summary.py` compares it with torchinfo's own.

use pth::{DType, StateDict, Storage, Tensor};

use super::*;

fn tensor(shape: &[usize]) -> Tensor {
    let numel: usize = shape.iter().product();
    Tensor::from_bytes(DType::Float32, shape, vec![0; 4 * numel]).unwrap()
}

fn counter() -> Tensor {
    Tensor::from_bytes(DType::Int64, &[], vec![0; 8]).unwrap()
}

fn dict<N: Into<String>>(entries: impl IntoIterator<Item = (N, Tensor)>) -> StateDict {
    entries
        .into_iter()
        .map(|(name, tensor)| (name.into(), tensor))
        .collect()
}

/// conv1, bn1 and two blocks of a convolution, then a linear layer.
fn network() -> StateDict {
    let mut tensors = dict([
        ("conv1.weight", tensor(&[8, 3, 7, 5])),
        ("bn1.weight", tensor(&[8])),
        ("bn1.bias", tensor(&[8])),
        ("bn1.running_mean", tensor(&[8])),
        ("bn1.running_var", tensor(&[8])),
        ("bn1.num_batches_tracked", counter()),
    ]);
    for block in 0..3 {
        tensors.insert(format!("blocks.{block}.conv.weight"), tensor(&[8, 8, 1, 1]));
    }
    tensors.insert("fc.weight", tensor(&[2, 8]));
    tensors.insert("fc.bias", tensor(&[2]));
    tensors
}

fn how() -> SummaryText {
    SummaryText {
        name: "Net".to_owned(),
        depth: 3,
        each_param: false,
        fold: false,
    }
}

#[track_caller]
fn check(tensors: &StateDict, how: &SummaryText, expected: &str) {
    let text = Summary::of(tensors).to_text(how);
    let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with("===")).collect();
    let expected: Vec<&str> = expected.trim_matches('\n').lines().collect();
    assert_eq!(rows, expected, "\n{text}");
}

/// The rows alone, without the header and the sums.
#[track_caller]
fn check_rows(tensors: &StateDict, how: &SummaryText, expected: &str) {
    let text = Summary::of(tensors).to_text(how);
    let table = text.split("===\n").nth(2).unwrap();
    let rows = table.rsplit_once("\n=").unwrap().0;
    assert_eq!(rows, expected.trim_matches('\n'), "\n{text}");
}

#[test]
fn the_whole_table() {
    let tensors = network();
    let plan = crate::Plan::parse("freeze bn1.** fc.bias").unwrap();
    let (frozen, _) = plan
        .apply(crate::LazyStateDict::from(tensors), &pth::OpenOptions::default())
        .unwrap();
    let tensors = frozen.compute().unwrap();
    check(
        &tensors,
        &how(),
        "
Layer (type (var_name):depth-idx)        Kernel Shape              Param #                   Trainable
Net (Net)                                --                        --                        Partial
├─Conv2d (conv1): 1-1                    [7, 5]                    840                       True
├─BatchNorm2d (bn1): 1-2                 --                        (16)                      False
├─Sequential (blocks): 1-3               --                        --                        True
│    └─Module (0): 2-1                   --                        --                        True
│    │    └─Conv2d (conv): 3-1           [1, 1]                    64                        True
│    └─Module (1): 2-2                   --                        --                        True
│    │    └─Conv2d (conv): 3-2           [1, 1]                    64                        True
│    └─Module (2): 2-3                   --                        --                        True
│    │    └─Conv2d (conv): 3-3           [1, 1]                    64                        True
├─Linear (fc): 1-4                       --                        18                        Partial
Total params: 1,066
Trainable params: 1,048
Non-trainable params: 18
Params size (MB): 0.00
Buffers size (MB): 0.00 (3 tensors)
Types: float32 1.08 k 4.33 kB, int64 1 8 B
Largest tensor: conv1.weight float32 [8, 3, 7, 5] 3.36 kB
",
    );
    let text = Summary::of(&tensors).to_text(&how());
    let dividers: Vec<usize> = text
        .lines()
        .filter(|line| line.starts_with("==="))
        .map(str::len)
        .collect();
    assert_eq!(dividers, [115; 5]);
}

#[test]
fn equal_neighbours_fold_and_what_differs_does_not() {
    let mut how = how();
    how.fold = true;
    let mut tensors = dict((0..12).map(|i| (format!("h.{i}.fc.weight"), tensor(&[2, 3]))));
    check_rows(
        &tensors,
        &how,
        "
Net (Net)                                     --                        --                        True
├─Sequential (h): 1-1                         --                        --                        True
│    └─Module (0..11): 2-{1..12}  x12         --                        --                        True
│    │    └─Linear (fc): 3-1                  --                        6                         True
",
    );
    for (name, tensor) in tensors.iter_mut() {
        *tensor = tensor.clone().into_parameter(name != "h.3.fc.weight");
    }
    how.depth = 2;
    check_rows(
        &tensors,
        &how,
        "
Net (Net)                                --                        --                        Partial
├─Sequential (h): 1-1                    --                        --                        Partial
│    └─Module (0..2): 2-{1..3}  x3       --                        6                         True
│    └─Module (3): 2-4                   --                        (6)                       False
│    └─Module (4..11): 2-{5..12}  x8     --                        6                         True
",
    );
    let named = dict((8..11).map(|i| (format!("layer_{i}.weight"), tensor(&[2, 3]))));
    check_rows(
        &named,
        &how,
        "
Net (Net)                                --                        --                        True
├─Linear (layer_8..10): 1-{1..3}  x3     --                        6                         True
",
    );
    // A gap in the numbers is not hidden.
    tensors.remove("h.7.fc.weight");
    let text = Summary::of(&tensors).to_text(&how);
    assert!(
        text.contains("(4..6): 2-{5..7}  x3") && text.contains("(8..11): 2-{8..11}  x4"),
        "{text}"
    );
}

#[test]
fn each_parameter_has_a_line() {
    let mut tensors = dict([
        ("scale", tensor(&[2, 3])),
        ("a.0.weight", tensor(&[4, 3])),
        ("a.0.bias", tensor(&[4])),
        ("a.1.bias", tensor(&[1])),
    ]);
    tensors.insert("a.1.weight", tensors.get("a.0.weight").unwrap().clone());
    let mut how = how();
    how.each_param = true;
    check_rows(
        &tensors,
        &how,
        "
Net (Net)                                --                        6                         True
├─scale                                  [2, 3]                    └─6
├─Sequential (a): 1-1                    --                        --                        True
│    └─0.weight                          [4, 3]                    ├─12
│    └─0.bias                            [4]                       ├─4
│    └─1.bias                            [1]                       └─1
│    └─Linear (0): 2-1                   --                        16                        True
│    │    └─weight                       [3, 4]                    ├─12
│    │    └─bias                         [4]                       └─4
│    └─Linear (1): 2-2                   --                        13                        True
│    │    └─bias                         [1]                       ├─1
│    │    └─weight                       [3, 4]                    └─12
",
    );
}

#[test]
fn ties_count_once_and_views_of_one_storage_are_none() {
    let embed = tensor(&[10, 4]);
    let head = Tensor::from_storage(embed.storage().clone(), DType::Float32, &[10, 4], &[4, 1], 0).unwrap();
    let half = Tensor::from_storage(embed.storage().clone(), DType::Float32, &[5, 4], &[4, 1], 20).unwrap();
    let tensors = dict([
        ("embed.weight", embed.clone()),
        ("deep.head.weight", head),
        ("deep.head.bias", tensor(&[10])),
        ("lm_head.weight", embed),
        ("half.weight", half),
    ]);
    let summary = Summary::of(&tensors);
    check_rows(
        &tensors,
        &how(),
        "
Net (Net)                                --                        --                        True
├─Embedding (embed): 1-1                 --                        40                        True
├─Module (deep): 1-2                     --                        --                        True
│    └─Linear (head): 2-1                --                        50                        True
├─Linear (lm_head): 1-3                  --                        (recursive)               True
├─Linear (half): 1-4                     --                        20                        True
",
    );
    assert_eq!(summary.totals.n_params, 70);
    assert_eq!(summary.rows[0].n_params, 70);
    let text = summary.to_text(&how());
    let ties: Vec<&str> = text.lines().filter(|line| line.starts_with("tied")).collect();
    assert_eq!(
        ties,
        [
            "tied: deep.head.weight = embed.weight, counted once",
            "tied: lm_head.weight = embed.weight, counted once"
        ]
    );
}

#[test]
fn kinds_are_told_by_names_and_shapes() {
    let check = |entries: &[(&str, &[usize])], expected: Kind| {
        let tensors = dict(entries.iter().map(|&(name, shape)| (name, tensor(shape))));
        assert_eq!(
            Summary::of(&tensors).rows.last().unwrap().kind,
            expected,
            "{entries:?}"
        );
    };
    check(&[("a.weight", &[4, 2, 3])], Kind::Conv1d);
    check(&[("a.weight", &[4, 2, 3, 1, 1])], Kind::Conv3d);
    check(
        &[("a.weight_g", &[4, 1, 1, 1]), ("a.weight_v", &[4, 2, 3, 3])],
        Kind::Conv2d,
    );
    check(&[("a.weight", &[4, 2])], Kind::Linear);
    check(&[("wte.weight", &[4, 2])], Kind::Embedding);
    check(&[("tok_embeddings.weight", &[4, 2])], Kind::Embedding);
    check(&[("ensemble.weight", &[4, 2])], Kind::Linear);
    check(&[("embed.weight", &[4, 2]), ("embed.bias", &[4])], Kind::Linear);
    check(&[("a.weight", &[4]), ("a.bias", &[4])], Kind::LayerNorm);
    check(&[("input_layernorm.weight", &[4])], Kind::RMSNorm);
    check(&[("a.weight", &[1])], Kind::Module);
    for (n_gates, kind) in [(4, Kind::Lstm), (3, Kind::Gru), (1, Kind::Rnn), (2, Kind::Module)] {
        check(
            &[
                ("a.weight_ih_l0", &[5 * n_gates, 7]),
                ("a.weight_hh_l0", &[5 * n_gates, 5]),
            ],
            kind,
        );
    }
    check(
        &[
            ("a.weight_ih_l0", &[20, 7]),
            ("a.weight_hh_l0", &[20, 2]),
            ("a.weight_hr_l0", &[2, 5]),
        ],
        Kind::Lstm,
    );
    check(
        &[("a.weight_ih_l0", &[5, 7]), ("a.weight_hh_l0", &[5, 0])],
        Kind::Module,
    );
    check(
        &[("a.weight_ih", &[15, 7]), ("a.weight_hh", &[15, 5])],
        Kind::GruCell,
    );
    let attention: &[(&str, &[usize])] = &[("a.in_proj_weight", &[6, 2])];
    check(attention, Kind::MultiheadAttention);
    check(
        &[attention[0], ("a.out_proj.weight", &[2, 2])],
        Kind::NonDynamicallyQuantizableLinear,
    );
    check(&[("a.0", &[2]), ("a.1", &[2])], Kind::ParameterList);
    // The layer that feeds a norm says which it is; one without neighbours is of no rank.
    check(&[("a.running_mean", &[4])], Kind::BatchNorm);
    check(
        &[("a.weight", &[9, 2, 3]), ("b.running_mean", &[4])],
        Kind::BatchNorm1d,
    );
    check(
        &[
            ("a.weight", &[4, 2, 3, 3]),
            ("b.weight", &[9, 2]),
            ("c.running_mean", &[4]),
        ],
        Kind::BatchNorm2d,
    );
}

#[test]
fn marks_decide_where_there_are_any() {
    let count = |tensors: &StateDict| {
        let totals = Summary::of(tensors).totals;
        (
            totals.n_params,
            totals.n_trainable,
            totals.n_buffers,
            totals.is_marked,
        )
    };
    let plain = [
        ("a", tensor(&[2])),
        ("b", tensor(&[3])),
        ("inv_freq", tensor(&[5])),
        ("n", counter()),
    ];
    assert_eq!(count(&dict(plain.clone())), (5, 5, 2, false));
    let mut gradients = dict(plain.clone());
    gradients.insert("a", tensor(&[2]).with_requires_grad(true));
    assert_eq!(count(&gradients), (5, 2, 2, true));
    // A frozen whole is marked as such, by what it is: `inv_freq` could be a parameter, and `b` is none.
    let mut parameters = dict(plain);
    parameters.insert("a", tensor(&[2]).into_parameter(false));
    parameters.insert("inv_freq", tensor(&[5]).into_parameter(false));
    assert_eq!(count(&parameters), (7, 0, 2, true));
}

#[test]
fn sums_of_views_without_bounds_end_at_the_largest_number() {
    let storage = Storage::owned(vec![0; 4]);
    let bomb = |n: usize| Tensor::from_storage(storage.clone(), DType::Float32, &[n], &[0], 0).unwrap();
    let tensors = dict((0..9).map(|i| (format!("a.{i}"), bomb(usize::MAX / 8 - i))));
    let summary = Summary::of(&tensors);
    assert_eq!(
        (summary.totals.n_params, summary.rows[0].n_params),
        (usize::MAX, usize::MAX)
    );
    assert_eq!(summary.totals.params_nbytes, usize::MAX);
    let text = summary.to_text(&how());
    assert!(
        text.contains("Total params: 18,446,744,073,709,551,615"),
        "{text}"
    );
}

#[test]
fn hostile_names_neither_overflow_the_stack_nor_reach_the_terminal() {
    let dots = ".".repeat(100_000);
    let long = "x".repeat(1_000_000);
    let tensors = dict([
        (format!("{dots}w"), tensor(&[1])),
        (format!("{dots}v"), tensor(&[1])),
        (format!("{long}.weight"), tensor(&[1])),
        ("\u{1b}[2J\n.weight".to_owned(), tensor(&[1])),
        (String::new(), tensor(&[1])),
    ]);
    let summary = Summary::of(&tensors);
    assert_eq!(summary.totals.n_params, 5);
    for fold in [false, true] {
        let text = summary.to_text(&SummaryText {
            name: "\u{7}".to_owned(),
            depth: 1000,
            each_param: true,
            fold,
        });
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        assert!(text.contains("├─Module (\\u{1b}[2J\\n): 1-3"));
        assert!(text.len() < 10_000_000, "{} bytes for five tensors", text.len());
    }
}

#[test]
fn nothing_at_all_is_a_table_too() {
    check(
        &StateDict::new(),
        &how(),
        "
Layer (type (var_name):depth-idx)        Kernel Shape              Param #                   Trainable
Net (Net)                                --                        --                        --
Total params: 0
Trainable params: 0
Non-trainable params: 0
Params size (MB): 0.00
",
    );
}

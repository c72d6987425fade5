use pth::{DType, Tensor};
use surgery::{LazyEntry, LazyStateDict, LazyTensor, Pattern};

use super::build::{Graph, external, graph, node, weight, with_scopes};
use crate::error::Error;
use crate::onnx::{Model, WeightsOptions, WeightsReport};

fn tensor(shape: &[usize], values: &[f32]) -> LazyTensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    LazyTensor::stored(Tensor::from_bytes(DType::Float32, shape, bytes).unwrap())
}

fn checkpoint(tensors: &[(&str, &[usize], &[f32])]) -> LazyStateDict {
    let mut made = LazyStateDict::default();
    for (name, shape, values) in tensors {
        made.insert(*name, LazyEntry::unmarked(tensor(shape, values)));
    }
    made
}

fn put(made: &Graph, weights: &LazyStateDict) -> (Model, WeightsReport) {
    made.model()
        .with_weights(weights, &WeightsOptions::default())
        .unwrap()
}

fn refused(made: &Graph, weights: &LazyStateDict) -> String {
    let error = made
        .model()
        .with_weights(weights, &WeightsOptions::default())
        .unwrap_err();
    assert!(matches!(error, Error::Weights { .. }), "{error}");
    error.to_string()
}

fn values(model: &Model, name: &str) -> Vec<f32> {
    let initializer = &model.initializers[name];
    assert_eq!(initializer.dtype, 1);
    model
        .elements(initializer)
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

const A: [f32; 4] = [1.0, 2.0, 3.0, 4.0];
const B: [f32; 2] = [5.0, 6.0];

/// A `Linear` as it is exported where it is untouched.
fn linear() -> Graph {
    graph()
        .input("x", 1, &[0, 2])
        .weight("fc.weight", &[2, 2], &[0.0; 4])
        .weight("fc.bias", &[2], &[0.0; 2])
        .named("Gemm", "/fc/Gemm", &["x", "fc.weight", "fc.bias"], "y")
        .output("y")
}

#[test]
fn names_that_agree_are_filled() {
    let (model, report) = put(
        &linear(),
        &checkpoint(&[("fc.weight", &[2, 2], &A), ("fc.bias", &[2], &B)]),
    );
    assert_eq!(values(&model, "fc.weight"), A);
    assert_eq!(values(&model, "fc.bias"), B);
    assert_eq!(report.placed, ["fc.weight", "fc.bias"]);
    let expected = linear().model().prefix_digest("y").unwrap();
    assert_ne!(model.prefix_digest("y").unwrap(), expected);
}

#[test]
fn a_prefix_on_either_side_is_found() {
    let both = checkpoint(&[
        ("module.backbone.fc.weight", &[2, 2], &A),
        ("module.backbone.fc.bias", &[2], &B),
        ("module.head.weight", &[2, 2], &A),
    ]);
    let (model, report) = put(&linear(), &both);
    assert_eq!(values(&model, "fc.weight"), A);
    assert_eq!(report.prefix_in_checkpoint, "module.backbone.");
    assert_eq!(report.outside, ["module.head.weight"]);
    assert_eq!(
        report.placed,
        ["module.backbone.fc.weight", "module.backbone.fc.bias"]
    );

    let made = graph()
        .input("x", 1, &[0, 2])
        .weight("encoder.fc.weight", &[2, 2], &[0.0; 4])
        .node("Gemm", &["x", "encoder.fc.weight"], &["y"])
        .output("y");
    let (model, report) = put(&made, &checkpoint(&[("fc.weight", &[2, 2], &A)]));
    assert_eq!(values(&model, "encoder.fc.weight"), A);
    assert_eq!(report.prefix_in_graph, "encoder.");

    let two = checkpoint(&[
        ("student.fc.weight", &[2, 2], &A),
        ("student.fc.bias", &[2], &B),
        ("teacher.fc.weight", &[2, 2], &A),
        ("teacher.fc.bias", &[2], &B),
    ]);
    assert!(
        refused(&linear(), &two).ends_with("several prefixes (`student.`, `teacher.`)"),
        "{}",
        refused(&linear(), &two)
    );
}

#[test]
fn what_does_not_fit_is_said_as_pytorch_says_it() {
    let weights = checkpoint(&[("fc.weight", &[2, 3], &[0.0; 6]), ("fc.bais", &[2], &B)]);
    assert_eq!(
        refused(&linear(), &weights),
        "Error(s) in loading state_dict for `m.onnx`:\n\
         \tMissing key(s) in state_dict: \"fc.bias\". \n\
         \tUnexpected key(s) in state_dict: \"fc.bais\". \n\
         \tsize mismatch for fc.weight: copying a param with shape torch.Size([2, 3]) from checkpoint, \
         the shape in current model is torch.Size([2, 2]).\n\
         \tnearest are \"fc.bais\" for \"fc.bias\""
    );
    let mut whole = checkpoint(&[("fc.weight", &[2, 2], &A)]);
    let bytes = Tensor::from_bytes(DType::Int64, &[2], vec![0; 16]).unwrap();
    whole.insert("fc.bias", LazyEntry::unmarked(LazyTensor::stored(bytes)));
    assert!(
        refused(&linear(), &whole)
            .ends_with("\ttype mismatch for fc.bias: int64 in the checkpoint, float32 in the graph")
    );
}

#[test]
fn what_is_kept_and_what_is_behind_the_cut_need_not_fit() {
    let made = linear()
        .weight("head.weight", &[2, 2], &[7.0; 4])
        .named("Gemm", "/head/Gemm", &["y", "head.weight"], "z")
        .output("z");
    let weights = checkpoint(&[
        ("fc.weight", &[2, 2], &A),
        ("head.weight", &[10, 2], &[0.0; 20]),
        ("head.bias", &[10], &[0.0; 10]),
    ]);
    let keep = [Pattern::parse("fc.bias").unwrap()];
    let options = WeightsOptions {
        boundaries: &["y"],
        keep: &keep,
        ..WeightsOptions::default()
    };
    let (model, report) = made.model().with_weights(&weights, &options).unwrap();
    assert_eq!(values(&model, "fc.weight"), A);
    assert_eq!(values(&model, "head.weight"), [7.0; 4]);
    assert_eq!(report.left, ["head.weight", "head.bias"]);
    assert_eq!(report.kept, ["fc.bias"]);
    assert!(refused(&made, &weights).contains("size mismatch for head.weight"));
}

#[test]
fn numbers_are_rounded_to_the_graphs_type_and_that_is_said() {
    let half = super::build::with(super::build::tensor("fc.weight", 10, &[2, 2]), 9, &[0; 8]);
    let made = graph()
        .input("x", 10, &[0, 2])
        .field(5, half)
        .node("Gemm", &["x", "fc.weight"], &["y"])
        .output("y");
    let (model, report) = put(&made, &checkpoint(&[("fc.weight", &[2, 2], &A)]));
    let bits = [0x3c00u16, 0x4000, 0x4200, 0x4400].map(u16::to_le_bytes).concat();
    assert_eq!(model.elements(&model.initializers["fc.weight"]).as_ref(), bits);
    assert_eq!(report.converted, ["fc.weight: float32 -> float16"]);
}

#[test]
fn a_matrix_that_lost_its_name_is_found_by_its_nodes_module() {
    let made = |name: &str| {
        graph()
            .input("x", 1, &[0, 2])
            .weight("onnx::MatMul_7", &[2, 3], &[0.0; 6])
            .weight("blocks.0.fc.bias", &[3], &[0.0; 3])
            .named("MatMul", name, &["x", "onnx::MatMul_7"], "a")
            .named("Add", "/blocks/blocks.0/fc/Add", &["blocks.0.fc.bias", "a"], "y")
            .output("y")
    };
    let weights = checkpoint(&[
        ("blocks.0.fc.weight", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ("blocks.0.fc.bias", &[3], &[1.0; 3]),
    ]);
    let (model, report) = put(&made("/blocks/blocks.0/fc/MatMul"), &weights);
    assert_eq!(values(&model, "onnx::MatMul_7"), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    assert_eq!(report.transposed, ["blocks.0.fc.weight"]);
    let message = refused(&made("MatMul_3"), &weights);
    assert!(
        message.contains("Unexpected key(s) in state_dict: \"blocks.0.fc.weight\""),
        "{message}"
    );
    assert!(
        message.contains("cannot be replaced: `onnx::MatMul_7` [2, 3] of MatMul `MatMul_3`"),
        "{message}"
    );
    assert!(
        message.ends_with("a graph keeps all weights under their names"),
        "{message}"
    );

    // The projection of an attention goes by another name than `weight`: the one matrix that fits.
    let attention = checkpoint(&[
        (
            "blocks.0.fc.in_proj_weight",
            &[3, 2],
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        ),
        ("blocks.0.fc.bias", &[3], &[1.0; 3]),
    ]);
    let (model, _) = put(&made("/blocks/blocks.0/fc/MatMul"), &attention);
    assert_eq!(values(&model, "onnx::MatMul_7"), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
}

#[test]
fn a_scale_that_lost_its_name_is_what_is_left_over_in_its_module() {
    let made = |other: &str| {
        graph()
            .input("x", 1, &[0, 2, 4, 4])
            .weight("onnx::Mul_1", &[1, 2, 1, 1], &[1.0; 2])
            .weight("onnx::Mul_2", &[2, 1, 1], &[1.0; 2])
            .named("Mul", "/blocks/blocks.0/Mul", &["x", "onnx::Mul_1"], "a")
            .named("Mul", other, &["a", "onnx::Mul_2"], "y")
            .output("y")
    };
    let weights = checkpoint(&[("blocks.0.gamma", &[2], &B), ("blocks.1.gamma", &[2], &GAMMA)]);
    let (model, _) = put(&made("/blocks/blocks.1/Mul"), &weights);
    assert_eq!(values(&model, "onnx::Mul_1"), B);
    assert_eq!(values(&model, "onnx::Mul_2"), GAMMA);
    // Two that would be one are not told apart.
    let one = checkpoint(&[("blocks.0.gamma", &[2], &B)]);
    let message = refused(&made("/blocks/blocks.0/Mul_1"), &one);
    assert!(
        message.contains("Unexpected key(s) in state_dict: \"blocks.0.gamma\""),
        "{message}"
    );
}

#[test]
fn one_tensor_that_stood_for_several_is_taken_apart() {
    // The exporter for TorchScript leaves an `Identity`, the tracing one nothing.
    let through_identity = graph()
        .input("x", 1, &[0, 2])
        .weight("a.weight", &[2], &[1.0; 2])
        .node("Identity", &["a.weight"], &["b.weight"])
        .node("Identity", &["a.weight"], &["behind"])
        .named(
            "LayerNormalization",
            "/a/LayerNormalization",
            &["x", "a.weight"],
            "s",
        )
        .named(
            "LayerNormalization",
            "/b/LayerNormalization",
            &["s", "b.weight"],
            "y",
        )
        .node("Mul", &["y", "behind"], &["z"])
        .output("y")
        .output("z");
    let weights = checkpoint(&[("a.weight", &[2], &[1.0, 2.0]), ("b.weight", &[2], &[3.0, 4.0])]);
    let (model, report) = put(&through_identity, &weights);
    assert_eq!(values(&model, "a.weight"), [1.0, 2.0]);
    assert_eq!(values(&model, "b.weight"), [3.0, 4.0]);
    assert_eq!(
        values(&model, "behind"),
        [1.0, 1.0],
        "not in the checkpoint: as it was"
    );
    assert_eq!(model.nodes.len(), 3);
    assert_eq!(report.placed, ["a.weight", "b.weight"]);
    model.check().unwrap();

    let scoped = |op: &str, inputs: &[&str], output: &str, scopes: &str| {
        with_scopes(node(op, "", "", inputs, &[output]), scopes, "")
    };
    let shared = graph()
        .input("x", 1, &[0, 2])
        .weight("a.weight", &[2], &[1.0; 2])
        .field(
            1,
            scoped(
                "LayerNormalization",
                &["x", "a.weight"],
                "s",
                "['', 'a', 'layer_norm']",
            ),
        )
        .field(
            1,
            scoped(
                "LayerNormalization",
                &["s", "a.weight"],
                "y",
                "['', 'b', 'layer_norm_1']",
            ),
        )
        .output("y");
    let (model, _) = put(&shared, &weights);
    let read = |node_idx: usize| values(&model, &model.nodes[node_idx].inputs[1]);
    assert_eq!((read(0), read(1)), (vec![1.0, 2.0], vec![3.0, 4.0]));
    model.check().unwrap();
}

const GAMMA: [f32; 2] = [2.0, 3.0];
const BETA: [f32; 2] = [0.5, -0.5];
const MEAN: [f32; 2] = [0.25, -1.0];
const VAR: [f32; 2] = [4.0, 0.25];

fn convolution(kernel: &str, bias: Option<&str>, conv: Vec<u8>) -> Graph {
    let made = graph()
        .input("x", 1, &[0, 2, 4, 4])
        .weight(kernel, &[2, 2, 1, 1], &[0.0; 4])
        .field(1, conv)
        .output("y");
    match bias {
        Some(bias) => made.weight(bias, &[2], &[0.0; 2]),
        None => made,
    }
}

fn with_norm(conv: &str, norm: &str) -> LazyStateDict {
    let name = |module: &str, leaf: &str| format!("{module}.{leaf}");
    let mut made = checkpoint(&[(&name(conv, "weight"), &[2, 2, 1, 1], &A)]);
    for (leaf, values) in [
        ("weight", &GAMMA),
        ("bias", &BETA),
        ("running_mean", &MEAN),
        ("running_var", &VAR),
    ] {
        made.insert(name(norm, leaf), LazyEntry::unmarked(tensor(&[2], values)));
    }
    let count = Tensor::from_bytes(DType::Int64, &[], vec![0; 8]).unwrap();
    made.insert(
        name(norm, "num_batches_tracked"),
        LazyEntry::unmarked(LazyTensor::stored(count)),
    );
    made
}

/// As the definition of batch normalisation gives it, one number after the other.
fn folded(eps: f64) -> (Vec<f32>, Vec<f32>) {
    let mut kernel = Vec::new();
    let mut bias = Vec::new();
    for channel in 0..2 {
        let scale = f64::from(GAMMA[channel]) / (f64::from(VAR[channel]) + eps).sqrt();
        for input in 0..2 {
            kernel.push((f64::from(A[2 * channel + input]) * scale) as f32);
        }
        bias.push((-f64::from(MEAN[channel]) * scale + f64::from(BETA[channel])) as f32);
    }
    (kernel, bias)
}

#[test]
fn a_batch_normalisation_that_was_folded_is_folded_again() {
    for (conv, norm, path) in [
        ("conv1", "bn1", "/conv1/Conv"),
        ("layer1.0.conv2", "layer1.0.bn2", "/layer1/layer1.0/conv2/Conv"),
        (
            "features.0.0",
            "features.0.1",
            "/features/features.0/features.0.0/Conv",
        ),
        ("block.conv", "block.norm", "/block/conv/Conv"),
        // By its place in the checkpoint alone.
        ("stem.project", "stem.affine", "/stem/project/Conv"),
    ] {
        let conv_node = node("Conv", path, "", &["x", "onnx::Conv_1", "onnx::Conv_2"], &["y"]);
        let made = convolution("onnx::Conv_1", Some("onnx::Conv_2"), conv_node);
        let (model, report) = put(&made, &with_norm(conv, norm));
        let (kernel, bias) = folded(1e-5);
        assert_eq!(values(&model, "onnx::Conv_1"), kernel, "{conv}");
        assert_eq!(values(&model, "onnx::Conv_2"), bias, "{conv}");
        assert_eq!(
            (report.folded[0].conv.as_str(), report.folded[0].norm.as_str()),
            (conv, norm)
        );
        assert!(!report.folded[0].is_eps_known);
        let options = WeightsOptions {
            batch_norm_eps: 1e-3,
            ..WeightsOptions::default()
        };
        let (model, _) = made
            .model()
            .with_weights(&with_norm(conv, norm), &options)
            .unwrap();
        assert_eq!(values(&model, "onnx::Conv_1"), folded(1e-3).0);
    }
}

#[test]
fn a_kernel_that_kept_its_name_is_folded_where_the_normalisation_is_gone() {
    let call = "(args = (%conv2d, %w, %b, %m, %v, 0.1, 0.001), kwargs = {})";
    let scopes = "['', 'bn1', '_native_batch_norm_legit_no_training']";
    let inputs = ["x", "conv1.weight", "conv1.weight_bias"];
    let conv = with_scopes(node("Conv", "node_Conv_1", "", &inputs, &["y"]), scopes, call);
    let made = convolution("conv1.weight", Some("conv1.weight_bias"), conv);
    let (model, report) = put(&made, &with_norm("conv1", "bn1"));
    let (kernel, bias) = folded(0.001);
    assert_eq!(values(&model, "conv1.weight"), kernel);
    assert_eq!(values(&model, "conv1.weight_bias"), bias);
    assert!(report.folded[0].is_eps_known);
    // A convolution that has a bias of its own keeps that name too.
    let named = ["x", "conv1.weight", "conv1.bias"];
    let conv = with_scopes(node("Conv", "node_Conv_1", "", &named, &["y"]), scopes, call);
    let mut with_bias = with_norm("conv1", "bn1");
    with_bias.insert("conv1.bias", LazyEntry::unmarked(tensor(&[2], &[1.0, 1.0])));
    let (model, _) = put(&convolution("conv1.weight", Some("conv1.bias"), conv), &with_bias);
    assert_eq!(values(&model, "conv1.weight"), kernel);
    let scale = GAMMA
        .iter()
        .zip(&VAR)
        .map(|(gamma, var)| f64::from(*gamma) / (f64::from(*var) + 0.001).sqrt());
    let shifted: Vec<f32> = scale
        .enumerate()
        .map(|(channel, scale)| ((1.0 - f64::from(MEAN[channel])) * scale + f64::from(BETA[channel])) as f32)
        .collect();
    assert_eq!(values(&model, "conv1.bias"), shifted);
    // A bias of zeros was left out of the graph, and is put into it.
    let conv = with_scopes(
        node("Conv", "node_Conv_1", "", &inputs[..2], &["y"]),
        scopes,
        call,
    );
    let (model, _) = put(
        &convolution("conv1.weight", None, conv),
        &with_norm("conv1", "bn1"),
    );
    assert_eq!(values(&model, "conv1.weight"), kernel);
    assert_eq!(model.nodes[0].inputs.len(), 3);
    assert_eq!(values(&model, &model.nodes[0].inputs[2]), bias);
    model.check().unwrap();
}

#[test]
fn a_plain_bias_of_zeros_that_was_left_out_is_put_in() {
    let made = graph()
        .input("x", 1, &[0, 2])
        .weight("fc.weight", &[2, 2], &[0.0; 4])
        .node("Gemm", &["x", "fc.weight"], &["y"])
        .output("y");
    let (model, _) = put(
        &made,
        &checkpoint(&[("fc.weight", &[2, 2], &A), ("fc.bias", &[2], &B)]),
    );
    assert_eq!(model.nodes[0].inputs, ["x", "fc.weight", "fc.bias"]);
    assert_eq!(values(&model, "fc.bias"), B);
}

#[test]
fn a_normalisation_that_cannot_be_told_is_an_error() {
    let conv_node = node(
        "Conv",
        "/conv1/Conv",
        "",
        &["x", "onnx::Conv_1", "onnx::Conv_2"],
        &["y"],
    );
    let made = convolution("onnx::Conv_1", Some("onnx::Conv_2"), conv_node);
    // `norm1` and `bn1` both follow by name.
    let mut two = with_norm("conv1", "bn1");
    for (name, entry) in with_norm("conv1", "norm1").iter().skip(1) {
        two.insert(name, entry.clone());
    }
    let message = refused(&made, &two);
    assert!(
        message
            .contains("which batch normalisation was folded into `conv1` cannot be told: `bn1` or `norm1`"),
        "{message}"
    );
    // Nothing says what follows, and the alphabet is no order.
    let sorted = checkpoint(&[
        ("affine.bias", &[2], &BETA),
        ("affine.running_mean", &[2], &MEAN),
        ("affine.running_var", &[2], &VAR),
        ("affine.weight", &[2], &GAMMA),
        ("conv1.weight", &[2, 2, 1, 1], &A),
    ]);
    let message = refused(&made, &sorted);
    assert!(
        message.contains("training=TrainingMode.PRESERVE and do_constant_folding=False"),
        "{message}"
    );
    assert!(
        message.contains("`onnx::Conv_1` [2, 2, 1, 1] of Conv `/conv1/Conv`"),
        "{message}"
    );
}

#[test]
fn a_normalisation_that_is_in_the_graph_is_not_folded() {
    let made = graph()
        .input("x", 1, &[0, 2, 4, 4])
        .weight("conv1.weight", &[2, 2, 1, 1], &[0.0; 4])
        .weight("bn1.weight", &[2], &[0.0; 2])
        .weight("bn1.bias", &[2], &[0.0; 2])
        .weight("bn1.running_mean", &[2], &[0.0; 2])
        .weight("bn1.running_var", &[2], &[0.0; 2])
        .named("Conv", "/conv1/Conv", &["x", "conv1.weight"], "c")
        .named(
            "BatchNormalization",
            "/bn1/BatchNormalization",
            &[
                "c",
                "bn1.weight",
                "bn1.bias",
                "bn1.running_mean",
                "bn1.running_var",
            ],
            "y",
        )
        .output("y");
    let (model, report) = put(&made, &with_norm("conv1", "bn1"));
    assert_eq!(values(&model, "conv1.weight"), A);
    assert_eq!(values(&model, "bn1.running_var"), VAR);
    assert!(report.folded.is_empty());
}

#[test]
fn weights_that_lie_outside_stay_outside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("w.bin"), vec![0; 4 * 1024]).unwrap();
    let made = graph()
        .input("x", 1, &[0, 32])
        .field(5, external("fc.weight", &[32, 32], &[("location", "w.bin")]))
        .node("Gemm", &["x", "fc.weight"], &["y"])
        .output("y");
    let model = Model::parse(&folder.path().join("m.onnx"), made.bytes()).unwrap();
    let new: Vec<f32> = (0..1024u16).map(f32::from).collect();
    let weights = checkpoint(&[("fc.weight", &[32, 32], &new)]);
    let (model, _) = model.with_weights(&weights, &WeightsOptions::default()).unwrap();
    assert_eq!(model.external().len(), 1);
    assert_eq!(values(&model, "fc.weight"), new);
    let cut = model.cut(&["y"]).unwrap();
    assert_eq!(cut.external()[0].bytes(), model.external()[0].bytes());
    let inline = graph()
        .input("x", 1, &[0, 32])
        .field(5, weight("w", &[32, 32], &new))
        .node("Gemm", &["x", "w"], &["y"])
        .output("y");
    assert_eq!(
        model.prefix_digest("y").unwrap(),
        inline.model().prefix_digest("y").unwrap()
    );
}

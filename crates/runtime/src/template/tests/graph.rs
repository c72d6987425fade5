//! The graph that a template and a state dict make.

use std::path::Path;

use super::{Sizes, file, fit, sizes, sizes_of, state_dict};
use crate::error::Error;
use crate::onnx::Model;
use crate::template::{Choice, InputSize, Template};
use pth::Existing;

/// Two blocks, the second with a shortcut; small enough to look at.
const NET: &str = "
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(size('stem.0.weight', 1, 3), 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, size('fc.weight', 0, 2))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = self.relu(x + block(x))
        return self.fc(torch.flatten(self.pool(x), 1))
";

fn net_sizes() -> Sizes {
    sizes(&[
        ("stem.0.weight", &[8, 1, 3, 3]),
        ("stem.1.weight", &[8]),
        ("stem.1.bias", &[8]),
        ("stem.1.running_mean", &[8]),
        ("stem.1.running_var", &[8]),
        ("blocks.0.weight", &[8, 8, 3, 3]),
        ("blocks.0.bias", &[8]),
        ("blocks.1.weight", &[8, 8, 3, 3]),
        ("blocks.1.bias", &[8]),
        ("fc.weight", &[5, 8]),
        ("fc.bias", &[5]),
    ])
}

fn net(size: InputSize) -> Model {
    let sizes = net_sizes();
    let template = fit(NET, sizes.clone()).unwrap();
    template.to_onnx(&state_dict(&sizes), Some(size)).unwrap()
}

const SMALL: InputSize = InputSize { height: 6, width: 4 };

#[test]
fn nodes_are_called_as_torchs_exporter_calls_them_and_weights_as_the_state_dict() {
    let model = net(SMALL);
    let names: Vec<&str> = model.node_names().collect();
    assert_eq!(
        names,
        [
            "/stem/stem.0/Conv",
            "/stem/stem.1/BatchNormalization",
            "/stem/stem.2/Relu",
            "/blocks.0/Conv",
            "/Add",
            "/relu/Relu",
            "/blocks.1/Conv",
            "/Add_1",
            "/relu_1/Relu",
            "/pool/GlobalAveragePool",
            "/Flatten",
            "/fc/Gemm",
        ]
    );
    let input = model.input().unwrap();
    assert_eq!(input.name, "input");
    assert_eq!(input.shape, Some(vec![None, Some(1), Some(6), Some(4)]));
    assert_eq!(model.outputs(), ["logits"]);
    let names: Vec<String> = net_sizes().into_keys().collect();
    for name in names {
        assert!(model.has_initializer(&name), "{name}");
    }
    let cuts = model.boundaries();
    let cut = cuts.iter().find(|cut| cut.is_default).unwrap();
    assert_eq!(
        (cut.name.as_str(), &cut.shape),
        ("/Flatten_output_0", &Some(vec![None, Some(8)]))
    );
}

#[test]
fn a_written_graph_is_the_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let model = net(SMALL);
    let path = folder.path().join("m.onnx");
    model.save(&path, Existing::Refuse).unwrap();
    let opened = Model::open(&path).unwrap();
    assert!(opened.external().is_empty());
    for boundary in ["/stem/stem.2/Relu_output_0", "/Flatten_output_0", "logits"] {
        assert_eq!(
            model.prefix_digest(boundary).unwrap(),
            opened.prefix_digest(boundary).unwrap()
        );
    }
    // What is over protobuf's limit lies in a second file.
    let files = model
        .save_below(&folder.path().join("large.onnx"), Existing::Refuse, 3000)
        .unwrap();
    assert_eq!(files.len(), 2);
    let large = Model::open(&files[0]).unwrap();
    assert_eq!(
        large.prefix_digest("logits").unwrap(),
        model.prefix_digest("logits").unwrap()
    );
}

#[test]
fn every_network_that_is_shipped_is_a_sound_graph() {
    for name in Template::shipped().unwrap() {
        // The largest are the same text with other numbers.
        if ["vit_h", "vit_l", "101", "152", "large", "base", "vgg1", "wide"]
            .iter()
            .any(|part| name.contains(part))
        {
            continue;
        }
        let sizes = sizes_of(&name);
        let template =
            Template::recognise_sizes(Path::new("n.pth"), sizes.clone(), &Choice::Shipped).unwrap();
        let model = template.to_onnx(&state_dict(&sizes), None).unwrap();
        let n_weights = sizes
            .keys()
            .filter(|name| !name.ends_with("num_batches_tracked"))
            .count();
        let n_found = sizes.keys().filter(|name| model.has_initializer(name)).count();
        assert_eq!(n_found, n_weights, "{name}");
        let cuts = model.boundaries();
        assert!(
            cuts.iter().any(|cut| cut.is_default && cut.parameters_behind > 0),
            "{name}"
        );
    }
}

#[test]
fn pictures_that_a_network_does_not_take_are_told_with_the_place() {
    let sizes = sizes_of("vit_b_32");
    let template = Template::recognise_sizes(Path::new("n.pth"), sizes.clone(), &Choice::Shipped).unwrap();
    let size = InputSize {
        height: 256,
        width: 256,
    };
    let Err(Error::Template(error)) = template.to_onnx(&state_dict(&sizes), Some(size)) else {
        panic!("it has positions for 224");
    };
    assert_eq!(
        error.message,
        "`+` does not go together for [batch, 65, 768] and [1, 50, 768] (for pictures of 256 x 256)"
    );
    assert_eq!(error.file, "vit.template");
    assert!(error.text.contains("self.pos_embedding"), "{}", error.text);
}

#[test]
fn a_forward_that_cannot_be_a_graph_is_told() {
    let net = |forward: &str| {
        let text = format!(
            "class Net(nn.Module):\n    def __init__(self):\n        self.fc = nn.Linear(4, 2)\n        self.odd = torch.ones(4)\n\n    def forward(self, x):\n        {forward}\n"
        );
        let sizes = sizes(&[("fc.weight", &[2, 4]), ("fc.bias", &[2])]);
        let template = fit(&text, sizes.clone()).unwrap();
        match template.to_onnx(&state_dict(&sizes), Some(InputSize { height: 2, width: 2 })) {
            Err(Error::Template(error)) => error.message,
            Err(other) => other.to_string(),
            Ok(_) => panic!("{forward}"),
        }
    };
    for (forward, message) in [
        (
            "return self.fc(x)",
            "a linear layer of weight [2, 4] does not take [batch, 3, 2, 2]",
        ),
        ("return x.mean([1, 2, 3]) + self.odd", "does not go together"),
        ("return x[:, :, 0].mean(1) * self.odd", "does not go together"),
        (
            "return x.flatten(1)[:, :4] + self.odd",
            "neither computed from the input nor a parameter",
        ),
        ("return x", "gives its input as it is"),
        ("return [x]", "gives a list, and not one tensor"),
        (
            "return x if x.mean([1, 2, 3]) > 0 else x",
            "`>` is not for a tensor and an int",
        ),
        ("return x[0]", "one sample of the batch cannot be taken"),
        ("return x.view(7, -1)", "cannot be arranged as"),
        ("return x.mean(0)", "do not depend on each other"),
        ("return x.fold()", "tensors have no method `fold` here"),
    ] {
        let found = net(forward);
        assert!(found.contains(message), "{forward}: {found}");
    }
}

#[test]
fn a_tensor_that_is_no_float_is_refused() {
    let sizes = net_sizes();
    let template = fit(NET, sizes.clone()).unwrap();
    let mut tensors = state_dict(&sizes);
    let ints = pth::Tensor::from_bytes(pth::DType::Int32, &[5], vec![0; 20]).unwrap();
    tensors.insert(
        "fc.bias",
        surgery::LazyEntry::unmarked(surgery::LazyTensor::stored(ints)),
    );
    let error = template.to_onnx(&tensors, Some(SMALL)).unwrap_err();
    assert_eq!(error.to_string(), "`net.pth`: `fc.bias` is int32, and no float");
}

#[test]
fn a_template_file_may_be_missing_or_no_text() {
    let (_folder, path) = file("x = 1");
    #[expect(clippy::disallowed_methods, reason = "a test's input needs no durability")]
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let refuse = |path: &Path| {
        Template::recognise_sizes(Path::new("n.pth"), Sizes::new(), &Choice::File(path.to_owned()))
            .unwrap_err()
    };
    assert!(matches!(refuse(&path), Error::BadFile { .. }));
    assert!(matches!(
        refuse(Path::new("/absent/net.template")),
        Error::File(_)
    ));
}

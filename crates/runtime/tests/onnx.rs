//! Cutting, splicing and hashing a real ONNX file, and hostile versions of it.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::path::{Path, PathBuf};

use runtime::Task;
use runtime::head::Head;
use runtime::onnx::{Model, Outputs, Reduction};

fn bytes() -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/digits/backbone.onnx");
    std::fs::read(path).unwrap()
}

fn parse(bytes: Vec<u8>) -> Model {
    Model::parse(Path::new("backbone.onnx"), bytes).unwrap()
}

const BOUNDARY: &str = "/flatten/Flatten_output_0";

fn head(value: f32) -> Head {
    let names = vec!["cat".to_owned(), "dog".to_owned()];
    Head::linear(Task::SingleLabel, names, vec![value; 128], vec![0.0; 2]).unwrap()
}

#[test]
fn the_cut_ends_at_the_classifiers_input_and_drops_its_weights() {
    let model = parse(bytes());
    assert_eq!(model.default_boundary().unwrap(), BOUNDARY);
    let cut = model.cut(&[BOUNDARY]).unwrap();
    assert_eq!(cut.outputs(), [BOUNDARY]);
    assert_eq!(cut.input().unwrap(), model.input().unwrap());
    // fc.weight is [5, 64] float32; its name and shape come on top.
    let dropped = model.bytes().len() - cut.bytes().len();
    assert!(
        (5 * 64 * 4..5 * 64 * 4 + 600).contains(&dropped),
        "{dropped} bytes were dropped"
    );
    let error = model.cut(&["/flatten/Flatten_output_1"]).unwrap_err();
    let runtime::Error::UnknownTensor { suggestions, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(suggestions[0], BOUNDARY);
    assert!(model.cut(&["fc.weight"]).is_err(), "a weight is no boundary");
}

#[test]
fn the_digest_sees_the_prefix_and_nothing_else() {
    let model = parse(bytes());
    let digest = model.prefix_digest(BOUNDARY).unwrap();
    assert_eq!(
        model.cut(&[BOUNDARY]).unwrap().prefix_digest(BOUNDARY).unwrap(),
        digest
    );
    let spliced = model
        .splice(
            BOUNDARY,
            Reduction::None,
            &head(0.5),
            Outputs::Logits,
            &[("key", "value".to_owned())],
        )
        .unwrap();
    assert_eq!(spliced.prefix_digest(BOUNDARY).unwrap(), digest, "another head");
    assert_eq!(spliced.metadata("key").as_deref(), Some("value"));
    assert_eq!(spliced.outputs(), ["logits"]);
    // Spliced again, the first head is gone and the metadata replaced.
    let again = spliced
        .splice(
            BOUNDARY,
            Reduction::None,
            &head(0.5),
            Outputs::Logits,
            &[("key", "other".to_owned())],
        )
        .unwrap();
    assert_eq!(again.metadata("key").as_deref(), Some("other"));
    assert_eq!(again.bytes().len(), spliced.bytes().len());

    // One bit of the first convolution's weights, which lie before the classifier's.
    let name = b"conv1.conv.weight";
    let mut flipped = bytes();
    let at = flipped
        .windows(name.len())
        .rposition(|window| window == name)
        .unwrap()
        + name.len()
        + 40;
    flipped[at] ^= 1;
    assert_ne!(
        parse(flipped).prefix_digest(BOUNDARY).unwrap(),
        digest,
        "another weight"
    );
}

#[test]
fn hostile_bytes_are_refused_or_read_and_never_panic() {
    let good = bytes();
    let head = head(0.0);
    let work = |bytes: Vec<u8>| {
        let Ok(model) = Model::parse(Path::new("hostile.onnx"), bytes) else {
            return;
        };
        let _ = model.input();
        for boundary in [model.default_boundary().unwrap_or_default(), BOUNDARY.to_owned()] {
            let _ = model.prefix_digest(&boundary);
            let _ = model.cut(&[boundary.as_str()]);
            let outputs = Outputs::LogitsAndProbabilities;
            let _ = model.splice(&boundary, Reduction::None, &head, outputs, &[]);
        }
    };
    for n in (0..good.len()).step_by(997) {
        work(good[..n].to_vec());
    }
    // The structure lies at both ends of the graph, the weights between: flip densely there, sparsely between.
    let ends = (0..6000).chain(good.len() - 6000..good.len());
    for at in ends.step_by(7).chain((6000..good.len() - 6000).step_by(4999)) {
        for bit in [0x01, 0x08, 0x80] {
            let mut flipped = good.clone();
            flipped[at] ^= bit;
            work(flipped);
        }
    }
    // A field of the graph that is a number where a message belongs.
    let mut odd = Vec::new();
    odd.extend([0x3a, 0x02, 0x08, 0x00]);
    work(odd);
}

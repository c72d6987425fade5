use super::build::{Graph, external, graph, tensor, weight, with};
use crate::onnx::wire::{put_bytes, put_varint};

fn with_weight(message: Vec<u8>) -> Graph {
    graph()
        .input("x", 1, &[0, 2])
        .field(5, message)
        .node("MatMul", &["x", "w"], &["y"])
        .output("y")
}

fn digest(graph: &Graph) -> blake3::Hash {
    graph.model().prefix_digest("y").unwrap()
}

#[test]
fn the_digest_sees_elements_and_not_how_they_are_stored() {
    let values = [1.5f32, -2.0, 0.25, 4.0];
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let inline = digest(&with_weight(weight("w", &[2, 2], &values)));
    // Packed floats, in one piece and in two, and one by one.
    let packed = with(tensor("w", 1, &[2, 2]), 4, &raw);
    assert_eq!(digest(&with_weight(packed)), inline);
    let halves = with(with(tensor("w", 1, &[2, 2]), 4, &raw[..8]), 4, &raw[8..]);
    assert_eq!(digest(&with_weight(halves)), inline);
    let mut single = tensor("w", 1, &[2, 2]);
    for value in values {
        single.push(4 << 3 | 5);
        single.extend_from_slice(&value.to_le_bytes());
    }
    assert_eq!(digest(&with_weight(single)), inline);
    // Sizes packed, as proto3 writes them.
    let mut sizes = with(Vec::new(), 1, &[2, 2]);
    put_varint(&mut sizes, 2, 1);
    put_bytes(&mut sizes, 8, b"w");
    put_bytes(&mut sizes, 9, &raw);
    assert_eq!(digest(&with_weight(sizes)), inline);
    // A constant node.
    let mut attribute = with(Vec::new(), 1, b"value");
    put_bytes(&mut attribute, 5, &with(tensor("", 1, &[2, 2]), 9, &raw));
    put_varint(&mut attribute, 20, 4);
    let constant = with(super::build::node("Constant", "", "", &[], &["w"]), 5, &attribute);
    let as_node = graph()
        .input("x", 1, &[0, 2])
        .field(1, constant)
        .node("MatMul", &["x", "w"], &["y"])
        .output("y");
    assert_eq!(digest(&as_node), inline);
    // In another file, at an odd place.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("w.bin"), [&[7; 5], &raw[..]].concat()).unwrap();
    let outside = with_weight(external("w", &[2, 2], &[("location", "w.bin"), ("offset", "5")]));
    let outside = crate::onnx::Model::parse(&folder.path().join("m.onnx"), outside.bytes()).unwrap();
    assert_eq!(outside.prefix_digest("y").unwrap(), inline);

    let other = |message| assert_ne!(digest(&with_weight(message)), inline);
    other(weight("w", &[2, 2], &[1.5, -2.0, 0.25, 4.000_000_5]));
    other(weight("w", &[2, 2, 1], &values));
    other(with(tensor("w", 6, &[2, 2]), 9, &raw));
}

#[test]
fn typed_integers_and_halves_are_their_raw_bytes() {
    let check = |dtype: u64, number: u32, values: &[u64], raw: &[u8]| {
        let shape = [values.len() as u64];
        let inline = digest(&with_weight(with(tensor("w", dtype, &shape), 9, raw)));
        let mut packed = Vec::new();
        let mut single = tensor("w", dtype, &shape);
        for &value in values {
            put_varint(&mut single, number, value);
            let mut one = Vec::new();
            put_varint(&mut one, 1, value);
            packed.extend_from_slice(&one[1..]);
        }
        assert_eq!(digest(&with_weight(single)), inline, "type {dtype}");
        let packed = with(tensor("w", dtype, &shape), number, &packed);
        assert_eq!(digest(&with_weight(packed)), inline, "type {dtype}, packed");
    };
    let minus_two = (-2i64).cast_unsigned();
    check(
        7,
        7,
        &[3, minus_two],
        &[3i64.to_le_bytes(), (-2i64).to_le_bytes()].concat(),
    );
    check(
        6,
        5,
        &[3, minus_two],
        &[3i32.to_le_bytes(), (-2i32).to_le_bytes()].concat(),
    );
    check(3, 5, &[3, minus_two], &[3, 0xfe]);
    check(9, 5, &[1, 0], &[1, 0]);
    // float16 and bfloat16 as the bits of 16-bit integers.
    check(10, 5, &[0x3c00, 0xc000], &[0x00, 0x3c, 0x00, 0xc0]);
    check(16, 5, &[0x3f80, 0xc000], &[0x80, 0x3f, 0x00, 0xc0]);
    check(
        12,
        11,
        &[3, 0xffff_fffe],
        &[3u32.to_le_bytes(), (u32::MAX - 1).to_le_bytes()].concat(),
    );
    check(
        13,
        11,
        &[3, u64::MAX],
        &[3u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat(),
    );
}

#[test]
fn taps_together_have_the_digests_they_have_alone() {
    let model = graph()
        .input("x", 1, &[0, 2])
        .weight("w", &[2, 2], &[1.0; 4])
        .weight("v", &[2, 2], &[2.0; 4])
        .node("MatMul", &["x", "w"], &["a"])
        .node("MatMul", &["a", "v"], &["b"])
        .output("b")
        .model();
    let together = model.prefix_digests(&["b", "a"]).unwrap();
    assert_eq!(together[0], model.prefix_digest("b").unwrap());
    assert_eq!(together[1], model.prefix_digest("a").unwrap());
    assert_ne!(together[0], together[1]);
}

#[test]
fn large_weights_have_the_digest_that_one_thread_would_give() {
    let values = vec![1.0f32; 600_000];
    let model = with_weight(weight("w", &[600, 1000], &values)).model();
    let initializer = &model.initializers["w"];
    let mut hasher = blake3::Hasher::new();
    let mut put = |part: &[u8]| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    put(b"weight");
    put(&1i64.to_le_bytes());
    put(&[600u64.to_le_bytes(), 1000u64.to_le_bytes()].concat());
    put(&model.elements(initializer));
    assert_eq!(model.weight_digest(initializer), hasher.finalize());
}

#[test]
fn a_tensor_is_found_by_its_content() {
    let chain = |weights: [f32; 4], names: [&str; 3]| {
        let [a, b, c] = names;
        graph()
            .input("x", 1, &[0, 2])
            .field(5, weight("w", &[2, 2], &weights))
            .node("Relu", &["x"], &[a])
            .node("Neg", &[a], &[b])
            .node("MatMul", &[b, "w"], &[c])
            .output(c)
            .model()
    };
    let model = chain([1.0, 2.0, 3.0, 4.0], ["a", "b", "c"]);
    let renamed = chain([1.0, 2.0, 3.0, 4.0], ["p", "q", "r"]);
    let other = chain([1.0, 2.0, 3.0, 5.0], ["a", "b", "c"]);
    for (name, in_renamed, in_other) in [("a", "p", Some("a")), ("b", "q", Some("b")), ("c", "r", None)] {
        let prefix = model.prefix_digest(name).unwrap().to_hex();
        let found = |model: &crate::onnx::Model| model.find_prefix(prefix.as_str()).unwrap();
        assert_eq!(found(&model).as_deref(), Some(name));
        assert_eq!(found(&renamed).as_deref(), Some(in_renamed));
        assert_eq!(found(&other).as_deref(), in_other);
    }
    // Of two tensors with one content it is the classifier's input.
    let twice = graph()
        .input("x", 1, &[0, 2])
        .field(5, weight("w", &[2, 2], &[1.0; 4]))
        .node("Relu", &["x"], &["first"])
        .node("Relu", &["x"], &["second"])
        .node("MatMul", &["second", "w"], &["y"])
        .output("y")
        .model();
    let prefix = twice.prefix_digest("first").unwrap();
    assert_eq!(
        twice.find_prefix(prefix.to_hex().as_str()).unwrap().as_deref(),
        Some("second")
    );
}

/// A mask that nothing reads has no name, and neither has an input that is left out.
#[test]
fn an_output_without_a_name_is_no_input_without_one() {
    let clipped = |outputs: &[&str]| {
        graph()
            .input("x", 1, &[0, 2])
            .field(5, weight("top", &[], &[1.0]))
            .node("Dropout", &["x"], outputs)
            .node("Clip", &["kept", "", "top"], &["y"])
            .output("y")
    };
    assert_eq!(digest(&clipped(&["kept"])), digest(&clipped(&["kept", ""])));
}

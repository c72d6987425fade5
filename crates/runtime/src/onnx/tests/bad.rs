use super::build::{Graph, graph, node, tensor, with};
use crate::error::Error;

fn refused(made: &Graph, expected: &str) {
    let error = made.parse().unwrap_err();
    assert!(matches!(error, Error::NotOnnx { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!("`m.onnx` is not an ONNX model: {expected}")
    );
}

fn base() -> Graph {
    graph().input("x", 1, &[1]).output("y")
}

#[test]
fn nodes_that_cannot_follow_one_another_are_named() {
    refused(
        &base()
            .named("Relu", "late", &["a"], "y")
            .node("Neg", &["x"], &["a"]),
        "its nodes are not in order: the Relu `late` reads `a`, which a later node makes",
    );
    refused(
        &base()
            .node("Add", &["x", "b"], &["a"])
            .node("Neg", &["a"], &["b"])
            .node("Relu", &["b"], &["y"]),
        "its graph has a cycle: the Add that makes `a` needs its own result through `b`",
    );
    refused(
        &base().node("Relu", &["nowhere"], &["y"]),
        "its Relu that makes `y` reads `nowhere`, which nothing makes",
    );
    refused(
        &base()
            .node("Relu", &["x"], &["y"])
            .named("Neg", "again", &["x"], "y"),
        "`y` is made twice, the second time by its Neg `again`",
    );
    refused(
        &base().node("Relu", &["x"], &["z"]),
        "nothing makes its output `y`",
    );
}

#[test]
fn operator_sets_must_be_said() {
    let made = base().node("Relu", &["x"], &["y"]);
    refused(
        &made.clone().opsets(&[]),
        "it does not say which operator set it is written in",
    );
    refused(
        &made.opsets(&[("com.microsoft", 1)]),
        "it names no operator set of ONNX itself, which its Relu that makes `y` is of",
    );
}

#[test]
fn initialisers_must_be_as_large_as_they_say() {
    let with_weight = |message| base().field(5, message).node("Add", &["x", "w"], &["y"]);
    let check =
        |message, expected: &str| refused(&with_weight(message), &format!("its initialiser {expected}"));
    check(
        with(tensor("w", 1, &[2, 2]), 9, &[0; 12]),
        "`w` is float32 of [2, 2] and holds 12 bytes, not 16",
    );
    check(
        with(tensor("w", 1, &[2, 2]), 4, &[0; 12]),
        "`w` is float32 of [2, 2] and holds 3 values, not 4",
    );
    check(
        tensor("w", 7, &[3]),
        "`w` is int64 of [3] and holds 0 values, not 3",
    );
    // In the field of another type.
    check(
        with(tensor("w", 7, &[1]), 4, &[0; 4]),
        "`w` is int64 of [1] and holds 0 values, not 1",
    );
    check(tensor("w", 1, &[u64::MAX]), "`w` has an axis of size -1");
    check(
        tensor("w", 1, &[1 << 40, 1 << 40]),
        "`w` has more elements than memory ([1099511627776, 1099511627776])",
    );
    check(tensor("w", 99, &[1]), "`w` has element type 99, which is none");
    check(tensor("w", 0, &[1]), "`w` has element type 0, which is none");
    check(
        with(tensor("w", 8, &[1]), 9, b"text"),
        "`w` holds strings as raw data",
    );
    refused(
        &with_weight(with(tensor("w", 1, &[1]), 9, &[0; 4])).weight("w", &[1], &[0.0]),
        "two of its initialisers are called `w`",
    );
    // Nothing is fine where nothing is owed.
    with_weight(tensor("w", 1, &[0])).model();
    // Two int4 in a byte.
    with_weight(with(tensor("w", 22, &[3]), 9, &[0; 2])).model();
}

#[test]
fn custom_operators_are_named_where_they_are_needed() {
    let custom = |opsets: &[(&'static str, u64)]| {
        base()
            .node("Neg", &["x"], &["a"])
            .field(1, node("Plugin", "head/plugin", "my.ops", &["a"], &["y"]))
            .opsets(opsets)
    };
    let model = custom(&[("", 17), ("my.ops", 1)]).model();
    let error = model.check_operators().unwrap_err();
    assert_eq!(
        error.to_string(),
        "`m.onnx` cannot serve as a backbone: its Plugin `head/plugin` is a custom operator of domain `my.ops`, \
         which ONNX Runtime does not have"
    );
    // Cut off, it does no harm; as a function of the model's own neither.
    model.cut(&["a"]).unwrap().check_operators().unwrap();
    let own = custom(&[("", 17), ("my.ops", 1)]).function("my.ops", "Plugin");
    own.model().check_operators().unwrap();
    let other = base()
        .field(1, node("BiasGelu", "", "com.microsoft", &["x", "x"], &["y"]))
        .model();
    assert!(other.check_operators().unwrap_err().to_string().ends_with(
        "it names no operator set of domain `com.microsoft`, which its BiasGelu that makes `y` is of"
    ));
}

#[test]
fn the_node_that_onnx_runtime_refuses_is_found_in_its_words() {
    let model = base()
        .named("Neg", "first", &["x"], "a")
        .named("Foo", "second", &["a"], "b")
        .named("Foo", "third", &["b"], "y")
        .model();
    let found = |message: &str| model.culprit(message);
    assert_eq!(
        found("Fatal error: ai.onnx:Foo(-1) is not a registered function/op").as_deref(),
        Some("Foo `second` (ONNX's own domain, operator set 17)")
    );
    assert_eq!(
        found("In Node, (\"third\", Foo, \"\", -1) : No Op registered for Foo with domain_version of 17")
            .as_deref(),
        Some("Foo `third` (ONNX's own domain, operator set 17)")
    );
    assert_eq!(found("out of memory"), None);
}

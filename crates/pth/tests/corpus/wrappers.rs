//! Parameters, subclasses and the classes of torch before 0.4, around what is not theirs. [P13]

use super::base::{beside, honest, zip};
use super::calls::hooks;
use super::{Case, Expect, case};
use crate::build::Pickle;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    wrappers(&mut cases);
    old(&mut cases);
    cases
}

/// Wrappers around what is no tensor, around too much, or without what belongs into them. [PR #169570]
fn wrappers(cases: &mut Vec<Case>) {
    let p = Pickle::bare();
    let parameter = |inner: &Pickle| {
        hooks(
            p.clone()
                .global("torch._utils", "_rebuild_parameter")
                .op(b"(")
                .then(inner)
                .op(b"\x88"),
        )
        .op(b"tR")
    };
    let typed = |args: Pickle| {
        p.clone()
            .global("torch._tensor", "_rebuild_from_type_v2")
            .op(b"(")
            .then(&args)
            .op(b"tR")
    };
    let rebuild = p.clone().global("torch._utils", "_rebuild_tensor_v2");
    let class = p.clone().global("torch", "Tensor");
    let mut tower = honest();
    for _ in 0..200 {
        tower = parameter(&tower);
    }
    for (id, value) in [
        ("parameter-none", parameter(&p.clone().op(b"N"))),
        ("parameter-list", parameter(&p.clone().op(b"]"))),
        (
            "parameter-dict-of-tensor",
            parameter(&p.clone().op(b"}K\0").then(&honest()).op(b"s")),
        ),
        (
            "parameter-no-arguments",
            p.clone().global("torch._utils", "_rebuild_parameter").op(b")R"),
        ),
        ("parameter-tower", tower),
        ("type-no-arguments", typed(p.clone())),
        ("type-only-a-function", typed(rebuild.clone())),
        (
            "type-arguments-none",
            typed(rebuild.clone().then(&class).op(b"NN")),
        ),
        (
            "type-arguments-empty",
            typed(rebuild.clone().then(&class).op(b")}")),
        ),
        (
            "type-function-text",
            typed(p.clone().str("_rebuild_tensor_v2").then(&class).op(b")}")),
        ),
        (
            "type-function-itself",
            typed(
                p.clone()
                    .global("torch._tensor", "_rebuild_from_type_v2")
                    .then(&class)
                    .op(b")}"),
            ),
        ),
        (
            "type-function-unknown",
            typed(p.clone().global("some.where", "make").then(&class).op(b")}")),
        ),
    ] {
        cases.push(case(
            format!("P13-wrapper-{id}"),
            &["P13"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
    cases.push(
        case(
            "P13-wrapper-type-function-unsafe",
            &["P13", "R3"],
            zip(&beside(&typed(
                p.clone().global("os", "system").then(&class).op(b")}"),
            ))),
            Expect::Unsafe("os.system".to_owned()),
        )
        .scan(&["global.unsafe"]),
    );
}

/// The classes of torch before 0.4, built from states that are not theirs.
fn old(cases: &mut Vec<Case>) {
    let storage = Pickle::bare().storage("FloatStorage", "1", 4);
    let p = Pickle::bare();
    for (id, state) in [
        ("none", p.clone().op(b"N")),
        ("dict", p.clone().op(b"}")),
        ("empty", p.clone().op(b")")),
        ("storage-only", storage.clone().op(b"\x85")),
        ("five-of-nothing", p.clone().op(b"(NNNNNt")),
        (
            "text-for-storage",
            p.clone().op(b"(").str("1").int(0).ints(&[4]).ints(&[1]).op(b"t"),
        ),
        ("shape-none", p.clone().op(b"(").then(&storage).int(0).op(b"NNt")),
    ] {
        let value = p
            .clone()
            .global("torch", "FloatTensor")
            .op(b")\x81")
            .then(&state)
            .op(b"b");
        cases.push(case(
            format!("P13-old-state-{id}"),
            &["P13"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
}

//! Names that are allowed, called as nobody calls them. [P13]

use super::base::{beside, honest, second, zip};
use super::{Case, Expect, both, case};
use crate::build::Pickle;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    rebuilds(&mut cases);
    persistent(&mut cases);
    wrappers(&mut cases);
    old(&mut cases);
    odd(&mut cases);
    cases
}

fn hooks(p: Pickle) -> Pickle {
    p.op(b"\x89").global("collections", "OrderedDict").op(b")R")
}

/// `_rebuild_tensor_v2` over arguments that are not its own.
fn rebuilds(cases: &mut Vec<Case>) {
    let storage = Pickle::bare().storage("FloatStorage", "1", 4);
    let geometry = Pickle::bare().int(0).ints(&[4]).ints(&[1]);
    let call = |args: Pickle| {
        Pickle::bare()
            .global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .then(&args)
            .op(b"tR")
    };
    let over = |storage: Pickle| call(hooks(storage.then(&geometry)));
    let p = Pickle::bare();
    for (id, value) in [
        ("no-arguments", call(p.clone())),
        ("one-argument", call(storage.clone())),
        ("three-arguments", call(storage.clone().int(0).ints(&[4]))),
        ("storage-none", over(p.clone().op(b"N"))),
        ("storage-int", over(p.clone().int(1))),
        ("storage-text", over(p.clone().str("1"))),
        ("storage-tuple", over(p.clone().ints(&[1, 2]))),
        ("storage-tensor", over(second())),
        ("storage-global", over(p.clone().global("torch", "FloatStorage"))),
        ("offset-none", call(hooks(storage.clone().op(b"N").ints(&[4]).ints(&[1])))),
        ("offset-float", call(hooks(storage.clone().op(b"G\0\0\0\0\0\0\0\0").ints(&[4]).ints(&[1])))),
        ("offset-text", call(hooks(storage.clone().str("0").ints(&[4]).ints(&[1])))),
        ("shape-int", call(hooks(storage.clone().int(0).int(4).ints(&[1])))),
        ("shape-none", call(hooks(storage.clone().int(0).op(b"N").ints(&[1])))),
        ("shape-dict", call(hooks(storage.clone().int(0).op(b"}").ints(&[1])))),
        ("shape-of-floats", call(hooks(storage.clone().int(0).op(b"G\x40\x10\0\0\0\0\0\0\x85").ints(&[1])))),
        ("shape-of-texts", call(hooks(storage.clone().int(0).str("4").op(b"\x85").ints(&[1])))),
        ("shape-nested", call(hooks(storage.clone().int(0).ints(&[4]).op(b"\x85").ints(&[1])))),
        ("stride-none", call(hooks(storage.clone().int(0).ints(&[4]).op(b"N")))),
        ("stride-text", call(hooks(storage.clone().int(0).ints(&[4]).str("1")))),
    ] {
        cases.push(case(
            format!("P13-rebuild-{id}"),
            &["P13"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
    // Untyped storages give a dtype of their own, which must be one.
    let v3 = |storage: &Pickle, dtype: Pickle| {
        let args = hooks(storage.clone().then(&geometry)).then(&dtype);
        Pickle::bare()
            .global("torch._utils", "_rebuild_tensor_v3")
            .op(b"(")
            .then(&args)
            .op(b"tR")
    };
    let untyped = Pickle::bare()
        .op(b"(")
        .str("storage")
        .global("torch.storage", "UntypedStorage")
        .str("1")
        .str("cpu")
        .int(16)
        .op(b"tQ");
    for (id, dtype) in [
        ("missing", p.clone()),
        ("none", p.clone().op(b"N")),
        ("text", p.clone().str("float32")),
        ("of-numpy", p.clone().global("numpy", "float32")),
        ("unknown", p.clone().global("torch", "float31")),
        ("a-function", p.clone().global("torch", "add")),
    ] {
        cases.push(case(
            format!("P13-v3-dtype-{id}"),
            &["P13"],
            zip(&beside(&v3(&untyped, dtype))),
            Expect::Refused("t"),
        ));
    }
}

/// Persistent ids that name no storage, or one in some other way.
fn persistent(cases: &mut Vec<Case>) {
    let geometry = Pickle::bare().int(0).ints(&[4]).ints(&[1]);
    let p = Pickle::bare();
    let float = p.clone().global("torch", "FloatStorage");
    let id = |tag: &Pickle, class: &Pickle, key: &Pickle, numel: &Pickle| {
        let parts = p.clone().op(b"(").then(tag).then(class).then(key).str("cpu").then(numel);
        parts.op(b"tQ")
    };
    let (tag, key, numel) = (p.clone().str("storage"), p.clone().str("1"), p.clone().int(4));
    for (which, storage) in [
        ("none", p.clone().op(b"NQ")),
        ("text", p.clone().str("storage").op(b"Q")),
        ("line", p.clone().op(b"P1\n")),
        ("empty-tuple", p.clone().op(b")Q")),
        ("list", p.clone().op(b"]Q")),
        ("of-itself", p.clone().storage("FloatStorage", "1", 4).op(b"Q")),
        ("only-the-tag", p.clone().str("storage").op(b"\x85Q")),
        ("four-fields", p.clone().op(b"(").then(&tag).then(&float).then(&key).str("cpu").op(b"tQ")),
        ("other-tag", id(&p.clone().str("storag3"), &float, &key, &numel)),
        ("tag-int", id(&p.clone().int(1), &float, &key, &numel)),
        ("module-tag", id(&p.clone().str("module"), &float, &key, &numel)),
        ("class-text", id(&tag, &p.clone().str("FloatStorage"), &key, &numel)),
        ("class-none", id(&tag, &p.clone().op(b"N"), &key, &numel)),
        ("class-unknown", id(&tag, &p.clone().global("torch", "FloatingStorage"), &key, &numel)),
        ("class-foreign", id(&tag, &p.clone().global("some.where", "FloatStorage"), &key, &numel)),
        ("class-called", id(&tag, &float.clone().op(b")R"), &key, &numel)),
        ("key-none", id(&tag, &float, &p.clone().op(b"N"), &numel)),
        ("key-list", id(&tag, &float, &p.clone().op(b"]"), &numel)),
        ("key-empty", id(&tag, &float, &p.clone().str(""), &numel)),
        ("key-traversal", id(&tag, &float, &p.clone().str("../data.pkl"), &numel)),
        ("key-absolute", id(&tag, &float, &p.clone().str("/etc/passwd"), &numel)),
        ("key-nul", id(&tag, &float, &p.clone().str("1\0"), &numel)),
    ] {
        cases.push(case(
            format!("P13-storage-id-{which}"),
            &["P13", "T5"],
            zip(&beside(&p.clone().rebuilt(&storage, &geometry))),
            Expect::Refused("t"),
        ));
    }
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
        ("parameter-dict-of-tensor", parameter(&p.clone().op(b"}K\0").then(&honest()).op(b"s"))),
        ("parameter-no-arguments", p.clone().global("torch._utils", "_rebuild_parameter").op(b")R")),
        ("parameter-tower", tower),
        ("type-no-arguments", typed(p.clone())),
        ("type-only-a-function", typed(rebuild.clone())),
        ("type-arguments-none", typed(rebuild.clone().then(&class).op(b"NN"))),
        ("type-arguments-empty", typed(rebuild.clone().then(&class).op(b")}"))),
        ("type-function-text", typed(p.clone().str("_rebuild_tensor_v2").then(&class).op(b")}"))),
        ("type-function-itself", typed(
            p.clone().global("torch._tensor", "_rebuild_from_type_v2").then(&class).op(b")}"),
        )),
        ("type-function-unknown", typed(p.clone().global("some.where", "make").then(&class).op(b")}"))),
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
            zip(&beside(&typed(p.clone().global("os", "system").then(&class).op(b")}")))),
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
        ("text-for-storage", p.clone().op(b"(").str("1").int(0).ints(&[4]).ints(&[1]).op(b"t")),
        ("shape-none", p.clone().op(b"(").then(&storage).int(0).op(b"NNt")),
        ("outside", p.clone().op(b"(").then(&storage).int(1).ints(&[4]).ints(&[1]).op(b"t")),
    ] {
        let value = p.clone().global("torch", "FloatTensor").op(b")\x81").then(&state).op(b"b");
        cases.push(case(
            format!("P13-old-state-{id}"),
            &["P13"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
}

/// What is called though it can never be called, and small helpers chained.
fn odd(cases: &mut Vec<Case>) {
    let p = Pickle::bare();
    for (id, callee) in [
        ("int", p.clone().int(1)),
        ("none", p.clone().op(b"N")),
        ("text", p.clone().str("os.system")),
        ("dict", p.clone().op(b"}")),
        ("object", p.clone().global("collections", "OrderedDict").op(b")R")),
        ("tensor", honest()),
        ("storage", p.clone().storage("FloatStorage", "0", 4)),
    ] {
        cases.extend(both(
            &format!("P13-called-{id}"),
            &["P13", "R2"],
            &beside(&callee.op(b")R")),
            &Expect::Refused("t"),
            &[],
        ));
    }
    let encode = |value: Pickle, codec: &str| {
        Pickle::bare().global("_codecs", "encode").then(&value).str(codec).op(b"\x86R")
    };
    let chain = (0..50).fold(p.clone().str("x"), |inner, _| encode(inner, "latin1"));
    for (id, value) in [
        ("encode-chain", chain),
        ("encode-none", encode(p.clone().op(b"N"), "latin1")),
        ("encode-zlib", encode(p.clone().str("x"), "zlib")),
        ("encode-wide", encode(p.clone().str("\u{100}\u{10000}"), "latin1")),
        ("ordered-dict-of-int", p.clone().global("collections", "OrderedDict").int(1).op(b"\x85R")),
        ("ordered-dict-of-triples", p.clone().global("collections", "OrderedDict").op(b"](NNN\x87e\x85R")),
        ("size-of-text", p.clone().global("torch", "Size").str("abc").op(b"\x85R")),
        ("device-of-nothing", p.clone().global("torch", "device").op(b")R")),
        ("set-of-int", p.clone().global("builtins", "set").int(1).op(b"\x85R")),
    ] {
        cases.push(case(
            format!("P13-{id}"),
            &["P13"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
}

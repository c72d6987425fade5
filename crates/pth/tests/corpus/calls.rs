//! Names that are allowed, called as nobody calls them. [P13]

use super::base::{beside, honest, second, zip};
use super::{Case, Expect, both, case};
use crate::build::Pickle;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    rebuilds(&mut cases);
    persistent(&mut cases);
    odd(&mut cases);
    cases
}

pub(super) fn hooks(p: Pickle) -> Pickle {
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
        (
            "offset-none",
            call(hooks(storage.clone().op(b"N").ints(&[4]).ints(&[1]))),
        ),
        (
            "offset-float",
            call(hooks(
                storage.clone().op(b"G\0\0\0\0\0\0\0\0").ints(&[4]).ints(&[1]),
            )),
        ),
        (
            "offset-text",
            call(hooks(storage.clone().str("0").ints(&[4]).ints(&[1]))),
        ),
        ("shape-int", call(hooks(storage.clone().int(0).int(4).ints(&[1])))),
        (
            "shape-none",
            call(hooks(storage.clone().int(0).op(b"N").ints(&[1]))),
        ),
        (
            "shape-dict",
            call(hooks(storage.clone().int(0).op(b"}").ints(&[1]))),
        ),
        (
            "shape-of-floats",
            call(hooks(
                storage.clone().int(0).op(b"G\x40\x10\0\0\0\0\0\0\x85").ints(&[1]),
            )),
        ),
        (
            "shape-of-texts",
            call(hooks(storage.clone().int(0).str("4").op(b"\x85").ints(&[1]))),
        ),
        (
            "shape-nested",
            call(hooks(storage.clone().int(0).ints(&[4]).op(b"\x85").ints(&[1]))),
        ),
        (
            "stride-none",
            call(hooks(storage.clone().int(0).ints(&[4]).op(b"N"))),
        ),
        (
            "stride-text",
            call(hooks(storage.clone().int(0).ints(&[4]).str("1"))),
        ),
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
        let parts = p
            .clone()
            .op(b"(")
            .then(tag)
            .then(class)
            .then(key)
            .str("cpu")
            .then(numel);
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
        (
            "four-fields",
            p.clone()
                .op(b"(")
                .then(&tag)
                .then(&float)
                .then(&key)
                .str("cpu")
                .op(b"tQ"),
        ),
        ("other-tag", id(&p.clone().str("storag3"), &float, &key, &numel)),
        ("tag-int", id(&p.clone().int(1), &float, &key, &numel)),
        ("module-tag", id(&p.clone().str("module"), &float, &key, &numel)),
        (
            "class-text",
            id(&tag, &p.clone().str("FloatStorage"), &key, &numel),
        ),
        ("class-none", id(&tag, &p.clone().op(b"N"), &key, &numel)),
        (
            "class-unknown",
            id(&tag, &p.clone().global("torch", "FloatingStorage"), &key, &numel),
        ),
        (
            "class-foreign",
            id(
                &tag,
                &p.clone().global("some.where", "FloatStorage"),
                &key,
                &numel,
            ),
        ),
        ("class-called", id(&tag, &float.clone().op(b")R"), &key, &numel)),
        ("key-none", id(&tag, &float, &p.clone().op(b"N"), &numel)),
        ("key-list", id(&tag, &float, &p.clone().op(b"]"), &numel)),
        ("key-empty", id(&tag, &float, &p.clone().str(""), &numel)),
        (
            "key-traversal",
            id(&tag, &float, &p.clone().str("../data.pkl"), &numel),
        ),
        (
            "key-absolute",
            id(&tag, &float, &p.clone().str("/etc/passwd"), &numel),
        ),
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
    let ordered = p.clone().global("collections", "OrderedDict");
    let encode = |value: Pickle, codec: &str| {
        Pickle::bare()
            .global("_codecs", "encode")
            .then(&value)
            .str(codec)
            .op(b"\x86R")
    };
    let chain = (0..50).fold(p.clone().str("x"), |inner, _| encode(inner, "latin1"));
    for (id, value) in [
        ("encode-chain", chain),
        ("encode-none", encode(p.clone().op(b"N"), "latin1")),
        ("encode-zlib", encode(p.clone().str("x"), "zlib")),
        ("encode-wide", encode(p.clone().str("\u{100}\u{10000}"), "latin1")),
        ("device-of-nothing", p.clone().global("torch", "device").op(b")R")),
        // Tensors that no mapping would hold, and that must not vanish for it.
        (
            "ordered-dict-of-triples",
            ordered.clone().op(b"](N").then(&second()).op(b"N\x87e\x85R"),
        ),
        (
            "ordered-dict-of-a-tensor",
            ordered.clone().then(&second()).op(b"\x85R"),
        ),
        (
            "ordered-dict-of-tensors",
            ordered.clone().op(b"]").then(&second()).op(b"a\x85R"),
        ),
        (
            "size-of-a-tensor",
            p.clone().global("torch", "Size").then(&second()).op(b"\x85R"),
        ),
    ] {
        cases.push(case(
            format!("P13-{id}"),
            &["P13"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
    for (id, value) in [
        ("ordered-dict-of-int", ordered.int(1).op(b"\x85R")),
        (
            "size-of-text",
            p.clone().global("torch", "Size").str("abc").op(b"\x85R"),
        ),
        (
            "set-of-int",
            p.clone().global("builtins", "set").int(1).op(b"\x85R"),
        ),
    ] {
        cases.push(case(
            format!("P13-{id}"),
            &["P13"],
            zip(&beside(&value)),
            Expect::Survives,
        ));
    }
}

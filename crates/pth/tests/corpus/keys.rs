//! Two entries of one key, and names that collide or cannot be: T8 and row 11.

use super::base::{honest, legacy, second, zip};
use super::{Case, Expect, With, case};
use crate::build::Pickle;

/// A pickle of `{'w': w, 't': <first>, 't': <second>}` in each way to write it.
fn twice(how: &str) -> Vec<u8> {
    let entry = |value: &Pickle| Pickle::bare().str("t").then(value);
    let (a, b) = (entry(&honest()), entry(&second()));
    let w = Pickle::bare().str("w").then(&honest());
    let p = Pickle::new();
    match how {
        "setitems" => p.op(b"}(").then(&w).then(&a).then(&b).op(b"u").stop(),
        "setitem" => p
            .op(b"}")
            .then(&w)
            .op(b"s")
            .then(&a)
            .op(b"s")
            .then(&b)
            .op(b"s")
            .stop(),
        "two-batches" => p.op(b"}(").then(&w).then(&a).op(b"u(").then(&b).op(b"u").stop(),
        "dict" => p.op(b"(").then(&w).then(&a).then(&b).op(b"d").stop(),
        "ordered" => p
            .global("collections", "OrderedDict")
            .op(b")R(")
            .then(&w)
            .then(&a)
            .then(&b)
            .op(b"u")
            .stop(),
        "ordered-of-pairs" => {
            let pair = |entry: &Pickle| Pickle::bare().then(entry).op(b"\x86");
            p.global("collections", "OrderedDict")
                .op(b"](")
                .then(&pair(&w))
                .then(&pair(&a))
                .then(&pair(&b))
                .op(b"e\x85R")
                .stop()
        }
        "ordered-then-item" => p
            .global("collections", "OrderedDict")
            .op(b"](")
            .then(&w)
            .op(b"\x86")
            .then(&a)
            .op(b"\x86e\x85R")
            .then(&b)
            .op(b"s")
            .stop(),
        "wrapped" => p
            .op(b"}")
            .str("state_dict")
            .op(b"}(")
            .then(&w)
            .then(&a)
            .then(&b)
            .op(b"us")
            .stop(),
        "memoised-key" => p
            .op(b"}(")
            .then(&w)
            .str("t")
            .op(b"q\x01")
            .then(&honest())
            .op(b"h\x01")
            .then(&second())
            .op(b"u")
            .stop(),
        "other-opcode" => p
            .op(b"}(")
            .then(&w)
            .then(&a)
            .op(b"\x8c\x01t")
            .then(&second())
            .op(b"u")
            .stop(),
        other => panic!("no way `{other}`"),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for how in [
        "setitems",
        "setitem",
        "two-batches",
        "dict",
        "ordered",
        "ordered-of-pairs",
        "ordered-then-item",
        "wrapped",
        "memoised-key",
        "other-opcode",
    ] {
        let data_pkl = twice(how);
        for (container, bytes) in [("zip", zip(&data_pkl)), ("legacy", legacy(&data_pkl))] {
            cases.push(
                case(
                    format!("T8-{how}-{container}"),
                    &["T8", "R11"],
                    bytes,
                    Expect::Rejects("twice|second|duplicate"),
                )
                .also(With::LastWins, Expect::Loads(&["w", "t"]))
                .scan(&["dict.duplicate-key"]),
            );
        }
    }
    // A whole state dict in place of another; a sub-dictionary in place of another.
    let inner = |value: &Pickle| Pickle::bare().op(b"}").str("x").then(value).op(b"s");
    for (id, key) in [("state-dict", "state_dict"), ("sub-dict", "layer")] {
        let data_pkl = Pickle::new()
            .op(b"}(")
            .str("w")
            .then(&honest())
            .str(key)
            .then(&inner(&honest()))
            .str(key)
            .then(&inner(&second()))
            .op(b"u")
            .stop();
        cases.push(
            case(
                format!("T8-{id}"),
                &["T8", "R11"],
                zip(&data_pkl),
                Expect::Rejects("twice|second|duplicate"),
            )
            .scan(&["dict.duplicate-key"]),
        );
    }
    // Different keys of different dictionaries, one dotted name; or keys that differ and print alike.
    for (id, first, second_key) in [
        ("dotted", Pickle::bare().str("t"), Pickle::bare().str("t.x")),
        ("int-and-text", Pickle::bare().int(0), Pickle::bare().str("0.x")),
    ] {
        let data_pkl = Pickle::new()
            .op(b"}(")
            .str("w")
            .then(&honest())
            .then(&first)
            .then(&inner(&honest()))
            .then(&second_key)
            .then(&second())
            .op(b"u")
            .stop();
        cases.push(case(
            format!("T8-collision-{id}"),
            &["T8"],
            zip(&data_pkl),
            Expect::NotClean,
        ));
    }
    // No tensor is at stake here: Python would take the last, and so may the reader.
    let epochs = Pickle::new()
        .op(b"}(")
        .str("w")
        .then(&honest())
        .str("epoch")
        .int(1)
        .str("epoch")
        .int(2)
        .op(b"u")
        .stop();
    cases.push(case("T8-plain-values", &["T8"], zip(&epochs), Expect::Survives));
    names(&mut cases);
    cases
}

/// Keys that are hard to print, and harmless. [`§2.8`: lone surrogates are legal]
fn names(cases: &mut Vec<Case>) {
    for (id, key) in [
        ("empty", &b""[..]),
        ("nul", b"a\0b"),
        ("newline", b"a\nb"),
        ("escape", b"\x1b[31mred"),
        ("right-to-left", b"\xe2\x80\xaetxet"),
        ("surrogate", b"\xed\xa0\x80"),
        ("not-utf-8", b"\xff\xfe"),
        ("traversal", b"../../etc/passwd"),
        ("long", &[b'k'; 10_000]),
    ] {
        let data_pkl = Pickle::new()
            .op(b"}(")
            .str("w")
            .then(&honest())
            .text(key)
            .then(&second())
            .op(b"u")
            .stop();
        cases.push(case(
            format!("P12-key-{id}"),
            &["P12"],
            zip(&data_pkl),
            Expect::Survives,
        ));
    }
    // Two keys that a careless decoder makes one.
    let data_pkl = Pickle::new()
        .op(b"}(")
        .str("w")
        .then(&honest())
        .text(b"\xff")
        .then(&honest())
        .text(b"\xfe")
        .then(&second())
        .op(b"u")
        .stop();
    cases.push(case(
        "P12-keys-that-decode-alike",
        &["P12", "T8"],
        zip(&data_pkl),
        Expect::Survives,
    ));
}

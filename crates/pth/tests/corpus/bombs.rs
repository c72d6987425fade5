//! Small files that would be large, deep or endless if they were taken at their word.

use super::base::{beside, honest, legacy, zip};
use super::{Case, Expect, both, case};
use crate::build::{Archive, Entry, Pickle};

/// A limit in any words.
const REFUSED: Expect = Expect::Rejects("limit|nest|deep|repeat");

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    deep(&mut cases);
    doubling(&mut cases);
    long_names(&mut cases);
    cyclic(&mut cases);
    cases
}

/// A value inside a value, `n` times.
fn nested(kind: &str, n: usize) -> Pickle {
    let p = Pickle::bare();
    match kind {
        "list" => p.op(&b"]".repeat(n)).op(&b"a".repeat(n - 1)),
        "dict" => p.op(&b"}K\0".repeat(n)).op(b"N").op(&b"s".repeat(n)),
        "tuple" => p.op(b")").op(&b"\x85".repeat(n)),
        "marks" => p.op(&b"(".repeat(n)).op(&b"t".repeat(n)),
        "list-op" => p.op(&b"(".repeat(n)).op(&b"l".repeat(n)),
        "frozenset" => p.op(&b"(".repeat(n)).op(&b"\x91".repeat(n)),
        "call" => p
            .op(&b"ccollections\nOrderedDict\n".repeat(n))
            .op(b")")
            .op(&b"R\x85".repeat(n)),
        "obj" => p
            .op(&b"(ccollections\nOrderedDict\n".repeat(n))
            .op(&b"o".repeat(n)),
        "build" => p
            .op(&b"ccollections\nOrderedDict\n)R}U\x01a".repeat(n))
            .op(b"N")
            .op(&b"sb".repeat(n)),
        "persid" => p.op(b"N").op(&b"Q".repeat(n)),
        "key" => p.op(&b"}".repeat(n)).op(b"K\0").op(&b"Ns".repeat(n)),
        other => panic!("no kind `{other}`"),
    }
}

fn deep(cases: &mut Vec<Case>) {
    for kind in [
        "list",
        "dict",
        "tuple",
        "marks",
        "list-op",
        "frozenset",
        "call",
        "obj",
        "build",
    ] {
        for (how, n) in [("little", 1_200), ("far", 20_000)] {
            cases.push(
                case(
                    format!("P10-{how}-too-deep-{kind}"),
                    &["P10", "R10"],
                    zip(&beside(&nested(kind, n))),
                    REFUSED,
                )
                .scan(&["pickle.nesting"]),
            );
        }
    }
    for kind in ["list", "tuple"] {
        cases.push(
            case(
                format!("P10-far-too-deep-{kind}-legacy"),
                &["P10", "R10"],
                legacy(&beside(&nested(kind, 20_000))),
                REFUSED,
            )
            .scan(&["pickle.nesting"]),
        );
    }
    // Where a walk over names does not come.
    let metadata = Pickle::new()
        .global("collections", "OrderedDict")
        .op(b")R(")
        .str("w")
        .then(&honest())
        .op(b"u}")
        .str("_metadata")
        .then(&nested("list", 20_000))
        .op(b"sb")
        .stop();
    cases.push(
        case("P10-too-deep-metadata", &["P10", "R10"], zip(&metadata), REFUSED).scan(&["pickle.nesting"]),
    );
    for kind in ["persid", "key"] {
        cases.push(
            case(
                format!("P10-too-deep-{kind}"),
                &["P10", "R10"],
                zip(&beside(&nested(kind, 20_000))),
                Expect::Refused("t"),
            )
            .scan(&["pickle.nesting|pickle.broken"]),
        );
    }
    // Marks that nothing closes are no nesting, only garbage.
    cases.push(
        case(
            "P10-marks-without-end",
            &["P10", "R5"],
            zip(&Pickle::new().op(&b"(".repeat(50_000)).stop()),
            Expect::Rejects("is broken at byte"),
        )
        .scan(&["pickle.broken"]),
    );
    for (kind, n) in [("list", 300), ("dict", 300), ("tuple", 300)] {
        let value = Pickle::new()
            .op(b"}(")
            .str("w")
            .then(&honest())
            .str("deep")
            .then(&nested(kind, n))
            .op(b"u")
            .stop();
        cases.extend(both(
            &format!("P10-deep-enough-{kind}"),
            &["P10"],
            &value,
            &Expect::Loads(&["w"]),
            &[],
        ));
    }
}

/// Each value holds the one before twice: 2^40 paths in some hundred bytes.
fn doubling(cases: &mut Vec<Case>) {
    for (id, first, wrap) in [
        ("list", honest(), &b"0](hNhNe"[..]),
        ("tuple", honest(), b"0hNhN\x86"),
        ("dict", honest(), b"0}(U\x01ahNU\x01bhNu"),
        ("dup", honest(), b"2\x86"),
    ] {
        let mut value = first;
        for slot in 0..40_u8 {
            let step: Vec<u8> = wrap
                .iter()
                .map(|&byte| if byte == b'N' { slot } else { byte })
                .collect();
            // "dup" needs no memo; the others put what is on top into the next slot.
            value = value.op(&[b'q', slot]).op(&step);
        }
        cases.push(
            case(
                format!("P10-doubling-{id}"),
                &["P10", "R9"],
                zip(&beside(&value)),
                REFUSED,
            )
            .scan(&["pickle.nesting"]),
        );
    }
    // No tensor is in it, so nothing need follow its paths: a value that is told in a few words.
    let mut texts = Pickle::bare().str(&"x".repeat(1000));
    for slot in 0..40 {
        texts = texts.op(&[b'q', slot, b'0', b']', b'(', b'h', slot, b'h', slot, b'e']);
    }
    cases.push(case(
        "P10-doubling-list-of-texts",
        &["P10", "R9"],
        zip(&beside(&texts)),
        Expect::Opaque,
    ));
    // Arguments of calls are values that nobody need visit.
    let mut calls = honest();
    for slot in 0..40 {
        calls = calls.op(&[b'q', slot, b'0']);
        calls = calls
            .global("some.where", "Thing")
            .op(&[b'h', slot, b'h', slot, 0x86, b'R']);
    }
    cases.push(
        case(
            "P10-doubling-call",
            &["P10", "R9"],
            zip(&beside(&calls)),
            Expect::Survives,
        )
        .scan(&["global.unknown"]),
    );
    cases.push(
        case(
            "P10-doubling-list-legacy",
            &["P10", "R9"],
            {
                let mut value = honest();
                for slot in 0..40 {
                    value = value.op(&[b'q', slot, b'0', b']', b'(', b'h', slot, b'h', slot, b'e']);
                }
                legacy(&beside(&value))
            },
            REFUSED,
        )
        .scan(&["pickle.nesting"]),
    );
    // A wide list of one long text: the memo gives it a thousand times for two bytes each.
    let wide = Pickle::bare()
        .str(&"x".repeat(50_000))
        .op(b"q\x010](")
        .op(&b"h\x01".repeat(20_000))
        .op(b"e");
    cases.push(case(
        "P10-wide-list-of-one-text",
        &["P10", "R9"],
        zip(&beside(&wide)),
        Expect::Survives,
    ));
    let keys = Pickle::bare()
        .str(&"x".repeat(20_000))
        .op(b"q\x010(")
        .op(&b"}h\x01Ns".repeat(10_000))
        .op(b"l");
    cases.push(case(
        "P10-wide-list-of-one-key",
        &["P10", "R9"],
        zip(&beside(&keys)),
        Expect::Survives,
    ));
}

/// Names are sums of keys: a long key at each of many levels, with a value at each.
fn long_names(cases: &mut Vec<Case>) {
    let key = Pickle::bare().str(&"k".repeat(1_000)).op(b"q\x010");
    let n = 900;
    let mut value = key;
    for _ in 0..n {
        value = value.op(b"}(K\x01Nh\x01");
    }
    value = value.op(b"N").op(&b"u".repeat(n));
    cases.push(case(
        "P10-names-of-a-megabyte",
        &["P10", "R9"],
        zip(&beside(&value)),
        Expect::Survives,
    ));
    let mut many = Pickle::bare().str(&"k".repeat(60_000)).op(b"q\x010}h\x01}(");
    for i in 0..2_000_u16 {
        many = many.op(b"M").op(&i.to_le_bytes()).op(b"N");
    }
    cases.push(case(
        "P10-many-under-one-long-key",
        &["P10", "R9"],
        zip(&beside(&many.op(b"us"))),
        Expect::Survives,
    ));
}

/// Values inside themselves.
fn cyclic(cases: &mut Vec<Case>) {
    let p = Pickle::bare();
    for (id, value) in [
        ("list", p.clone().op(b"]q\x01h\x01a")),
        ("dict", p.clone().op(b"}q\x01U\x01ah\x01s")),
        ("two-lists", p.clone().op(b"]q\x01]q\x02h\x01aa")),
        ("tuple-in-list", p.clone().op(b"]q\x01h\x01\x85ah\x01")),
    ] {
        cases.push(case(
            format!("P10-cyclic-{id}"),
            &["P10", "R9"],
            zip(&if id == "tuple-in-list" {
                Pickle::new()
                    .op(b"}(")
                    .str("w")
                    .then(&honest())
                    .str("t")
                    .then(&value)
                    .op(b"0u")
                    .stop()
            } else {
                beside(&value)
            }),
            Expect::Survives,
        ));
    }
    // A parameter whose data is itself, a rebuild among its own arguments, a state that is its object.
    for (id, value) in [
        (
            "parameter",
            p.clone()
                .op(b"]q\x010")
                .global("torch._utils", "_rebuild_parameter")
                .op(b"h\x01\x88")
                .global("collections", "OrderedDict")
                .op(b")R\x87Rq\x020h\x01h\x02a0h\x02"),
        ),
        (
            "state",
            p.clone()
                .global("torch", "FloatTensor")
                .op(b")\x81q\x01h\x01h\x01h\x01h\x01(h\x01h\x01h\x01h\x01tb0000h\x01"),
        ),
        (
            "variable",
            p.clone()
                .global("torch.autograd.variable", "Variable")
                .op(b")\x81q\x01(h\x01NN\x88Ntb"),
        ),
    ] {
        cases.push(case(
            format!("P10-cyclic-{id}"),
            &["P10", "R9", "P13"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
    // The same through the names of an archive: 3,000 entries cost what 3,000 entries cost.
    let many = (0..3_000).map(|i| Entry::stored(&format!("m/extra/{i}"), b""));
    let entries = super::base::entries(&super::base::plain())
        .into_iter()
        .chain(many);
    cases.push(case(
        "P10-many-entries",
        &["R26"],
        Archive::of(entries).bytes(),
        Expect::Loads(&["w"]),
    ));
}

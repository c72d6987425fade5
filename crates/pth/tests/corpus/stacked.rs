//! Stacked pickles of which one is not what it should be: P2, P3 and the structure of the legacy container.

use super::base::{beside, plain, second, stacked, w};
use super::hiding::payload;
use super::{Case, Expect, case};
use crate::build::legacy::MAGIC;
use crate::build::{Pickle, Stacked};

type Change = fn(&mut Stacked, Vec<u8>);

/// The five pickles, each by the function that replaces it.
const PARTS: &[(&str, Change)] = &[
    ("magic", |file, bytes| file.magic = bytes),
    ("protocol", |file, bytes| file.protocol = bytes),
    ("system", |file, bytes| file.system = bytes),
    ("object", |file, bytes| file.object = bytes),
    ("keys", |file, bytes| file.keys = bytes),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    parts(&mut cases);
    magic(&mut cases);
    structure(&mut cases);
    keys(&mut cases);
    ids(&mut cases);
    cases
}

/// Each rule in each of the five places: a scanner that reads the first pickle has read a number.
fn parts(cases: &mut Vec<Case>) {
    let broken: &[(&str, Vec<u8>, &[&str])] = &[
        ("unknown-opcode", b"\x80\x02\xff.".to_vec(), &["pickle.opcode"]),
        ("underflow", b"\x80\x02.".to_vec(), &["pickle.broken"]),
        (
            "long-length",
            b"\x80\x02X\xff\xff\xff\x7f.".to_vec(),
            &["pickle.broken"],
        ),
        ("dangling-memo", b"\x80\x02h\x07.".to_vec(), &["pickle.broken"]),
    ];
    for &(part, change) in PARTS {
        cases.push(
            case(
                format!("P3-unsafe-{part}"),
                &["P2", "P3", "R3"],
                stacked(&plain()).with(|file| change(file, payload())).bytes(),
                Expect::Unsafe("os.system".to_owned()),
            )
            .scan(&["global.unsafe"]),
        );
        for (id, bytes, scan) in broken {
            // A file that does not even begin with a pickle is a stranger; one that breaks later is broken.
            let expect = if part == "magic" {
                Expect::Rejects("")
            } else {
                Expect::Rejects("is broken at byte")
            };
            let scan: &[&str] = if part == "magic" { &[] } else { scan };
            cases.push(
                case(
                    format!("P3-{id}-{part}"),
                    &["P3", "R5", "R8"],
                    stacked(&plain()).with(|file| change(file, bytes.clone())).bytes(),
                    expect,
                )
                .scan(scan),
            );
        }
        cases.push(case(
            format!("P3-missing-{part}"),
            &["P3", "R5"],
            stacked(&plain()).with(|file| change(file, Vec::new())).bytes(),
            Expect::Rejects(""),
        ));
    }
}

/// P2: the number that makes a file a checkpoint, made in other ways, or another number.
fn magic(cases: &mut Vec<Case>) {
    let number = 0x1950_a86a_20f9_469c_fc6c_i128;
    let with = |magic: Vec<u8>| stacked(&plain()).with(|file| file.magic = magic).bytes();
    for (id, magic) in [
        ("text", b"L119547037146038801333356L\n.".to_vec()),
        ("text-int", b"I119547037146038801333356\n.".to_vec()),
        (
            "padded",
            [&b"\x80\x02\x8a\x10"[..], &number.to_le_bytes(), b"."].concat(),
        ),
        (
            "long4",
            [&b"\x80\x02\x8b\x0a\0\0\0"[..], &MAGIC[4..14], b"."].concat(),
        ),
        (
            "protocol-4",
            [&b"\x80\x04\x95\x0d\0\0\0\0\0\0\0"[..], &MAGIC[2..]].concat(),
        ),
    ] {
        cases.push(case(
            format!("P2-magic-{id}"),
            &["P2", "P9"],
            with(magic),
            Expect::Loads(&["w"]),
        ));
    }
    for (id, magic) in [
        ("other-number", Pickle::new().long(number + 1).stop()),
        ("negative", Pickle::new().long(-number).stop()),
        ("small", Pickle::new().int(1001).stop()),
        ("in-a-tuple", [&MAGIC[..14], b"\x85."].concat()),
        ("as-text", Pickle::new().str("119547037146038801333356").stop()),
        (
            "called",
            Pickle::new()
                .global("builtins", "int")
                .str("119547037146038801333356")
                .op(b"\x85R")
                .stop(),
        ),
        (
            "called-unknown",
            Pickle::new().global("some.where", "magic").op(b")R").stop(),
        ),
    ] {
        cases.push(case(
            format!("P2-magic-{id}"),
            &["P2", "R28"],
            with(magic),
            Expect::Rejects(""),
        ));
    }
    // What is called has run by the time the number is compared.
    let evaluated = Pickle::new()
        .global("builtins", "eval")
        .str("0x1950a86a20f9469cfc6c")
        .op(b"\x85R")
        .stop();
    cases.push(
        case(
            "P2-magic-evaluated",
            &["P2", "R3"],
            with(evaluated),
            Expect::Unsafe("builtins.eval".to_owned()),
        )
        .scan(&["global.unsafe"]),
    );
    let then_popped = [&payload()[..payload().len() - 1], b"0", &MAGIC[2..]].concat();
    cases.push(
        case(
            "P2-magic-behind-a-call",
            &["P2", "P5", "R3"],
            with(then_popped),
            Expect::Unsafe("os.system".to_owned()),
        )
        .scan(&["global.unsafe"]),
    );
}

fn structure(cases: &mut Vec<Case>) {
    for (id, protocol) in [
        ("older", Pickle::new().int(1000).stop()),
        ("newer", Pickle::new().int(1002).stop()),
        ("text", Pickle::new().str("1001").stop()),
        ("none", Pickle::new().op(b"N").stop()),
        (
            "called",
            Pickle::new()
                .global("builtins", "int")
                .str("1001")
                .op(b"\x85R")
                .stop(),
        ),
    ] {
        cases.push(case(
            format!("P2-protocol-{id}"),
            &["P2", "R5"],
            stacked(&plain()).with(|file| file.protocol = protocol).bytes(),
            Expect::Rejects("protocol"),
        ));
    }
    // torch ignores what the system was.
    for (id, system) in [
        ("none", Pickle::new().op(b"N").stop()),
        ("list", Pickle::new().op(b"]").stop()),
        (
            "unknown-class",
            Pickle::new().global("some.where", "System").op(b")R").stop(),
        ),
    ] {
        let case = case(
            format!("P2-system-{id}"),
            &["P2"],
            stacked(&plain()).with(|file| file.system = system).bytes(),
            Expect::Survives,
        );
        cases.push(if id == "unknown-class" {
            case.scan(&["global.unknown"])
        } else {
            case
        });
    }
    let whole = stacked(&plain()).bytes();
    for (id, len) in [
        ("after-magic", 15),
        ("after-protocol", 21),
        ("after-system", 25),
        ("in-object", 60),
    ] {
        cases.push(case(
            format!("R5-cut-{id}"),
            &["P3", "R5"],
            whole[..len].to_vec(),
            Expect::Rejects(""),
        ));
    }
    for (id, cut) in [
        ("in-the-data", 1),
        ("before-the-data", 16),
        ("in-the-count", 20),
        ("before-the-count", 24),
    ] {
        cases.push(case(
            format!("R5-cut-{id}"),
            &["P3", "T5", "R5"],
            whole[..whole.len() - cut].to_vec(),
            Expect::Refused("w"),
        ));
    }
}

fn keys(cases: &mut Vec<Case>) {
    let with = |keys: Vec<u8>| stacked(&beside(&second())).with(|file| file.keys = keys).bytes();
    let list = |keys: &[&str]| {
        let list = keys
            .iter()
            .fold(Pickle::new().op(b"]("), |list, key| list.str(key));
        list.op(b"e").stop()
    };
    for (id, keys) in [
        ("none", Pickle::new().op(b"N").stop()),
        ("dict", Pickle::new().op(b"}").stop()),
        ("text", Pickle::new().str("01").stop()),
        ("of-nones", Pickle::new().op(b"](NNe").stop()),
        ("of-lists", Pickle::new().op(b"](]]e").stop()),
        (
            "of-floats",
            Pickle::new().op(b"](G\0\0\0\0\0\0\0\0G\0\0\0\0\0\0\0\0e").stop(),
        ),
        (
            "called",
            Pickle::new().global("builtins", "list").op(b")R").stop(),
        ),
        ("twice", list(&["0", "0"])),
        ("unreferenced", list(&["0", "9"])),
        ("unreferenced-first", list(&["9", "0", "1"])),
    ] {
        cases.push(case(
            format!("T5-keys-{id}"),
            &["T5", "P3"],
            with(keys),
            Expect::Refused("t"),
        ));
    }
    // As many keys as fit into the file, each with a storage that the file has not: memory stays linear.
    let many = (0..5_000).fold(Pickle::new().op(b"]("), |list, i| list.str(&i.to_string()));
    cases.push(case(
        "T5-keys-many",
        &["T5", "P3"],
        with(many.op(b"e").stop()),
        Expect::Survives,
    ));
    // The order of the keys is the order of the storages, whatever it is.
    let swapped = stacked(&beside(&second())).with(|file| {
        file.keys = list(&["1", "0"]);
        file.storages.reverse();
    });
    cases.push(case(
        "T5-keys-in-other-order",
        &["T5"],
        swapped.bytes(),
        Expect::Loads(&["w", "t"]),
    ));
    let ints = stacked(&plain()).with(|file| file.keys = Pickle::new().op(b"](K\0e").stop());
    cases.push(case("T5-keys-int", &["T5"], ints.bytes(), Expect::Survives));
}

/// Persistent ids of six fields: views of storages, and the source of a class.
fn ids(cases: &mut Vec<Case>) {
    let viewed = |view: &Pickle| {
        let storage = Pickle::bare()
            .op(b"(")
            .str("storage")
            .global("torch", "FloatStorage")
            .str("1")
            .str("cpu")
            .int(4)
            .then(view)
            .op(b"tQ");
        let geometry = Pickle::bare().int(0).ints(&[2]).ints(&[1]);
        stacked(&beside(&Pickle::bare().rebuilt(&storage, &geometry))).bytes()
    };
    let view = |offset: i128, size: i128| Pickle::bare().op(b"(").str("v").long(offset).long(size).op(b"t");
    cases.push(case(
        "T2-legacy-no-view",
        &["T2"],
        viewed(&Pickle::bare().op(b"N")),
        Expect::Loads(&["w", "t"]),
    ));
    cases.push(case(
        "T2-legacy-view",
        &["T2"],
        viewed(&view(2, 2)),
        Expect::Loads(&["w", "t"]),
    ));
    for (id, offset, size) in [
        ("outside", 3, 2),
        ("past", 4, 2),
        ("far", 1 << 40, 2),
        ("negative", -1, 2),
        ("wraps", i128::from(i64::MAX), 2),
        ("past-64-bits", 1 << 65, 2),
    ] {
        cases.push(case(
            format!("T2-legacy-view-{id}"),
            &["T2", "R13"],
            viewed(&view(offset, size)),
            Expect::Refused("t"),
        ));
    }
    for (id, value) in [
        ("text", Pickle::bare().str("v")),
        ("int", Pickle::bare().int(2)),
        ("empty", Pickle::bare().op(b")")),
        ("of-nones", Pickle::bare().op(b"NNN\x87")),
    ] {
        cases.push(case(
            format!("T2-legacy-view-is-{id}"),
            &["T2", "P13"],
            viewed(&value),
            Expect::Survives,
        ));
    }
    // A class with its source, as every pickled module of that time has it. Text, and never more than that.
    let class = Pickle::bare()
        .op(b"(")
        .str("module")
        .global("some.where", "Net")
        .str("/home/someone/net.py")
        .str("class Net(torch.nn.Module):\n    pass\n")
        .op(b"tQ");
    cases.push(
        case(
            "P13-legacy-source",
            &["P13", "R2"],
            stacked(&beside(&class.op(b")\x81"))).bytes(),
            Expect::Opaque,
        )
        .scan(&["legacy.source"]),
    );
    assert_eq!(w().len(), 16, "the sizes above count on it");
}

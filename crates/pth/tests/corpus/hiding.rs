//! Ways in which a pickle hides what it calls from those who look.

use super::base::{beside, entries, plain, zip, zip_over};
use super::{Case, Expect, both, case};
use crate::build::{Archive, Pickle};

fn unsafe_system() -> Expect {
    Expect::Unsafe("os.system".to_owned())
}

/// `os.system('x')` as a pickle of its own.
pub(super) fn payload() -> Vec<u8> {
    Pickle::new().global("os", "system").str("x").op(b"\x85R").stop()
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    first_then_broken(&mut cases);
    stack_global(&mut cases);
    popped(&mut cases);
    nested(&mut cases);
    names(&mut cases);
    cases
}

/// P1, P14: what runs comes before what breaks, so that a scanner that gives up has seen nothing.
fn first_then_broken(cases: &mut Vec<Case>) {
    let payload = Pickle::new().global("os", "system").str("x").op(b"\x85R");
    for (id, tail) in [
        ("unknown-opcode", &b"\xff"[..]),
        ("underflow", b"00000"),
        ("dangling-memo", b"h\x63"),
        ("no-stop", b""),
        ("cut-operand", b"X\xff\0\0\0ab"),
        ("bad-proto", b"\x80\x09"),
        ("bad-frame", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("bad-text", b"Inonsense\n."),
    ] {
        cases.extend(both(
            &format!("P1-{id}"),
            &["P1", "P14", "R3", "R5"],
            &payload.clone().op(tail).0,
            &unsafe_system(),
            &["global.unsafe"],
        ));
        // The other way round: the error comes first, and a loader that survives it would go on.
        let hidden = Pickle::new().op(tail).then(&payload).stop();
        let [zip, _] = both(
            &format!("P14-{id}-first"),
            &["P14", "R5"],
            &hidden,
            &Expect::Rejects("broken at byte|could run code"),
            // Without a tail nothing is broken: the pickle is one with a second PROTO in it.
            &["pickle.broken|pickle.opcode|pickle.frame|global.unsafe"],
        );
        cases.push(zip);
    }
}

/// P4: operands that are no text, or come from the memo.
fn stack_global(cases: &mut Vec<Case>) {
    let memo = Pickle::bare();
    for (id, value) in [
        ("ints", memo.clone().int(1).int(2).op(b"\x93")),
        ("none", memo.clone().op(b"NN\x93")),
        ("name-is-none", memo.clone().str("os").op(b"N\x93")),
        ("module-is-none", memo.clone().op(b"N").str("system").op(b"\x93")),
        ("bytes", memo.clone().bytes(b"os").bytes(b"system").op(b"\x93")),
        ("list", memo.clone().op(b"]").str("system").op(b"\x93")),
        (
            "global",
            memo.clone()
                .global("collections", "OrderedDict")
                .str("x")
                .op(b"\x93"),
        ),
        (
            "call",
            memo.clone()
                .global("collections", "OrderedDict")
                .op(b")R")
                .str("x")
                .op(b"\x93"),
        ),
    ] {
        cases.extend(both(
            &format!("P4-{id}"),
            &["P4", "R5"],
            &beside(&value),
            &Expect::Rejects("broken at byte"),
            &["pickle.broken"],
        ));
    }
    // GHSA-9gvj-pp9x-gcfr: what stands before STACK_GLOBAL in the stream is not what is on the stack.
    for (id, value) in [
        (
            "popped-between",
            memo.clone().str("os").str("system").str("math").op(b"0\x93"),
        ),
        (
            "memoised-before",
            memo.clone()
                .str("system")
                .op(b"q\x090")
                .str("os")
                .op(b"h\x09\x93"),
        ),
        (
            "memo-overwritten",
            memo.clone()
                .str("math")
                .op(b"q\x090")
                .str("os")
                .op(b"q\x090h\x09")
                .str("system")
                .op(b"\x93"),
        ),
        ("python-2-strings", memo.clone().op(b"U\x02osU\x06system\x93")),
        ("text-strings", memo.clone().op(b"S'os'\nVsystem\n\x93")),
        (
            "escaped-strings",
            memo.clone().op(b"S'\\x6fs'\nV\\u0073ystem\n\x93"),
        ),
        (
            "from-a-dup",
            memo.clone().str("os").op(b"20").str("system").op(b"\x93"),
        ),
        ("short-unicode", memo.clone().op(b"\x8c\x02os\x8c\x06system\x93")),
    ] {
        cases.extend(both(
            &format!("P4-{id}"),
            &["P4", "R3"],
            &beside(&value),
            &unsafe_system(),
            &["global.unsafe"],
        ));
    }
}

/// A call of `module.name`.
type Call = fn(&str, &str) -> Pickle;

/// P5: the result is thrown away, so that nothing of it remains in the value. [GHSA-mxhj-88fx-4pcv]
fn popped(cases: &mut Vec<Case>) {
    let forms: [(&str, Call); 5] = [
        ("pop", |m, n| super::globals::call("reduce", m, n).op(b"0")),
        ("pop-mark", |m, n| {
            Pickle::bare()
                .op(b"(")
                .then(&super::globals::call("reduce", m, n))
                .op(b"1")
        }),
        ("obj-pop", |m, n| super::globals::call("obj", m, n).op(b"0")),
        ("inst-pop", |m, n| super::globals::call("inst", m, n).op(b"0")),
        ("memo-only", |m, n| {
            super::globals::call("reduce", m, n).op(b"q\x070")
        }),
    ];
    for (id, hidden) in forms {
        let with = |m, n| beside(&hidden(m, n).int(1));
        cases.extend(both(
            &format!("P5-{id}"),
            &["P5", "R3"],
            &with("os", "system"),
            &unsafe_system(),
            &["global.unsafe"],
        ));
        cases.extend(both(
            &format!("P5-{id}-unknown"),
            &["P5", "R2"],
            &with("some.where", "run"),
            &Expect::Opaque,
            &["global.unknown"],
        ));
    }
}

/// P11: a pickle inside of bytes, for something that unpickles them.
fn nested(cases: &mut Vec<Case>) {
    let inner = payload();
    // Latin-1 bytes as the UTF-8 text that protocol 2 writes them as.
    let text: String = inner.iter().map(|&byte| char::from(byte)).collect();
    let encoded = Pickle::bare()
        .global("_codecs", "encode")
        .str(&text)
        .str("latin1")
        .op(b"\x86R");
    let p = Pickle::bare();
    for (id, value, expect) in [
        ("bytes", p.clone().bytes(&inner), Expect::Opaque),
        ("encoded", encoded.clone(), Expect::Opaque),
        (
            "python-2",
            p.clone()
                .op(b"U")
                .op(&[u8::try_from(inner.len()).unwrap()])
                .op(&inner),
            Expect::Opaque,
        ),
        (
            "bytearray",
            p.clone()
                .op(b"\x96")
                .op(&u64::try_from(inner.len()).unwrap().to_le_bytes())
                .op(&inner),
            Expect::Opaque,
        ),
        (
            "load-from-bytes",
            p.clone()
                .global("torch.storage", "_load_from_bytes")
                .bytes(&inner)
                .op(b"\x85R"),
            Expect::OpaqueOrUnsafe,
        ),
        (
            "cloudpickle",
            p.clone()
                .global("cloudpickle.cloudpickle", "loads")
                .then(&encoded)
                .op(b"\x85R"),
            Expect::OpaqueOrUnsafe,
        ),
        (
            "dill",
            p.clone().global("dill._dill", "loads").bytes(&inner).op(b"\x85R"),
            Expect::OpaqueOrUnsafe,
        ),
    ] {
        cases.extend(both(
            &format!("P11-{id}"),
            &["P11"],
            &beside(&value),
            &expect,
            &["pickle.nested"],
        ));
    }
    // C9: the bytes of an honest tensor happen to be a pickle. Nobody unpickles them.
    let mut floats = inner;
    floats.resize(floats.len().next_multiple_of(4), 0);
    let numel = i32::try_from(floats.len() / 4).unwrap();
    let pickle = beside(&Pickle::bare().tensor("1", numel, 0, &[numel], &[1]));
    cases.push(case(
        "C9-pickle-as-a-tensor",
        &["C9"],
        zip_over(&pickle, &floats),
        Expect::Loads(&["w", "t"]),
    ));
    // A record that only looks like a storage, and one that does not even do that.
    for (id, name) in [
        ("storage", "m/data/99"),
        ("pickle", "m/evil.pkl"),
        ("extra", "m/extra/readme.txt"),
        ("pth", "m/inner.pth"),
    ] {
        let mut entries = entries(&plain());
        entries.push(crate::build::Entry::stored(name, &payload()));
        cases.push(
            case(
                format!("C9-unreferenced-{id}"),
                &["C9", "R26"],
                Archive::of(entries).bytes(),
                Expect::Loads(&["w"]),
            )
            .scan(if id == "extra" {
                &["global.unsafe"]
            } else {
                &["zip.unreferenced", "global.unsafe"]
            }),
        );
    }
}

/// P12: names that are written otherwise than they are read.
fn names(cases: &mut Vec<Case>) {
    let p = Pickle::bare();
    let reduce = |p: Pickle| p.str("x").op(b"\x85R");
    for (id, global, expect, scan) in [
        (
            "crlf",
            p.clone().op(b"cos\r\nsystem\r\n"),
            unsafe_system(),
            &["global.unsafe"][..],
        ),
        (
            "dotted",
            p.clone().global("torch.hub", "os.system"),
            Expect::Unsafe("torch.hub.os.system".to_owned()),
            &["global.unsafe"],
        ),
        (
            "dotted-stack-global",
            p.clone().str("numpy.linalg").str("linalg.os.system").op(b"\x93"),
            Expect::Unsafe("numpy.linalg.linalg.os.system".to_owned()),
            &["global.unsafe"],
        ),
        (
            "submodule",
            p.clone().global("os.path", "system"),
            Expect::Unsafe("os.path.system".to_owned()),
            &["global.unsafe"],
        ),
        (
            "asyncio-submodule",
            p.clone()
                .global("asyncio.unix_events", "_UnixSubprocessTransport._start"),
            Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ),
        (
            "homoglyph",
            p.clone().global("\u{43e}s", "listdir"),
            Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ),
        (
            "other-case",
            p.clone().global("Os", "listdir"),
            Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ),
        (
            "space",
            p.clone().global("some.where ", " Thing"),
            Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ),
        (
            "nul",
            p.clone().global("some\0where", "Thing\0"),
            Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ),
        (
            "escape-sequence",
            p.clone().global("some\x1b[2J", "Thing\x1b[31m"),
            Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ),
        (
            "dunder-walk",
            p.clone()
                .global("collections", "OrderedDict.__reduce_ex__.__globals__"),
            Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ),
        (
            "empty-module",
            p.clone().global("", "Thing"),
            Expect::Refused("t"),
            &["global.unknown|pickle.broken"],
        ),
        (
            "empty-name",
            p.clone().global("some.where", ""),
            Expect::Refused("t"),
            &["global.unknown|pickle.broken"],
        ),
        (
            "not-utf-8",
            p.clone().op(b"c\xff\xfe\nThing\n"),
            Expect::Refused("t"),
            &["global.unknown|pickle.broken"],
        ),
        (
            "not-utf-8-name",
            p.clone().op(b"csome.where\n\xc3\x28\n"),
            Expect::Refused("t"),
            &["global.unknown|pickle.broken"],
        ),
    ] {
        let value = beside(&reduce(global));
        cases.extend(both(&format!("P12-{id}"), &["P12"], &value, &expect, scan));
    }
    let long = "a".repeat(1 << 16);
    cases.push(
        case(
            "P12-long",
            &["P12", "R2"],
            zip(&beside(&reduce(Pickle::bare().global(&long, &long)))),
            Expect::Opaque,
        )
        .scan(&["global.unknown"]),
    );
}

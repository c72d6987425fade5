//! Opcodes that no protocol has, frames that lie, protocols out of place, and what follows STOP.

use super::base::{beside, changed, honest, legacy, plain, second, stacked, zip};
use super::hiding::payload;
use super::{Case, Expect, both, case};
use crate::build::{Entry, Pickle};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    opcodes(&mut cases);
    frames(&mut cases);
    protocols(&mut cases);
    trailing(&mut cases);
    cases
}

fn opcodes(cases: &mut Vec<Case>) {
    for opcode in [
        0x00, 0x01, b'\t', b'!', b'A', b'Z', b'[', b'z', 0x7f, 0x99, 0xc3, 0xff,
    ] {
        let at = [
            ("first", Pickle::bare().op(&[opcode]).stop()),
            ("value", beside(&Pickle::bare().op(&[opcode]))),
            ("last", {
                let mut data_pkl = plain();
                data_pkl.insert(data_pkl.len() - 1, opcode);
                data_pkl
            }),
        ];
        for (position, data_pkl) in at {
            cases.push(
                case(
                    format!("R4-{opcode:02x}-{position}"),
                    &["P14", "R4"],
                    zip(&data_pkl),
                    Expect::Rejects("unknown opcode"),
                )
                .scan(&["pickle.opcode"]),
            );
        }
        cases.push(
            case(
                format!("R4-{opcode:02x}-legacy"),
                &["P14", "R4"],
                legacy(&beside(&Pickle::bare().op(&[opcode]))),
                Expect::Rejects("unknown opcode"),
            )
            .scan(&["pickle.opcode"]),
        );
    }
    // P7: a number that stands for a global which only the reading process knows.
    for (id, ops) in [
        ("ext1", &b"\x82\x01"[..]),
        ("ext1-zero", b"\x82\0"),
        ("ext2", b"\x83\x01\x01"),
        ("ext4", b"\x84\x01\x01\x01\x01"),
        ("ext4-negative", b"\x84\xff\xff\xff\xff"),
        ("ext1-called", b"\x82\x01)R"),
    ] {
        cases.extend(both(
            &format!("P7-{id}"),
            &["P7", "R2"],
            &beside(&Pickle::bare().op(ops)),
            // A global by number instead of by name, and no better known for it.
            &Expect::Opaque,
            &["global.unknown"],
        ));
    }
    for (id, ops) in [("next-buffer", &b"\x97"[..]), ("readonly-buffer", b"\x97\x98")] {
        cases.push(
            case(
                format!("P9-{id}"),
                &["P9", "R4"],
                zip(&beside(&Pickle::bare().op(ops))),
                Expect::Rejects("buffer|opcode"),
            )
            .scan(&["pickle.opcode|pickle.broken"]),
        );
    }
}

fn frame(len: u64) -> Pickle {
    Pickle::bare().op(b"\x95").op(&len.to_le_bytes())
}

fn frames(cases: &mut Vec<Case>) {
    let body = plain()[2..].to_vec();
    let n_body = u64::try_from(body.len()).unwrap();
    let proto = Pickle::bare().op(b"\x80\x04");
    for (id, len) in [
        ("one-more", n_body + 1),
        ("max", u64::MAX),
        ("half", u64::MAX >> 1),
        ("wraps", u64::MAX - n_body),
    ] {
        cases.extend(both_frames(
            &format!("P8-{id}"),
            &proto.clone().then(&frame(len)).op(&body).0,
        ));
    }
    // python/cpython#154848: an opcode or a line that reaches over the end of its frame.
    for (id, ops) in [
        ("cuts-text", frame(4).str("abcdef").op(b"0")),
        (
            "cuts-line",
            frame(4).global("collections", "OrderedDict").op(b"0"),
        ),
        ("cuts-length", frame(2).str("abcdef").op(b"0")),
        ("cuts-int", frame(3).int(7).op(b"0")),
        ("ends-in-bytes-that-hide-a-call", {
            let hidden = Pickle::bare().global("os", "system").str("x").op(b"\x85R").0;
            frame(5).bytes(&hidden).op(b"0")
        }),
        ("frame-in-frame", frame(20).then(&frame(2)).op(b"N0NN00")),
    ] {
        let data_pkl = proto.clone().then(&ops).op(&body).0;
        cases.extend(both_frames(&format!("P8-{id}"), &data_pkl));
    }
    let whole = proto.clone().then(&frame(n_body)).op(&body).0;
    cases.extend(both("P8-honest", &["P8"], &whole, &Expect::Loads(&["w"]), &[]));
    let halves = Pickle::bare()
        .op(b"\x80\x04")
        .then(&frame(2))
        .op(b"N0")
        .then(&frame(n_body))
        .op(&body)
        .0;
    cases.extend(both(
        "P8-honest-two",
        &["P8"],
        &halves,
        &Expect::Loads(&["w"]),
        &[],
    ));
}

fn both_frames(id: &str, data_pkl: &[u8]) -> [Case; 2] {
    both(
        id,
        &["P8", "R7"],
        data_pkl,
        &Expect::Rejects("frame"),
        &["pickle.frame"],
    )
}

fn protocols(cases: &mut Vec<Case>) {
    let body = plain()[2..].to_vec();
    for version in [6, 7, 0x7f, 0xff] {
        cases.extend(both(
            &format!("P9-proto-{version}"),
            &["P9", "R4"],
            &Pickle::bare().op(&[0x80, version]).op(&body).0,
            &Expect::Rejects("protocol"),
            &["pickle.broken|pickle.opcode"],
        ));
    }
    // Python only warns of these, and so does torch: they are read, and hide nothing.
    let loads = Expect::Loads(&["w"]);
    for (id, head) in [
        ("none", &b""[..]),
        ("twice", b"\x80\x02\x80\x02"),
        ("zero", b"\x80\0"),
        ("differing", b"\x80\x02\x80\x05\x80\0"),
        ("misplaced", b"N\x80\x030"),
    ] {
        cases.extend(both(
            &format!("P9-proto-{id}"),
            &["P9"],
            &Pickle::bare().op(head).op(&body).0,
            &loads,
            &[],
        ));
    }
    // The same dictionary in the opcodes of protocol 0.
    let text = Pickle::bare()
        .op(b"(dp0\nVw\np1\nctorch._utils\n_rebuild_tensor_v2\np2\n((S'storage'\nctorch\nFloatStorage\n")
        .str("0")
        .op(b"Vcpu\nI4\ntQL0L\n(I2\nL2L\nt(I2\nI1\ntI00\nccollections\nOrderedDict\n(tRtRs.");
    cases.extend(both("P9-text", &["P9"], &text.0, &loads, &[]));
    let hidden = Pickle::bare()
        .op(b"(dp0\nVw\n")
        .then(&honest())
        .op(b"sVt\ncos\nsystem\n(S'x'\ntRs.");
    cases.extend(both(
        "P9-text-unsafe",
        &["P9", "R3"],
        &hidden.0,
        &Expect::Unsafe("os.system".to_owned()),
        &["global.unsafe"],
    ));
    // Python writes integers as short as it can, and reads them however long they are.
    let padded = Pickle::new()
        .op(b"}(")
        .str("w")
        .then(&honest())
        .str("n")
        .op(b"\x8a\x10")
        .op(&4_i128.to_le_bytes())
        .op(b"u")
        .stop();
    cases.extend(both("P9-long1-padded", &["P9"], &padded, &loads, &[]));
}

fn trailing(cases: &mut Vec<Case>) {
    for (id, tail, scan) in [
        ("nul", b"\0".to_vec(), &["pickle.trailing"][..]),
        ("newline", b"\n".to_vec(), &["pickle.trailing"]),
        ("stop", b".".to_vec(), &["pickle.trailing"]),
        ("benign", plain(), &["pickle.trailing"]),
        ("payload", payload(), &["pickle.trailing", "global.unsafe"]),
        (
            "nuls-then-payload",
            [vec![0; 64], payload()].concat(),
            &["pickle.trailing"],
        ),
        ("junk", vec![0xff; 100], &["pickle.trailing"]),
    ] {
        cases.push(
            case(
                format!("P3-{id}-zip"),
                &["P3", "R6"],
                zip(&[plain(), tail.clone()].concat()),
                Expect::Rejects("after STOP"),
            )
            .scan(scan),
        );
        // Behind a stacked file: what `torch.load` would leave unread.
        let file = stacked(&plain()).with(|file| file.suffix = tail);
        cases.push(
            case(
                format!("P3-{id}-legacy"),
                &["P3", "R6"],
                file.bytes(),
                Expect::NotClean,
            )
            .scan(scan),
        );
    }
    // Several calls of `torch.save` into one file: the first is what `torch.load` gives.
    let first = legacy(&plain());
    for (id, more, scan) in [
        ("same", first.clone(), &["pickle.trailing"][..]),
        ("other", legacy(&beside(&second())), &["pickle.trailing"]),
        (
            "unsafe",
            legacy(&beside(&super::globals::call("reduce", "os", "system"))),
            &["pickle.trailing", "global.unsafe"],
        ),
    ] {
        cases.push(
            case(
                format!("P3-second-save-{id}"),
                &["P3", "R6"],
                [first.clone(), more].concat(),
                Expect::Problem("", ""),
            )
            .scan(scan),
        );
    }
    // A second pickle beside `data.pkl` is not read; it is looked at.
    cases.push(
        case(
            "P3-second-record",
            &["P3", "C9", "R26"],
            changed(|zip| {
                zip.entries.push(Entry::stored("m/optimizer.pkl", &payload()));
            }),
            Expect::Loads(&["w"]),
        )
        .scan(&["zip.unreferenced", "global.unsafe"]),
    );
}

//! Operands that are cut off, and lengths that promise more than there is.

use super::base::{beside, plain, stacked, zip};
use super::{Case, Expect, case};
use crate::build::Pickle;

/// Each opcode with an operand, cut somewhere inside of it.
const CUT: &[(&str, &[u8])] = &[
    ("proto", b"\x80"),
    ("frame", b"\x95\x01\0\0"),
    ("int", b"I12"),
    ("binint", b"J\0\0\0"),
    ("binint1", b"K"),
    ("binint2", b"M\0"),
    ("long", b"L12L"),
    ("long1-length", b"\x8a"),
    ("long1", b"\x8a\x04\0\0"),
    ("long4-length", b"\x8b\x04\0"),
    ("long4", b"\x8b\x04\0\0\0ab"),
    ("float", b"F1.5"),
    ("binfloat", b"G\0\0\0\0\0\0\0"),
    ("string", b"S'ab'"),
    ("binstring-length", b"T\x01\0\0"),
    ("binstring", b"T\x03\0\0\0ab"),
    ("short-binstring", b"U\x03ab"),
    ("unicode", b"Vab"),
    ("binunicode-length", b"X\x03"),
    ("binunicode", b"X\x03\0\0\0ab"),
    ("short-binunicode", b"\x8c\x03ab"),
    ("binunicode8-length", b"\x8d\x03\0\0\0"),
    ("binunicode8", b"\x8d\x03\0\0\0\0\0\0\0ab"),
    ("short-binbytes", b"C\x03ab"),
    ("binbytes-length", b"B\x03"),
    ("binbytes", b"B\x03\0\0\0ab"),
    ("binbytes8", b"\x8e\x03\0\0\0\0\0\0\0ab"),
    ("bytearray8", b"\x96\x03\0\0\0\0\0\0\0ab"),
    ("global-module", b"ccollections"),
    ("global-name", b"ccollections\nOrderedDict"),
    ("inst-module", b"(icollections"),
    ("inst-name", b"(icollections\nOrderedDict"),
    ("persid", b"P12"),
    ("put", b"Np0"),
    ("binput", b"Nq"),
    ("long-binput", b"Nr\0\0\0"),
    ("get", b"g0"),
    ("binget", b"h"),
    ("long-binget", b"j\0\0\0"),
    ("ext1", b"\x82"),
    ("ext2", b"\x83\x01"),
    ("ext4", b"\x84\x01\0\0"),
];

/// Opcodes with a length: the opcode, the bytes of its length, and the largest length.
const SIZED: &[(&str, u8, usize)] = &[
    ("long1", 0x8a, 1),
    ("long4", 0x8b, 4),
    ("binstring", b'T', 4),
    ("short-binstring", b'U', 1),
    ("binunicode", b'X', 4),
    ("short-binunicode", 0x8c, 1),
    ("binunicode8", 0x8d, 8),
    ("binbytes", b'B', 4),
    ("short-binbytes", b'C', 1),
    ("binbytes8", 0x8e, 8),
    ("bytearray8", 0x96, 8),
];

/// Lines that are not what their opcode says.
const MALFORMED: &[(&str, &[u8])] = &[
    ("int-text", b"Iabc\n"),
    ("int-empty", b"I\n"),
    ("int-hex", b"I0x1f\n"),
    ("long-text", b"LabcL\n"),
    ("long-only-suffix", b"LL\n"),
    ("float-text", b"Fone\n"),
    ("float-empty", b"F\n"),
    ("string-unquoted", b"Sab\n"),
    ("string-half-quoted", b"S'ab\n"),
    ("string-mixed-quotes", b"S'ab\"\n"),
    ("string-one-quote", b"S'\n"),
    ("string-cut-escape", b"S'\\x4'\n"),
    ("put-text", b"Npabc\n"),
    ("put-negative", b"Np-1\n"),
    ("put-huge", b"Np99999999999999999999\n"),
    ("get-text", b"gabc\n"),
    ("get-negative", b"g-1\n"),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (id, tail) in CUT {
        let data_pkl = Pickle::new().op(tail).0;
        cases.push(
            case(
                format!("R5-cut-{id}-zip"),
                &["P14", "R5"],
                zip(&data_pkl),
                Expect::Rejects("`m/data.pkl` is broken at byte"),
            )
            .scan(&["pickle.broken"]),
        );
        // In a stacked file nothing ends a pickle but its own STOP: the file ends here.
        let legacy = stacked(&data_pkl).with(|file| {
            file.keys.clear();
            file.storages.clear();
        });
        cases.push(
            case(
                format!("R5-cut-{id}-legacy"),
                &["P14", "R5"],
                legacy.bytes(),
                Expect::Rejects("is broken at byte"),
            )
            .scan(&["pickle.broken"]),
        );
    }
    for &(id, opcode, n_length) in SIZED {
        lengths(&mut cases, id, opcode, n_length);
    }
    for (id, line) in MALFORMED {
        cases.push(
            case(
                format!("P9-{id}"),
                &["P9", "R5"],
                zip(&beside(&Pickle::bare().op(line))),
                Expect::Rejects("is broken at byte"),
            )
            .scan(&["pickle.broken"]),
        );
    }
    cases
}

fn lengths(cases: &mut Vec<Case>, id: &str, opcode: u8, n_length: usize) {
    let tail = |len: u64| {
        let mut data_pkl = plain();
        data_pkl.pop();
        data_pkl.push(opcode);
        data_pkl.extend(&len.to_le_bytes()[..n_length]);
        data_pkl.extend(b"abcdefg.");
        data_pkl
    };
    let max = if n_length == 8 {
        u64::MAX
    } else {
        (1 << (8 * n_length)) - 1
    };
    // Eight bytes are left: one more; the largest; the largest that is positive; and what overflows a sum with a small offset.
    for (which, len) in [
        ("one-more", 9),
        ("max", max),
        ("half", max >> 1),
        ("near-max", max - 64),
    ] {
        cases.push(
            case(
                format!("P10-length-{id}-{which}"),
                &["P10", "R8"],
                zip(&tail(len)),
                Expect::Rejects("is broken at byte"),
            )
            .scan(&["pickle.broken"]),
        );
    }
}

//! A stack that is empty, a memo that has no such entry, a target that is of another kind.

use super::base::{beside, honest, zip};
use super::{Case, Expect, both, case};
use crate::build::Pickle;

/// Opcodes that take from the stack, where there is nothing, or too little.
const UNDERFLOW: &[(&str, &[u8])] = &[
    ("stop", b""),
    ("pop", b"0"),
    ("pop-mark", b"1"),
    ("dup", b"2"),
    ("put", b"p0\n"),
    ("binput", b"q\0"),
    ("long-binput", b"r\0\0\0\0"),
    ("memoize", b"\x94"),
    ("tuple", b"t"),
    ("tuple1", b"\x85"),
    ("tuple2", b"N\x86"),
    ("tuple3", b"NN\x87"),
    ("list", b"l"),
    ("dict", b"d"),
    ("frozenset", b"\x91"),
    ("append-nothing", b"a"),
    ("append-no-list", b"Na"),
    ("appends", b"]e"),
    ("appends-no-list", b"(Ne"),
    ("additems", b"\x8f\x90"),
    ("additems-no-set", b"(N\x90"),
    ("setitem-no-value", b"}Ns"),
    ("setitem-no-dict", b"NNs"),
    ("setitems", b"}u"),
    ("setitems-no-dict", b"(NNu"),
    ("reduce", b"R"),
    ("reduce-no-callable", b")R"),
    ("build", b"b"),
    ("build-no-object", b"Nb"),
    ("newobj", b"\x81"),
    ("newobj-no-class", b")\x81"),
    ("newobj-ex", b"\x92"),
    ("newobj-ex-no-class", b")}\x92"),
    ("obj", b"o"),
    ("obj-no-class", b"(o"),
    ("inst", b"icollections\nOrderedDict\n"),
    ("stack-global", b"\x93"),
    ("stack-global-one", b"X\x02\0\0\0os\x93"),
    ("binpersid", b"Q"),
    // Below a mark lies another's.
    ("append-across-mark", b"]N(a"),
    ("tuple2-across-mark", b"N(N\x86"),
    ("reduce-across-mark", b"ccollections\nOrderedDict\n()R"),
    ("pop-across-mark", b"N(00"),
];

/// What stays on the stack at STOP.
const LEFT_OVER: &[(&str, &[u8])] = &[
    ("two-values", b"NN"),
    ("a-mark", b"N("),
    ("a-value-below-a-mark", b"N(N"),
];

/// References to the memo that lead nowhere.
const MEMO: &[(&str, &[u8])] = &[
    ("binget", b"h\x05"),
    ("long-binget", b"j\x05\0\0\0"),
    ("long-binget-max", b"j\xff\xff\xff\xff"),
    ("get", b"g5\n"),
    ("get-max", b"g18446744073709551615\n"),
    ("gap", b"Nq\x040h\x03"),
    ("long-binput-max", b"Nr\xff\xff\xff\xff"),
    ("long-binput-sparse", b"Nr\xff\xff\xff\x0f"),
    ("put-sparse", b"Np268435455\n"),
];

/// Collections changed by the opcode of another, objects built that cannot be. [CVE-2026-24747: SETITEM on what is no dict]
const TARGETS: &[(&str, &[u8])] = &[
    ("setitem-list", b"]K\0Ns"),
    ("setitem-none", b"NK\0Ns"),
    ("setitem-int", b"K\x01K\0Ns"),
    ("setitem-str", b"U\x01aK\0Ns"),
    ("setitem-tuple", b")K\0Ns"),
    ("setitem-set", b"\x8fK\0Ns"),
    ("setitem-global", b"ctorch\nSize\nK\0Ns"),
    ("setitems-list", b"](K\0Nu"),
    ("setitems-odd", b"}(K\0u"),
    ("dict-odd", b"(Nd"),
    ("append-dict", b"}Na"),
    ("append-none", b"NNa"),
    ("append-tuple", b")Na"),
    ("append-set", b"\x8fNa"),
    ("appends-dict", b"}(Ne"),
    ("additems-list", b"](N\x90"),
    ("additems-dict", b"}(N\x90"),
    ("build-dict", b"}}b"),
    ("build-list", b"]}b"),
    ("build-none", b"N}b"),
    ("build-tuple", b")}b"),
    ("reduce-list", b"ccollections\nOrderedDict\n]R"),
    ("reduce-none", b"ccollections\nOrderedDict\nNR"),
    ("reduce-int", b"ccollections\nOrderedDict\nK\0R"),
    ("newobj-list", b"ccollections\nOrderedDict\n]\x81"),
    ("newobj-ex-list", b"ccollections\nOrderedDict\n]}\x92"),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (id, ops) in UNDERFLOW {
        cases.push(
            case(
                format!("R5-underflow-{id}"),
                &["R5"],
                zip(&Pickle::new().op(ops).stop()),
                Expect::Rejects("is broken at byte"),
            )
            .scan(&["pickle.broken"]),
        );
    }
    for (id, ops) in LEFT_OVER {
        cases.push(
            case(
                format!("R5-left-over-{id}"),
                &["R5"],
                zip(&Pickle::new().op(ops).stop()),
                Expect::Rejects("is broken at byte"),
            )
            .scan(&["pickle.broken"]),
        );
    }
    for (id, ops) in MEMO {
        cases.extend(both(
            &format!("R5-memo-{id}"),
            &["P10", "R5"],
            &beside(&Pickle::bare().op(ops)),
            &Expect::Rejects("is broken at byte"),
            &["pickle.broken"],
        ));
    }
    for (id, ops) in TARGETS {
        cases.push(
            case(
                format!("P13-target-{id}"),
                &["P13", "R5"],
                zip(&beside(&Pickle::bare().op(ops))),
                Expect::Rejects("is broken at byte"),
            )
            .scan(&["pickle.broken"]),
        );
    }
    // A tensor is no collection and has no attributes of its own to be set so.
    for (id, ops) in [
        ("setitem", &b"K\0Ns"[..]),
        ("setitems", b"(K\0Nu"),
        ("append", b"Na"),
        ("appends", b"(Ne"),
        ("build", b"}b"),
        ("build-none", b"Nb"),
        ("build-tuple", b"(NNNNtb"),
    ] {
        let pickle = beside(&honest().op(ops));
        cases.extend(both(
            &format!("P13-tensor-{id}"),
            &["P13"],
            &pickle,
            &Expect::Refused("t"),
            &[],
        ));
    }
    cases
}

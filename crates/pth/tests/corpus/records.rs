//! Counts of elements against the records that hold them: T1, T5 and row 12.

use super::base::{beside, legacy, legacy_over, second, stacked, zip, zip_over};
use super::{Case, Expect, both, case};
use crate::build::Pickle;

/// Storage classes with the size of an element.
const TYPED: &[(&str, usize)] = &[
    ("DoubleStorage", 8),
    ("FloatStorage", 4),
    ("HalfStorage", 2),
    ("BFloat16Storage", 2),
    ("LongStorage", 8),
    ("IntStorage", 4),
    ("ShortStorage", 2),
    ("CharStorage", 1),
    ("ByteStorage", 1),
    ("BoolStorage", 1),
    ("ComplexFloatStorage", 8),
    ("ComplexDoubleStorage", 16),
];

/// Dtypes that only untyped storages hold, with the size of an element.
const UNTYPED: &[(&str, usize)] = &[
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("float8_e5m2", 1),
    ("float8_e4m3fn", 1),
    ("float8_e5m2fnuz", 1),
    ("float8_e4m3fnuz", 1),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    wrong_size(&mut cases);
    numel(&mut cases);
    missing(&mut cases);
    shared(&mut cases);
    cases
}

fn wrong_size(cases: &mut Vec<Case>) {
    let lengths = |size: usize| {
        [
            ("short-by-a-byte", 6 * size - 1),
            ("short-by-an-element", 5 * size),
            ("long-by-a-byte", 6 * size + 1),
            ("empty", 0),
        ]
    };
    let typed = TYPED.iter().map(|&(class, size)| {
        let value = Pickle::bare().typed(class, "1", 6, 0, &[6], &[1]);
        (class, size, value)
    });
    let untyped = UNTYPED.iter().map(|&(dtype, size)| {
        let n_bytes = i128::try_from(6 * size).unwrap();
        let value = Pickle::bare().untyped(dtype, "1", n_bytes, 0, &[6], &[1]);
        (dtype, size, value)
    });
    for (name, size, value) in typed.chain(untyped) {
        for (id, len) in lengths(size) {
            // A byte less than one of one byte is an element less.
            if size == 1 && id == "short-by-an-element" {
                continue;
            }
            cases.push(
                case(
                    format!("T5-{id}-{name}"),
                    &["T5", "R12"],
                    zip_over(&beside(&value), &vec![1; len]),
                    Expect::Rejects("bytes"),
                )
                .scan(&["storage.size"]),
            );
        }
        // The view fits what is there; the storage is short all the same.
        let data = vec![1; 6 * size];
        let file = legacy_over(&beside(&value), 6, &data[..6 * size - 1]);
        cases.push(case(
            format!("T5-cut-{name}-legacy"),
            &["T5", "R5"],
            file,
            Expect::Refused("t"),
        ));
    }
    for (id, count) in [
        ("one-less", 3),
        ("one-more", 5),
        ("zero", 0),
        ("negative", -1),
        ("min", i64::MIN),
        ("max", i64::MAX),
        ("wraps", (1 << 62) + 4),
        ("big-endian", 4_i64.swap_bytes()),
    ] {
        cases.push(
            case(
                format!("T5-count-{id}-legacy"),
                &["T5", "T1", "R12"],
                legacy_over(&beside(&second()), count, &super::base::t()),
                Expect::Refused("t"),
            )
            .scan(&["storage.size"]),
        );
    }
}

fn numel(cases: &mut Vec<Case>) {
    for (id, numel) in [
        ("negative", -1),
        ("negative-four", -4),
        ("min", i128::from(i64::MIN)),
        ("one-less", 3),
        ("one-more", 5),
        ("max", i128::from(i64::MAX)),
        // PR #181310: times four bytes it is sixteen again.
        ("wraps-to-right", (1 << 62) + 4),
        ("wraps-to-zero", 1 << 62),
        ("unsigned-max", i128::from(u64::MAX)),
        ("past-64-bits", (1 << 64) + 4),
        ("huge", i128::MAX),
    ] {
        let value = Pickle::bare().typed("FloatStorage", "1", numel, 0, &[4], &[1]);
        cases.push(
            case(
                format!("T1-numel-{id}-zip"),
                &["T1", "R12"],
                zip(&beside(&value)),
                Expect::Rejects(""),
            )
            .scan(&["storage.size"]),
        );
        cases.push(
            case(
                format!("T1-numel-{id}-legacy"),
                &["T1", "R12"],
                legacy(&beside(&value)),
                Expect::Refused("t"),
            )
            .scan(&["storage.size"]),
        );
        // Beside the requested names too: the lie is the file's.
        let aside = Pickle::new()
            .op(b"}(")
            .str("state_dict")
            .op(b"}")
            .str("w")
            .then(&super::base::honest())
            .op(b"s")
            .str("optimizer")
            .op(b"}")
            .str("t")
            .then(&value)
            .op(b"su")
            .stop();
        cases.push(
            case(
                format!("T1-numel-{id}-aside"),
                &["T1", "R12"],
                zip(&aside),
                Expect::Rejects(""),
            )
            .scan(&["storage.size"]),
        );
    }
    let count = |numel: Pickle| {
        let storage = Pickle::bare()
            .op(b"(")
            .str("storage")
            .global("torch", "FloatStorage")
            .str("1")
            .str("cpu")
            .then(&numel)
            .op(b"tQ");
        Pickle::bare().rebuilt(&storage, &Pickle::bare().int(0).ints(&[4]).ints(&[1]))
    };
    for (id, numel) in [
        ("none", Pickle::bare().op(b"N")),
        ("float", Pickle::bare().op(b"G\x40\x10\0\0\0\0\0\0")),
        ("text", Pickle::bare().str("4")),
        ("tuple", Pickle::bare().ints(&[4])),
    ] {
        cases.extend(both(
            &format!("T1-numel-is-{id}"),
            &["T1", "P13"],
            &beside(&count(numel)),
            &Expect::Refused("t"),
            &[],
        ));
    }
}

fn missing(cases: &mut Vec<Case>) {
    // Keys of two characters, which no container of this corpus has.
    for (id, value) in [
        ("typed", Pickle::bare().tensor("17", 4, 0, &[4], &[1])),
        (
            "untyped",
            Pickle::bare().untyped("uint16", "17", 8, 0, &[4], &[1]),
        ),
        ("bare", Pickle::bare().storage("FloatStorage", "17", 4)),
    ] {
        cases.extend(both(
            &format!("T5-missing-{id}"),
            &["T5"],
            &beside(&value),
            &Expect::Problem("t", "17"),
            &[],
        ));
    }
    // Not a key of the same number.
    for key in ["01", " 1", "1 ", "+1", "1.0", "0x1", "\u{661}"] {
        cases.push(case(
            format!("T5-missing-key-{}", key.escape_unicode()),
            &["T5"],
            zip(&beside(&Pickle::bare().tensor(key, 4, 0, &[4], &[1]))),
            Expect::Problem("t", ""),
        ));
    }
    // Nothing is missing of what is empty.
    cases.extend(both(
        "T5-empty-without-a-record",
        &["T5"],
        &beside(&Pickle::bare().tensor("17", 0, 0, &[0], &[1])),
        &Expect::Loads(&["w", "t"]),
        &[],
    ));
    cases.push(case(
        "T5-key-not-listed-legacy",
        &["T5"],
        stacked(&beside(&second()))
            .with(|file| {
                file.keys = Pickle::new().op(b"](").str("0").op(b"e").stop();
                file.storages.pop();
            })
            .bytes(),
        Expect::Problem("t", "1"),
    ));
}

/// One storage, two stories.
fn shared(cases: &mut Vec<Case>) {
    for (id, value) in [
        (
            "other-dtype-of-the-same-size",
            Pickle::bare().typed("IntStorage", "0", 4, 0, &[4], &[1]),
        ),
        (
            "other-dtype",
            Pickle::bare().typed("ByteStorage", "0", 16, 0, &[16], &[1]),
        ),
        ("untyped", Pickle::bare().untyped("int32", "0", 16, 0, &[4], &[1])),
    ] {
        cases.extend(both(
            &format!("T5-shared-{id}"),
            &["T5"],
            &beside(&value),
            &Expect::Refused("t"),
            &[],
        ));
    }
    for (id, numel) in [("fewer", 3), ("more", 5)] {
        let value = Pickle::bare().tensor("0", numel, 0, &[1], &[1]);
        cases.push(
            case(
                format!("T5-shared-{id}-elements"),
                &["T5", "R12"],
                zip(&beside(&value)),
                Expect::Rejects("bytes"),
            )
            .scan(&["storage.size"]),
        );
    }
}

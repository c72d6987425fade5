//! CRCs that are wrong or absent, and compressed records that lie: C8, rows 21 to 23.

use super::base::{beside, changed, entries, plain, second, t, w};
use super::{Case, Expect, case};
use crate::build::zip::deflate;
use crate::build::{Archive, Entry, Pickle};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    crcs(&mut cases);
    deflated(&mut cases);
    bombs(&mut cases);
    cases
}

fn crcs(cases: &mut Vec<Case>) {
    let wrong = |index: usize, crc: fn(u32) -> u32| {
        changed(|zip| {
            let entry = &mut zip.entries[index];
            let crc = crc(entry.local.crc);
            entry.both(|header| header.crc = crc);
        })
    };
    for (id, crc) in [
        ("inverted", (|crc| !crc) as fn(u32) -> u32),
        ("one-bit", |crc| crc ^ 1),
        ("swapped", u32::swap_bytes),
        ("one", |_| 1),
    ] {
        cases.push(
            case(
                format!("C8-crc-{id}-data-pkl"),
                &["C8", "R22"],
                wrong(0, crc),
                Expect::Rejects("crc"),
            )
            .scan(&["zip.crc"]),
        );
        cases.push(
            case(
                format!("C8-crc-{id}-storage"),
                &["C8", "R22"],
                wrong(2, crc),
                Expect::Unreadable("w", "crc"),
            )
            .scan(&["zip.crc"]),
        );
        cases.push(
            case(
                format!("C8-crc-{id}-version"),
                &["C8", "R22"],
                wrong(1, crc),
                Expect::Survives,
            )
            .scan(&["zip.crc"]),
        );
    }
    // The data is what has changed, and its CRC tells.
    for (id, index) in [("data-pkl", 0), ("storage", 2)] {
        for at in ["first", "last"] {
            let bytes = changed(|zip| {
                let data = &mut zip.entries[index].data;
                // The last byte of a pickle is STOP: the one before it is the last that can change quietly.
                let place = match (at, id) {
                    ("first", "data-pkl") => 8,
                    ("first", _) => 0,
                    _ => data.len() - 2,
                };
                data[place] ^= 0x20;
            });
            let expect = if id == "storage" {
                Expect::Unreadable("w", "crc")
            } else {
                Expect::Rejects("crc")
            };
            cases.push(
                case(format!("C8-changed-{at}-{id}"), &["C8", "R22"], bytes, expect).scan(&["zip.crc"]),
            );
        }
    }
    // Another storage of the file is not to blame, and can be had.
    let mut two = entries(&beside(&second()));
    two[3].data[0] ^= 1;
    cases.push(
        case(
            "C8-only-one-storage",
            &["C8", "R22"],
            Archive::of(two).bytes(),
            Expect::Unreadable("t", "crc"),
        )
        .scan(&["zip.crc"]),
    );
    // Two tensors of one storage: neither.
    let mut shared = entries(&beside(&Pickle::bare().tensor("0", 4, 0, &[4], &[1])));
    shared[2].data[15] ^= 1;
    cases.push(
        case(
            "C8-shared-storage",
            &["C8", "R22"],
            Archive::of(shared).bytes(),
            Expect::Refused("t"),
        )
        .scan(&["zip.crc"]),
    );
    for (id, index) in [("data-pkl", 0), ("storage", 2)] {
        cases.push(
            case(
                format!("R23-no-crc-{id}"),
                &["C8", "R23"],
                wrong(index, |_| 0),
                Expect::Loads(&["w"]),
            )
            .scan(&["zip.no-crc"]),
        );
    }
    let mut none = entries(&plain());
    for entry in &mut none {
        entry.both(|header| header.crc = 0);
    }
    none.push(Entry::stored("m/.format_version", b"1"));
    cases.push(
        case(
            "R23-no-crc-anywhere",
            &["C8", "R23"],
            Archive::of(none).bytes(),
            Expect::Loads(&["w"]),
        )
        .scan(&["zip.no-crc"]),
    );
}

fn deflated(cases: &mut Vec<Case>) {
    for (id, indices) in [("all", &[0, 1, 2][..]), ("data-pkl", &[0]), ("storage", &[2])] {
        let mut entries = entries(&plain());
        for &index in indices {
            let entry = &mut entries[index];
            let name = String::from_utf8(entry.local.name.clone()).unwrap();
            *entry = Entry::deflated(&name, &entry.data);
        }
        cases.push(
            case(
                format!("R21-deflated-{id}"),
                &["C8", "R21"],
                Archive::of(entries).bytes(),
                Expect::Loads(&["w"]),
            )
            .scan(&["zip.deflated"]),
        );
    }
    type Change = fn(&mut Entry);
    let changes: &[(&str, Change)] = &[
        ("size-one-less", |e| e.both(|h| h.size -= 1)),
        ("size-one-more", |e| e.both(|h| h.size += 1)),
        ("size-zero", |e| e.both(|h| h.size = 0)),
        ("stream-cut", |e| {
            e.data.truncate(e.data.len() / 2);
            let len = u32::try_from(e.data.len()).unwrap();
            e.both(|h| h.compressed = len);
        }),
        ("stream-empty", |e| {
            e.data.clear();
            e.both(|h| h.compressed = 0);
        }),
        ("stream-bad-block", |e| e.data[0] = 0x07),
        ("stream-junk", |e| e.data.fill(0xa5)),
        ("crc", |e| e.both(|h| h.crc ^= 1)),
        ("claims-to-be-stored", |e| e.both(|h| h.method = 0)),
    ];
    for (id, change) in changes {
        let mut data_pkl = entries(&plain());
        data_pkl[0] = Entry::deflated("m/data.pkl", &plain()).with(change);
        cases.push(
            case(
                format!("R21-{id}-data-pkl"),
                &["C8", "R21", "R22"],
                Archive::of(data_pkl).bytes(),
                Expect::Rejects(""),
            )
            .scan(&[
                "zip.crc|zip.broken|zip.mismatch|pickle.broken|pickle.trailing|pickle.opcode|zip.outside",
            ]),
        );
        let values = [w(), w(), w()].concat();
        let pickle = beside(&Pickle::bare().tensor("1", 12, 0, &[12], &[1]));
        let mut storage = entries(&pickle);
        storage[3] = Entry::deflated("m/data/1", &values).with(change);
        cases.push(
            case(
                format!("R21-{id}-storage"),
                &["C8", "R21", "R22"],
                Archive::of(storage).bytes(),
                Expect::Refused("t"),
            )
            .scan(&["zip.crc|zip.broken|zip.mismatch|storage.size|zip.outside"]),
        );
    }
    // Bytes behind the last block are no part of the data, and hide in the record.
    let mut hiding = entries(&plain());
    hiding[2] = Entry::deflated("m/data/0", &w()).with(|entry| {
        entry.data.extend(super::hiding::payload());
        let len = u32::try_from(entry.data.len()).unwrap();
        entry.both(|header| header.compressed = len);
    });
    cases.push(case(
        "R21-bytes-behind-the-stream",
        &["C8", "R21", "C9"],
        Archive::of(hiding).bytes(),
        Expect::Survives,
    ));
}

/// Zeros compress a thousandfold; what is declared is not to be believed before it is seen.
fn bombs(cases: &mut Vec<Case>) {
    const MEGABYTE: usize = 1 << 20;
    let zeros = deflate(&vec![0; MEGABYTE]);
    let claims = |name: &str, size: u32| {
        Entry::stored(name, b"").with(|entry| {
            entry.data.clone_from(&zeros);
            let compressed = u32::try_from(zeros.len()).unwrap();
            entry.both(|header| {
                header.method = 8;
                header.compressed = compressed;
                header.size = size;
                header.crc = 1;
            });
        })
    };
    for (id, size) in [
        ("truth", 1 << 20),
        ("small", 16),
        ("gigabyte", 1 << 30),
        ("max", u32::MAX - 1),
    ] {
        let mut data_pkl = entries(&plain());
        data_pkl[0] = claims("m/data.pkl", size);
        // A megabyte inflated from a kilobyte would be within the bounds of deflate, and of the budget of this test only just.
        if !(1 << 10..=1 << 20).contains(&size) {
            cases.push(
                case(
                    format!("R21-bomb-{id}-data-pkl"),
                    &["C8", "R21"],
                    Archive::of(data_pkl).bytes(),
                    Expect::Rejects(""),
                )
                .scan(&["zip.crc|zip.broken|zip.deflated|pickle.opcode|pickle.broken"]),
            );
        }
        let numel = i128::from(size / 4);
        let value = Pickle::bare().typed("FloatStorage", "1", numel, 0, &[4], &[1]);
        let mut storage = entries(&beside(&value));
        storage[3] = claims("m/data/1", size / 4 * 4);
        cases.push(
            case(
                format!("R21-bomb-{id}-storage"),
                &["C8", "R21"],
                Archive::of(storage).bytes(),
                Expect::Refused("t"),
            )
            .scan(&["zip.crc|zip.broken|zip.deflated"]),
        );
    }
    // A hundred bombs behind each other are a hundred times as bad, for whoever opens them all.
    let mut many = entries(&plain());
    many.extend((0..100).map(|i| claims(&format!("m/data/{}", i + 10), 1 << 20)));
    cases.push(case(
        "R21-bomb-many",
        &["C8", "R21", "R26"],
        Archive::of(many).bytes(),
        Expect::Loads(&["w"]),
    ));
    assert_ne!(
        t(),
        w(),
        "the two tensors differ, or a mistaken one would go unseen"
    );
}

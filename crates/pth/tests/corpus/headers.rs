//! Local headers that say one thing while the central directory says another: C6, C7, rows 18 and 20.

use super::base::{changed, plain, w};
use super::{Case, Expect, case};
use crate::build::zip::{Descriptor, Header, extra};
use crate::build::{Archive, Entry};

/// The entries of interest by their place in the honest archive.
const PLACES: [(&str, usize); 3] = [("data-pkl", 0), ("version", 1), ("storage", 2)];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    mismatches(&mut cases);
    flags(&mut cases);
    methods(&mut cases);
    dialects(&mut cases);
    cases
}

/// A lie in one header, of the same length as the truth.
type Lie = (&'static str, fn(&mut Header));

const LIES: &[Lie] = &[
    ("name", |header| *header.name.last_mut().unwrap() ^= 1),
    ("name-case", |header| header.name.make_ascii_uppercase()),
    ("flags", |header| header.flags ^= 0x0800),
    ("method", |header| header.method = 8),
    ("crc", |header| header.crc ^= 1),
    ("size", |header| header.size += 1),
    ("size-zero", |header| header.size = 0),
    ("size-max", |header| header.size = u32::MAX),
    ("compressed", |header| header.compressed -= 1),
    ("compressed-zero", |header| header.compressed = 0),
    ("compressed-max", |header| header.compressed = u32::MAX),
    ("encrypted", |header| header.flags |= 1),
    ("deferred", |header| header.flags |= 8),
];

/// A lie about one thing is often seen as a lie about another.
const MISMATCHES: &str =
    "zip.mismatch|zip.duplicate|zip.encrypted|zip.root|zip.outside|zip.overlap|zip.broken|zip.crc";

fn mismatches(cases: &mut Vec<Case>) {
    for (place, index) in PLACES {
        for &(id, lie) in LIES {
            for side in ["local", "central"] {
                let bytes = changed(|zip| {
                    let entry = &mut zip.entries[index];
                    lie(if side == "local" {
                        &mut entry.local
                    } else {
                        &mut entry.central
                    });
                });
                // A CRC is no part of what torch resolves an entry by; a wrong one shows where the data is read.
                let expect = match (id, side, place) {
                    ("crc", "local", _) | ("crc", _, "version") => Expect::Survives,
                    ("crc", _, "storage") => Expect::Refused("w"),
                    _ => Expect::Rejects(""),
                };
                let scan: &[&str] = match expect {
                    Expect::Survives => &[],
                    _ => &[MISMATCHES],
                };
                let id = format!("C6-{side}-{id}-{place}");
                cases.push(case(id, &["C6", "R18"], bytes, expect).scan(scan));
            }
        }
        // Names of another length move the data, for whoever computes it from the other header.
        for (id, name) in [("longer", "m/data.pkl.bak"), ("shorter", "m/d"), ("empty", "")] {
            let bytes = changed(|zip| zip.entries[index].local.name = name.as_bytes().to_vec());
            cases.push(
                case(
                    format!("C6-local-name-{id}-{place}"),
                    &["C6", "R18"],
                    bytes,
                    Expect::Rejects(""),
                )
                .scan(&["zip.mismatch"]),
            );
        }
    }
    // Two entries whose local names are exchanged: CVE-2025-1944.
    let swapped = changed(|zip| {
        zip.entries
            .push(Entry::stored("m/data.pk2", &super::hiding::payload()));
        let (first, last) = (
            zip.entries[0].local.name.clone(),
            zip.entries[3].local.name.clone(),
        );
        zip.entries[0].local.name = last;
        zip.entries[3].local.name = first;
    });
    cases.push(
        case("C6-names-exchanged", &["C6", "R18"], swapped, Expect::Rejects(""))
            .scan(&["zip.mismatch", "global.unsafe"]),
    );
    // The extra field of torch's own headers is local only: its length is no contradiction.
    cases.push(case(
        "C6-local-extra",
        &["C6"],
        changed(|zip| zip.entries[2].local.extra = extra(0x4246, &[b'Z'; 40])),
        Expect::Loads(&["w"]),
    ));
    cases.push(case(
        "C6-central-extra",
        &["C6"],
        changed(|zip| zip.entries[2].central.extra = extra(0x5455, &[3, 0, 0, 0, 0])),
        Expect::Loads(&["w"]),
    ));
    // A descriptor that contradicts the directory.
    for (id, descriptor) in [
        ("crc", Descriptor::Bits32(1, 16, 16)),
        ("size", Descriptor::Bits32(crc32fast::hash(&w()), 16, 17)),
        ("compressed", Descriptor::Bits32(crc32fast::hash(&w()), 15, 16)),
        ("missing", Descriptor::None),
    ] {
        let bytes = changed(|zip| {
            zip.entries[2] = Entry::streamed("m/data/0", &w()).with(|entry| entry.descriptor = descriptor);
        });
        // Nobody reads it: neither torch nor, then, must we. What is read must be right.
        cases.push(case(
            format!("C6-descriptor-{id}"),
            &["C6"],
            bytes,
            Expect::Survives,
        ));
    }
    // Half deferred: the flag is set and a size is there all the same, a wrong one.
    cases.push(case(
        "C6-deferred-with-a-size",
        &["C6", "R18"],
        changed(|zip| {
            zip.entries[2] = Entry::streamed("m/data/0", &w()).with(|entry| {
                entry.local.size = 12;
                entry.local.compressed = 12;
            });
        }),
        Expect::Survives,
    ));
}

fn flags(cases: &mut Vec<Case>) {
    for (place, index) in PLACES {
        for (id, flag) in [
            ("encrypted", 0x0001),
            ("strongly-encrypted", 0x0041),
            ("only-strongly", 0x0040),
        ] {
            cases.push(
                case(
                    format!("C7-{id}-{place}"),
                    &["C7", "R20"],
                    changed(|zip| zip.entries[index].both(|header| header.flags |= flag)),
                    Expect::Rejects("encrypt|flag"),
                )
                .scan(&["zip.encrypted"]),
            );
        }
        // CVE-2025-1945: bits that make one library give up and another not.
        for bit in [1, 2, 4, 5, 7, 12, 13, 14, 15] {
            cases.push(case(
                format!("C7-bit-{bit}-{place}"),
                &["C7"],
                changed(|zip| zip.entries[index].both(|header| header.flags |= 1 << bit)),
                Expect::Survives,
            ));
        }
    }
}

fn methods(cases: &mut Vec<Case>) {
    for method in [1, 2, 6, 9, 10, 12, 14, 19, 93, 95, 97, 98, 99, 0x7fff, 0xffff] {
        for (place, index) in PLACES {
            if place == "version" && method != 12 {
                continue;
            }
            cases.push(
                case(
                    format!("R20-method-{method}-{place}"),
                    &["R20"],
                    changed(|zip| zip.entries[index].both(|header| header.method = method)),
                    Expect::Rejects("method|compress|encrypt"),
                )
                .scan(&["zip.method|zip.encrypted"]),
            );
        }
    }
}

/// What torch and others really write, which must stay readable.
fn dialects(cases: &mut Vec<Case>) {
    let streamed = [
        Entry::streamed("m/data.pkl", &plain()),
        Entry::streamed("m/.format_version", b"1"),
        Entry::streamed("m/.storage_alignment", b"64"),
        Entry::streamed("m/byteorder", b"little"),
        Entry::streamed("m/data/0", &w()),
        Entry::streamed("m/version", b"3\n"),
    ];
    let torch =
        Archive::of(streamed.clone()).with(|zip| zip.end64 = Some(crate::build::zip::End64::default()));
    cases.push(case(
        "C6-dialect-torch",
        &["C6"],
        torch.bytes(),
        Expect::Loads(&["w"]),
    ));
    // As in a `.distcp` file: the second's locator tells where the first's zip64 end record is, since both are laid out alike.
    let other = Archive::of(streamed.clone()).with(|zip| {
        zip.end64 = Some(crate::build::zip::End64::default());
        zip.entries[4].data.fill(b'x');
    });
    cases.push(
        case(
            "C10-two-archives-alike",
            &["C10", "R27"],
            [torch.bytes(), other.bytes()].concat(),
            Expect::Rejects("bytes in front of the archive"),
        )
        .scan(&["zip.prefix"]),
    );
    // modelaudit #1655: zip64 sizes in part, and a descriptor of 64 bits.
    let wide = torch.clone().with(|zip| {
        for entry in &mut zip.entries {
            let size = u64::from(entry.central.size);
            entry.local.extra = extra(1, &0_u64.to_le_bytes());
            entry.descriptor = Descriptor::Bits64(entry.central.crc, size, size);
        }
    });
    cases.push(case(
        "C6-dialect-wide-descriptors",
        &["C6"],
        wide.bytes(),
        Expect::Loads(&["w"]),
    ));
    let no_crc = torch.clone().with(|zip| {
        for entry in &mut zip.entries {
            let size = entry.central.size;
            entry.central.crc = 0;
            entry.descriptor = Descriptor::Bits32(0, size, size);
        }
    });
    cases.push(
        case(
            "R23-dialect-torch",
            &["C8", "R23"],
            no_crc.bytes(),
            Expect::Loads(&["w"]),
        )
        .scan(&["zip.no-crc"]),
    );
    let lexicographic = torch.with(|zip| zip.entries[1..].reverse());
    cases.push(case(
        "C6-dialect-other-order",
        &["C6"],
        lexicographic.bytes(),
        Expect::Loads(&["w"]),
    ));
    let sizes = |size: u64| extra(1, &[size.to_le_bytes(), size.to_le_bytes()].concat());
    // Honest zip64 sizes of a small entry, in the directory and in both places.
    let central = |entry: &mut Entry, size: u64| {
        entry.central.size = u32::MAX;
        entry.central.compressed = u32::MAX;
        entry.central.extra = sizes(size);
    };
    cases.push(case(
        "C6-dialect-zip64",
        &["C6"],
        changed(|zip| {
            let entry = &mut zip.entries[2];
            central(entry, 16);
            entry.local.size = u32::MAX;
            entry.local.compressed = u32::MAX;
            entry.local.extra = sizes(16);
        }),
        Expect::Loads(&["w"]),
    ));
    for (id, size) in [
        ("one-more", 17),
        ("far", 1 << 40),
        ("i64-max", i64::MAX as u64),
        ("max", u64::MAX),
    ] {
        cases.push(
            case(
                format!("R19-zip64-size-{id}"),
                &["C6", "R19"],
                changed(|zip| {
                    let entry = &mut zip.entries[2];
                    central(entry, size);
                    entry.local.size = u32::MAX;
                    entry.local.compressed = u32::MAX;
                    entry.local.extra = sizes(size);
                }),
                Expect::Rejects(""),
            )
            .scan(&["zip.outside|zip.overlap|zip.broken"]),
        );
    }
    for (id, field) in [
        ("missing", Vec::new()),
        ("empty", extra(1, &[])),
        ("half", extra(1, &16_u64.to_le_bytes())),
        ("cut", extra(1, &[0; 5])),
        ("header-cut", vec![1]),
        ("length-past-end", vec![1, 0, 0xff, 0xff]),
    ] {
        cases.push(
            case(
                format!("R18-zip64-extra-{id}"),
                &["C6", "R18", "R19"],
                changed(|zip| {
                    let entry = &mut zip.entries[2];
                    central(entry, 16);
                    entry.central.extra = field;
                }),
                Expect::Rejects(""),
            )
            .scan(&["zip.broken|zip.outside|zip.mismatch|zip.overlap"]),
        );
    }
}

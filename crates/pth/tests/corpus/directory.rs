//! The end of the archive and where it says that things are: rows 19 and 27.

use super::base::{beside, changed, entries, plain, second, w, zip};
use super::{Case, Expect, With, case};
use crate::build::zip::End64;
use crate::build::{Archive, Entry};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    ends(&mut cases);
    ends64(&mut cases);
    places(&mut cases);
    around(&mut cases);
    cases
}

fn broken(id: &str, bytes: Vec<u8>) -> Case {
    case(format!("R19-{id}"), &["C10", "R19"], bytes, Expect::Rejects(""))
        .scan(&["zip.broken|zip.outside|zip.overlap|zip.prefix|zip.suffix"])
}

fn ends(cases: &mut Vec<Case>) {
    type Change = fn(&mut Archive);
    let changes: &[(&str, Change)] = &[
        ("entries-one-less", |zip| zip.end.n_entries = Some(2)),
        ("entries-one-more", |zip| zip.end.n_entries = Some(4)),
        ("entries-none", |zip| zip.end.n_entries = Some(0)),
        ("entries-max", |zip| zip.end.n_entries = Some(u16::MAX)),
        ("entries-differ", |zip| zip.end.n_entries_total = Some(2)),
        ("directory-offset-zero", |zip| zip.end.directory_offset = Some(0)),
        ("directory-offset-past-end", |zip| {
            zip.end.directory_offset = Some(1 << 20);
        }),
        ("directory-offset-max", |zip| {
            zip.end.directory_offset = Some(u32::MAX);
        }),
        ("directory-size-zero", |zip| zip.end.directory_size = Some(0)),
        ("directory-size-larger", |zip| zip.end.directory_size = Some(200)),
        ("directory-size-max", |zip| {
            zip.end.directory_size = Some(u32::MAX);
        }),
        ("disk-one", |zip| zip.end.disk = 1),
        ("directory-disk-one", |zip| zip.end.directory_disk = 1),
        ("comment-longer-than-the-file", |zip| {
            zip.end.comment_len = Some(10);
        }),
        ("comment-length-max", |zip| zip.end.comment_len = Some(u16::MAX)),
        ("junk-before-directory", |zip| {
            zip.before_directory = b"PK\x01\x02".to_vec();
        }),
    ];
    for (id, change) in changes {
        let bytes = changed(change);
        // What lies between the last entry and the directory changes nothing that is read.
        let case = broken(&format!("end-{id}"), bytes);
        cases.push(if *id == "junk-before-directory" {
            Case {
                expect: Expect::Survives,
                scan: &[],
                ..case
            }
        } else {
            case
        });
    }
    let whole = changed(|_| {});
    for (id, cut) in [
        ("one-byte", 1),
        ("half-the-end", 11),
        ("the-end", 22),
        ("half-the-directory", 80),
    ] {
        cases.push(
            case(
                format!("R28-cut-{id}"),
                &["R19", "R28"],
                whole[..whole.len() - cut].to_vec(),
                // With the signature of the end still there, it is an end that is broken.
                match cut {
                    22.. => Expect::NotACheckpoint("cut off"),
                    _ => Expect::Rejects(""),
                },
            )
            .scan(&["zip.broken|not-a-checkpoint"]),
        );
    }
    cases.push(
        case(
            "R28-cut-in-the-pickle",
            &["R19", "R28"],
            whole[..150].to_vec(),
            Expect::NotACheckpoint("cut off"),
        )
        .scan(&["zip.broken|not-a-checkpoint"]),
    );
    // Signatures of directory and end.
    let at = |signature: &[u8]| whole.windows(4).rposition(|window| window == signature).unwrap();
    let mut no_central = whole.clone();
    no_central[at(b"PK\x01\x02") + 2] ^= 0x10;
    cases.push(broken("central-signature", no_central));
    let mut no_local = whole.clone();
    no_local[at(b"PK\x03\x04") + 2] ^= 0x10;
    cases.push(broken("local-signature", no_local));
}

fn ends64(cases: &mut Vec<Case>) {
    type Change = fn(&mut End64);
    let changes: &[(&str, Change)] = &[
        ("entries-one-less", |end| end.n_entries = Some(2)),
        ("entries-max", |end| end.n_entries = Some(u64::MAX)),
        ("directory-offset-past-end", |end| {
            end.directory_offset = Some(1 << 40);
        }),
        ("directory-offset-max", |end| {
            end.directory_offset = Some(u64::MAX);
        }),
        ("directory-size-max", |end| end.directory_size = Some(u64::MAX)),
        ("directory-size-zero", |end| end.directory_size = Some(0)),
        ("record-offset-zero", |end| end.record_offset = Some(0)),
        ("record-offset-past-end", |end| end.record_offset = Some(1 << 40)),
        ("record-offset-max", |end| end.record_offset = Some(u64::MAX)),
        ("two-disks", |end| end.n_disks = Some(2)),
    ];
    for (id, change) in changes {
        for deferred in [false, true] {
            let bytes = changed(|zip| {
                let mut end = End64::default();
                change(&mut end);
                zip.end64 = Some(end);
                // Where the short record defers to the long one, the long one must be right.
                if deferred {
                    zip.end.n_entries = Some(u16::MAX);
                    zip.end.directory_offset = Some(u32::MAX);
                    zip.end.directory_size = Some(u32::MAX);
                }
            });
            let how = if deferred { "deferred" } else { "beside" };
            let case = broken(&format!("end64-{id}-{how}"), bytes);
            // Two records that contradict each other: which one wins is a matter of the reader, and hence of dispute.
            cases.push(case);
        }
    }
    cases.push(case(
        "C10-end64-deferred",
        &["C10"],
        changed(|zip| {
            zip.end64 = Some(End64::default());
            zip.end.n_entries = Some(u16::MAX);
            zip.end.directory_offset = Some(u32::MAX);
            zip.end.directory_size = Some(u32::MAX);
        }),
        Expect::Loads(&["w"]),
    ));
}

fn places(cases: &mut Vec<Case>) {
    for (id, offset) in [
        ("into-a-name", 31),
        ("past-end", 1 << 20),
        ("max", u32::MAX),
        ("of-another", 0),
    ] {
        let bytes = changed(|zip| {
            zip.entries[2].offset = Some(offset);
        });
        cases.push(
            broken(&format!("offset-{id}"), bytes)
                .scan(&["zip.broken|zip.outside|zip.mismatch|zip.overlap|zip.duplicate"]),
        );
    }
    // Two names over the same bytes: with one local header, and with an entry inside of another's data.
    let mut same = entries(&beside(&second()));
    let first_offset = {
        let before = Archive::of(same[..2].to_vec()).bytes();
        u32::try_from(
            before
                .windows(4)
                .position(|window| window == b"PK\x01\x02")
                .unwrap(),
        )
        .unwrap()
    };
    same[3].is_phantom = true;
    same[3].offset = Some(first_offset);
    cases.push(
        case(
            "R19-overlap-same-header",
            &["C6", "R19"],
            Archive::of(same).bytes(),
            Expect::Rejects(""),
        )
        .scan(&["zip.overlap|zip.mismatch"]),
    );
    let inner = {
        let archive = Archive::of([Entry::stored("m/data/1", &super::base::t())]).bytes();
        archive[..30 + 8 + 16].to_vec()
    };
    let mut nested = entries(&beside(&second()));
    nested[1] = Entry::stored("m/version", &inner);
    let start = {
        let before = Archive::of(nested[..1].to_vec()).bytes();
        before
            .windows(4)
            .position(|window| window == b"PK\x01\x02")
            .unwrap()
            + 30
            + "m/version".len()
    };
    nested[3].is_phantom = true;
    nested[3].offset = Some(u32::try_from(start).unwrap());
    cases.push(
        case(
            "R19-overlap-nested",
            &["C6", "R19"],
            Archive::of(nested).bytes(),
            Expect::Rejects("overlap"),
        )
        .scan(&["zip.overlap"]),
    );
    // The last entry reaches into the directory, or past the file.
    for (id, more) in [("into-directory", 20), ("past-end", 1 << 20)] {
        let bytes = changed(|zip| {
            zip.entries[2].both(|header| {
                header.size += more;
                header.compressed += more;
            });
        });
        cases.push(
            case(
                format!("R19-data-{id}"),
                &["C6", "R19"],
                bytes,
                Expect::Rejects(""),
            )
            .scan(&["zip.outside|zip.overlap|zip.broken"]),
        );
    }
    // Each of many entries claims all that follows it: quadratic, for whoever adds up the sizes.
    let quine = changed(|zip| {
        for entry in &mut zip.entries {
            entry.both(|header| {
                header.size += 100;
                header.compressed += 100;
            });
        }
    });
    cases.push(
        case("R19-overlap-chain", &["C6", "R19"], quine, Expect::Rejects(""))
            .scan(&["zip.overlap|zip.outside"]),
    );
    // An entry that the directory does not list, found by those who read from the front.
    cases.push(case(
        "C10-hidden-local-entry",
        &["C10", "C6"],
        changed(|zip| {
            let mut hidden = Entry::stored("m/data.pkl", &super::hiding::payload());
            hidden.is_hidden = true;
            zip.entries.insert(0, hidden);
        }),
        Expect::Survives,
    ));
    cases.push(case(
        "C10-gap",
        &["C10"],
        changed(|zip| zip.entries[1].gap = super::hiding::payload()),
        Expect::Survives,
    ));
    cases.push(
        case(
            "R18-phantom",
            &["C6", "R18", "R19"],
            changed(|zip| {
                let mut phantom = Entry::stored("m/data/9", &w());
                phantom.is_phantom = true;
                zip.entries.push(phantom);
            }),
            Expect::Rejects(""),
        )
        .scan(&["zip.mismatch|zip.broken|zip.outside|zip.overlap"]),
    );
}

/// Bytes in front of the archive and behind it.
fn around(cases: &mut Vec<Case>) {
    let shell = b"#!/bin/sh\nexit 0\n".to_vec();
    for (id, prefix) in [
        ("shell", shell.clone()),
        ("byte", b"\0".to_vec()),
        ("zeros", vec![0; 512]),
        ("local-signature", b"PK\x03\x04".to_vec()),
        ("payload", super::hiding::payload()),
    ] {
        for counts_prefix in [false, true] {
            let bytes = changed(|zip| {
                zip.prefix.clone_from(&prefix);
                zip.counts_prefix = counts_prefix;
            });
            let how = if counts_prefix { "counted" } else { "uncounted" };
            let case = case(
                format!("R27-prefix-{id}-{how}"),
                &["C10", "R27"],
                bytes,
                Expect::Rejects(""),
            )
            .scan(&["zip.prefix|not-a-checkpoint|zip.broken|global.unsafe"]);
            // A prefix that is a checkpoint's beginning itself is something else again.
            cases.push(match id {
                "shell" | "zeros" => case.also(With::AllowPrefix, Expect::Loads(&["w"])),
                _ => case.also(With::AllowPrefix, Expect::Survives),
            });
        }
    }
    for (id, suffix) in [
        ("newline", b"\n".to_vec()),
        ("zeros", vec![0; 512]),
        ("payload", super::hiding::payload()),
        ("html", b"<html></html>".to_vec()),
        ("second-archive", zip(&beside(&second()))),
        ("far", vec![b'x'; 70_000]),
    ] {
        let bytes = changed(|zip| zip.suffix = suffix);
        cases.push(
            case(
                format!("R27-suffix-{id}"),
                &["C10", "R27"],
                bytes,
                Expect::Rejects(""),
            )
            .scan(&["zip.suffix|zip.prefix|zip.broken|not-a-checkpoint"]),
        );
    }
    for (id, comment) in [("text", b"hello".to_vec()), ("long", vec![b'c'; 65_535])] {
        cases.push(case(
            format!("C10-comment-{id}"),
            &["C10"],
            changed(|zip| zip.comment = comment),
            Expect::Loads(&["w"]),
        ));
    }
    // A comment that is itself the end of an archive: which end is the end?
    for (id, tail) in [
        ("empty-end", {
            let mut end = b"PK\x05\x06".to_vec();
            end.extend([0; 18]);
            end
        }),
        ("signature", b"PK\x05\x06".to_vec()),
        ("whole-archive", zip(&beside(&second()))),
    ] {
        cases.push(case(
            format!("C10-comment-{id}"),
            &["C10", "R27"],
            changed(|zip| zip.comment = tail),
            Expect::Survives,
        ));
    }
    // Two formats in one file. [fickling's polyglots]
    let archive = zip(&plain());
    let legacy = super::base::legacy(&plain());
    cases.push(
        case(
            "C10-legacy-then-zip",
            &["C10", "R27"],
            [legacy.clone(), archive.clone()].concat(),
            Expect::NotClean,
        )
        .scan(&["pickle.trailing|zip.prefix"]),
    );
    cases.push(
        case(
            "C10-zip-then-legacy",
            &["C10", "R27"],
            [archive.clone(), legacy].concat(),
            Expect::Rejects(""),
        )
        .scan(&["zip.suffix|zip.broken"]),
    );
    let tar = super::strangers::tar("pickle", &plain());
    cases.push(
        case(
            "C10-tar-then-zip",
            &["C10", "R27", "R28"],
            [tar, archive].concat(),
            Expect::Rejects(""),
        )
        .scan(&["zip.prefix|not-a-checkpoint"]),
    );
}

//! Names of entries: in another case, twice, under two roots, or made to escape.

use super::base::{beside, changed, entries, plain, second, t, w};
use super::{Case, Expect, case};
use crate::build::{Archive, Entry, Pickle};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    duplicates(&mut cases);
    spellings(&mut cases);
    roots(&mut cases);
    hostile(&mut cases);
    unreferenced(&mut cases);
    cases
}

/// Another checkpoint's `data.pkl`, so that it matters which is read.
fn other() -> Vec<u8> {
    beside(&super::globals::call("reduce", "os", "system"))
}

fn duplicates(cases: &mut Vec<Case>) {
    let classes = &["C5", "C3", "R17"];
    for (id, name, bytes) in [
        ("data-pkl", "m/data.pkl", other()),
        ("data-pkl-same-bytes", "m/data.pkl", plain()),
        ("storage", "m/data/0", t()),
        ("version", "m/version", b"3\n".to_vec()),
        ("case-data-pkl", "m/DATA.PKL", other()),
        ("case-storage-folder", "m/Data/0", t()),
        ("case-root", "M/data.pkl", other()),
        ("case-version", "m/Version", b"3\n".to_vec()),
        ("backslash-data-pkl", "m\\data.pkl", other()),
        ("backslash-storage", "m\\data\\0", t()),
        ("backslash-half", "m/data\\0", t()),
        ("case-and-backslash", "M\\DATA.pkl", other()),
    ] {
        for position in ["first", "last"] {
            let bytes = changed(|zip| {
                let entry = Entry::stored(name, &bytes);
                match position {
                    "first" => zip.entries.insert(0, entry),
                    _ => zip.entries.push(entry),
                }
            });
            cases.push(
                case(
                    format!("C5-duplicate-{id}-{position}"),
                    classes,
                    bytes,
                    Expect::Rejects(""),
                )
                .scan(&["zip.duplicate"]),
            );
        }
    }
    // One local entry, listed twice: the same bytes under one name, or under two.
    cases.push(
        case(
            "C5-duplicate-listed-twice",
            classes,
            changed(|zip| {
                let mut again = zip.entries[0].clone();
                again.is_phantom = true;
                again.offset = Some(0);
                zip.entries.push(again);
            }),
            Expect::Rejects(""),
        )
        .scan(&["zip.duplicate"]),
    );
}

fn spellings(cases: &mut Vec<Case>) {
    // miniz finds `data.pkl` in any case; so torch loads these, and a scanner that does not sees no pickle.
    for name in [
        "m/DATA.PKL",
        "m/Data.pkl",
        "m/data.Pkl",
        "m\\data.pkl",
        "m/./data.pkl",
        "m//data.pkl",
    ] {
        cases.push(
            case(
                format!("C3-only-{}", name.escape_default()),
                &["C3"],
                changed(|zip| {
                    zip.entries[0] = Entry::stored(name, &other());
                }),
                Expect::Rejects(""),
            )
            .scan(&["global.unsafe"]),
        );
    }
    cases.push(case(
        "C3-only-DATA-0",
        &["C3"],
        changed(|zip| zip.entries[2] = Entry::stored("m/DATA/0", &w())),
        Expect::Survives,
    ));
    cases.push(
        case(
            "C3-nul-behind-data-pkl",
            &["C3", "R24"],
            changed(|zip| zip.entries.push(Entry::stored("m/data.pkl\0.txt", &other()))),
            Expect::Survives,
        )
        .scan(&["zip.name", "global.unsafe"]),
    );
    cases.push(
        case(
            "C3-nul-only",
            &["C3", "R24"],
            changed(|zip| zip.entries[0] = Entry::stored("m/data.pkl\0.txt", &other())),
            Expect::Rejects(""),
        )
        .scan(&["zip.name"]),
    );
    // Info-ZIP's Unicode path: another name for those who read that field.
    cases.push(case(
        "C3-unicode-path",
        &["C3"],
        changed(|zip| {
            let mut field = vec![1];
            field.extend(crc32fast::hash(b"m/version").to_le_bytes());
            field.extend(b"m/data.pkl");
            let field = crate::build::zip::extra(0x7075, &field);
            zip.entries[1].both(|header| header.extra.clone_from(&field));
        }),
        Expect::Survives,
    ));
}

fn roots(cases: &mut Vec<Case>) {
    let entry = Entry::stored;
    let two = |first: &str, second: &str| {
        let one = |root: &str, pickle: &[u8]| {
            [
                entry(&format!("{root}/data.pkl"), pickle),
                entry(&format!("{root}/version"), b"3\n"),
                entry(&format!("{root}/data/0"), &w()),
            ]
        };
        let entries = [one(first, &plain()), one(second, &other())].concat();
        Archive::of(entries).bytes()
    };
    for (id, bytes) in [
        ("two", two("m", "n")),
        ("two-prefixes", two("m", "mm")),
        ("hidden-first", two(".m", "m")),
        (
            "stray-first",
            changed(|zip| zip.entries.insert(0, entry("other/readme.txt", b"hello"))),
        ),
        (
            "stray-last",
            changed(|zip| zip.entries.push(entry("other/readme.txt", b"hello"))),
        ),
        (
            "top-level-first",
            changed(|zip| zip.entries.insert(0, entry("readme.txt", b"hello"))),
        ),
        (
            "top-level-last",
            changed(|zip| zip.entries.push(entry("readme.txt", b"hello"))),
        ),
        (
            "none",
            Archive::of([
                entry("data.pkl", &plain()),
                entry("version", b"3\n"),
                entry("data/0", &w()),
            ])
            .bytes(),
        ),
        (
            "empty",
            Archive::of([
                entry("/data.pkl", &plain()),
                entry("/version", b"3\n"),
                entry("/data/0", &w()),
            ])
            .bytes(),
        ),
        (
            "deep",
            Archive::of([
                entry("a/b/data.pkl", &plain()),
                entry("a/b/version", b"3\n"),
                entry("a/b/data/0", &w()),
            ])
            .bytes(),
        ),
    ] {
        cases.push(
            case(
                format!("C4-roots-{id}"),
                &["C4", "R25"],
                bytes,
                Expect::Rejects(""),
            )
            .scan(&["zip.root|not-a-checkpoint"]),
        );
    }
    // One root, and a second checkpoint further down in it, which nothing refers to.
    cases.push(
        case(
            "C4-nested-checkpoint",
            &["C4", "C9", "R26"],
            two("m", "m/m"),
            Expect::Loads(&["w"]),
        )
        .scan(&["zip.unreferenced", "global.unsafe"]),
    );
    // What `zip -r` makes of an unpacked checkpoint.
    cases.push(case(
        "C4-roots-directory-first",
        &["C4"],
        changed(|zip| zip.entries.insert(0, entry("m/", b""))),
        Expect::Loads(&["w"]),
    ));
    for root in [
        "archive",
        "weird.v2",
        "mit Leerzeichen",
        "\u{43c}\u{43e}\u{434}\u{435}\u{43b}\u{44c}",
        "data",
    ] {
        cases.push(case(
            format!("C4-root-{}", root.escape_unicode()),
            &["C4"],
            Archive::of([
                entry(&format!("{root}/data.pkl"), &plain()),
                entry(&format!("{root}/version"), b"3\n"),
                entry(&format!("{root}/data/0"), &w()),
            ])
            .bytes(),
            Expect::Loads(&["w"]),
        ));
    }
}

fn hostile(cases: &mut Vec<Case>) {
    for (id, name) in [
        ("parent", "m/../../etc/cron.d/x"),
        ("parent-last", "m/extra/.."),
        ("control", "m/extra/a\x1b[2Jb"),
        ("newline", "m/extra/a\nb"),
        ("nul", "m/extra/a\0b"),
        ("right-to-left", "m/extra/\u{202e}txt.exe"),
        ("drive", "m/C:\\x"),
        ("dot", "m/./x"),
    ] {
        cases.push(
            case(
                format!("R24-name-{id}"),
                &["C3", "R24"],
                changed(|zip| zip.entries.push(Entry::stored(name, b"hello"))),
                Expect::Loads(&["w"]),
            )
            .scan(&["zip.name"]),
        );
    }
    for (id, name) in [
        ("absolute", "/etc/cron.d/x"),
        ("drive-root", "C:/x"),
        ("parent-root", "../x"),
    ] {
        cases.push(
            case(
                format!("R24-name-{id}"),
                &["C3", "R24", "R25"],
                changed(|zip| zip.entries.push(Entry::stored(name, b"hello"))),
                Expect::Rejects(""),
            )
            .scan(&["zip.name"]),
        );
    }
    cases.push(case(
        "R24-name-not-utf-8",
        &["C3", "R24"],
        changed(|zip| {
            let mut entry = Entry::stored("m/extra/x", b"hello");
            entry.both(|header| {
                header.name = b"m/extra/\xff\xfe".to_vec();
                header.flags = 0;
            });
            zip.entries.push(entry);
        }),
        Expect::Survives,
    ));
    // A storage key that is a path, and the record of exactly that name: found as a key, never as a path.
    for (id, key) in [("parent", "../1"), ("absolute", "/1"), ("folder", "a/b")] {
        let data_pkl = beside(&Pickle::bare().tensor(key, 4, 0, &[4], &[1]));
        let mut entries = entries(&data_pkl);
        entries.push(Entry::stored(&format!("m/data/{key}"), &t()));
        cases.push(case(
            format!("R24-key-{id}"),
            &["C3", "R24"],
            Archive::of(entries).bytes(),
            Expect::Survives,
        ));
    }
}

fn unreferenced(cases: &mut Vec<Case>) {
    for (id, name) in [
        ("storage", "m/data/7"),
        ("text", "m/readme.txt"),
        ("storage-folder", "m/data/readme.txt"),
    ] {
        cases.push(
            case(
                format!("R26-{id}"),
                &["C9", "R26"],
                changed(|zip| zip.entries.push(Entry::stored(name, b"hello"))),
                Expect::Loads(&["w"]),
            )
            .scan(&["zip.unreferenced"]),
        );
    }
    // All that torch has ever put beside the storages.
    let known = beside(&second());
    let mut entries = entries(&known);
    for (name, bytes) in [
        ("m/.format_version", &b"1"[..]),
        ("m/.storage_alignment", b"64"),
        ("m/byteorder", b"little"),
        (
            "m/.data/serialization_id",
            b"0123456789012345678901234567890123456789",
        ),
    ] {
        entries.push(Entry::stored(name, bytes));
    }
    cases.push(case(
        "R26-known-records",
        &["C9", "R26"],
        Archive::of(entries).bytes(),
        Expect::Loads(&["w", "t"]),
    ));
}

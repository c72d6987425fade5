//! Files that lie, break off, contradict themselves or attack, and what is owed to each of them.
//!
//! The expectations are written by hand from a table of duties, never taken from what the reader does: the classes `C`, `P` and `T` are
//! ways in which files have fooled readers and scanners (container, pickle stream, tensor), the rows `R` are what a reader must do.
//! Every file but a few holds an honest tensor `w`; the suspect beside it is called `t`.

pub(crate) mod base;
mod bombs;
mod calls;
mod directory;
mod exotic;
mod globals;
mod headers;
mod hiding;
mod keys;
mod members;
mod operands;
pub(crate) mod outcome;
mod payloads;
mod records;
mod stack;
mod stacked;
mod strangers;
mod stream;
mod views;
mod wrappers;

/// One file of the corpus.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) id: String,
    /// What it is an instance of: `C1`..`C11`, `P1`..`P14`, `T1`..`T8`, `R1`..`R29`.
    pub(crate) classes: &'static [&'static str],
    pub(crate) bytes: Vec<u8>,
    pub(crate) expect: Expect,
    /// What it is owed when opened otherwise.
    pub(crate) also: Vec<(With, Expect)>,
    /// Findings that the scan must have; `a|b` for either.
    pub(crate) scan: &'static [&'static str],
    /// The name under which it lies on disk.
    pub(crate) file_name: &'static str,
}

/// What the caller asks for beyond the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum With {
    AllowOpaque,
    LastWins,
    AllowPrefix,
}

/// What is owed to a file.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// The file is refused, with this in the message whatever its case; `a|b` for either.
    Rejects(&'static str),
    /// It is refused because it names this.
    Unsafe(String),
    /// It is refused as something else than a checkpoint, named with these words.
    NotACheckpoint(&'static str),
    /// It holds exactly these tensors, each readable, and no problem.
    Loads(&'static [&'static str]),
    /// `w` loads; `t` is told as an inert value, a record or a problem, and is no tensor.
    Opaque,
    /// As `Opaque`, or refused as unsafe: whether the name is on the list of the worst is not for the table to say.
    OpaqueOrUnsafe,
    /// `w` loads; this name has a problem with this in its text; `a|b` for either.
    Problem(&'static str, &'static str),
    /// It opens, and the bytes of this tensor are refused with this in the message.
    Unreadable(&'static str, &'static str),
    /// `w` is never wrong, and this name is never a readable tensor; whether the whole file is refused is left open.
    Refused(&'static str),
    /// It is refused, or opens with a problem.
    NotClean,
    /// The table is silent: it does no harm, and all ways of opening it agree.
    Survives,
}

pub(crate) fn case(
    id: impl Into<String>,
    classes: &'static [&'static str],
    bytes: Vec<u8>,
    expect: Expect,
) -> Case {
    Case {
        id: id.into(),
        classes,
        bytes,
        expect,
        also: Vec::new(),
        scan: &[],
        file_name: "model.pth",
    }
}

impl Case {
    pub(crate) fn scan(mut self, ids: &'static [&'static str]) -> Case {
        self.scan = ids;
        self
    }

    pub(crate) fn also(mut self, with: With, expect: Expect) -> Case {
        self.also.push((with, expect));
        self
    }

    pub(crate) fn named(mut self, file_name: &'static str) -> Case {
        self.file_name = file_name;
        self
    }
}

/// The same pickle in both containers, over the storage of `w` and, under the key `1`, that of `t`.
pub(crate) fn both(
    id: &str,
    classes: &'static [&'static str],
    data_pkl: &[u8],
    expect: &Expect,
    scan: &'static [&'static str],
) -> [Case; 2] {
    [
        case(format!("{id}-zip"), classes, base::zip(data_pkl), expect.clone()).scan(scan),
        case(
            format!("{id}-legacy"),
            classes,
            base::legacy(data_pkl),
            expect.clone(),
        )
        .scan(scan),
    ]
}

/// The whole corpus.
pub(crate) fn all() -> Vec<Case> {
    [
        globals::cases(),
        hiding::cases(),
        operands::cases(),
        stack::cases(),
        stream::cases(),
        bombs::cases(),
        calls::cases(),
        wrappers::cases(),
        records::cases(),
        views::cases(),
        exotic::cases(),
        keys::cases(),
        members::cases(),
        headers::cases(),
        directory::cases(),
        payloads::cases(),
        strangers::cases(),
        stacked::cases(),
    ]
    .concat()
}

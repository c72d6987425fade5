//! What a file would touch if torch opened it, and what is odd about it. Nothing is run to find out.
//!
//! A list of harmful names can never be complete, so no file is ever called safe: what is said is that nothing was found, and
//! whether the whole of the file was understood.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

mod pickles;
mod tensors;

use std::collections::HashSet;

use crate::container::directory::{Member, Method};
use crate::container::zip::Archive;
use crate::container::{ends_as_zip, head, is_zip};
use crate::finding::{Finding, Severity};
use crate::pickle::read::Policy;
use crate::rebuild::{StorageClasses, key_bytes};
use crate::{Error, Format, OpenOptions, Source, diagnose, pickle, verify};

/// What a scan found.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The container, in words.
    pub format: String,
    /// Whether every pickle in the file was read to its end.
    pub is_complete: bool,
    /// Every global that a pickle in the file mentions, in order.
    pub globals: Vec<GlobalUse>,
    /// What is odd, the weightiest first.
    pub findings: Vec<Finding>,
    /// What `torch.load(weights_only=True)` of torch 2.15 would do.
    pub weights_only: WeightsOnly,
}

/// One mention of a class or function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalUse {
    /// Its module, as the file spells it.
    pub module: String,
    /// Its name in the module.
    pub name: String,
    /// The record with the pickle.
    pub record: String,
    /// Where the opcode stands in the pickle, in bytes.
    pub offset: usize,
    /// Whether the pickle calls it.
    pub is_called: bool,
    /// What to make of it.
    pub verdict: GlobalVerdict,
}

/// What to make of a global.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GlobalVerdict {
    /// On the list of `weights_only`.
    Allowed,
    /// On no list.
    Unknown,
    /// Known to run code.
    Unsafe,
}

/// What `torch.load(weights_only=True)` would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsOnly {
    /// Return the values.
    Loads,
    /// Raise, for this reason.
    Refuses {
        /// A phrase that names the first obstacle.
        reason: String,
    },
}

impl Scan {
    /// The weight of the weightiest finding.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// Looks at all of `source`: containers, pickles, globals, sizes. Content never makes it fail; what cannot be read is a finding.
pub fn scan(source: &Source) -> Scan {
    let mut scanner = Scanner {
        source,
        is_complete: true,
        globals: Vec::new(),
        findings: Vec::new(),
        refusal: None,
    };
    let format = scanner.container();
    scanner.reading();
    let Scanner {
        is_complete,
        mut globals,
        mut findings,
        refusal,
        ..
    } = scanner;
    let mut seen = HashSet::new();
    globals.retain(|global| seen.insert((global.record.clone(), global.offset, global.name.clone())));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Scan {
        format,
        is_complete,
        globals,
        findings,
        weights_only: match refusal {
            Some(reason) => WeightsOnly::Refuses { reason },
            None => WeightsOnly::Loads,
        },
    }
}

struct Scanner<'s> {
    source: &'s Source,
    is_complete: bool,
    globals: Vec<GlobalUse>,
    findings: Vec<Finding>,
    /// Why torch would refuse; the first reason.
    refusal: Option<String>,
}

impl<'s> Scanner<'s> {
    fn tell(
        &mut self,
        id: &'static str,
        severity: Severity,
        record: impl Into<String>,
        detail: impl Into<String>,
    ) {
        self.findings.push(Finding::new(id, severity, record, detail));
    }

    fn refuse(&mut self, reason: impl Into<String>) {
        self.refusal.get_or_insert_with(|| reason.into());
    }

    /// What was not understood is never clean.
    fn give_up(&mut self, id: &'static str, record: &str, detail: impl Into<String>) {
        self.is_complete = false;
        self.tell(id, Severity::High, record, detail);
    }

    /// What torch gives up on too.
    fn no_checkpoint(&mut self, id: &'static str, record: &str, detail: impl Into<String>) {
        let detail = detail.into();
        self.refuse(detail.clone());
        self.give_up(id, record, detail);
    }

    fn container(&mut self) -> String {
        let head = match head(self.source) {
            Ok(head) => head,
            Err(error) => {
                self.no_checkpoint("not-a-checkpoint", "file", error.to_string());
                return "unreadable".to_owned();
            }
        };
        let options = OpenOptions {
            allow_prefix: true,
            ..OpenOptions::default()
        };
        if is_zip(self.source, &options).unwrap_or(false) {
            if !head.starts_with(b"PK\x03\x04") {
                self.refuse("torch does not take a zip archive with bytes in front for one");
                self.stream();
            }
            self.zip();
            return Format::Zip.to_string();
        }
        if ends_as_zip(self.source) {
            let detail = "a zip archive lies at its end: one file, read in two ways";
            self.tell("zip.prefix", Severity::Critical, "file", detail);
        }
        if let Some(found) = diagnose::not_a_pickle(&head) {
            self.no_checkpoint("not-a-checkpoint", "file", found);
            return "unknown".to_owned();
        }
        self.stream();
        Format::Legacy.to_string()
    }

    fn zip(&mut self) {
        let mut findings = Vec::new();
        let mut keep = |finding| {
            findings.push(finding);
            Ok(())
        };
        let archive = Archive::read(self.source, true, &mut keep);
        if let Ok(archive) = &archive
            && archive.find("data.pkl").is_none()
            && (archive.root.is_some() || archive.has_pickle_anywhere())
        {
            // The reader has no interest in the names of an archive that is no checkpoint.
            let _ = archive.check_names(&mut keep);
        }
        self.findings.append(&mut findings);
        let archive = match archive {
            Ok(archive) => archive,
            Err(error) => return self.no_checkpoint("zip.broken", "central directory", error.to_string()),
        };
        let is_code = |member: &Member| {
            let inner = archive.inner(archive.directory.name(member));
            inner.is_some_and(|inner| inner.starts_with(b"code/"))
        };
        if archive.directory.members.iter().any(is_code) {
            let detail = "it holds code as TorchScript does; it is never parsed here";
            self.tell("torchscript.code", Severity::Flag, "archive", detail);
        }
        self.what_torch_demands(&archive);
        if let Some(found) = archive.is_something_else() {
            let id = if archive.find("constants.pkl").is_some() {
                "torchscript.code"
            } else {
                "not-a-checkpoint"
            };
            self.tell(id, Severity::Flag, "archive", found);
            self.refuse(found);
        } else if archive.find("data.pkl").is_none() {
            self.no_checkpoint("not-a-checkpoint", "archive", archive.without_pickle());
        }
        let main = archive.find("data.pkl").map(|member| member.header_start);
        let referenced = self.referenced(&archive);
        let mut n_without_crc = 0_usize;
        for member in &archive.directory.members {
            let name = archive.directory.text(member);
            if member.data.is_empty() && member.size > 0 {
                // Told by the directory already.
                self.is_complete = false;
                continue;
            }
            if matches!(member.method, Method::Other(_)) {
                self.is_complete = false;
                continue;
            }
            let is_main = Some(member.header_start) == main;
            match verify::member(&archive, self.source, member) {
                Ok(()) => {}
                Err(error) => self.tell("zip.crc", Severity::High, name.clone(), fault_of(&error)),
            }
            n_without_crc = n_without_crc.saturating_add(usize::from(member.crc == 0 && member.size > 0));
            if member.method == Method::Deflated {
                self.tell("zip.deflated", Severity::Note, name.clone(), "it is compressed");
            }
            let inner = archive.inner(archive.directory.name(member)).unwrap_or_default();
            let key = inner.strip_prefix(b"data/");
            let is_storage = key.is_some_and(|key| referenced.contains(key));
            if !is_main && !is_storage && !is_known(inner) && !name.ends_with('/') {
                let detail = "nothing in the checkpoint refers to it";
                self.tell("zip.unreferenced", Severity::Flag, name.clone(), detail);
            }
            if is_main {
                self.main_pickle(&archive, member, &name);
            } else if !is_storage {
                self.sniff(&archive, member, &name);
            }
        }
        if n_without_crc > 0 {
            let detail =
                format!("{n_without_crc} records have no CRC, so that damage to them cannot be seen");
            self.tell("zip.no-crc", Severity::Note, "archive", detail);
        }
    }

    /// The rules of torch's own reader of archives. [caffe2/serialize/inline_container.cc]
    fn what_torch_demands(&mut self, archive: &Archive<'_>) {
        let Some(root) = &archive.root else {
            return self.refuse("its records are not in a folder");
        };
        for member in &archive.directory.members {
            if archive.inner(archive.directory.name(member)).is_none() {
                let name = archive.directory.text(member);
                return self.refuse(format!("record `{name}` is not in the folder `{root}`"));
            }
            if let Method::Other(method) = member.method {
                return self.refuse(format!("a record is compressed by method {method}"));
            }
        }
        let version = archive.find("version").or_else(|| archive.find(".data/version"));
        let number = version.and_then(|member| {
            let text = archive.small(self.source, member).ok()?;
            std::str::from_utf8(&text).ok()?.trim().parse::<u32>().ok()
        });
        match number {
            Some(1..=10) => {}
            _ => self.refuse("its `version` record is missing or not one of 1 to 10"),
        }
        let byte_order = archive
            .find("byteorder")
            .and_then(|member| archive.small(self.source, member).ok());
        match byte_order.as_deref() {
            None | Some(b"little") => {}
            Some(b"big") => {
                self.tell(
                    "byte-order",
                    Severity::Note,
                    "byteorder",
                    "its numbers are big-endian",
                );
            }
            Some(_) => {
                self.tell(
                    "byte-order",
                    Severity::High,
                    "byteorder",
                    "neither `little` nor `big`",
                );
                self.refuse("its `byteorder` record is neither `little` nor `big`");
            }
        }
    }

    /// Keys of the storages that the main pickle refers to.
    fn referenced(&self, archive: &Archive<'_>) -> HashSet<Vec<u8>> {
        let mut keys = HashSet::new();
        let Some(member) = archive.find("data.pkl") else {
            return keys;
        };
        let Ok(text) = archive.unchecked(self.source, member) else {
            return keys;
        };
        let Ok((arena, _)) = pickle::read::read(text, "data.pkl", Policy::Read) else {
            return keys;
        };
        let mut classes = StorageClasses::default();
        for id in arena.ids() {
            if let Some(reference) = classes.reference(&arena, id)
                && let Some(key) = key_bytes(&arena, reference.key)
            {
                keys.insert(key.into_owned());
            }
        }
        keys
    }
}

/// What is wrong, without the record's name in front.
fn fault_of(error: &Error) -> String {
    match error {
        Error::Container { fault, .. } => fault.clone(),
        other => other.to_string(),
    }
}

/// Records that torch writes beside the pickle and the storages.
fn is_known(inner: &[u8]) -> bool {
    matches!(
        inner,
        b"version"
            | b"byteorder"
            | b".format_version"
            | b".storage_alignment"
            | b".data/serialization_id"
            | b".data/version"
            | b"constants.pkl"
    ) || inner.starts_with(b"code/")
        || inner.starts_with(b"extra/")
        || inner.starts_with(b"constants/")
}

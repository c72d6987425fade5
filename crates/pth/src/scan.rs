//! What a file would touch if torch opened it, and what is odd about it. Nothing is run to find out.
//!
//! A list of harmful names can never be complete, so no file is ever called safe: what is said is that nothing was found, and
//! whether the whole of the file was understood.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashSet;

use crate::container::directory::{Member, Method, bytes_of};
use crate::container::zip::Archive;
use crate::container::{ends_as_zip, head, is_zip, legacy};
use crate::error::{PickleFault, TensorFault};
use crate::finding::{Finding, Severity};
use crate::pickle::read::{Broken, Mention, Policy};
use crate::pickle::safety;
use crate::rebuild::{StorageClasses, key_bytes};
use crate::weights_only::{self, GlobalRule, Place};
use crate::{
    Checkpoint, DType, Error, Format, OpenOptions, Record, RecordKind, Source, diagnose, limits, pickle,
    verify,
};

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

    fn main_pickle(&mut self, archive: &Archive<'_>, member: &Member, name: &str) {
        // As torch reads it: without a look at the CRC.
        match archive.unchecked(self.source, member) {
            Ok(text) => {
                let end = self.pickle(&text, name, Place::Zip, 0);
                if let Some(end) = end.filter(|&end| end < text.len()) {
                    let n_bytes = text.len().saturating_sub(end);
                    let detail = format!("{n_bytes} bytes after the pickle's end");
                    self.tell("pickle.trailing", Severity::High, name, detail);
                    self.sniff_bytes(text.get(end..).unwrap_or_default(), name, end);
                }
            }
            Err(error) => self.no_checkpoint("pickle.broken", name, fault_of(&error)),
        }
    }

    /// A member that torch does not look at may still be meant for somebody.
    fn sniff(&mut self, archive: &Archive<'_>, member: &Member, name: &str) {
        let is_named = [".pkl", ".pickle", ".debug_pkl"]
            .iter()
            .any(|ending| name.to_ascii_lowercase().ends_with(ending));
        if member.size > limits::MAX_PICKLE_BYTES {
            return self.give_up("pickle.nested", name, "it is too large to be looked at");
        }
        let Ok(text) = archive.unchecked(self.source, member) else {
            return;
        };
        if is_named || looks_like_pickle(&text) {
            self.nested(&text, name, 0);
        }
    }

    /// Pickles one after the other, as the older format has them, and as an attack might.
    fn stream(&mut self) {
        const NAMES: [&str; 5] = [
            "magic number",
            "protocol version",
            "system",
            "object",
            "storage keys",
        ];
        let mut at = 0_usize;
        let mut is_torch = true;
        for (i, name) in NAMES.iter().enumerate() {
            let place = if *name == "object" {
                Place::Legacy
            } else {
                Place::Bare
            };
            let Some(end) = self.stream_pickle(at, name, place, i == 0) else {
                return;
            };
            if i == 0 {
                is_torch = legacy::has_magic(self.source);
                if !is_torch {
                    self.no_checkpoint(
                        "not-a-checkpoint",
                        "file",
                        "its first pickle is not torch's magic number",
                    );
                }
            }
            at = end;
            if at >= self.source.len() {
                if i < NAMES.len().saturating_sub(1) && is_torch {
                    self.no_checkpoint("pickle.broken", name, "the file ends before all five pickles");
                }
                return;
            }
        }
        // Behind the storages, whose end only reading tells.
        let options = OpenOptions {
            allow_opaque: true,
            ..OpenOptions::default()
        };
        // Of a failure `reading` tells.
        if let Ok(container) = legacy::open(self.source, &options) {
            if !container.sources.is_empty() {
                let detail = format!(
                    "it carries the Python source of {} classes",
                    container.sources.len()
                );
                self.tell("legacy.source", Severity::Note, "object", detail);
            }
            if let Some((start, n_bytes)) = container.trailing {
                let detail = format!("{n_bytes} bytes behind the checkpoint, from byte {start} on");
                self.tell("pickle.trailing", Severity::Flag, "file", detail);
                let end = start.saturating_add(n_bytes.min(limits::MAX_PICKLE_BYTES));
                match bytes_of(self.source, start..end) {
                    Ok(rest) => self.sniff_bytes(&rest, "behind the checkpoint", start),
                    Err(error) => self.give_up("pickle.trailing", "file", error.to_string()),
                }
            }
        }
    }

    /// One pickle of a stream; returns where it ends.
    fn stream_pickle(&mut self, at: usize, name: &str, place: Place, is_first: bool) -> Option<usize> {
        let most = self.source.len().saturating_sub(at).min(limits::MAX_PICKLE_BYTES);
        let mut window = most.min(1 << 20);
        loop {
            let text = match bytes_of(self.source, at..at.saturating_add(window)) {
                Ok(text) => text,
                Err(error) => {
                    self.give_up("pickle.broken", name, error.to_string());
                    return None;
                }
            };
            let (_, taken, broken) = pickle::read::survey(&text);
            if broken.is_some() && window < most {
                window = window.saturating_mul(4).min(most);
                continue;
            }
            if is_first && broken.is_some() && !looks_like_pickle(&text) {
                let found = diagnose::unknown(text.get(..text.len().min(64)).unwrap_or_default());
                self.no_checkpoint("not-a-checkpoint", "file", found);
                self.survey(&text, name, 0);
                return None;
            }
            self.pickle(&text, name, place, 0);
            return broken.is_none().then(|| at.saturating_add(taken));
        }
    }

    /// One pickle that torch reads. Returns where it ends.
    fn pickle(&mut self, text: &[u8], record: &str, place: Place, depth: usize) -> Option<usize> {
        if let Some(refusal) = weights_only::refusal(text, place) {
            self.refuse(format!(
                "{} (byte {} of `{record}`)",
                refusal.reason, refusal.offset
            ));
        }
        self.survey(text, record, depth)
    }

    /// Globals and nested pickles. Returns where the pickle ends.
    fn survey(&mut self, text: &[u8], record: &str, depth: usize) -> Option<usize> {
        let (mentions, taken, broken) = pickle::read::survey(text);
        for mention in mentions {
            self.mention(mention, record);
        }
        if let Some(Broken { offset, kind }) = broken {
            let id = match &kind {
                PickleFault::UnknownOpcode(_) => "pickle.opcode",
                PickleFault::Frame { .. } | PickleFault::FrameCrossed | PickleFault::FrameInFrame => {
                    "pickle.frame"
                }
                PickleFault::TooDeep => "pickle.nesting",
                _ => "pickle.broken",
            };
            self.give_up(id, record, format!("broken at byte {offset}: {kind}"));
            // What a reader that survives the fault would come to.
            for mention in resynchronised(text, offset) {
                self.mention(mention, record);
            }
            return None;
        }
        self.texts_within(text.get(..taken).unwrap_or_default(), record, depth);
        Some(taken)
    }

    fn mention(&mut self, mention: Mention, record: &str) {
        let Mention {
            module,
            name,
            offset,
            is_called,
        } = mention;
        let is_unsafe =
            safety::is_unsafe(&module, &name) || is_called && safety::is_unsafe_call(&module, &name);
        let verdict = match weights_only::is_allowed(&module, &name) {
            _ if is_unsafe => GlobalVerdict::Unsafe,
            GlobalRule::Blocked => GlobalVerdict::Unsafe,
            GlobalRule::Allowed => GlobalVerdict::Allowed,
            GlobalRule::Unknown => GlobalVerdict::Unknown,
        };
        let known_module = module.starts_with("torch.nn.") || module.starts_with("__torch__");
        match verdict {
            GlobalVerdict::Allowed => {}
            GlobalVerdict::Unsafe => {
                let detail = format!("{module}.{name} at byte {offset} could run code");
                self.tell("global.unsafe", Severity::Critical, record, detail);
            }
            GlobalVerdict::Unknown => {
                let severity = if is_called && !known_module {
                    Severity::High
                } else {
                    Severity::Flag
                };
                let what = if is_called { "called" } else { "mentioned" };
                let detail = format!("{module}.{name} is {what} at byte {offset} and on no list");
                self.tell("global.unknown", severity, record, detail);
            }
        }
        self.globals.push(GlobalUse {
            module,
            name,
            record: record.to_owned(),
            offset,
            is_called,
            verdict,
        });
    }

    /// Pickles inside of texts and bytes.
    fn texts_within(&mut self, text: &[u8], record: &str, depth: usize) {
        /// Pickles in pickles in pickles: deeper ones are told of, and not looked into.
        const MAX_NESTED: usize = 4;
        let mut found: Vec<Vec<u8>> = Vec::new();
        for bytes in pickle::read::long_texts(text) {
            if looks_like_pickle(bytes) {
                found.push(bytes.to_vec());
                continue;
            }
            // Protocol 2 spells bytes as Latin-1 text.
            let latin: Option<Vec<u8>> = std::str::from_utf8(bytes)
                .ok()
                .filter(|text| text.starts_with('\u{80}'))
                .and_then(|text| text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect());
            found.extend(latin.filter(|bytes| looks_like_pickle(bytes)));
        }
        for bytes in found {
            if depth >= MAX_NESTED {
                self.give_up("pickle.nested", record, "pickles nested beyond all measure");
                return;
            }
            self.nested(&bytes, record, depth.saturating_add(1));
        }
    }

    fn sniff_bytes(&mut self, bytes: &[u8], record: &str, at: usize) {
        if looks_like_pickle(bytes) || bytes.starts_with(b"PK\x03\x04") {
            self.tell(
                "pickle.nested",
                Severity::Flag,
                record,
                format!("something begins at byte {at}"),
            );
            self.survey_all(bytes, record);
        }
    }

    /// A pickle that torch itself would not read.
    fn nested(&mut self, bytes: &[u8], record: &str, depth: usize) {
        self.tell(
            "pickle.nested",
            Severity::Flag,
            record,
            "a pickle that torch does not read by itself",
        );
        let (mentions, _, broken) = pickle::read::survey(bytes);
        for mention in mentions {
            self.mention(mention, record);
        }
        if broken.is_none() {
            self.texts_within(bytes, record, depth);
        }
    }

    /// Every pickle from the start of `bytes` on.
    fn survey_all(&mut self, bytes: &[u8], record: &str) {
        let mut rest = bytes;
        loop {
            let (mentions, taken, broken) = pickle::read::survey(rest);
            for mention in mentions {
                self.mention(mention, record);
            }
            if broken.is_some() || taken == 0 {
                return;
            }
            rest = rest.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return;
            }
        }
    }

    /// What reading comes across: sizes, extents, keys.
    fn reading(&mut self) {
        let lenient = OpenOptions {
            allow_opaque: true,
            allow_prefix: true,
            ..OpenOptions::default()
        };
        match Checkpoint::from_source(self.source.clone(), &lenient) {
            Ok(checkpoint) => {
                for problem in checkpoint.problems() {
                    self.problem(&problem.name, &problem.fault, checkpoint.format() == Format::Zip);
                }
                for (name, record) in checkpoint.records() {
                    let detail = format!("a {} tensor", record.kind.as_str());
                    self.tell("tensor.exotic", Severity::Note, name, detail);
                    if let Some(fault) = index_outside(record) {
                        self.refuse(format!("tensor `{name}`: {fault}"));
                        self.tell("tensor.extent", Severity::High, name, fault);
                    }
                }
                for (name, tensor) in checkpoint.all_tensors() {
                    if is_rare(tensor.dtype()) {
                        let detail = format!("its type {} is one that few programs read", tensor.dtype());
                        self.tell("tensor.exotic", Severity::Note, name, detail);
                    }
                    let limit = limits::FREE_EXPANSION_BYTES
                        .max(tensor.storage().nbytes().saturating_mul(limits::MAX_EXPANSION));
                    if tensor.nbytes() > limit {
                        let detail = format!(
                            "it repeats {} bytes to {}",
                            tensor.storage().nbytes(),
                            tensor.nbytes()
                        );
                        self.tell("tensor.stride-zero", Severity::Flag, name, detail);
                    }
                }
            }
            Err(error) => self.failure(&error),
        }
        // Nothing that a reader refuses may pass for clean.
        if let Err(error) = Checkpoint::from_source(self.source.clone(), &OpenOptions::default())
            && self
                .findings
                .iter()
                .all(|finding| finding.severity < Severity::Flag)
        {
            self.failure(&error);
        }
    }

    fn problem(&mut self, name: &str, fault: &TensorFault, is_zip: bool) {
        let (id, severity) = match fault {
            TensorFault::Outside { .. }
            | TensorFault::RankMismatch { .. }
            | TensorFault::TooManyDimensions(_)
            | TensorFault::Overflow { .. } => ("tensor.extent", Severity::High),
            TensorFault::MissingStorage(_) | TensorFault::StorageDType { .. } => {
                ("storage.size", Severity::High)
            }
            TensorFault::DuplicateName => ("tensor.name", Severity::Flag),
            TensorFault::Malformed(what) if what.contains("natural number") => {
                ("tensor.extent", Severity::High)
            }
            TensorFault::Malformed(what) if what.starts_with("storage ") => ("storage.size", Severity::High),
            TensorFault::Malformed(_) => ("tensor.malformed", Severity::High),
            _ => ("tensor.exotic", Severity::Note),
        };
        // A legacy file's views are clamped, and its storages may stay unfilled; what else is odd here torch does not look at.
        let is_refused = match fault {
            TensorFault::Outside { .. } | TensorFault::MissingStorage(_) => is_zip,
            TensorFault::Malformed(_) if id == "storage.size" => true,
            _ => id == "tensor.extent",
        };
        if is_refused {
            self.refuse(format!("tensor `{name}`: {fault}"));
        }
        self.tell(id, severity, name, fault.to_string());
    }

    fn failure(&mut self, error: &Error) {
        let text = error.to_string();
        let (id, record) = match error {
            Error::Tensor { name, fault } => match fault {
                TensorFault::DuplicateKey => ("dict.duplicate-key", name.clone()),
                _ => ("storage.size", name.clone()),
            },
            Error::Limit { .. } => ("pickle.nesting", "object".to_owned()),
            Error::Container { record, .. } if record.starts_with("storage") => {
                ("storage.size", record.clone())
            }
            Error::Container { record, .. } => ("zip.broken", record.clone()),
            Error::NotACheckpoint { .. } => ("not-a-checkpoint", "file".to_owned()),
            Error::Unsafe { record, .. } => ("global.unsafe", record.clone()),
            _ => ("pickle.broken", "file".to_owned()),
        };
        // The same thing may have been found on the way already.
        let is_told = self.findings.iter().any(|finding| {
            finding.severity >= Severity::High && (finding.id == id || text.contains(&finding.detail))
        });
        // torch's own checks: of a legacy file's counts and keys, and of the size of a storage that is referred to.
        let is_refused = match error {
            Error::Tensor { fault, .. } => fault.condemns_the_file(),
            Error::Container { record, .. } => record.starts_with("storage ") || record == "protocol version",
            Error::NotACheckpoint { .. } => true,
            _ => false,
        };
        if is_refused {
            self.refuse(text.clone());
        }
        if !is_told {
            self.tell(id, Severity::High, record, text);
        }
    }
}

/// An index of a sparse tensor that is outside of its shape.
fn index_outside(record: &Record) -> Option<String> {
    let RecordKind::SparseCoo { .. } = record.kind else {
        return None;
    };
    let indices = record.part("indices")?;
    let &[_, nnz] = indices.shape() else {
        return None;
    };
    let bytes = indices.to_bytes().ok()?;
    let mut values = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|&index| i64::from_le_bytes(index));
    for (dim, &size) in record.shape.iter().enumerate().take(*indices.shape().first()?) {
        for _ in 0..nnz {
            let index = values.next()?;
            if usize::try_from(index).map_or(true, |index| index >= size) {
                return Some(format!("index {index} of dimension {dim}, whose size is {size}"));
            }
        }
    }
    None
}

fn is_rare(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::Complex32
            | DType::BComplex32
            | DType::Float4E2M1FnX2
            | DType::Bits8
            | DType::Bits16
            | DType::Bits1x8
            | DType::Bits2x4
            | DType::Bits4x2
    )
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

/// Whether bytes begin as a pickle of protocol 2 to 5 does, or are one of an older protocol that mentions a global.
fn looks_like_pickle(bytes: &[u8]) -> bool {
    match bytes {
        [0x80, 2..=5, ..] => true,
        [
            b'(' | b'c' | b']' | b'}' | b')' | b'I' | b'S' | b'V' | b'L' | b'i',
            ..,
        ] => {
            let (mentions, _, broken) = pickle::read::survey(bytes);
            !mentions.is_empty() || broken.is_none() && bytes.len() > 8
        }
        _ => false,
    }
}

/// Globals in what follows a fault, by the looks of their opcode.
fn resynchronised(text: &[u8], from: usize) -> Vec<Mention> {
    const MAX_NAME_BYTES: usize = 200;
    let line = |start: usize| {
        let rest = text.get(start..)?;
        let rest = rest.get(..rest.len().min(MAX_NAME_BYTES))?;
        let len = rest.iter().position(|&byte| byte == b'\n')?;
        let name = rest.get(..len)?;
        let is_name = name
            .first()
            .is_some_and(|&byte| byte.is_ascii_alphabetic() || byte == b'_')
            && name
                .iter()
                .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.');
        let name = std::str::from_utf8(name).ok().filter(|_| is_name)?;
        Some((name.to_owned(), start.saturating_add(len).saturating_add(1)))
    };
    let mut mentions = Vec::new();
    for (at, &byte) in text.iter().enumerate().skip(from) {
        if byte != b'c' && byte != b'i' {
            continue;
        }
        let Some((module, next)) = line(at.saturating_add(1)) else {
            continue;
        };
        let Some((name, _)) = line(next) else {
            continue;
        };
        mentions.push(Mention {
            module,
            name,
            offset: at,
            is_called: true,
        });
    }
    mentions
}

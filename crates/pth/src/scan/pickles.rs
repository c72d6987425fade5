//! The pickles of a file, those that torch reads and those that somebody else might.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{GlobalUse, GlobalVerdict, Scanner, fault_of};
use crate::container::directory::{Member, bytes_of};
use crate::container::legacy;
use crate::container::zip::Archive;
use crate::error::PickleFault;
use crate::finding::Severity;
use crate::pickle::read::{Broken, Mention};
use crate::pickle::safety;
use crate::weights_only::{self, GlobalRule, Place};
use crate::{OpenOptions, diagnose, limits, pickle};

impl<'s> Scanner<'s> {
    pub(super) fn main_pickle(&mut self, archive: &Archive<'_>, member: &Member, name: &str) {
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
    pub(super) fn sniff(&mut self, archive: &Archive<'_>, member: &Member, name: &str) {
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
    pub(super) fn stream(&mut self) {
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

//! The zip container: `<root>/data.pkl` and `<root>/data/<key>`.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use flate2::read::DeflateDecoder;

use super::directory::{self, Directory, Member, Method, bytes_of};
use super::{Container, Format, Keys, OpenOptions};
use crate::error::PickleFault;
use crate::finding::{Finding, Severity, Sink};
use crate::storage::{ByteOrder, Key, SourceReader, Table, number};
use crate::{Error, Source, diagnose, limits, pickle};

/// Opens the archive. What is wrong with the container goes to `sink`, which decides whether to go on.
pub(super) fn open<'s>(
    source: &'s Source,
    options: &OpenOptions,
    sink: Sink<'_>,
) -> Result<Container<'s>, Error> {
    let archive = Archive::read(source, options.allow_prefix, sink)?;
    if let Some(found) = archive.is_something_else() {
        return Err(Error::not_a_checkpoint(found));
    }
    let Some(data_pkl) = archive.find("data.pkl") else {
        return Err(Error::not_a_checkpoint(archive.without_pickle()));
    };
    let byte_order = match options.byte_order {
        Some(byte_order) => byte_order,
        None => archive.byte_order(source)?,
    };
    let text = archive.contents(source, data_pkl)?;
    let record = archive.directory.text(data_pkl);
    let (table, keys) = archive.storages(source, byte_order);
    // The directory has served; the arena to come needs the memory.
    drop(archive);
    let n_bytes = text.len();
    let (arena, taken) = pickle::read::read(text, &record, options.policy())?;
    if taken != n_bytes {
        return Err(Error::Format {
            record,
            offset: taken,
            kind: PickleFault::Trailing(n_bytes.saturating_sub(taken)),
        });
    }
    Ok(Container {
        format: Format::Zip,
        arena,
        table: Arc::new(table),
        keys,
        unreadable: HashMap::new(),
        sources: Vec::new(),
        trailing: None,
    })
}

/// The directory, and what the names in it mean.
pub(crate) struct Archive<'s> {
    pub(crate) directory: Directory<'s>,
    /// What stands before the first slash of the first name.
    pub(crate) root: Option<String>,
    /// The members that are no storages, by index; few, where storages are many.
    few: Vec<usize>,
}

impl<'s> Archive<'s> {
    pub(crate) fn read(source: &'s Source, allow_prefix: bool, sink: Sink<'_>) -> Result<Archive<'s>, Error> {
        let directory = directory::read(source, allow_prefix, sink)?;
        let first = directory.members.first().map(|member| directory.text(member));
        let root = first
            .as_deref()
            .and_then(|name| name.split_once('/'))
            .map(|(root, _)| root.to_owned())
            .filter(|root| !root.is_empty());
        let mut archive = Archive {
            directory,
            root,
            few: Vec::new(),
        };
        let members = archive.directory.members.iter().enumerate();
        let few = members.filter(|(_, member)| archive.storage_key(archive.directory.name(member)).is_none());
        archive.few = few.map(|(index, _)| index).collect();
        // Of archives that are something else, the names mean something else.
        if archive.is_something_else().is_none() && archive.find("data.pkl").is_some() {
            archive.check_names(sink)?;
        }
        Ok(archive)
    }

    /// The name within the root; none outside of it.
    pub(crate) fn inner<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let root = self.root.as_ref()?;
        name.strip_prefix(root.as_bytes())?.strip_prefix(b"/")
    }

    /// The key of a storage.
    pub(crate) fn storage_key<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        self.inner(name)?.strip_prefix(b"data/")
    }

    /// The member that torch would take for `<root>/name`: it does not tell capitals from small letters.
    pub(crate) fn find(&self, name: &str) -> Option<&Member> {
        let mut few = self
            .few
            .iter()
            .filter_map(|&index| self.directory.members.get(index));
        few.find(|member| {
            self.inner(self.directory.name(member))
                .is_some_and(|inner| inner.eq_ignore_ascii_case(name.as_bytes()))
        })
    }

    /// Whether a member is called `data.pkl` in a folder, however the folder is spelled.
    pub(crate) fn has_pickle_anywhere(&self) -> bool {
        let mut names = self
            .directory
            .members
            .iter()
            .map(|member| self.directory.name(member));
        names.any(|name| {
            let folded = name.to_ascii_lowercase();
            folded.ends_with(b"/data.pkl") || folded.ends_with(b"\\data.pkl")
        })
    }

    /// Names that torch would confuse, and names outside the root.
    pub(crate) fn check_names(&self, sink: Sink<'_>) -> Result<(), Error> {
        let n_members = self.directory.members.len();
        // Storages are numbered, and there are many: they are ticked off.
        let mut numbered = vec![false; n_members.saturating_add(1)];
        let mut others: HashSet<Vec<u8>> = HashSet::new();
        let root = self.root.as_deref().unwrap_or_default().to_ascii_lowercase();
        for member in &self.directory.members {
            let name = self.directory.name(member);
            let tell =
                |id, severity, detail: &str| Finding::new(id, severity, self.directory.text(member), detail);
            let inner = self.inner(name);
            let storage = inner.and_then(|inner| inner.strip_prefix(b"data/"));
            let mut is_known = |key: &[u8]| {
                let slot = number(key).and_then(|key| numbered.get_mut(usize::try_from(key).ok()?));
                slot.map(|slot| std::mem::replace(slot, true))
            };
            let is_twice = match storage.and_then(&mut is_known) {
                // A number is no odd name.
                Some(false) => continue,
                Some(true) => true,
                None => {
                    let folded = name.to_ascii_lowercase();
                    let folded: Vec<u8> = folded
                        .iter()
                        .map(|&b| if b == b'\\' { b'/' } else { b })
                        .collect();
                    let key = folded
                        .strip_prefix(root.as_bytes())
                        .and_then(|rest| rest.strip_prefix(b"/data/"));
                    match key.and_then(&mut is_known) {
                        Some(is_twice) => is_twice,
                        None => !others.insert(folded),
                    }
                }
            };
            if is_twice {
                sink(tell(
                    "zip.duplicate",
                    Severity::Critical,
                    "a second record of this name",
                ))?;
            }
            if inner.is_none() {
                let detail = format!("it lies outside the archive's root `{root}/`");
                sink(tell("zip.root", Severity::High, &detail))?;
            }
            let is_odd = name
                .iter()
                .any(|&byte| byte < b' ' || byte == 0x7f || byte == b'\\')
                || name.starts_with(b"/")
                || name
                    .split(|&byte| byte == b'/')
                    .any(|part| part == b".." || part == b".")
                || name.get(1) == Some(&b':');
            // Marks that turn the direction of writing round, and so hide what a name is.
            let is_turned = storage.is_none()
                && String::from_utf8_lossy(name)
                    .chars()
                    .any(|c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
            if is_odd || is_turned {
                sink(tell(
                    "zip.name",
                    Severity::Flag,
                    "a name that would be unsafe to extract",
                ))?;
            }
        }
        Ok(())
    }

    fn byte_order(&self, source: &Source) -> Result<ByteOrder, Error> {
        let Some(member) = self.find("byteorder") else {
            return Ok(ByteOrder::Little);
        };
        match self.small(source, member)?.as_slice() {
            b"little" => Ok(ByteOrder::Little),
            b"big" => Ok(ByteOrder::Big),
            other => {
                let found = String::from_utf8_lossy(other);
                let fault = format!("expected `little` or `big`, found `{found}`");
                Err(Error::container(self.directory.text(member), fault))
            }
        }
    }

    /// Every record below `data/`.
    fn storages(&self, source: &Source, byte_order: ByteOrder) -> (Table, Keys) {
        let members = &self.directory.members;
        let mut table = Table::new(source.clone(), byte_order);
        let mut keys = Keys::new(members.len());
        table.reserve(members.len());
        for member in members {
            let Some(key) = self.storage_key(self.directory.name(member)) else {
                continue;
            };
            let text = String::from_utf8_lossy(key);
            // Zero is what torch writes when told not to compute it.
            let crc = (member.crc != 0).then_some(member.crc);
            let (name, data) = (Key::new(&text), member.data.clone());
            let index = match member.method {
                Method::Deflated => table.push_deflated(name, data, member.size, crc),
                _ => table.push(name, data, crc),
            };
            keys.insert(key, index);
        }
        (table, keys)
    }

    /// A member that is interpreted as a whole, its CRC checked where it has one.
    pub(crate) fn contents<'t>(&self, source: &'t Source, member: &Member) -> Result<Cow<'t, [u8]>, Error> {
        let bytes = self.unchecked(source, member)?;
        if member.crc != 0 {
            let found = crc32fast::hash(&bytes);
            if found != member.crc {
                let fault = format!("its CRC is {found:08x}, expected {:08x}", member.crc);
                return Err(Error::container(self.directory.text(member), fault));
            }
        }
        Ok(bytes)
    }

    /// The same without a look at the CRC, as torch reads it.
    pub(crate) fn unchecked<'t>(&self, source: &'t Source, member: &Member) -> Result<Cow<'t, [u8]>, Error> {
        let name = || self.directory.text(member);
        let limit = limits::MAX_PICKLE_BYTES;
        if member.size > limit {
            return Err(Error::Limit {
                what: format!("reading `{}`", name()),
                needed: u64::try_from(member.size).unwrap_or(u64::MAX),
                limit: u64::try_from(limit).unwrap_or(u64::MAX),
            });
        }
        match member.method {
            Method::Deflated => Ok(Cow::Owned(self.inflate(source, member)?)),
            _ => bytes_of(source, member.data.clone()),
        }
    }

    fn inflate(&self, source: &Source, member: &Member) -> Result<Vec<u8>, Error> {
        let fault = |fault| Error::container(self.directory.text(member), fault);
        let reader = SourceReader::new(source, member.data.clone());
        let declared = u64::try_from(member.size).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        // One byte more than declared shows a member that goes on.
        DeflateDecoder::new(reader)
            .take(declared.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| fault(format!("it cannot be inflated: {error}")))?;
        if bytes.len() != member.size {
            let found = if bytes.len() > member.size {
                "more".to_owned()
            } else {
                bytes.len().to_string()
            };
            return Err(fault(format!(
                "it inflates to {found} bytes, declared are {declared}"
            )));
        }
        Ok(bytes)
    }

    /// A member of a few bytes.
    pub(crate) fn small(&self, source: &Source, member: &Member) -> Result<Vec<u8>, Error> {
        const MAX_BYTES: usize = 64;
        if member.size > MAX_BYTES {
            let fault = format!("{} bytes, expected at most {MAX_BYTES}", member.size);
            return Err(Error::container(self.directory.text(member), fault));
        }
        Ok(self.contents(source, member)?.into_owned())
    }

    /// What the archive is, if it is of PyTorch's making and not a plain checkpoint.
    pub(crate) fn is_something_else(&self) -> Option<&'static str> {
        diagnose::other_archive(|name| self.find(name).is_some())
    }

    /// What an archive without `data.pkl` is.
    pub(crate) fn without_pickle(&self) -> String {
        let members = &self.directory.members;
        let names: Vec<String> = members.iter().map(|member| self.directory.text(member)).collect();
        diagnose::zip_without_pickle(&names)
    }
}

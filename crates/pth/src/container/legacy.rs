//! The container of torch 0.1.10 to 1.5: five pickles (magic number, protocol, system, object, storage keys), then the storages.
//!
//! Storages are little-endian whatever the system entry says: writers on big-endian machines converted.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::directory::bytes_of;
use super::{Container, Format, Keys, ModuleSource, OpenOptions, head};
use crate::error::PickleFault;
use crate::pickle::read::Policy;
use crate::pickle::{Arena, Node, NodeId};
use crate::rebuild::StorageClasses;
use crate::storage::{ByteOrder, Key, Table};
use crate::{Error, Source, diagnose, limits, pickle};

/// `torch.serialization.MAGIC_NUMBER`, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

pub(crate) fn open<'s>(source: &'s Source, options: &OpenOptions) -> Result<Container<'s>, Error> {
    let head = head(source)?;
    if let Some(found) = diagnose::not_a_pickle(&head) {
        return Err(Error::not_a_checkpoint(found));
    }
    let mut stream = Stream::new(source, options.policy());
    let magic = match stream.pickle("magic number") {
        Ok(magic) => magic,
        Err(error @ (Error::Unsafe { .. } | Error::File(_))) => return Err(error),
        Err(_) => return Err(Error::not_a_checkpoint(diagnose::unknown(&head))),
    };
    if !is_magic(&magic) {
        return Err(Error::not_a_checkpoint(diagnose::plain_pickle(&magic)));
    }
    let protocol = stream.pickle("protocol version")?;
    if protocol.int(protocol.root()) != Some(PROTOCOL) {
        let found = pickle::render::render(&protocol, protocol.root());
        let fault = format!("expected {PROTOCOL}, found {found}");
        return Err(Error::container("protocol version", fault));
    }
    stream.pickle("system")?;
    let arena = stream.pickle("object")?;
    let keys = stream.pickle("storage keys")?;
    let mut container = Container {
        format: Format::Legacy,
        sources: module_sources(&arena),
        arena,
        table: Arc::new(Table::new(source.clone(), ByteOrder::Little)),
        keys: Keys::new(0),
        unreadable: HashMap::new(),
        trailing: None,
    };
    let byte_order = options.byte_order.unwrap_or(ByteOrder::Little);
    storages(&mut container, &keys, source, stream.at, byte_order)?;
    Ok(container)
}

/// Pickles one after the other.
pub(crate) struct Stream<'s> {
    source: &'s Source,
    policy: Policy,
    pub(crate) at: usize,
}

impl<'s> Stream<'s> {
    pub(crate) fn new(source: &'s Source, policy: Policy) -> Stream<'s> {
        Stream {
            source,
            policy,
            at: 0,
        }
    }

    /// Reads the next pickle, of which only reading tells how long it is.
    pub(crate) fn pickle(&mut self, record: &str) -> Result<Arena<'s>, Error> {
        if self.at >= self.source.len() {
            return Err(Error::container(record, "the file ends before it"));
        }
        let left = self.source.len().saturating_sub(self.at);
        let most = left.min(limits::MAX_PICKLE_BYTES);
        // What is in memory is looked at as a whole; a file is read in pieces that grow.
        let mut window = match self.source.as_slice() {
            Some(_) => most,
            None => most.min(1 << 20),
        };
        loop {
            let text: Cow<'s, [u8]> = bytes_of(self.source, self.at..self.at.saturating_add(window))?;
            match pickle::read::read(text, record, self.policy) {
                Err(Error::Format { kind, .. }) if window < most && is_short(&kind) => {
                    window = window.saturating_mul(4).min(most);
                }
                Err(error) => return Err(error),
                Ok((arena, taken)) => {
                    self.at = self.at.saturating_add(taken);
                    return Ok(arena);
                }
            }
        }
    }
}

/// Whether more bytes could mend it.
fn is_short(kind: &PickleFault) -> bool {
    matches!(
        kind,
        PickleFault::NoStop
            | PickleFault::Truncated { .. }
            | PickleFault::Frame { .. }
            | PickleFault::BadText(pickle::read::ENDLESS_LINE)
    )
}

/// Whether the first pickle of the file is torch's magic number.
pub(crate) fn has_magic(source: &Source) -> bool {
    let mut stream = Stream::new(source, Policy::Read);
    stream.pickle("magic number").is_ok_and(|magic| is_magic(&magic))
}

fn is_magic(arena: &Arena<'_>) -> bool {
    match arena.node(arena.root()) {
        Node::BigInt(span) => {
            let bytes = arena.bytes(span);
            bytes.starts_with(&MAGIC) && bytes.iter().skip(MAGIC.len()).all(|&byte| byte == 0)
        }
        _ => false,
    }
}

/// The storages behind the pickles, in the order of their keys: a count of elements, then the elements.
///
/// How large an element is, only the references in the object pickle tell.
fn storages(
    container: &mut Container<'_>,
    keys: &Arena<'_>,
    source: &Source,
    start: usize,
    byte_order: ByteOrder,
) -> Result<(), Error> {
    let arena = &container.arena;
    let mut classes = StorageClasses::default();
    let mut element_sizes: HashMap<&[u8], usize> = HashMap::new();
    for id in arena.ids() {
        if let Some(reference) = classes.reference(arena, id)
            && let Some(key) = arena.str_bytes(reference.key)
        {
            element_sizes.insert(key, reference.class.element_size);
        }
    }

    let key_nodes: &[NodeId] = match keys.node(keys.root()) {
        Node::List => keys.items(keys.root()),
        other => {
            let fault = format!("expected a list, found {}", pickle::read::kind(other));
            return Err(Error::container("storage keys", fault));
        }
    };
    let mut table = Table::new(source.clone(), byte_order);
    let mut index = Keys::new(key_nodes.len());
    let mut unreadable = HashMap::new();
    table.reserve(key_nodes.len());
    let mut at = start;
    let mut is_cut = false;
    for &node in key_nodes {
        let number;
        let key = match keys.str_bytes(node) {
            Some(key) => key,
            None => {
                let key = keys.int(node);
                let no_key = || Error::container("storage keys", "a key is neither text nor a number");
                number = key.ok_or_else(no_key)?.to_string();
                number.as_bytes()
            }
        };
        let text = String::from_utf8_lossy(key);
        // Nothing refers to it, so nothing tells how long it is: what follows cannot be found.
        let Some(&element_size) = element_sizes.get(key) else {
            return Err(Error::container(
                format!("storage {text}"),
                "nothing in the file refers to it, so its length is unknown",
            ));
        };
        let end_of_count = at.saturating_add(8);
        let mut count = [0; 8];
        let has_count = !is_cut && end_of_count <= source.len();
        if has_count {
            source
                .read_at(at, &mut count)
                .map_err(|error| source.error(error))?;
        }
        let count = i64::from_le_bytes(count);
        if count < 0 {
            let fault = format!("it claims {count} elements");
            return Err(Error::container(format!("storage {text}"), fault));
        }
        let range = usize::try_from(count)
            .ok()
            .filter(|_| has_count)
            .and_then(|count| count.checked_mul(element_size))
            .and_then(|n_bytes| end_of_count.checked_add(n_bytes))
            .filter(|&end| end <= source.len())
            .map(|end| end_of_count..end);
        // A cut file ends here: this storage and those behind it are missing, and the tensors over them say so.
        let is_repeated = match range {
            Some(range) => {
                at = range.end;
                let place = table.push(Key::new(&text), range, None);
                index.insert(key, place)
            }
            None => {
                is_cut = true;
                let fault = format!("the file ends after {} bytes, before its end", source.len());
                unreadable.insert(text.clone().into_owned(), fault).is_some()
            }
        };
        if is_repeated {
            return Err(Error::container("storage keys", format!("`{text}` occurs twice")));
        }
    }
    if !is_cut && at < source.len() {
        container.trailing = Some((at, source.len().saturating_sub(at)));
    }
    container.table = Arc::new(table);
    container.keys = index;
    container.unreadable = unreadable;
    Ok(())
}

/// `('module', class, source file, source text)` behind persistent ids.
fn module_sources(arena: &Arena<'_>) -> Vec<ModuleSource> {
    let of = |id| {
        let Node::Persistent(pid) = arena.node(id) else {
            return None;
        };
        let &[_, _, file, text] = arena.items(pid) else {
            return None;
        };
        let (module, name) = arena.global_name(id)?;
        Some(ModuleSource {
            class: format!("{module}.{name}"),
            file: arena.str(file)?.into_owned(),
            text: arena.str(text)?.into_owned(),
        })
    };
    arena.ids().filter_map(of).collect()
}

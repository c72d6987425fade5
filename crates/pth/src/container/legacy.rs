//! The container of torch 0.1.10 to 1.5: five pickles (magic number, protocol, system, object, storage keys), then the storages.
//!
//! Storages are little-endian whatever the system entry says: writers on big-endian machines converted.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashMap;

use super::{Contents, Format, Record};
use crate::pickle::{Arena, Node, NodeId};
use crate::storage::ByteOrder;
use crate::{Error, FileMap, Storage, diagnose, limits, pickle, rebuild};

/// `torch.serialization.MAGIC_NUMBER`, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

pub(super) fn open(map: FileMap) -> Result<Contents, Error> {
    if let Some(found) = diagnose::not_a_pickle(map.as_bytes()) {
        return Err(Error::not_a_checkpoint(found));
    }
    let mut stream = Stream { map: &map, at: 0 };
    let magic = match stream.pickle("magic number") {
        Ok(magic) => magic,
        Err(error @ Error::Unsafe { .. }) => return Err(error),
        Err(_) => return Err(Error::not_a_checkpoint(diagnose::unknown(map.as_bytes()))),
    };
    if !is_magic(&magic) {
        return Err(Error::not_a_checkpoint(diagnose::plain_pickle(&magic)));
    }
    let protocol = stream.pickle("protocol version")?;
    if protocol.int(protocol.root()) != Some(PROTOCOL) {
        let found = pickle::render::render(&protocol, protocol.root());
        return Err(Error::container(
            "protocol version",
            format!("expected {PROTOCOL}, found {found}"),
        ));
    }
    stream.pickle("system")?;
    let arena = stream.pickle("object")?;
    let keys = stream.pickle("storage keys")?;
    let records = records(&arena, &keys, map.as_bytes(), stream.at)?;
    Ok(Contents {
        format: Format::Legacy,
        arena,
        records,
        byte_order: ByteOrder::Little,
        map,
    })
}

struct Stream<'m> {
    map: &'m FileMap,
    at: usize,
}

impl Stream<'_> {
    /// Reads the next pickle of the stream.
    fn pickle(&mut self, record: &str) -> Result<Arena, Error> {
        let end = self
            .map
            .as_bytes()
            .len()
            .min(self.at.saturating_add(limits::MAX_PICKLE_BYTES));
        let source = Storage::mapped(self.map, self.at..end, record)
            .ok_or_else(|| Error::container(record, "the file ends before it"))?;
        let (arena, taken) = pickle::read::read(source, record)?;
        self.at = self.at.saturating_add(taken);
        Ok(arena)
    }
}

fn is_magic(arena: &Arena) -> bool {
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
fn records(
    arena: &Arena,
    keys: &Arena,
    bytes: &[u8],
    start: usize,
) -> Result<HashMap<String, Record>, Error> {
    let mut element_sizes: HashMap<String, usize> = HashMap::new();
    for id in arena.ids() {
        if let Some(reference) = rebuild::reference(arena, id) {
            element_sizes.insert(reference.key.into_owned(), reference.element_size);
        }
    }

    let key_nodes: &[NodeId] = match keys.node(keys.root()) {
        Node::List => keys.items(keys.root()),
        other => {
            let found = pickle::read::kind(other);
            return Err(Error::container(
                "storage keys",
                format!("expected a list, found {found}"),
            ));
        }
    };
    let mut records = HashMap::with_capacity(key_nodes.len());
    let mut at = start;
    for &node in key_nodes {
        let key = keys
            .str(node)
            .map(std::borrow::Cow::into_owned)
            .or_else(|| keys.int(node).map(|key| key.to_string()))
            .ok_or_else(|| Error::container("storage keys", "a key is neither text nor a number"))?;
        // Nothing refers to it, so nothing tells how long it is: what follows cannot be found.
        let Some(&element_size) = element_sizes.get(&key) else {
            return Err(Error::container(
                format!("storage {key}"),
                "nothing in the file refers to it, so its length is unknown",
            ));
        };
        let end_of_count = at.saturating_add(8);
        let count = bytes
            .get(at..end_of_count)
            .and_then(|count| count.first_chunk::<8>());
        // A cut file ends here: this storage and those behind it are missing, and the tensors over them say so.
        let Some(count) = count else {
            records.insert(key, Record::Unreadable(cut(bytes.len())));
            at = bytes.len();
            continue;
        };
        let range = usize::try_from(i64::from_le_bytes(*count))
            .ok()
            .and_then(|count| count.checked_mul(element_size))
            .and_then(|n_bytes| end_of_count.checked_add(n_bytes))
            .filter(|&end| end <= bytes.len())
            .map(|end| end_of_count..end);
        let record = match range {
            Some(range) => {
                at = range.end;
                Record::Stored(range)
            }
            None => {
                at = bytes.len();
                Record::Unreadable(cut(bytes.len()))
            }
        };
        if records.insert(key.clone(), record).is_some() {
            return Err(Error::container("storage keys", format!("`{key}` occurs twice")));
        }
    }
    Ok(records)
}

fn cut(n_bytes: usize) -> String {
    format!("the file ends after {n_bytes} bytes, before its end")
}

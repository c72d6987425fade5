//! The bytes behind tensors. Several tensors may view one storage, and stay views of one storage.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::FileMap;

/// The order of bytes within a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ByteOrder {
    Little,
    Big,
}

/// Shared, immutable bytes: a window of a mapped file, or owned. A clone is the same storage.
#[derive(Clone)]
pub struct Storage(Arc<Inner>);

struct Inner {
    bytes: Bytes,
    byte_order: ByteOrder,
    key: String,
}

enum Bytes {
    Mapped { map: FileMap, range: Range<usize> },
    Owned(Vec<u8>),
}

impl Storage {
    /// Own bytes, little-endian.
    pub fn owned(bytes: Vec<u8>) -> Storage {
        Storage::new(Bytes::Owned(bytes), ByteOrder::Little, String::new())
    }

    /// The window `range` of a mapped file, little-endian; none if the file is shorter. `key` is the name that the file has for it.
    pub fn mapped(map: &FileMap, range: Range<usize>, key: &str) -> Option<Storage> {
        map.as_bytes().get(range.clone())?;
        let bytes = Bytes::Mapped {
            map: map.clone(),
            range,
        };
        Some(Storage::new(bytes, ByteOrder::Little, key.to_owned()))
    }

    /// The same bytes as a checkpoint of `byte_order` names them.
    pub(crate) fn labelled(self, byte_order: ByteOrder, key: &str) -> Storage {
        let bytes = match Arc::try_unwrap(self.0) {
            Ok(inner) => inner.bytes,
            Err(shared) => match &shared.bytes {
                Bytes::Mapped { map, range } => Bytes::Mapped {
                    map: map.clone(),
                    range: range.clone(),
                },
                Bytes::Owned(bytes) => Bytes::Owned(bytes.clone()),
            },
        };
        Storage::new(bytes, byte_order, key.to_owned())
    }

    fn new(bytes: Bytes, byte_order: ByteOrder, key: String) -> Storage {
        Storage(Arc::new(Inner {
            bytes,
            byte_order,
            key,
        }))
    }

    /// All bytes, as they are in the file.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0.bytes {
            Bytes::Mapped { map, range } => map
                .as_bytes()
                .get(range.clone())
                .expect("the range was inside the map when the storage was made, and a map never shrinks"),
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// Size in bytes.
    pub fn nbytes(&self) -> usize {
        match &self.0.bytes {
            Bytes::Mapped { range, .. } => range.len(),
            Bytes::Owned(bytes) => bytes.len(),
        }
    }

    /// The order of bytes within a component.
    pub fn byte_order(&self) -> ByteOrder {
        self.0.byte_order
    }

    /// The name of this storage in the file that it was read from; empty for own bytes.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// Whether the two are one storage, so that tensors over them share bytes.
    pub fn ptr_eq(&self, other: &Storage) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A number that is equal for clones and different for all other storages alive; for use as a map's key.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage(`{}`, {} bytes)", self.key(), self.nbytes())
    }
}

//! A stacked-pickle checkpoint, every part of which may be replaced.

use super::Pickle;

/// The pickle of torch's magic number.
pub(crate) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The pickle of the protocol version, 1001.
pub(crate) const PROTOCOL: &[u8] = b"\x80\x02M\xe9\x03.";
/// The pickle of the system's description, here empty.
pub(crate) const SYSTEM: &[u8] = b"\x80\x02}.";

#[derive(Clone)]
pub(crate) struct Stacked {
    pub(crate) magic: Vec<u8>,
    pub(crate) protocol: Vec<u8>,
    pub(crate) system: Vec<u8>,
    pub(crate) object: Vec<u8>,
    pub(crate) keys: Vec<u8>,
    /// A count of elements and the bytes that follow it.
    pub(crate) storages: Vec<(i64, Vec<u8>)>,
    pub(crate) suffix: Vec<u8>,
}

impl Stacked {
    /// Each storage is a key, its number of elements and its bytes.
    pub(crate) fn new(object: &[u8], storages: &[(&str, u64, &[u8])]) -> Stacked {
        let mut keys = Pickle::new().op(b"](");
        for (key, _, _) in storages {
            keys = keys.str(key);
        }
        let count = |&(_, count, data): &(&str, u64, &[u8])| (i64::try_from(count).unwrap(), data.to_vec());
        Stacked {
            magic: MAGIC.to_vec(),
            protocol: PROTOCOL.to_vec(),
            system: SYSTEM.to_vec(),
            object: object.to_vec(),
            keys: keys.op(b"e").stop(),
            storages: storages.iter().map(count).collect(),
            suffix: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Stacked)) -> Stacked {
        change(&mut self);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let parts = [
            &self.magic,
            &self.protocol,
            &self.system,
            &self.object,
            &self.keys,
        ];
        let mut out: Vec<u8> = parts.into_iter().flatten().copied().collect();
        for (count, data) in &self.storages {
            out.extend(count.to_le_bytes());
            out.extend_from_slice(data);
        }
        out.extend_from_slice(&self.suffix);
        out
    }
}

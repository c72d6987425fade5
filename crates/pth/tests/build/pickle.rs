//! A pickle, opcode by opcode. Nothing is checked: what is wrong with it is the point of most tests.

/// Opcodes that are appended as they come; a value by default begins with `PROTO 2`.
#[derive(Default, Clone)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    /// Begins with `PROTO 2`, as torch does.
    pub(crate) fn new() -> Pickle {
        Pickle(vec![0x80, 2])
    }

    /// Begins with nothing: a fragment, or a pickle of protocol 0.
    pub(crate) fn bare() -> Pickle {
        Pickle(Vec::new())
    }

    pub(crate) fn op(mut self, bytes: &[u8]) -> Pickle {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn then(self, other: &Pickle) -> Pickle {
        self.op(&other.0)
    }

    /// BINUNICODE.
    pub(crate) fn str(self, text: &str) -> Pickle {
        self.text(text.as_bytes())
    }

    /// BINUNICODE of bytes that need not be text.
    pub(crate) fn text(self, bytes: &[u8]) -> Pickle {
        let len = u32::try_from(bytes.len()).unwrap();
        self.op(b"X").op(&len.to_le_bytes()).op(bytes)
    }

    /// BINBYTES (protocol 3).
    pub(crate) fn bytes(self, bytes: &[u8]) -> Pickle {
        let len = u32::try_from(bytes.len()).unwrap();
        self.op(b"B").op(&len.to_le_bytes()).op(bytes)
    }

    /// BININT.
    pub(crate) fn int(self, value: i32) -> Pickle {
        self.op(b"J").op(&value.to_le_bytes())
    }

    /// An integer as Python writes it: BININT, or LONG1 of as few bytes as hold it.
    pub(crate) fn long(self, value: i128) -> Pickle {
        if let Ok(small) = i32::try_from(value) {
            return self.int(small);
        }
        let bytes = value.to_le_bytes();
        let fits = |len: usize| {
            let shift = 128 - 8 * u32::try_from(len).unwrap();
            value << shift >> shift == value
        };
        let len = (1..16).find(|&len| fits(len)).unwrap_or(16);
        self.op(&[0x8a, u8::try_from(len).unwrap()]).op(&bytes[..len])
    }

    /// A tuple of BININT.
    pub(crate) fn ints(mut self, values: &[i32]) -> Pickle {
        self = self.op(b"(");
        for &value in values {
            self = self.int(value);
        }
        self.op(b"t")
    }

    /// A tuple of LONG1.
    pub(crate) fn longs(mut self, values: &[i128]) -> Pickle {
        self = self.op(b"(");
        for &value in values {
            self = self.long(value);
        }
        self.op(b"t")
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Pickle {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    /// `('storage', torch.<class>, key, 'cpu', numel)` as a persistent id.
    pub(crate) fn storage(self, class: &str, key: &str, numel: i128) -> Pickle {
        self.op(b"(")
            .str("storage")
            .global("torch", class)
            .str(key)
            .str("cpu")
            .long(numel)
            .op(b"tQ")
    }

    /// `_rebuild_tensor_v2` over a float storage.
    pub(crate) fn tensor(self, key: &str, numel: i32, offset: i32, shape: &[i32], stride: &[i32]) -> Pickle {
        self.typed("FloatStorage", key, numel.into(), offset, shape, stride)
    }

    /// `_rebuild_tensor_v2` over a storage of `class`.
    pub(crate) fn typed(
        self,
        class: &str,
        key: &str,
        numel: i128,
        offset: i32,
        shape: &[i32],
        stride: &[i32],
    ) -> Pickle {
        let storage = Pickle::bare().storage(class, key, numel);
        let geometry = Pickle::bare().int(offset).ints(shape).ints(stride);
        self.rebuilt(&storage, &geometry)
    }

    /// `_rebuild_tensor_v2(storage, <offset, size, stride>, False, OrderedDict())` of fragments.
    pub(crate) fn rebuilt(self, storage: &Pickle, geometry: &Pickle) -> Pickle {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .then(storage)
            .then(geometry)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    /// `_rebuild_tensor_v3` over an untyped storage of `n_bytes`.
    pub(crate) fn untyped(
        self,
        dtype: &str,
        key: &str,
        n_bytes: i128,
        offset: i32,
        shape: &[i32],
        stride: &[i32],
    ) -> Pickle {
        self.global("torch._utils", "_rebuild_tensor_v3")
            .op(b"((")
            .str("storage")
            .global("torch.storage", "UntypedStorage")
            .str(key)
            .str("cpu")
            .long(n_bytes)
            .op(b"tQ")
            .int(offset)
            .ints(shape)
            .ints(stride)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")R")
            .global("torch", dtype)
            .op(b"tR")
    }

    pub(crate) fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

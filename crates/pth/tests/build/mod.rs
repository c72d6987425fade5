//! Small builders for the bytes of checkpoints.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A pickle, opcode by opcode.
#[derive(Default, Clone)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    pub(crate) fn new() -> Pickle {
        Pickle(vec![0x80, 2])
    }

    pub(crate) fn op(mut self, bytes: &[u8]) -> Pickle {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn str(self, text: &str) -> Pickle {
        let len = u32::try_from(text.len()).unwrap();
        self.op(b"X").op(&len.to_le_bytes()).op(text.as_bytes())
    }

    pub(crate) fn int(self, value: i32) -> Pickle {
        self.op(b"J").op(&value.to_le_bytes())
    }

    pub(crate) fn ints(mut self, values: &[i32]) -> Pickle {
        self = self.op(b"(");
        for &value in values {
            self = self.int(value);
        }
        self.op(b"t")
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Pickle {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    /// `_rebuild_tensor_v2` over a float storage.
    pub(crate) fn tensor(self, key: &str, numel: i32, offset: i32, shape: &[i32], stride: &[i32]) -> Pickle {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .str("storage")
            .global("torch", "FloatStorage")
            .str(key)
            .str("cpu")
            .int(numel)
            .op(b"tQ")
            .int(offset)
            .ints(shape)
            .ints(stride)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    pub(crate) fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A zip checkpoint around `data_pkl`.
pub(crate) fn archive(data_pkl: &[u8], storages: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    add("m/data.pkl", data_pkl);
    add("m/version", b"3\n");
    for (key, bytes) in storages {
        add(&format!("m/data/{key}"), bytes);
    }
    zip.finish().unwrap().into_inner()
}

/// A legacy checkpoint around `object`; each storage is a key, its number of elements and its bytes.
pub(crate) fn stacked(object: &[u8], storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut bytes =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    bytes.extend_from_slice(object);
    let mut keys = Pickle::new().op(b"](");
    for (key, _, _) in storages {
        keys = keys.str(key);
    }
    bytes.extend(keys.op(b"e").stop());
    for (_, numel, data) in storages {
        bytes.extend(numel.to_le_bytes());
        bytes.extend_from_slice(data);
    }
    bytes
}

pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

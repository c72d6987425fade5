//! Any bytes as the pickle of an archive whose other records are sound: past the container's CRCs, at the machine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pth::{Checkpoint, OpenOptions, Source};

fuzz_target!(|pickle: &[u8]| {
    let storage: Vec<u8> = (0..64).collect();
    let bytes = archive(&[
        ("m/data.pkl", pickle),
        ("m/byteorder", b"little"),
        ("m/data/0", &storage),
        ("m/data/1", &storage),
        ("m/version", b"3\n"),
    ]);
    let source = Source::from_bytes(bytes);
    let lenient = OpenOptions {
        allow_opaque: true,
        ..OpenOptions::default()
    };
    pth::scan(&source);
    let Ok(checkpoint) = Checkpoint::from_source(source, &lenient) else {
        return;
    };
    for (name, tensor) in checkpoint.all_tensors() {
        if let Ok(bytes) = tensor.to_bytes() {
            assert_eq!(bytes.len(), tensor.nbytes(), "{name}");
        }
    }
    if let Ok(value) = checkpoint.value() {
        let (plain, _) = value.into_plain();
        let _ = pth::save_to_bytes(&plain, pth::Profile::Torch);
    }
});

/// The plainest zip there is.
fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in records {
        let offset = out.len() as u32;
        let mut fields = Vec::new();
        fields.extend([20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]);
        fields.extend(crc32fast::hash(data).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&fields);
        out.extend(name.as_bytes());
        out.extend(*data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((records.len() as u16).to_le_bytes());
    out.extend((records.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

//! Any bytes as a file. Nothing panics; whatever opens can be read, scanned and saved, and saved again it is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pth::{Checkpoint, OpenOptions, Profile, Severity, Source, Value, WeightsOnly};

fuzz_target!(|bytes: &[u8]| {
    let source = Source::from_bytes(bytes.to_vec());
    let strict = Checkpoint::from_source(source.clone(), &OpenOptions::default());
    let lenient = OpenOptions {
        allow_opaque: true,
        last_wins: true,
        allow_prefix: true,
        ..OpenOptions::default()
    };
    let open = Checkpoint::from_source(source.clone(), &lenient);
    // Whatever the strict reader takes, the lenient one takes too.
    assert!(strict.is_err() || open.is_ok());
    let scan = pth::scan(&source);
    let is_clean = scan.is_complete && scan.worst().is_none_or(|worst| worst < Severity::Flag);
    assert!(strict.is_ok() || !is_clean, "clean, but refused: {:?}", strict.err());
    let verification = pth::verify(&source);
    let Ok(checkpoint) = strict else {
        return;
    };
    let mut readable = true;
    for (name, tensor) in checkpoint.all_tensors() {
        match tensor.to_bytes() {
            Ok(bytes) => assert_eq!(bytes.len(), tensor.nbytes(), "{name}"),
            Err(_) => readable = false,
        }
    }
    if let Ok(value) = checkpoint.value() {
        let (plain, _) = value.into_plain();
        // Sizes that a pickle may claim for nothing are not written out.
        if let Ok(saved) = pth::save_to_bytes(&plain, Profile::Torch) {
            let saved = Source::from_bytes(saved);
            Checkpoint::from_source(saved.clone(), &OpenOptions { last_wins: true, ..OpenOptions::default() })
                .expect("what was saved opens");
            assert!(pth::verify(&saved).faults.is_empty() || !verification.faults.is_empty());
        }
    }
    let saved = pth::save_to_bytes(&Value::from(checkpoint.state_dict().clone()), Profile::Torch);
    if let Ok(saved) = saved
        && readable
    {
        let source = Source::from_bytes(saved);
        let again = Checkpoint::from_source(source.clone(), &OpenOptions::default());
        // A name may itself be one of the names that wrap a state dict.
        let again = again.expect("a saved state dict opens");
        // Indices of a sparse tensor are data, and copied as they are: what lies outside was told of before.
        let is_sound = scan.findings.iter().all(|finding| finding.id != "tensor.extent");
        assert!(!is_sound || pth::scan(&source).weights_only == WeightsOnly::Loads);
        for (name, tensor) in checkpoint.state_dict().iter() {
            if let Some(found) = again.state_dict().get(name) {
                assert_eq!(found.dtype(), tensor.dtype());
                assert_eq!((found.shape(), found.stride()), (tensor.shape(), tensor.stride()));
                assert_eq!(found.to_bytes().ok(), tensor.to_bytes().ok(), "{name}");
            }
        }
    }
});

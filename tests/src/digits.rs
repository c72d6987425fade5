//! What PyTorch says of the digits: features of the fixtures' network.

use std::fs;
use std::path::Path;

use crate::fixture;

/// Fails unless a cache entry of float32 features of `digits/pictures` holds what the network gives in PyTorch.
pub fn check_features(entry: &Path) {
    let store = runtime::features::Store::open_entry(entry).expect("an entry");
    let manifests = runtime::features::Manifest::list(entry).expect("its manifests");
    let manifest = runtime::features::Manifest::open(&manifests[0]).expect("a manifest");
    let (expected, _) =
        surgery::open_safetensors(&fixture("digits/expected_features.safetensors")).expect("the features");
    let expected = expected.get("features").expect("features");
    let described = fs::read(fixture("digits/expected_features.json")).expect("their paths");
    let described: serde_json::Value = serde_json::from_slice(&described).expect("JSON");
    let paths = described["paths"].as_array().expect("paths");
    let bytes = expected.to_bytes().expect("their bytes");
    let rows: Vec<f32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    assert_eq!(paths.len(), 200);
    for (path, want) in paths.iter().zip(rows.chunks_exact(expected.shape()[1])) {
        let path = path.as_str().expect("a path");
        let row = manifest
            .lines()
            .find(|line| path.ends_with(&*line.name))
            .expect(path);
        let id = row.id.expect("a picture has an id");
        let stored = store.features(&[id], |_| path.to_owned()).expect("a row");
        let mut got = Vec::new();
        stored.gather(&[0], &mut got);
        let scale = want.iter().fold(0f32, |top, value| top.max(value.abs()));
        for (got, want) in got.iter().zip(want) {
            assert!(
                (got - want).abs() <= 1e-5 * want.abs().max(1e-3 * scale),
                "{path}: {got} and {want}"
            );
        }
    }
}

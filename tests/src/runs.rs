//! Runs on the fixtures' digits, heads with known numbers, and arrays for them.

use std::path::{Path, PathBuf};

use runtime::Task;
use runtime::head::{Head, Layer};

use crate::{Said, Scratch, fixture, run};

/// How the digits go into their network.
pub const SIZES: [&str; 4] = ["--resize", "32", "--crop", "32"];

/// A `.npy` file of float32.
pub fn npy(shape: &[usize], values: &[f32]) -> Vec<u8> {
    array("<f4", shape, values.iter().flat_map(|value| value.to_le_bytes()))
}

/// A `.npy` file of class indices `[N]`.
pub fn npy_classes(labels: &[i64]) -> Vec<u8> {
    let bytes = labels.iter().flat_map(|label| label.to_le_bytes());
    array("<i8", &[labels.len()], bytes)
}

fn array(kind: &str, shape: &[usize], data: impl Iterator<Item = u8>) -> Vec<u8> {
    let shape: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).expect("a short header").to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

impl Scratch {
    /// `verb` with the digits' network and their sizes, the cache in the scratch folder.
    pub fn with_digits(&self, verb: &str, data: &Path, more: &[&str]) -> Said {
        let mut command = self.command([verb, "--cache", "cache"]);
        command
            .args(SIZES)
            .arg("--backbone")
            .arg(fixture("digits/backbone.onnx"))
            .arg("--data")
            .arg(data)
            .args(more);
        run(command)
    }

    /// `fit` on the fixture's digits, into the folder `out`.
    pub fn fit_digits(&self, out: &str) {
        self.with_digits("fit", &fixture("digits/pictures"), &["--c", "10", "-o", out])
            .ok();
    }

    /// `extract` of some pictures; the cache entry.
    pub fn extract_digits(&self, data: &Path, more: &[&str]) -> PathBuf {
        let said = self.with_digits("extract", data, more).ok();
        self.path(said.stdout.trim())
    }

    /// `train` on a cache entry, into the folder `out`.
    pub fn train_on(&self, entry: &Path, out: &str) {
        let mut command = self.command_without_runtime(["train", "--c", "10", "-o", out, "--features"]);
        command.arg(entry);
        run(command).ok();
    }

    /// A folder `out` with nothing but a head in it, as far as a run needs.
    pub fn save_head(&self, out: &str, task: Task, outputs: &[&str], layers: Vec<Layer>) -> Head {
        let outputs = outputs.iter().map(|output| (*output).to_owned()).collect();
        let head = Head::new(task, outputs, layers).expect("layers that fit each other");
        let path = self.write(&format!("{out}/head.safetensors"), b"");
        head.save(&path).expect("a head in a file");
        head
    }
}

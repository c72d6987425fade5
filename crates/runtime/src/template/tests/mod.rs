//! Templates from text to graph. `tools/parity_templates.py` and `tools/parity_summary.py` compare whole networks with torch.

mod graph;
mod language;
mod recognition;
mod summary;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pth::{DType, Tensor};
use surgery::{LazyEntry, LazyStateDict, LazyTensor};

use super::fit::{Choice, Template};
use super::interpreter::Interpreter;
use super::shipped;
use crate::error::Error;

type Sizes = HashMap<String, Vec<usize>>;

/// Names and sizes of a network that is shipped, as without a checkpoint.
fn sizes_of(model: &str) -> Sizes {
    let nothing = |_: &str| None;
    let mut interpreter = Interpreter::new(&nothing);
    for (name, text) in shipped::FILES {
        let file = interpreter.load(name, text).unwrap();
        if interpreter.models(file).iter().any(|found| &**found == model) {
            let root = interpreter.build(file, model).unwrap();
            let mut sizes = Sizes::new();
            interpreter.each_tensor(root, &mut |name, stored| {
                sizes.insert(name, stored.shape.clone());
            });
            return sizes;
        }
    }
    panic!("no {model}");
}

/// A template file in a folder of its own.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.template");
    #[expect(clippy::disallowed_methods, reason = "a test's input needs no durability")]
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// What is said of names and sizes by the template in `text`.
fn fit(text: &str, sizes: Sizes) -> Result<Template, Error> {
    let (_folder, path) = file(text);
    Template::recognise_sizes(Path::new("net.pth"), sizes, &Choice::File(path))
}

/// Float32 tensors of these sizes whose values are small and different.
fn state_dict(sizes: &Sizes) -> LazyStateDict {
    let mut names: Vec<&String> = sizes.keys().collect();
    names.sort();
    let mut tensors = LazyStateDict::default();
    for (seed, name) in names.into_iter().enumerate() {
        let n: usize = sizes[name].iter().product();
        let values = (0..n).map(|at| ((at * 7 + seed * 3) % 11) as f32 / 16.0 - 0.25);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        let tensor = Tensor::from_bytes(DType::Float32, &sizes[name], bytes).unwrap();
        tensors.insert(name.as_str(), LazyEntry::unmarked(LazyTensor::stored(tensor)));
    }
    tensors
}

fn sizes(entries: &[(&str, &[usize])]) -> Sizes {
    entries
        .iter()
        .map(|(name, sizes)| ((*name).to_owned(), sizes.to_vec()))
        .collect()
}

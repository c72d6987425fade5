//! Small checkpoints that a test makes itself, and what it reads back.

use std::path::Path;

use pth::{DType, Existing, Profile, SaveOptions, StateDict, Tensor};

use crate::{Said, Scratch, run};

/// Numbers that differ from element to element: `first`, and an eighth more each.
pub fn floats(shape: &[usize], first: f32) -> Tensor {
    let n = shape.iter().product::<usize>();
    let bytes = (0..n).flat_map(|i| (first + i as f32 / 8.0).to_le_bytes());
    Tensor::from_bytes(DType::Float32, shape, bytes.collect()).expect("as many bytes as the shape has")
}

/// Name, type, shape and bytes.
pub type Named = (String, DType, Vec<usize>, Vec<u8>);

/// Every tensor of a file or set, in order.
pub fn tensors(path: &Path) -> Vec<Named> {
    let opened = surgery::open(path).expect("it opens");
    let tensor = |(name, tensor): (&str, &Tensor)| {
        let bytes = tensor.to_bytes().expect("its bytes").into_owned();
        (name.to_owned(), tensor.dtype(), tensor.shape().to_vec(), bytes)
    };
    opened.state_dict.iter().map(tensor).collect()
}

impl Scratch {
    /// Writes a `.pth`, whatever it is called.
    pub fn save(&self, name: &str, tensors: &[(&str, Tensor)]) {
        let tensors: StateDict = tensors
            .iter()
            .map(|(name, tensor)| ((*name).to_owned(), tensor.clone()))
            .collect();
        let options = SaveOptions {
            profile: Profile::Torch,
            existing: Existing::Refuse,
        };
        pth::save_state_dict(&self.path(name), &tensors, &options).expect("a checkpoint");
    }

    /// Runs the binary to its end; no verb of state dicts needs ONNX Runtime.
    pub fn graftwork(&self, args: &[&str]) -> Said {
        run(self.command_without_runtime(args))
    }
}

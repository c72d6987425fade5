//! A graph from any file: an ONNX model as it is, a checkpoint by a template.

use std::path::Path;

use pth::{Backing, OpenOptions, Source};
use surgery::{LazyStateDict, open_whole};

use super::emit::InputSize;
use super::fit::{Choice, Template};
use crate::error::Error;
use crate::onnx::Model;

/// How a checkpoint becomes a graph.
#[derive(Debug, Clone, Default)]
pub struct GraphOptions {
    /// Which templates may fit.
    pub choice: Choice,
    /// Sizes of pictures, where they are not to be the network's own.
    pub size: Option<InputSize>,
    /// How the checkpoint is read.
    pub open: OpenOptions,
}

/// What a graph was made of.
#[derive(Debug, Clone)]
pub struct Made {
    /// The network.
    pub template: Template,
    /// The checkpoint.
    pub tensors: LazyStateDict,
}

/// Opens an ONNX model, or makes one of a checkpoint; with what it was made of in the second case.
///
/// # Errors
/// As [`Model::open`]; for a checkpoint as [`Template::recognise`] and [`Template::to_onnx`].
pub fn open_graph(path: &Path, options: &GraphOptions) -> Result<(Model, Option<Made>), Error> {
    if !is_checkpoint(path)? {
        return Ok((Model::open(path)?, None));
    }
    let tensors = open_whole(path, &options.open)?;
    let template = Template::recognise(path, &tensors, &options.choice)?;
    let model = template.to_onnx(&tensors, options.size)?;
    Ok((model, Some(Made { template, tensors })))
}

/// Whether a file begins as checkpoints do and ONNX models do not: a zip, a pickle, safetensors, an index; or is a folder.
fn is_checkpoint(path: &Path) -> Result<bool, Error> {
    if path.is_dir() {
        return Ok(true);
    }
    let source = Source::open(path, Backing::Map)?;
    if surgery::is_safetensors(&source) {
        return Ok(true);
    }
    let mut head = [0; 4];
    // What is shorter is neither.
    if source.read_at(0, &mut head).is_err() {
        return Ok(false);
    }
    // An ONNX model begins with the tag of a field, of which none is any of these.
    let is_named = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("onnx"));
    Ok(!is_named && (head.starts_with(b"PK") || head[0] == 0x80 || head[0] == b'{'))
}

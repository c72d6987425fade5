//! A template with a checkpoint's numbers as an ONNX model.

use std::collections::HashSet;

use pth::DType;
use rayon::prelude::*;
use surgery::LazyStateDict;

use super::call::Args;
use super::fault::Fault;
use super::fit::{Template, located};
use super::interpreter::Interpreter;
use super::trace::{Attribute, Trace, Values};
use super::value::{Dim, ModuleId, Role, Tensor, Value};
use crate::error::Error;
use crate::onnx::attribute::{float, integer, integers};
use crate::onnx::{Axis, Made, MadeNode, MadeTensor, Model};

/// `TensorProto.DataType`.
const FLOAT: i64 = 1;
const INT64: i64 = 7;

/// What the graph's ends are called.
pub(super) const INPUT: &str = "input";
const OUTPUT: &str = "logits";

/// What a network takes when nobody says: `3 x 224 x 224`.
const DEFAULT_SIDE: usize = 224;
/// No picture has a longer side.
const MAX_SIDE: usize = 1 << 15;

/// Height and width of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl std::str::FromStr for InputSize {
    type Err = String;

    /// Reads `224` or `224x160`.
    fn from_str(text: &str) -> Result<InputSize, String> {
        let odd = || format!("`{text}` is no size of pictures: 224 and 224x160 (height x width) are");
        let side = |text: &str| {
            let side: usize = text.parse().ok()?;
            (1..=MAX_SIDE).contains(&side).then_some(side)
        };
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        Ok(InputSize {
            height: side(height).ok_or_else(odd)?,
            width: side(width).ok_or_else(odd)?,
        })
    }
}

impl Template {
    /// The network as an ONNX model (operator set 17) in evaluation mode, with the checkpoint's float32 numbers under its names.
    ///
    /// The input is `input` `[batch, C, H, W]`, the output `logits`; nodes are called as torch's exporter calls them
    /// (`/layer3/layer3.0/conv1/Conv`). Without `size` it is the network's own, 224 x 224 for most. float16 and bfloat16 are
    /// widened. Large tensors lie outside the model's bytes: see [`Model::external`] and [`Model::save`].
    ///
    /// # Errors
    /// [`Error::Template`] where the network does not take pictures of that size; what reading the checkpoint gives.
    pub fn to_onnx(&self, tensors: &LazyStateDict, size: Option<InputSize>) -> Result<Model, Error> {
        let lookup = |name: &str| self.sizes.get(name).cloned();
        let mut interpreter = Interpreter::new(&lookup);
        let root = self.build(&mut interpreter)?;
        let traced = self.trace(&mut interpreter, root, size)?;
        let stored = stored(&interpreter, root, &interpreter.trace);
        let weights: Vec<MadeTensor> = stored
            .par_iter()
            .map(|(name, shape)| self.weight(tensors, name, shape))
            .collect::<Result<_, Error>>()?;
        Model::made(&self.path, made(&self.name, &interpreter.trace, traced, weights))
    }

    /// A float32 tensor of the checkpoint.
    fn weight(&self, tensors: &LazyStateDict, name: &str, shape: &[usize]) -> Result<MadeTensor, Error> {
        let odd = |reason: String| Error::BadFile {
            path: self.path.clone(),
            reason,
        };
        let tensor = tensors
            .tensor(name)
            .ok_or_else(|| odd(format!("`{name}` is no plain array")))?;
        if !tensor.dtype().is_float() {
            return Err(odd(format!("`{name}` is {}, and no float", tensor.dtype())));
        }
        Ok(MadeTensor {
            name: name.to_owned(),
            dtype: FLOAT,
            shape: shape.to_vec(),
            bytes: tensor.cast(DType::Float32).to_bytes()?,
        })
    }

    /// Writes down what the network does with pictures of a size; what it is given, and what it gives.
    pub(super) fn trace(
        &self,
        interpreter: &mut Interpreter<'_>,
        root: ModuleId,
        size: Option<InputSize>,
    ) -> Result<(Tensor, Tensor), Error> {
        let size = size.unwrap_or_else(|| {
            let own = |name: &str| interpreter.integer_of(root, name);
            let side = own("image_size").unwrap_or(DEFAULT_SIDE).clamp(1, MAX_SIDE);
            InputSize {
                height: side,
                width: side,
            }
        });
        let n_channels = interpreter.in_channels(root).unwrap_or(3);
        let input = Tensor {
            name: INPUT.to_owned(),
            shape: vec![
                Dim::batch(1),
                Dim::fixed(n_channels),
                Dim::fixed(size.height),
                Dim::fixed(size.width),
            ],
        };
        let output = interpreter
            .run_network(root, input.clone())
            .map_err(|mut fault| {
                fault.message = format!(
                    "{} (for pictures of {} x {})",
                    fault.message, size.height, size.width
                );
                located(interpreter, fault)
            })?;
        Ok((input, output))
    }
}

impl Interpreter<'_> {
    /// The trace of a network for an input, from a new beginning.
    fn run_network(&mut self, root: ModuleId, input: Tensor) -> Result<Tensor, Fault> {
        self.trace = Trace::default();
        let out = self.call_module(root, Args::of(vec![Value::tensor(input)]))?;
        let Value::Tensor(output) = out else {
            return Err(Fault::new(format!(
                "the network gives {}, and not one tensor",
                out.kind()
            )));
        };
        if self
            .trace
            .nodes
            .iter()
            .all(|node| !node.outputs.contains(&output.name))
        {
            return Err(Fault::new("the network gives its input as it is"));
        }
        Ok((*output).clone())
    }

    /// The name of the network's input.
    pub(super) fn input_name(&self) -> String {
        INPUT.to_owned()
    }
}

/// Parameters and buffers that nodes read, in the order of the network.
fn stored(interpreter: &Interpreter<'_>, root: ModuleId, trace: &Trace) -> Vec<(String, Vec<usize>)> {
    let read: HashSet<&str> = trace
        .nodes
        .iter()
        .flat_map(|node| node.inputs.iter().map(String::as_str))
        .collect();
    let mut out: Vec<(String, Vec<usize>)> = Vec::new();
    interpreter.each_tensor(root, &mut |name, stored| {
        if read.contains(name.as_str()) && stored.role != Role::Counter {
            out.push((name, stored.shape.clone()));
        }
    });
    out
}

fn made(name: &str, trace: &Trace, (input, output): (Tensor, Tensor), mut tensors: Vec<MadeTensor>) -> Made {
    let called = |tensor: &str| match tensor == output.name {
        true => OUTPUT.to_owned(),
        false => tensor.to_owned(),
    };
    let nodes = trace.nodes.iter().map(|node| MadeNode {
        op_type: node.op_type,
        name: node.name.clone(),
        inputs: node.inputs.iter().map(|input| called(input)).collect(),
        outputs: node.outputs.iter().map(|output| called(output)).collect(),
        attributes: node
            .attributes
            .iter()
            .map(|(name, attribute)| match attribute {
                Attribute::Int(value) => integer(name, *value),
                Attribute::Ints(values) => integers(name, values),
                Attribute::Float(value) => float(name, *value),
            })
            .collect(),
    });
    let nodes: Vec<MadeNode> = nodes.collect();
    let read: HashSet<&String> = nodes.iter().flat_map(|node| &node.inputs).collect();
    for constant in trace
        .constants
        .iter()
        .filter(|constant| read.contains(&constant.name))
    {
        let (dtype, bytes) = match &constant.values {
            Values::Int64(values) => (
                INT64,
                values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ),
            Values::Float32(values) => (
                FLOAT,
                values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ),
        };
        tensors.push(MadeTensor {
            name: constant.name.clone(),
            dtype,
            shape: constant.shape.clone(),
            bytes,
        });
    }
    let sizes = |tensor: &Tensor| -> Vec<Axis> {
        tensor
            .shape
            .iter()
            .map(|dim| match dim.is_batch {
                true if dim.n == 1 => Axis::Named("batch".to_owned()),
                true => Axis::Named(format!("{}*batch", dim.n)),
                false => Axis::Size(dim.n),
            })
            .collect()
    };
    Made {
        name: name.to_owned(),
        input: (INPUT.to_owned(), sizes(&input)),
        output: (OUTPUT.to_owned(), sizes(&output)),
        between: trace
            .tensors
            .iter()
            .filter(|tensor| tensor.name != output.name)
            .map(|tensor| (tensor.name.clone(), sizes(tensor)))
            .collect(),
        nodes,
        tensors,
    }
}

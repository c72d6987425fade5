//! From the nodes of a graph to a [`Program`]: sizes are followed, what is known beforehand is computed, layouts are chosen.
//!
//! Tensors of four axes are kept with channels innermost wherever a convolution or what belongs to it has touched them.

mod elementwise;
mod fold;
mod fuse;
mod known;
mod layers;
mod shapes;

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use self::fuse::Fused;
use self::known::{Known, KnownValues};
use super::op::{Axis, Op, Strided};
use super::program::{Node, Output, Program, Source};
use super::shape::{Dim, describe, numel, strides};
use super::weights::{Parameter, ParameterKind, Weights};
use crate::error::Error;
use crate::onnx::{Model, Operation, Values};

/// What a name of the graph stands for.
#[derive(Debug, Clone)]
enum Entity {
    Known(Known),
    Tensor(Tensor),
}

/// How a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// As its shape says.
    Plain,
    /// Four axes, the second innermost.
    ChannelsLast,
    /// The last two axes exchanged.
    Transposed,
}

/// A tensor that is computed, or a parameter.
#[derive(Debug, Clone)]
struct Tensor {
    source: Source,
    /// As the graph sees it.
    shape: Vec<Dim>,
    layout: Layout,
}

impl Tensor {
    fn numel(&self) -> Dim {
        numel(&self.shape)
    }

    /// The last axis, which must not depend on the batch.
    fn width(&self) -> Result<usize, String> {
        match self.shape.last() {
            Some(Dim {
                size,
                is_batched: false,
            }) => Ok(*size),
            _ => Err(format!(
                "it takes {}, whose last axis is no fixed size",
                describe(&self.shape)
            )),
        }
    }

    /// Height, width and channels of pictures.
    fn picture(&self) -> Result<[usize; 3], String> {
        match self.shape[..] {
            [_, c, h, w] if !(c.is_batched || h.is_batched || w.is_batched) => Ok([h.size, w.size, c.size]),
            _ => Err(format!(
                "it takes {}, not pictures [n, c, h, w]",
                describe(&self.shape)
            )),
        }
    }
}

struct Lower<'m> {
    model: &'m Model,
    entities: HashMap<String, Entity>,
    nodes: Vec<Node>,
    slots: Vec<Dim>,
    constants: Vec<Vec<f32>>,
    parameters: Vec<Parameter>,
    weights: IndexMap<String, Vec<f32>>,
    /// The node that is being looked at.
    layer: String,
}

/// Why a node cannot be lowered.
type Lowered<T> = Result<T, String>;

/// The part of a graph that becomes a program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'s> {
    /// The tensor that its rows come in at.
    pub(super) boundary: &'s str,
    /// The tensors that it computes, at least one.
    pub(super) outputs: &'s [&'s str],
    /// The sizes of the boundary for one sample.
    pub(super) input_shape: &'s [usize],
}

/// Makes the program of a part of a graph, and its parameters.
pub(super) fn lower(
    model: &Model,
    section: Section<'_>,
) -> Result<(Program, Vec<Parameter>, Weights), Error> {
    let untrainable = |reason: String| Error::Untrainable {
        path: model.path().to_owned(),
        boundary: section.boundary.to_owned(),
        reason,
    };
    let operations = inside(model, section).map_err(|error| match error {
        Outside::Unknown(error) => error,
        Outside::Reason(reason) => untrainable(reason),
    })?;
    let mut shape = vec![Dim::batched(1)];
    shape.extend(section.input_shape.iter().map(|size| Dim::fixed(*size)));
    let input_width = section.input_shape.iter().product();
    if input_width == 0 {
        return Err(Error::Usage(format!(
            "a boundary of {:?} holds nothing",
            section.input_shape
        )));
    }
    let boundary = Tensor {
        source: Source::Boundary,
        shape,
        layout: Layout::Plain,
    };
    let mut lower = Lower {
        model,
        entities: HashMap::from([(section.boundary.to_owned(), Entity::Tensor(boundary))]),
        nodes: Vec::new(),
        slots: Vec::new(),
        constants: Vec::new(),
        parameters: Vec::new(),
        weights: IndexMap::new(),
        layer: String::new(),
    };
    let fused = Fused::find(model, &operations, section.outputs);
    for (idx, operation) in operations.iter().enumerate() {
        if fused.is_part(idx) {
            continue;
        }
        lower.layer = operation.name.to_owned();
        let lowered = match fused.at(idx) {
            Some(pattern) => lower.pattern(&operations, pattern),
            None => lower.operation(operation),
        };
        lowered.map_err(|reason| {
            untrainable(format!(
                "{} at node `{}`: {reason}",
                operation.op_type, operation.name
            ))
        })?;
    }
    let outputs = section.outputs.iter().map(|name| {
        let output = lower.output(name);
        output.map_err(|reason| untrainable(format!("the output `{name}`: {reason}")))
    });
    let outputs = outputs.collect::<Result<_, Error>>()?;
    let program = Program {
        nodes: lower.nodes,
        slots: lower.slots,
        constants: lower.constants,
        outputs,
        input_width,
    };
    Ok((
        program,
        lower.parameters,
        Weights {
            values: lower.weights,
        },
    ))
}

enum Outside {
    Unknown(Error),
    Reason(String),
}

/// The nodes that depend on the boundary or on constants only.
fn inside<'m>(model: &'m Model, section: Section<'_>) -> Result<Vec<Operation<'m>>, Outside> {
    let all = model
        .operations_behind(section.boundary, section.outputs)
        .map_err(Outside::Unknown)?;
    let constants = model.constants();
    let mut dependent: HashSet<&str> = HashSet::from([section.boundary]);
    let mut kept = Vec::new();
    let mut around: Vec<&str> = Vec::new();
    for operation in all {
        let reads = || {
            operation
                .inputs
                .iter()
                .map(String::as_str)
                .filter(|name| !name.is_empty())
        };
        if reads().any(|name| dependent.contains(name)) {
            for name in reads().filter(|name| !dependent.contains(name) && !constants.contains(name)) {
                if !around.contains(&name) {
                    around.push(name);
                }
            }
            dependent.extend(operation.outputs.iter().map(String::as_str));
            kept.push(operation);
        } else if reads().all(|name| constants.contains(name)) {
            kept.push(operation);
        }
    }
    if let Some(output) = section.outputs.iter().find(|output| !dependent.contains(*output)) {
        return Err(Outside::Reason(format!("`{output}` does not depend on it")));
    }
    if !around.is_empty() {
        let names: Vec<String> = around.iter().map(|name| format!("`{name}`")).collect();
        return Err(Outside::Reason(format!(
            "the nodes behind it also read {}, which {} around it",
            names.join(", "),
            if names.len() == 1 { "comes" } else { "come" }
        )));
    }
    Ok(kept)
}

impl Lower<'_> {
    /// An output as the graph sees it, which must be a row per sample.
    fn output(&mut self, name: &str) -> Lowered<Output> {
        let output = self.tensor(name)?;
        let output = self.plain(&output)?;
        match output.shape.split_first() {
            Some((first, rest)) if *first == Dim::batched(1) && rest.iter().all(|dim| !dim.is_batched) => {
                Ok(Output {
                    source: output.source,
                    shape: rest.iter().map(|dim| dim.size).collect(),
                })
            }
            _ => Err(format!("it is {}, not a row per sample", describe(&output.shape))),
        }
    }

    fn set(&mut self, name: &str, tensor: Tensor) {
        self.entities.insert(name.to_owned(), Entity::Tensor(tensor));
    }

    fn set_known(&mut self, name: &str, known: Known) {
        self.entities.insert(name.to_owned(), Entity::Known(known));
    }

    /// What a name stands for; initialisers of fractions with axes are parameters.
    fn entity(&mut self, name: &str, kind: ParameterKind) -> Lowered<Entity> {
        if let Some(found) = self.entities.get(name) {
            return Ok(found.clone());
        }
        let is_parameter = self
            .model
            .float_initializer(name)
            .is_some_and(|shape| !shape.is_empty());
        let numbers = self
            .model
            .numbers(name)
            .ok_or_else(|| format!("`{name}` is of a type that is not computed with"))?;
        if !is_parameter {
            return Ok(Entity::Known(Known::from(numbers)));
        }
        let Values::Floats(values) = numbers.values else {
            return Err(format!("`{name}` is no fraction"));
        };
        let tensor = Tensor {
            source: Source::Parameter(self.parameters.len()),
            shape: numbers.shape.iter().map(|size| Dim::fixed(*size)).collect(),
            layout: Layout::Plain,
        };
        self.parameters.push(Parameter {
            name: name.to_owned(),
            shape: numbers.shape,
            kind,
            layer: self.layer.clone(),
        });
        self.weights.insert(name.to_owned(), values);
        self.set(name, tensor.clone());
        Ok(Entity::Tensor(tensor))
    }

    /// A tensor by name; what is known becomes a constant.
    fn tensor(&mut self, name: &str) -> Lowered<Tensor> {
        self.tensor_as(name, ParameterKind::Other)
    }

    fn tensor_as(&mut self, name: &str, kind: ParameterKind) -> Lowered<Tensor> {
        match self.entity(name, kind)? {
            Entity::Tensor(tensor) => Ok(tensor),
            Entity::Known(known) => {
                let shape = known.shape.iter().map(|size| Dim::fixed(*size)).collect();
                let KnownValues::Floats(values) = known.values else {
                    return Err(format!("`{name}` is an integer, and numbers are wanted"));
                };
                self.constants.push(values);
                Ok(Tensor {
                    source: Source::Constant(self.constants.len() - 1),
                    shape,
                    layout: Layout::Plain,
                })
            }
        }
    }

    /// What is known of a name beforehand.
    fn known(&mut self, name: &str) -> Lowered<Option<Known>> {
        Ok(match self.entity(name, ParameterKind::Other)? {
            Entity::Known(known) => Some(known),
            Entity::Tensor(_) => None,
        })
    }

    /// Integers of an optional input, or else of an attribute.
    fn integers(
        &mut self,
        operation: &Operation<'_>,
        input: usize,
        attribute: &str,
    ) -> Lowered<Option<Vec<i64>>> {
        let name = operation.inputs.get(input).filter(|name| !name.is_empty());
        let Some(name) = name else {
            return Ok(operation.integers(attribute).map(<[i64]>::to_vec));
        };
        let known = self.known(name)?;
        let known = known.ok_or_else(|| format!("`{name}` is not known beforehand"))?;
        known.fixed_integers().map(Some)
    }

    /// Adds an operator; its result has the next slot.
    fn emit(
        &mut self,
        op: impl Op + 'static,
        inputs: Vec<Source>,
        shape: Vec<Dim>,
        layout: Layout,
    ) -> Tensor {
        self.push(Box::new(op), inputs, shape, layout, false)
    }

    fn push(
        &mut self,
        op: Box<dyn Op>,
        inputs: Vec<Source>,
        shape: Vec<Dim>,
        layout: Layout,
        is_batch_norm: bool,
    ) -> Tensor {
        let slot = self.slots.len();
        self.slots.push(numel(&shape));
        self.nodes.push(Node {
            op,
            inputs,
            slot,
            layer: self.layer.clone(),
            is_batch_norm,
        });
        Tensor {
            source: Source::Slot(slot),
            shape,
            layout,
        }
    }

    /// The tensor as its shape says.
    fn plain(&mut self, tensor: &Tensor) -> Lowered<Tensor> {
        let rank = tensor.shape.len();
        let order: Vec<usize> = match tensor.layout {
            Layout::Plain => return Ok(tensor.clone()),
            // Where each axis lies in memory.
            Layout::ChannelsLast => vec![0, 3, 1, 2],
            Layout::Transposed => (0..rank - 2).chain([rank - 1, rank - 2]).collect(),
        };
        let mut memory = vec![Dim::ONE; rank];
        for (axis, place) in order.iter().enumerate() {
            memory[*place] = tensor.shape[axis];
        }
        if Lower::is_free(&tensor.shape, &order) {
            return Ok(Tensor {
                layout: Layout::Plain,
                ..tensor.clone()
            });
        }
        Ok(self.permute(tensor, &strides(&memory), &order, Layout::Plain))
    }

    /// Pictures with channels innermost.
    fn channels_last(&mut self, tensor: &Tensor) -> Lowered<Tensor> {
        if tensor.layout == Layout::ChannelsLast {
            return Ok(tensor.clone());
        }
        let tensor = self.plain(tensor)?;
        if tensor.shape.len() != 4 {
            return Err(format!("it takes {}, not four axes", describe(&tensor.shape)));
        }
        let order = [0, 2, 3, 1];
        let shape = tensor.shape.clone();
        if Lower::is_free(&shape, &order) {
            return Ok(Tensor {
                layout: Layout::ChannelsLast,
                ..tensor
            });
        }
        let axes = order.map(|axis| (shape[axis], strides(&shape)[axis]));
        let op = Strided(axes.into_iter().map(whole).collect());
        Ok(self.emit(op, vec![tensor.source], shape, Layout::ChannelsLast))
    }

    /// A copy whose axis `i` is the axis with stride `strides[order[i]]`.
    fn permute(&mut self, tensor: &Tensor, strides: &[Dim], order: &[usize], layout: Layout) -> Tensor {
        let axes = tensor.shape.iter().zip(order);
        let op = Strided(
            axes.map(|(size, place)| whole((*size, strides[*place])))
                .collect(),
        );
        self.emit(op, vec![tensor.source], tensor.shape.clone(), layout)
    }

    /// Whether axes in another order are the same in memory: all but those of size one keep theirs.
    fn is_free(shape: &[Dim], order: &[usize]) -> bool {
        let moved = order.iter().enumerate();
        let is_one = |axis: usize| shape[axis] == Dim::ONE;
        let mut kept: Vec<(usize, usize)> = moved
            .filter(|(axis, _)| !is_one(*axis))
            .map(|(a, b)| (*b, a))
            .collect();
        kept.sort_unstable();
        kept.windows(2).all(|pair| pair[0].1 < pair[1].1)
    }

    /// The tensor by name with channels innermost, remembered so that the next reader has it too.
    fn picture(&mut self, name: &str) -> Lowered<Tensor> {
        let tensor = self.tensor(name)?;
        let tensor = self.channels_last(&tensor)?;
        self.set(name, tensor.clone());
        Ok(tensor)
    }

    fn operation(&mut self, operation: &Operation<'_>) -> Lowered<()> {
        if self.fold(operation)? {
            return Ok(());
        }
        let is_ours = operation.domain.is_empty()
            || operation.domain == "com.microsoft" && matches!(operation.op_type, "Gelu" | "FastGelu");
        if !is_ours {
            return Err(format!(
                "operators of `{}` have no derivative here",
                operation.domain
            ));
        }
        if self.elementwise(operation)? || self.layer(operation)? || self.shape(operation)? {
            return Ok(());
        }
        Err("it has no derivative here".to_owned())
    }
}

/// An axis that is taken as it is.
fn whole((size, stride): (Dim, Dim)) -> Axis {
    Axis {
        size,
        start: 0,
        step: 1,
        stride,
    }
}

//! Where a network can be cut in two: tensors that everything between input and output goes through.
//!
//! A tensor dominates the output if no path from the input leads around it. Nodes stand in topological order, so that
//! this can be seen in one sweep: behind a node after which one tensor alone is still to be read, that tensor dominates.
//! What depends on the input's sizes only (`Shape`, of graphs with a dynamic batch) or on a second input (an attention
//! mask) is no path; [`Boundary::is_sole`] says whether there is such a thing.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::graph::Model;
use super::tensor;

/// A tensor that every path from the input to the output goes through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Boundary {
    /// The tensor's name.
    pub name: String,
    /// The operator that makes it.
    pub op_type: String,
    /// What the exporter called that node; often a module path.
    pub node: String,
    /// That node's place in the file.
    pub node_idx: usize,
    /// Weights in front of it, in elements; shared ones count where they are used first.
    pub parameters_before: usize,
    /// Weights behind it.
    pub parameters_behind: usize,
    /// Its sizes, `None` where an axis is symbolic; `None` as a whole where the file does not tell.
    pub shape: Option<Vec<Option<usize>>>,
    /// Whether what is behind it needs nothing else from in front of it: no size of an earlier tensor, no second input.
    pub is_sole: bool,
    /// Whether it ends a block: behind the activation, on the residual stream.
    pub is_suggested: bool,
    /// Whether it is [`Model::default_boundary`].
    pub is_default: bool,
}

impl Model {
    /// Every tensor that dominates the first output, in the order from the input to the output; the input itself is not
    /// among them. Of several inputs, paths begin at `input_ids`, or else at the first.
    pub fn boundaries(&self) -> Vec<Boundary> {
        let sweep = Sweep::new(self);
        let found = sweep.run();
        let suggested = suggest(self, &sweep, &found);
        let default = self.default_boundary().ok();
        let n_parameters = found.n_parameters;
        let boundary = |(idx, at): (usize, &Found)| {
            let node = &self.nodes[at.node_idx];
            Boundary {
                name: at.name.to_owned(),
                op_type: node.op_type.clone(),
                node: node.name.clone(),
                node_idx: at.node_idx,
                parameters_before: at.parameters_before,
                parameters_behind: n_parameters - at.parameters_before,
                shape: self.infos.get(at.name).and_then(|info| info.about.shape.clone()),
                is_sole: at.is_sole,
                is_suggested: suggested.contains(&idx),
                is_default: default.as_deref() == Some(at.name),
            }
        };
        found.at.iter().enumerate().map(boundary).collect()
    }
}

/// What the sweep knows before it begins.
pub(super) struct Sweep<'m> {
    model: &'m Model,
    main: Option<&'m str>,
    producers: HashMap<&'m str, usize>,
    /// Nodes whose values depend on the main input's values, and that the output needs.
    pub(super) on_path: Vec<bool>,
    /// Tensors that depend on the main input's values.
    pub(super) dependent: HashSet<&'m str>,
    /// Of all other tensors, those that something in front decides all the same: the first node (counted from 1) whose
    /// result's sizes they come from, or 0 for an input.
    since: HashMap<&'m str, usize>,
}

struct Found<'m> {
    name: &'m str,
    node_idx: usize,
    parameters_before: usize,
    is_sole: bool,
}

struct All<'m> {
    at: Vec<Found<'m>>,
    n_parameters: usize,
}

impl<'m> Sweep<'m> {
    pub(super) fn new(model: &'m Model) -> Sweep<'m> {
        let main = model
            .inputs
            .iter()
            .find(|input| input.name == "input_ids")
            .or(model.inputs.first());
        let mut dependent: HashSet<&str> = main.map(|input| input.name.as_str()).into_iter().collect();
        // From input and initialisers on: what is neither dependent nor in here is constant.
        let others = model.inputs.iter().map(|input| (input.name.as_str(), 0));
        let mut since: HashMap<&str, usize> = others.filter(|(name, _)| !dependent.contains(name)).collect();
        let mut made_at: HashMap<&str, usize> = HashMap::new();
        let needed = model.ancestors(&[&model.outputs[0]]);
        let mut on_path = vec![false; model.nodes.len()];
        for (node_idx, node) in model.nodes.iter().enumerate() {
            let is_size = node.domain.is_empty() && matches!(node.op_type.as_str(), "Shape" | "Size");
            let outputs = node.outputs.iter().map(String::as_str);
            if !is_size && node.reads().any(|name| dependent.contains(name)) {
                on_path[node_idx] = needed[node_idx];
                made_at.extend(outputs.clone().map(|name| (name, node_idx + 1)));
                dependent.extend(outputs);
                continue;
            }
            let first = node
                .reads()
                .filter_map(|name| match since.get(name) {
                    Some(&at) => Some(at),
                    None if dependent.contains(name) => Some(made_at.get(name).copied().unwrap_or(0)),
                    None => None,
                })
                .min();
            if let Some(first) = first {
                since.extend(outputs.map(|name| (name, first)));
            }
        }
        Sweep {
            model,
            main: main.map(|input| input.name.as_str()),
            producers: model.producers(),
            on_path,
            dependent,
            since,
        }
    }

    fn run(&self) -> All<'m> {
        let model = self.model;
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for node_idx in self.nodes_on_path() {
            for name in self.reads(node_idx) {
                *uses.entry(name).or_default() += 1;
            }
        }
        *uses.entry(&model.outputs[0]).or_default() += 1;
        // Still to be read: at first the input, which can be read far behind.
        let mut live: HashSet<&str> = self
            .main
            .filter(|name| uses.contains_key(name))
            .into_iter()
            .collect();
        let mut seen = vec![false; model.nodes.len()];
        let mut counted: HashSet<&str> = HashSet::new();
        let mut n_parameters = 0;
        let mut at: Vec<Found<'m>> = Vec::new();
        // Spans of nodes over which something beside the dominators is carried.
        let mut carried: Vec<(usize, usize)> = Vec::new();
        for node_idx in self.nodes_on_path() {
            let node = &model.nodes[node_idx];
            for name in node.reads() {
                n_parameters += self.parameters_of(name, &mut seen, &mut counted);
                if let Some(&since) = self.since.get(name) {
                    carried.push((since, node_idx));
                }
            }
            for name in self.reads(node_idx) {
                let left = uses.get_mut(name).expect("counted above");
                *left -= 1;
                if *left == 0 {
                    live.remove(name);
                }
            }
            live.extend(
                node.outputs
                    .iter()
                    .map(String::as_str)
                    .filter(|name| uses.contains_key(name)),
            );
            if let (1, Some(name)) = (live.len(), live.iter().next())
                && node.outputs.iter().any(|output| output == name)
            {
                at.push(Found {
                    name,
                    node_idx,
                    parameters_before: n_parameters,
                    is_sole: true,
                });
            }
        }
        for found in &mut at {
            // Nodes are counted from 1 in `since`: the sizes of the boundary itself are known behind it.
            let node_idx = found.node_idx;
            found.is_sole = !carried
                .iter()
                .any(|&(since, to)| since < node_idx + 1 && to > node_idx);
        }
        All { at, n_parameters }
    }

    fn nodes_on_path(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.on_path
            .iter()
            .enumerate()
            .filter_map(|(idx, &on)| on.then_some(idx))
    }

    /// The dependent tensors that a node reads, each once.
    fn reads(&self, node_idx: usize) -> HashSet<&'m str> {
        let reads = self.model.nodes[node_idx].reads();
        reads.filter(|name| self.dependent.contains(name)).collect()
    }

    /// Elements of weights that `name` is or is computed from, and that were not counted before.
    fn parameters_of(&self, name: &'m str, seen: &mut [bool], counted: &mut HashSet<&'m str>) -> usize {
        let mut n = 0;
        let mut pending = vec![name];
        while let Some(name) = pending.pop() {
            if self.dependent.contains(name) {
                continue;
            }
            if let Some(found) = self.model.initializers.get(name) {
                // Integers of 64 bits are shapes and indices; 8-bit ones are quantised weights.
                let is_number = tensor::is_float(found.dtype) || matches!(found.dtype, 2 | 3 | 21 | 22);
                let is_weight = is_number && !found.shape.is_empty();
                if is_weight && counted.insert(&found.name) {
                    n += found.numel();
                }
            } else if let Some(&node_idx) = self.producers.get(name)
                && !std::mem::replace(&mut seen[node_idx], true)
            {
                let node = &self.model.nodes[node_idx];
                let constant = self
                    .model
                    .constant(node)
                    .filter(|found| tensor::is_float(found.dtype) && !found.shape.is_empty());
                n += constant.map_or(0, |found| found.numel());
                pending.extend(node.reads());
            }
        }
        n
    }
}

/// What lies between two dominators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// An activation or a normalisation, or numbers scaled: nothing that learns features.
    Light { is_activation: bool },
    /// Weighted branches that meet again; `attends` where one of them has a softmax.
    Block { attends: bool },
    /// Anything else.
    Other,
}

const ACTIVATIONS: [&str; 19] = [
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "Clip",
    "HardSwish",
    "HardSigmoid",
    "Gelu",
    "FastGelu",
    "BiasGelu",
    "QuickGelu",
    "Mish",
    "Swish",
    "Silu",
    "Softplus",
    "Tanh",
    "ThresholdedRelu",
];
const NORMS: [&str; 9] = [
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "GroupNorm",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "LpNormalization",
    "LRN",
];
/// Arithmetic that activations and normalisations are spelled with by exporters of older operator sets.
const ARITHMETIC: [&str; 17] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sqrt",
    "Reciprocal",
    "ReduceMean",
    "Erf",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "Softplus",
    "Clip",
    "Cast",
    "Identity",
    "Dropout",
];
/// Operators by which branches meet on a residual stream.
const MEETINGS: [&str; 5] = [
    "Add",
    "Sum",
    "Concat",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

/// Which of the dominators end a block.
fn suggest(model: &Model, sweep: &Sweep<'_>, found: &All<'_>) -> HashSet<usize> {
    let on_path: Vec<usize> = sweep.nodes_on_path().collect();
    let mut first = 0;
    let steps: Vec<Step> = found
        .at
        .iter()
        .map(|at| {
            let last = on_path.partition_point(|&node_idx| node_idx <= at.node_idx);
            let ops: Vec<&str> = on_path[std::mem::replace(&mut first, last)..last]
                .iter()
                .map(|&node_idx| model.nodes[node_idx].op_type.as_str())
                .collect();
            Step::of(&ops)
        })
        .collect();
    let is_light = |idx: usize| matches!(steps.get(idx), Some(Step::Light { .. }));
    let mut ends: Vec<(usize, bool)> = Vec::new();
    let mut idx = 0;
    while idx < steps.len() {
        match steps[idx] {
            Step::Block { attends } => {
                while is_light(idx + 1) {
                    idx += 1;
                }
                // Attention and the perceptron behind it are one block of a transformer.
                match ends.last_mut() {
                    Some(end) if end.1 && !attends => *end = (idx, false),
                    _ => ends.push((idx, attends)),
                }
            }
            Step::Light { is_activation: true } => ends.push((idx, false)),
            _ => {}
        }
        idx += 1;
    }
    ends.into_iter().map(|(idx, _)| idx).collect()
}

impl Step {
    fn of(ops: &[&str]) -> Step {
        let all_in = |set: &[&str]| ops.iter().all(|op| set.contains(op));
        match ops {
            [] => Step::Other,
            [op] if ACTIVATIONS.contains(op) => Step::Light { is_activation: true },
            [op] if NORMS.contains(op) || ARITHMETIC.contains(op) && *op != "ReduceMean" => {
                Step::Light { is_activation: false }
            }
            [_] => Step::Other,
            ops if all_in(&ARITHMETIC) => Step::Light {
                is_activation: ops.iter().any(|op| {
                    matches!(
                        *op,
                        "Erf" | "Sigmoid" | "Tanh" | "HardSigmoid" | "Softplus" | "Clip"
                    )
                }),
            },
            ops if ops.last().is_some_and(|op| MEETINGS.contains(op)) => Step::Block {
                attends: ops
                    .iter()
                    .any(|op| op.contains("Softmax") || op.contains("Attention")),
            },
            _ => Step::Other,
        }
    }
}

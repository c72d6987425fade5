//! Which tensor of a checkpoint goes where in a graph.
//!
//! By name where the exporter kept it; by the module that a node comes from where it did not: a transposed matrix of a
//! `Linear` is an initialiser without a name, and one tensor stands for several that were equal when the model was
//! exported. Equal here means that of an untrained model all ones and zeros are one, so that each use is looked at, and
//! not each initialiser.

use std::collections::{HashMap, HashSet};

use super::fold::{self, BatchNorm};
use super::module_path::module_paths;
use super::names::{Names, child, is_a_name, parent};
use crate::onnx::graph::Model;
use crate::onnx::node::Node;
use crate::onnx::tensor::Initializer;

/// A place where a node reads an initialiser.
#[derive(Debug, Clone)]
pub(super) struct Use<'m> {
    pub(super) node_idx: usize,
    /// None for what a subgraph of the node reads.
    pub(super) input_idx: Option<usize>,
    /// What the node reads: the initialiser's name, or that of an `Identity` of it.
    pub(super) operand: &'m str,
    pub(super) initializer: &'m Initializer,
    /// Modules that the node may come from.
    modules: Vec<String>,
}

/// Where the values of a use come from; names are the graph's.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    /// The tensor, its elements in the same order.
    Same(String),
    /// The matrix, transposed.
    Transposed(String),
    /// A convolution's kernel with the batch normalisation behind it folded in.
    FoldedKernel(BatchNorm),
    /// What is then added.
    FoldedBias(BatchNorm),
    /// Of the right name and another shape.
    Mismatch(String),
    /// Nothing in the checkpoint fits.
    Nothing,
}

impl<'m> Use<'m> {
    /// Every place in the graph where a node reads an initialiser, itself or through `Identity`.
    pub(super) fn all(model: &'m Model) -> Vec<Use<'m>> {
        let aliases = aliases(model);
        let find = |name: &str| {
            let name = aliases.get(name).copied().unwrap_or(name);
            model.initializers.get(name)
        };
        let mut uses = Vec::new();
        for (node_idx, node) in model.nodes.iter().enumerate() {
            if node
                .outputs
                .iter()
                .any(|output| aliases.contains_key(output.as_str()))
            {
                continue;
            }
            let direct = node
                .inputs
                .iter()
                .enumerate()
                .map(|(idx, name)| (Some(idx), name));
            let captured = node.captured.iter().map(|name| (None, name));
            let mut modules = None;
            for (input_idx, operand) in direct.chain(captured) {
                if let Some(initializer) = find(operand) {
                    let modules = modules.get_or_insert_with(|| module_paths(model, node));
                    uses.push(Use {
                        node_idx,
                        input_idx,
                        operand,
                        initializer,
                        modules: modules.clone(),
                    });
                }
            }
        }
        uses
    }

    /// Names that a checkpoint could have for it, if it were exported as it was saved.
    pub(super) fn wanted(&self, model: &Model) -> Vec<String> {
        let mut wanted = vec![self.operand.to_owned()];
        if let Some(leaf) = self.leaf(&model.nodes[self.node_idx]) {
            wanted.extend(self.modules.iter().map(|module| child(module, leaf)));
        }
        wanted
    }

    /// What the operand is called in a module of PyTorch, for operators that are modules.
    pub(super) fn leaf(&self, node: &Node) -> Option<&'static str> {
        if !node.domain.is_empty() {
            return None;
        }
        match (node.op_type.as_str(), self.input_idx?) {
            ("Conv" | "ConvTranspose" | "Gemm", 1) => Some("weight"),
            ("Conv" | "ConvTranspose" | "Gemm", 2) => Some("bias"),
            ("MatMul", _) => Some("weight"),
            (
                "LayerNormalization" | "GroupNormalization" | "InstanceNormalization" | "RMSNormalization",
                1,
            ) => Some("weight"),
            ("LayerNormalization" | "GroupNormalization" | "InstanceNormalization", 2) => Some("bias"),
            ("BatchNormalization", 1) => Some("weight"),
            ("BatchNormalization", 2) => Some("bias"),
            ("BatchNormalization", 3) => Some("running_mean"),
            ("BatchNormalization", 4) => Some("running_var"),
            ("PRelu", 1) => Some("weight"),
            ("Gather", 0) => Some("weight"),
            ("Mul", _) => Some("weight"),
            ("Add", _) => Some("bias"),
            _ => None,
        }
    }

    /// Whether it is what the node multiplies by: what a trained model cannot do without.
    pub(super) fn is_weight_of(&self, node: &Node) -> bool {
        let is_linear = matches!(
            node.op_type.as_str(),
            "Conv" | "ConvTranspose" | "Gemm" | "MatMul"
        );
        is_linear && node.domain.is_empty() && self.initializer.shape.len() >= 2
    }
}

/// Outputs of `Identity` nodes that pass an initialiser on, with its name.
pub(super) fn aliases(model: &Model) -> HashMap<&str, &str> {
    let mut aliases: HashMap<&str, &str> = HashMap::new();
    for node in model
        .nodes
        .iter()
        .filter(|node| node.op_type == "Identity" && node.domain.is_empty())
    {
        if let ([input], [output]) = (node.inputs.as_slice(), node.outputs.as_slice()) {
            let of = aliases.get(input.as_str()).copied().unwrap_or(input);
            if model.initializers.contains_key(of) {
                aliases.insert(output, of);
            }
        }
    }
    aliases
}

/// Where the values of a graph come from.
pub(super) struct Resolved {
    /// In the order of the uses.
    pub(super) places: Vec<Place>,
    /// Biases that were left out of the graph because they were zero.
    pub(super) biases: Vec<AddedBias>,
}

/// A third input for a node that has two.
#[derive(Debug, Clone)]
pub(super) struct AddedBias {
    pub(super) node_idx: usize,
    pub(super) place: Place,
    /// `TensorProto.DataType`.
    pub(super) dtype: i64,
    pub(super) n_channels: usize,
}

/// Finds where each use gets its values from.
///
/// # Errors
/// A batch normalisation that was folded, and that cannot be told.
pub(super) fn resolve(
    model: &Model,
    uses: &[Use<'_>],
    names: &Names<'_>,
    default_eps: f64,
) -> Result<Resolved, String> {
    let mut places: Vec<Place> = uses.iter().map(|at| resolve_one(model, at, names)).collect();
    by_shape(model, uses, names, &mut places);
    let folded = fold::find(model, uses, &places, names, default_eps)?;
    for (use_idx, place) in folded.places {
        places[use_idx] = place;
    }
    // A kernel that lost its name and was not folded was changed in a way that nothing here knows.
    for (at, place) in uses.iter().zip(&mut places) {
        let is_kernel = matches!(
            model.nodes[at.node_idx].op_type.as_str(),
            "Conv" | "ConvTranspose"
        ) && at.input_idx == Some(1);
        let is_named = names.get(at.operand).is_some() || is_a_name(at.operand);
        if is_kernel && !is_named && matches!(place, Place::Same(_)) {
            *place = Place::Nothing;
        }
    }
    let added = |node_idx: usize, kernel_idx: usize, place: Place, n_channels: usize| AddedBias {
        node_idx,
        place,
        dtype: uses[kernel_idx].initializer.dtype,
        n_channels,
    };
    let mut biases: Vec<AddedBias> = Vec::new();
    for (node_idx, kernel_idx, place) in folded.added {
        let n_channels = uses[kernel_idx].initializer.shape.first().copied().unwrap_or(0);
        biases.push(added(node_idx, kernel_idx, place, n_channels));
    }
    for (kernel_idx, at) in uses.iter().enumerate() {
        let node = &model.nodes[at.node_idx];
        let is_layer = node.domain.is_empty() && matches!(node.op_type.as_str(), "Conv" | "Gemm");
        let (2, Some(1), true, Place::Same(weight)) =
            (node.inputs.len(), at.input_idx, is_layer, &places[kernel_idx])
        else {
            continue;
        };
        let bias = child(parent(weight), "bias");
        let n_channels = names.shape(weight).and_then(|shape| shape.first().copied());
        if let (Some(&[n]), Some(n_channels), true) =
            (names.shape(&bias), n_channels, weight.ends_with("weight"))
            && n == n_channels
        {
            biases.push(added(at.node_idx, kernel_idx, Place::Same(bias), n));
        }
    }
    Ok(Resolved { places, biases })
}

fn resolve_one(model: &Model, at: &Use<'_>, names: &Names<'_>) -> Place {
    let node = &model.nodes[at.node_idx];
    let shape = at.initializer.shape.as_slice();
    let by_name = names.get(at.operand).map(|_| at.operand);
    let by_module = at.leaf(node).and_then(|leaf| {
        at.modules.iter().map(|module| child(module, leaf)).find(|name| {
            let given = names.shape(name);
            given.is_some_and(|given| fits(model, at, given) != Fit::No)
        })
    });
    match (by_name, by_module) {
        // One tensor for several that were equal: the module tells which is meant.
        (Some(name), Some(other)) if name != other => Place::Same(other),
        (Some(name), _) => match names.shape(name) {
            Some(given) if given == shape => Place::Same(name.to_owned()),
            _ => Place::Mismatch(name.to_owned()),
        },
        (None, Some(name)) => {
            let given = names.shape(&name).unwrap_or_default();
            match fits(model, at, given) {
                Fit::Transposed => Place::Transposed(name),
                _ => Place::Same(name),
            }
        }
        (None, None) => Place::Nothing,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Same,
    Transposed,
    No,
}

/// How a checkpoint's tensor of that shape would go into an operand that has lost its name.
fn fits(model: &Model, at: &Use<'_>, given: &[usize]) -> Fit {
    let node = &model.nodes[at.node_idx];
    let shape = at.initializer.shape.as_slice();
    match (node.op_type.as_str(), given) {
        // `x @ weight.T` with the transpose done at export; a `Linear` never multiplies by its weight as it is stored.
        ("MatMul", &[rows, columns]) if at.input_idx == Some(1) && shape == [columns, rows] => {
            Fit::Transposed
        }
        ("MatMul", _) => Fit::No,
        ("Gemm", &[rows, columns]) if at.input_idx == Some(1) && model.integer(node, "transB") != Some(1) => {
            if shape == [columns, rows] {
                Fit::Transposed
            } else {
                Fit::No
            }
        }
        // Per channel, with axes of one element around.
        ("Mul" | "Add", _) => {
            let squeezed = |shape: &[usize]| {
                shape
                    .iter()
                    .copied()
                    .filter(|&size| size != 1)
                    .collect::<Vec<_>>()
            };
            let is_vector = given.len() == 1 && !shape.is_empty();
            if is_vector && squeezed(shape) == squeezed(given) {
                Fit::Same
            } else {
                Fit::No
            }
        }
        _ if given == shape => Fit::Same,
        _ => Fit::No,
    }
}

/// Places what lost its name and is no `weight` or `bias`: the one tensor of the node's module that is left over and
/// fits, as the projection of an attention (`in_proj_weight`) or the scale of a layer (`gamma`, kept with axes around it).
fn by_shape(model: &Model, uses: &[Use<'_>], names: &Names<'_>, places: &mut [Place]) {
    let mut known: HashSet<String> = uses.iter().map(|at| at.operand.to_owned()).collect();
    for place in &*places {
        if let Place::Same(name) | Place::Transposed(name) | Place::Mismatch(name) = place {
            known.insert(name.clone());
        }
    }
    let mut found: HashMap<String, Vec<usize>> = HashMap::new();
    for (use_idx, at) in uses
        .iter()
        .enumerate()
        .filter(|(idx, _)| places[*idx] == Place::Nothing)
    {
        let fit = match (model.nodes[at.node_idx].op_type.as_str(), at.input_idx) {
            ("MatMul", Some(1)) => Fit::Transposed,
            ("Mul", Some(_)) => Fit::Same,
            _ => continue,
        };
        for module in &at.modules {
            let is_left = |name: &&str| {
                let given = names.shape(name);
                !known.contains(*name) && given.is_some_and(|given| fits(model, at, given) == fit)
            };
            let mut left = names.in_module(module).filter(is_left);
            if let (Some(name), None) = (left.next(), left.next()) {
                found.entry(name.to_owned()).or_default().push(use_idx);
                break;
            }
        }
    }
    for (name, use_idxs) in found {
        // Two tensors of the graph would be one of the checkpoint: then it is not told.
        let first = uses[use_idxs[0]].initializer;
        if use_idxs
            .iter()
            .any(|&idx| uses[idx].initializer.name != first.name)
        {
            continue;
        }
        for use_idx in use_idxs {
            let is_matrix = model.nodes[uses[use_idx].node_idx].op_type == "MatMul";
            places[use_idx] = if is_matrix {
                Place::Transposed(name.clone())
            } else {
                Place::Same(name.clone())
            };
        }
    }
}

/// Modules of batch normalisations that the graph has nodes for.
pub(super) fn batch_norms(model: &Model, uses: &[Use<'_>], places: &[Place]) -> HashSet<String> {
    let mut found = HashSet::new();
    for (at, place) in uses.iter().zip(places) {
        if let ("BatchNormalization", Place::Same(name)) = (model.nodes[at.node_idx].op_type.as_str(), place)
        {
            found.insert(parent(name).to_owned());
        }
    }
    found
}

/// The module of a convolution, and the first reading of the node's own.
pub(super) struct Convolution<'u> {
    pub(super) kernel_idx: usize,
    pub(super) bias_idx: Option<usize>,
    pub(super) node_idx: usize,
    pub(super) modules: &'u [String],
    pub(super) kernel: &'u Initializer,
}

/// The convolutions of a graph whose kernels are initialisers.
pub(super) fn convolutions<'u>(model: &Model, uses: &'u [Use<'_>]) -> Vec<Convolution<'u>> {
    let mut found: Vec<Convolution<'u>> = Vec::new();
    for (use_idx, at) in uses.iter().enumerate() {
        let node = &model.nodes[at.node_idx];
        if node.op_type != "Conv" || !node.domain.is_empty() {
            continue;
        }
        match at.input_idx {
            Some(1) => found.push(Convolution {
                kernel_idx: use_idx,
                bias_idx: None,
                node_idx: at.node_idx,
                modules: &at.modules,
                kernel: at.initializer,
            }),
            // Inputs of a node come one after the other.
            Some(2) => {
                if let Some(last) = found.last_mut().filter(|last| last.node_idx == at.node_idx) {
                    last.bias_idx = Some(use_idx);
                }
            }
            _ => {}
        }
    }
    found
}

//! What a fine-tuned network leaves: the graph with its weights, and a state dict that torch loads strictly.

use std::collections::{HashMap, HashSet};

use pth::{DType, Tensor};
use surgery::{Group as MarkedGroup, LazyEntry, LazyStateDict, LazyTensor, LazyValue, is_buffer_name};

use super::network::Network;
use super::run::Snapshot;
use crate::error::Error;
use crate::onnx::{Model, Parameter};

/// The checkpoint that a graph's weights came from: its names, its order, and what it holds that the graph does not.
#[derive(Debug, Clone)]
pub struct Origin {
    /// All of it.
    pub tensors: LazyStateDict,
    /// In front of its names and not of the graph's.
    pub prefix_in_checkpoint: String,
    /// In front of the graph's names and not of its own.
    pub prefix_in_graph: String,
}

impl Origin {
    /// What the checkpoint calls a tensor of the graph.
    fn name_of(&self, name: &str) -> String {
        let bare = name.strip_prefix(self.prefix_in_graph.as_str()).unwrap_or(name);
        format!("{}{bare}", self.prefix_in_checkpoint)
    }
}

/// A network's graph and state dict by the weights of a snapshot.
pub(crate) struct Written {
    /// The whole graph. What was frozen has the bytes that it had.
    pub(crate) model: Model,
    /// Every tensor, frozen ones marked so.
    pub(crate) tensors: LazyStateDict,
    /// Whether names and order are those of the checkpoint that the weights came from.
    pub(crate) is_as_origin: bool,
}

/// Names of initialisers that a snapshot has other values of than the network began with: those that were trained, and the
/// running statistics that moved with them.
fn changed(network: &Network, snapshot: &Snapshot) -> HashSet<String> {
    let n_groups = network.stages[snapshot.stage].n_groups;
    let trained = network.groups[..n_groups].iter().flat_map(|group| &group.members);
    let mut names: HashSet<String> = trained
        .map(|&at| network.parameters[at].initializer.clone())
        .collect();
    let layers: HashSet<usize> = network
        .parameters
        .iter()
        .filter(|parameter| snapshot.norm_batches.contains_key(&parameter.initializer))
        .map(|parameter| parameter.node_idx)
        .collect();
    let moved = network
        .parameters
        .iter()
        .filter(|at| at.is_buffer && layers.contains(&at.node_idx));
    names.extend(moved.map(|parameter| parameter.initializer.clone()));
    names
}

/// # Errors
/// As [`Model::with_values`].
pub(crate) fn written(
    network: &Network,
    snapshot: &Snapshot,
    origin: Option<&Origin>,
) -> Result<Written, Error> {
    let changed = changed(network, snapshot);
    let of_snapshot = |name: &String| Some((name.clone(), snapshot.weights.get(name)?.clone()));
    let values: HashMap<String, Vec<f32>> = changed.iter().filter_map(of_snapshot).collect();
    let model = network.model.with_values(&values)?;
    let by_origin = origin.and_then(|origin| {
        let named = |name: &str| origin.name_of(name);
        let mut tensors = origin.tensors.clone();
        let fits = |at: &Parameter| {
            let given = tensors.tensor(&named(&at.name));
            let is_head = at.name.starts_with(&format!("{}.", network.module));
            is_head || given.is_some_and(|given| given.shape() == at.state_shape())
        };
        // Where the exporter folded normalisations into convolutions, the checkpoint's tensors are no more.
        if !network
            .parameters
            .iter()
            .filter(|at| changed.contains(&at.initializer))
            .all(fits)
        {
            return None;
        }
        let from_graph = network.parameters.iter().filter(|at| {
            let loaded = network
                .loaded
                .as_ref()
                .is_some_and(|report| report.loaded.contains(&at.name));
            changed.contains(&at.initializer) || loaded
        });
        for parameter in from_graph {
            tensors.insert(named(&parameter.name), entry(&model, parameter)?);
        }
        for (initializer, &batches) in &snapshot.norm_batches {
            let mean = network
                .parameters
                .iter()
                .find(|at| at.initializer == *initializer)?;
            count_batches(&mut tensors, &named(&mean.name), batches);
        }
        Some((tensors, named(&network.module)))
    });
    let is_as_origin = by_origin.is_some();
    let (mut tensors, named) = match by_origin {
        Some((tensors, _)) => (tensors, origin),
        None => (of_graph(&model, &network.parameters), None),
    };
    mark(&mut tensors, network, snapshot, &|name| {
        named.map_or_else(|| name.to_owned(), |origin| origin.name_of(name))
    });
    Ok(Written {
        model,
        tensors,
        is_as_origin,
    })
}

/// All parameters of a graph, in the order in which it reads them.
fn of_graph(model: &Model, parameters: &[Parameter]) -> LazyStateDict {
    let mut tensors = LazyStateDict::default();
    for parameter in parameters {
        if let Some(entry) = entry(model, parameter) {
            tensors.insert(parameter.name.clone(), entry);
        }
    }
    tensors
}

/// A parameter's numbers as a state dict has them.
fn entry(model: &Model, parameter: &Parameter) -> Option<LazyEntry> {
    let values = model.values(&parameter.initializer)?;
    let turned = parameter.turned(&values, &parameter.shape);
    let bytes = turned.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = Tensor::from_bytes(DType::Float32, &parameter.state_shape(), bytes).ok()?;
    Some(LazyEntry::unmarked(LazyTensor::stored(tensor)))
}

/// Adds to the batches that a batch normalisation has seen, where the state dict counts them.
fn count_batches(tensors: &mut LazyStateDict, running_mean: &str, batches: u64) {
    let Some(module) = running_mean.strip_suffix("running_mean") else {
        return;
    };
    let name = format!("{module}num_batches_tracked");
    let Some(old) = tensors.tensor(&name).filter(|old| old.dtype() == DType::Int64) else {
        return;
    };
    let shape = old.shape().to_vec();
    let Some(before) = old
        .to_bytes()
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .map(i64::from_le_bytes)
    else {
        return;
    };
    let after = before.saturating_add(i64::try_from(batches).unwrap_or(i64::MAX));
    if let Ok(tensor) = Tensor::from_bytes(DType::Int64, &shape, after.to_le_bytes().to_vec()) {
        tensors.insert(name, LazyEntry::unmarked(LazyTensor::stored(tensor)));
    }
}

/// Marks what was trained as trainable and every other parameter as frozen, and notes the groups, from the input to the
/// output as state dicts have them.
fn mark(tensors: &mut LazyStateDict, network: &Network, snapshot: &Snapshot, named: &dyn Fn(&str) -> String) {
    let n_groups = network.stages[snapshot.stage].n_groups;
    let top = network.groups.first().map_or(1.0, |group| group.lr);
    let mut group_of: HashMap<String, usize> = HashMap::new();
    tensors.groups.clear();
    for (at, group) in network.groups.iter().enumerate() {
        let place = network.groups.len() - 1 - at;
        group_of.extend(
            group
                .members
                .iter()
                .map(|&at| (named(&network.parameters[at].name), place)),
        );
        let scale = if top > 0.0 { group.lr / top } else { 1.0 };
        tensors.groups.insert(
            0,
            MarkedGroup {
                name: group.name.clone(),
                lr_scale: scale,
            },
        );
    }
    let trained: HashSet<String> = network.groups[..n_groups]
        .iter()
        .flat_map(|group| &group.members)
        .map(|&at| named(&network.parameters[at].name))
        .collect();
    for (name, entry) in tensors.iter_mut() {
        let is_float = match &entry.value {
            LazyValue::Tensor(tensor) => tensor.dtype().is_float(),
            LazyValue::Record(_) => false,
        };
        entry.is_parameter = is_float && !is_buffer_name(name);
        entry.requires_grad = trained.contains(name);
        entry.group = group_of.get(name).copied();
    }
}

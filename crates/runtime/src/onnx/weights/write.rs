//! The graph again with other values: initialisers replaced where they stand, and taken apart where one stood for several.

use std::collections::{HashMap, HashSet};

use pth::{DType, Source, Tensor};
use rayon::prelude::*;
use surgery::LazyTensor;

use super::by_operand;
use super::names::{Names, child};
use super::resolve::{AddedBias, Place, Resolved, Use, aliases};
use crate::error::Error;
use crate::onnx::external::{External, raw_tensor};
use crate::onnx::graph::{MAX_PROTOBUF_BYTES, Model};
use crate::onnx::tensor::{Initializer, Payload, n_bytes, type_name};
use crate::onnx::wire::{self, Value};

/// Changes to a graph.
#[derive(Default)]
struct Edits<'m> {
    /// New values of initialisers, by name: the use that tells them.
    replaced: HashMap<&'m str, usize>,
    /// Further initialisers: their name, and the use that tells the values, or the initialiser that had them.
    added: Vec<(String, Content<'m>)>,
    /// `Identity` nodes whose outputs are initialisers now.
    dropped: HashSet<usize>,
    /// Inputs of nodes that get another name.
    renamed: HashMap<usize, Vec<(usize, String)>>,
}

enum Content<'m> {
    Of(usize),
    Old(&'m Initializer),
    /// One of the biases that the graph lacks.
    Bias(usize),
}

/// The graph with the values that `places` tells for `uses`.
pub(super) fn write(
    model: &Model,
    uses: &[Use<'_>],
    resolved: &Resolved,
    names: &Names<'_>,
) -> Result<Model, Error> {
    let Resolved { places, biases } = resolved;
    let edits = plan(model, uses, places, biases)?;
    let mut wanted: Vec<usize> = edits.replaced.values().copied().collect();
    wanted.extend(edits.added.iter().filter_map(|(_, content)| match content {
        Content::Of(use_idx) => Some(*use_idx),
        Content::Old(_) | Content::Bias(_) => None,
    }));
    let values: HashMap<usize, Vec<u8>> = wanted
        .into_par_iter()
        .map(|use_idx| {
            let like = uses[use_idx].initializer;
            let value = value(like.dtype, like.numel(), &places[use_idx], names)?;
            Ok((use_idx, value))
        })
        .collect::<Result<_, Error>>()?;
    let biases: Vec<Vec<u8>> = biases
        .iter()
        .map(|bias| value(bias.dtype, bias.n_channels, &bias.place, names))
        .collect::<Result<_, Error>>()?;
    assemble(model, uses, resolved, &edits, values, &biases)
}

fn plan<'m>(
    model: &'m Model,
    uses: &[Use<'m>],
    places: &[Place],
    biases: &[AddedBias],
) -> Result<Edits<'m>, Error> {
    let aliases = aliases(model);
    let makers = model.producers();
    let mut edits = Edits::default();
    let mut taken: HashSet<String> = model.initializers.keys().cloned().collect();
    taken.extend(makers.keys().map(|&name| name.to_owned()));
    taken.extend(model.inputs.iter().map(|input| input.name.clone()));
    let groups = by_operand(uses);
    for (operand, group) in &groups {
        let first = group.iter().find(|&&use_idx| places[use_idx] != Place::Nothing);
        let Some(&first) = first else { continue };
        let in_place = group.iter().all(|&use_idx| {
            places[use_idx] == places[first]
                && uses[use_idx].initializer.shape == uses[first].initializer.shape
        });
        let is_alias = aliases.contains_key(operand);
        if in_place && is_alias {
            edits.dropped.insert(makers[operand]);
            edits.added.push(((*operand).to_owned(), Content::Of(first)));
        } else if in_place {
            edits.replaced.insert(operand, first);
        } else {
            take_apart(model, uses, places, group, &mut taken, &mut edits)?;
        }
    }
    for (bias_idx, bias) in biases.iter().enumerate() {
        let wanted = match &bias.place {
            Place::FoldedBias(norm) => child(&norm.conv, "weight_bias"),
            Place::Same(name) => name.clone(),
            _ => continue,
        };
        let name = free(&wanted, &mut taken);
        edits.added.push((name.clone(), Content::Bias(bias_idx)));
        edits.renamed.entry(bias.node_idx).or_default().push((2, name));
    }
    // What passes changed values on and has no new ones itself keeps the old. Nodes are in order, so that a chain is
    // followed.
    let mut passing: Vec<(usize, &str, &str)> = aliases
        .iter()
        .map(|(alias, of)| (makers[alias], *alias, *of))
        .collect();
    passing.sort_unstable();
    for (node_idx, alias, of) in passing {
        let read = model.nodes[node_idx].inputs[0].as_str();
        let is_changed = edits.replaced.contains_key(read)
            || makers
                .get(read)
                .is_some_and(|maker| edits.dropped.contains(maker));
        if is_changed && edits.dropped.insert(node_idx) {
            edits
                .added
                .push((alias.to_owned(), Content::Old(&model.initializers[of])));
        }
    }
    Ok(edits)
}

/// Gives each use of an initialiser that stood for several its own.
fn take_apart<'m>(
    model: &'m Model,
    uses: &[Use<'m>],
    places: &[Place],
    group: &[usize],
    taken: &mut HashSet<String>,
    edits: &mut Edits<'m>,
) -> Result<(), Error> {
    let mut made: Vec<(&Place, String)> = Vec::new();
    for &use_idx in group {
        let (at, place) = (&uses[use_idx], &places[use_idx]);
        let wanted = match place {
            Place::Same(name) | Place::Transposed(name) => name,
            Place::FoldedKernel(norm) | Place::FoldedBias(norm) => &norm.conv,
            Place::Mismatch(_) | Place::Nothing => continue,
        };
        let Some(input_idx) = at.input_idx else {
            return Err(Error::Weights {
                path: model.path.clone(),
                faults: vec![format!(
                    "`{}` stands for several tensors, and a subgraph of {} reads it",
                    at.operand,
                    model.nodes[at.node_idx].title()
                )],
            });
        };
        let name = match made.iter().find(|(other, _)| *other == place) {
            Some((_, name)) => name.clone(),
            None => {
                let name = free(wanted, taken);
                edits.added.push((name.clone(), Content::Of(use_idx)));
                made.push((place, name.clone()));
                name
            }
        };
        edits
            .renamed
            .entry(at.node_idx)
            .or_default()
            .push((input_idx, name));
    }
    Ok(())
}

/// `wanted`, or a name near it where that is taken; taken from now on.
fn free(wanted: &str, taken: &mut HashSet<String>) -> String {
    let mut name = wanted.to_owned();
    let mut n = 0;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("{wanted}_{n}");
    }
    name
}

/// The elements that go into an initialiser, in its type.
fn value(dtype: i64, numel: usize, place: &Place, names: &Names<'_>) -> Result<Vec<u8>, Error> {
    let dtype = DType::from_name(type_name(dtype)).expect("types were compared");
    let given = |name: &str| names.tensor(name).expect("it was found there").cast(dtype);
    let rounded = |values: Vec<f64>| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor =
            Tensor::from_bytes(DType::Float64, &[values.len()], bytes).map_err(surgery::Error::Computed)?;
        Ok(LazyTensor::stored(tensor).cast(dtype).to_bytes()?)
    };
    match place {
        Place::Same(name) => Ok(given(name).to_bytes()?),
        Place::Transposed(name) => {
            let tensor = given(name);
            let columns = tensor.shape().get(1).copied().unwrap_or(1);
            Ok(transposed(&tensor.to_bytes()?, columns, dtype.size()))
        }
        Place::FoldedKernel(norm) => rounded(norm.kernel(names)?),
        Place::FoldedBias(norm) => rounded(norm.bias(names, numel)?),
        Place::Mismatch(_) | Place::Nothing => unreachable!("these have no values"),
    }
}

/// A row-major matrix of `columns` elements a row, transposed.
pub(super) fn transposed(bytes: &[u8], columns: usize, size: usize) -> Vec<u8> {
    /// Rows and columns that are moved together, so that both sides stay in the cache.
    const TILE: usize = 32;
    let rows = bytes.len() / (columns * size).max(1);
    let mut out = vec![0; bytes.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for column in first_column..columns.min(first_column + TILE) {
                    let (from, to) = ((row * columns + column) * size, (column * rows + row) * size);
                    out[to..to + size].copy_from_slice(&bytes[from..from + size]);
                }
            }
        }
    }
    out
}

fn assemble(
    model: &Model,
    uses: &[Use<'_>],
    resolved: &Resolved,
    edits: &Edits<'_>,
    mut values: HashMap<usize, Vec<u8>>,
    biases: &[Vec<u8>],
) -> Result<Model, Error> {
    let mut graph = Vec::with_capacity(model.bytes.len());
    let mut external: Vec<External> = Vec::new();
    let replaced: HashMap<usize, (&Initializer, usize)> = edits
        .replaced
        .iter()
        .map(|(name, use_idx)| (&model.initializers[*name], *use_idx))
        .map(|(initializer, use_idx)| (initializer.field.start, (initializer, use_idx)))
        .collect();
    let mut node_idx = 0;
    for field in &model.graph {
        let mut is_kept = true;
        if field.number == 1 {
            is_kept = !edits.dropped.contains(&node_idx);
            if let Some(renamed) = edits.renamed.get(&node_idx) {
                wire::put_bytes(&mut graph, 1, &with_inputs(model, node_idx, renamed));
                is_kept = false;
            }
            node_idx += 1;
        } else if let Some((initializer, use_idx)) = replaced.get(&field.span.start) {
            let value = values.remove(use_idx).expect("made above");
            debug_assert_eq!(n_bytes(initializer.dtype, initializer.numel()), Some(value.len()));
            if matches!(initializer.payload, Payload::External(_)) {
                external.push(External {
                    name: initializer.name.clone(),
                    dtype: initializer.dtype,
                    shape: initializer.shape.clone(),
                    data: Source::from_bytes(value),
                });
            } else {
                let tensor = raw_tensor(&initializer.name, initializer.dtype, &initializer.shape, &value);
                wire::put_bytes(&mut graph, 5, &tensor);
                is_kept = false;
            }
        }
        if is_kept {
            graph.extend_from_slice(&model.bytes[field.span.clone()]);
        }
    }
    for (name, content) in &edits.added {
        let tensor = match content {
            Content::Of(use_idx) => {
                let like = uses[*use_idx].initializer;
                raw_tensor(name, like.dtype, &like.shape, &values[use_idx])
            }
            Content::Old(like) => raw_tensor(name, like.dtype, &like.shape, &model.elements(like)),
            Content::Bias(bias_idx) => {
                let like = &resolved.biases[*bias_idx];
                raw_tensor(name, like.dtype, &[like.n_channels], &biases[*bias_idx])
            }
        };
        wire::put_bytes(&mut graph, 5, &tensor);
    }
    if graph.len() as u64 + 4096 > MAX_PROTOBUF_BYTES {
        return Err(Error::Weights {
            path: model.path.clone(),
            faults: vec![format!(
                "with a tensor of its own for each that was shared the graph has {} bytes, over protobuf's 2 GiB",
                graph.len()
            )],
        });
    }
    let mut bytes = Vec::with_capacity(graph.len() + 4096);
    for field in &model.top {
        match field.number {
            7 => wire::put_bytes(&mut bytes, 7, &graph),
            _ => bytes.extend_from_slice(&model.bytes[field.span.clone()]),
        }
    }
    drop(graph);
    let mut made = model.remade(bytes)?;
    for new in external {
        if let Some(old) = made.external.iter_mut().find(|old| old.name == new.name) {
            *old = new;
        }
    }
    Ok(made)
}

/// A node's message with other names for some of its inputs, or one more.
fn with_inputs(model: &Model, node_idx: usize, renamed: &[(usize, String)]) -> Vec<u8> {
    let mut message = Vec::new();
    let mut input_idx = 0;
    for field in wire::each(&model.bytes, model.nodes[node_idx].span.clone()).flatten() {
        if let (1, Value::Bytes(_)) = (field.number, &field.value) {
            let new = renamed.iter().find(|(idx, _)| *idx == input_idx);
            input_idx += 1;
            if let Some((_, name)) = new {
                wire::put_bytes(&mut message, 1, name.as_bytes());
                continue;
            }
        }
        message.extend_from_slice(&model.bytes[field.span]);
    }
    // Inputs are in order among themselves, wherever they stand in the message.
    for (_, name) in renamed.iter().filter(|(idx, _)| *idx >= input_idx) {
        wire::put_bytes(&mut message, 1, name.as_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::transposed;

    #[test]
    fn a_transposed_matrix_is_one_read_by_columns() {
        let (rows, columns) = (70usize, 45usize);
        let bytes: Vec<u8> = (0..rows * columns)
            .flat_map(|idx| (idx as u16).to_le_bytes())
            .collect();
        let out = transposed(&bytes, columns, 2);
        for row in 0..rows {
            for column in 0..columns {
                let at = (column * rows + row) * 2;
                assert_eq!(out[at..at + 2], ((row * columns + column) as u16).to_le_bytes());
            }
        }
        assert_eq!(transposed(&[], 0, 4), [0u8; 0]);
    }
}
